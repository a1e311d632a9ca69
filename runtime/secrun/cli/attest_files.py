"""What the verbs of verifiers read: policies, keys and their Names; each error says from where."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from secrun.cli.table import Arguments
from secrun.errors import HostError, UsageError
from secrun_attest.dsse import MAX_PEM, SigningKey, TrustedKey, load_public_key, load_signing_key
from secrun_attest.errors import AttestError
from secrun_attest.policyfile import MAX_FILE, NO_MINIMUMS, OpenedPolicy, open_policies

# nameAlg in two bytes and a digest: SHA-256, SHA-384 or SHA-512.
NAME_SIZES = (34, 50, 66)
_NAME = re.compile(r"[0-9a-fA-F]+\Z")
_MAX_KEY_FILE = 64 << 10
_POLICY = "policy"


def need_cryptography() -> None:
    """Raise HostError if the library that checks signatures is not installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise HostError(
            "cryptography, which checks signatures, is not installed",
            hint="install secrun[verifier]",
            code="host-verifier",
        ) from error


def read_file(path: str, limit: int) -> bytes:
    """Return a file, or a byte more than `limit` of one that is larger; OSError names it."""
    with open(path, "rb") as stream:
        return stream.read(limit + 1)


@contextmanager
def usage_errors(where: str) -> Iterator[None]:
    """Turn what the attestation library says of a file into a UsageError that names it."""
    try:
        yield
    except AttestError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint, code=f"usage-{error.code}") from error


def trusted_keys(args: Arguments) -> tuple[TrustedKey, ...]:
    """Read the keys of --policy-key."""
    keys = []
    for path in args.many("policy_key"):
        with usage_errors(path):
            keys.append(load_public_key(read_file(path, MAX_PEM), what="the policy key"))
    return tuple(keys)


def signing_key(path: str) -> SigningKey:
    """Read a private key."""
    with usage_errors(path):
        return load_signing_key(read_file(path, MAX_PEM), what="the signing key")


def _relaxed(args: Arguments) -> bool:
    names = {word for item in args.many("insecure_options") for word in item.split(",") if word}
    for name in sorted(names - {_POLICY}):
        raise UsageError(
            f"--insecure-options={name[:40]}: there is no such guard",
            hint=f"known: {_POLICY}",
            code="usage-insecure-options",
        )
    return bool(names)


def opened_policy(
    args: Arguments, paths: Sequence[str], minimums: Mapping[str, int] = NO_MINIMUMS
) -> OpenedPolicy:
    """Open the policy in `paths` under --policy-key and --insecure-options; raises UsageError."""
    keys, relaxed = trusted_keys(args), _relaxed(args)
    if not keys and not relaxed:
        raise UsageError(
            "nothing says who may sign the policy",
            hint="--policy-key=PEM; or --insecure-options=policy to take one that nobody signed",
            code="usage-policy-key",
        )
    files = [read_file(path, MAX_FILE) for path in paths]
    with usage_errors(" ".join(paths)):
        return open_policies(
            files, keys, require_signature=not relaxed, now=int(time.time()), minimums=minimums
        )


def key_name(word: str) -> bytes:
    """Return the Name that `word` is, or that the file `word` holds in hex or as the key's TPM2B_PUBLIC."""
    from secrun_attest.wire import name_of, parse_public

    if _is_name(word):
        return bytes.fromhex(word)
    try:
        data = read_file(word, _MAX_KEY_FILE)
    except FileNotFoundError as error:
        raise UsageError(
            f"{word[:160]!r} is neither the Name of a key, in hex, nor a file", code="usage-ak"
        ) from error
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if _is_name(text):
        return bytes.fromhex(text)
    try:
        return name_of(parse_public(data))
    except AttestError as error:
        raise UsageError(
            f"{word} holds neither the Name of a key nor its public area: {error.message}",
            hint="tpm2_readpublic writes both: --name and --format=tss",
            code="usage-ak",
        ) from error


def _is_name(text: str) -> bool:
    return len(text) in {2 * size for size in NAME_SIZES} and _NAME.match(text) is not None


def hex_bytes(option: str, text: str, sizes: Sequence[int]) -> bytes:
    """Read an option in hex; raises UsageError."""
    if not _NAME.match(text) or len(text) not in {2 * size for size in sizes}:
        expected = " or ".join(str(2 * size) for size in sizes)
        raise UsageError(f"{option} is {text[:80]!r}, expected {expected} hex digits", code="usage-hex")
    return bytes.fromhex(text)


def write_out(args: Arguments, data: bytes) -> bool:
    """Write `data` to --out, whole or not at all; return False if there is none."""
    from secrun.files import write_atomic

    out = args.text("out")
    if out is None:
        return False
    write_atomic(Path(out).absolute(), data)
    return True
