"""Extra certificate authorities and client certificates per registry: containers-certs.d(5)."""

import os
from collections.abc import Mapping
from pathlib import Path

from secrun.errors import HostError
from secrun.record import record

_SYSTEM_DIRS = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
# Docker's name for its hub, under which certificates and credentials are kept.
_HOST_NAMES = {"registry-1.docker.io": "docker.io"}


def folder_name(netloc: str) -> str:
    """Return what the folder of a host is called."""
    return _HOST_NAMES.get(netloc, netloc)


@record
class Certificates:
    """Files that apply to one registry."""

    authorities: tuple[Path, ...] = ()
    clients: tuple[tuple[Path, Path], ...] = ()


@record
class CertificateDirs:
    """The folders that hold one folder per HOST[:PORT]; the first that has the host counts."""

    dirs: tuple[Path, ...] = _SYSTEM_DIRS

    @classmethod
    def of_user(cls, environ: Mapping[str, str]) -> "CertificateDirs":
        """Return the user's folder followed by the system's."""
        home = environ.get("HOME", "")
        own = (Path(home) / ".config/containers/certs.d",) if home else ()
        return cls(dirs=(*own, *_SYSTEM_DIRS))

    def hosts(self) -> tuple[str, ...]:
        """Return every host that has a folder; raises HostError for a folder that cannot be read."""
        found: set[str] = set()
        for directory in self.dirs:
            try:
                found.update(os.listdir(directory))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise HostError(f"{directory}: {error.strerror}", code="host-certs") from error
        return tuple(sorted(found))

    def find(self, netloc: str) -> Certificates:
        """Return what applies to `netloc`; raises HostError for a certificate without its key."""
        name = folder_name(netloc)
        for directory in self.dirs:
            try:
                names = sorted(os.listdir(directory / name))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise HostError(f"{directory / name}: {error.strerror}", code="host-certs") from error
            return _sort(directory / name, names)
        return Certificates()


def _sort(directory: Path, names: list[str]) -> Certificates:
    present = set(names)
    clients: list[tuple[Path, Path]] = []
    for name in names:
        stem, _, kind = name.rpartition(".")
        partner = {"cert": f"{stem}.key", "key": f"{stem}.cert"}.get(kind)
        if partner is None:
            continue
        if partner not in present:
            raise HostError(
                f"{directory / name} has no {partner} beside it",
                hint="a client certificate is NAME.cert with NAME.key; an authority is NAME.crt",
                code="host-certs",
            )
        if kind == "cert":
            clients.append((directory / name, directory / partner))
    return Certificates(
        authorities=tuple(directory / name for name in names if name.endswith(".crt")),
        clients=tuple(clients),
    )
