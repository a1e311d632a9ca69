"""The verbs on signatures, and on images that travel with them."""

import os
import stat
from pathlib import Path

from secrun.cli.table import Arguments, Context
from secrun.errors import UsageError
from secrun.image import reference as references
from secrun.image import resolve
from secrun.image.entries import Entry
from secrun.image.options import FetchOptions
from secrun.image.platform import Platform
from secrun.image.reference import StoredReference
from secrun.image.store import ImageStore

# OpenSSL reads passphrases of at most 1,024 bytes.
PASSPHRASE_LIMIT = 1024


def read_file(path: Path, limit: int) -> bytes:
    """Return a file of at most `limit` bytes that the user named; raises UsageError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if len(data) > limit:
        raise UsageError(f"{path} is larger than {limit} bytes")
    return data


def read_passphrase(args: Arguments) -> bytes:
    """Return the first line of --passphrase-file; empty if none was given."""
    word = args.text("passphrase_file")
    if word is None:
        return b""
    return read_file(Path(word), 2 * PASSPHRASE_LIMIT).partition(b"\n")[0]


def _options(args: Arguments, *, platform: str | None = None) -> FetchOptions:
    authfile = args.text("authfile")
    return FetchOptions(
        platform=Platform.parse(platform) if platform else None,
        tls_verify=args.required("tls_verify") == "true",
        authfile=Path(authfile).absolute() if authfile else None,
    )


def sign(args: Arguments, context: Context) -> int:
    """Sign an image where it lies; prints what was signed."""
    from secrun.image import copy
    from secrun.trust import privatekey

    word = args.text("key")
    if word is None:
        raise UsageError("--key is missing", hint="secrun trust generate-key NAME makes one")
    path = Path(word)
    data = read_file(path, privatekey.MAX_KEY_BYTES)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        context.warn(f"warning: {path} can be read by others: chmod 600 {path}")
    key = privatekey.load(data, read_passphrase(args), source=str(path))
    place = copy.destination(args.required("image"), digest=True)
    identity = args.text("identity") or ""
    for digest in copy.sign(place, key, _options(args), identity=identity):
        context.out.write(f"{digest}\n")
    return 0


def push(args: Arguments, context: Context) -> int:
    """Write a stored image elsewhere."""
    word = args.required("image")
    if not isinstance(references.parse(word), StoredReference):
        entry = resolve.newest(_lookup(ImageStore(context.layout), word))
        word = entry.digest.hex
    return _copied(context, word, args, None)


def copy(args: Arguments, context: Context) -> int:
    """Copy an image from one place to another."""
    return _copied(context, args.required("source"), args, args.text("platform"))


def _copied(context: Context, source: str, args: Arguments, platform: str | None) -> int:
    from secrun.image import copy as copying

    options = _options(args, platform=platform)
    done = copying.copy(context.layout, source, args.required("target"), options)
    for note in done.notes:
        context.warn(f"note: {note}")
    context.out.write(f"{done.digest}\n")
    return 0


def _lookup(store: ImageStore, word: str) -> list[Entry]:
    return resolve.lookup(store.entries(), references.localize(references.parse(word)))
