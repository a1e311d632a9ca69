"""The options of every verb that takes an image, on their own so that `run` loads no more than it needs."""

import os
from pathlib import Path

from secrun.cli.table import Arguments, Context
from secrun.errors import UsageError
from secrun.image.options import FetchOptions, PullPolicy
from secrun.image.platform import Platform
from secrun.image.progress import TerminalProgress

_INSECURE_OPTIONS = ("http", "image", "isolators")


def _insecure(args: Arguments) -> frozenset[str]:
    names = frozenset(word for item in args.many("insecure_options") for word in item.split(",") if word)
    for name in sorted(names - set(_INSECURE_OPTIONS)):
        raise UsageError(
            f"--insecure-options={name[:40]}: there is no such guard",
            hint=f"known: {', '.join(_INSECURE_OPTIONS)}",
            code="usage-insecure-options",
        )
    return names


def fetch_options(args: Arguments, context: Context) -> FetchOptions:
    """Read the options that every verb with an image takes; raises UsageError."""
    insecure = _insecure(args)
    platform, authfile, policy = args.text("platform"), args.text("authfile"), args.text("policy")
    return FetchOptions(
        pull=PullPolicy(args.required("pull")),
        platform=Platform.parse(platform) if platform else None,
        tls_verify=args.required("tls_verify") == "true",
        authfile=Path(authfile).absolute() if authfile else None,
        policy=Path(policy).absolute() if policy else None,
        insecure_image="image" in insecure,
        insecure_http="http" in insecure,
        insecure_isolators="isolators" in insecure,
        progress=TerminalProgress(context.err, os.environ),
    )
