"""Open the source that a reference names."""

import os
from pathlib import Path

from secrun.errors import UsageError
from secrun.image import auth, retry, wire
from secrun.image.certs import CertificateDirs
from secrun.image.layout import LayoutSource
from secrun.image.options import FetchOptions
from secrun.image.proxy import ProxySettings
from secrun.image.reference import FileReference, RegistryReference, Transport
from secrun.image.registry import RegistryClient
from secrun.image.source import ImageSource


def _registry(reference: RegistryReference, options: FetchOptions) -> RegistryClient:
    http = wire.UrllibClient(
        tls_verify=options.tls_verify,
        certificates=CertificateDirs.of_user(os.environ),
        proxies=ProxySettings.of_environment(os.environ),
    )
    return RegistryClient(
        reference,
        http=http,
        credentials=lambda: auth.find(reference.repository, authfile=options.authfile),
        clock=retry.SystemClock(),
        tls_verify=options.tls_verify,
    )


def open_source(
    reference: RegistryReference | FileReference, options: FetchOptions, scratch: Path
) -> ImageSource:
    """Return a source for `reference`; archives are taken apart below `scratch`."""
    if isinstance(reference, RegistryReference):
        return _registry(reference, options)
    if reference.transport is Transport.OCI:
        return LayoutSource.of(reference)
    raise UsageError(f"{reference.transport} is not supported yet")
