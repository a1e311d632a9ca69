"""The verbs on trusted keys."""

import os
import sys
from pathlib import Path

from secrun.cli.sign import PASSPHRASE_LIMIT, read_file, read_passphrase
from secrun.cli.table import Arguments, Context
from secrun.cli.views import table, write_json
from secrun.errors import StateError, UsageError
from secrun.files import fsync_dir, write_atomic
from secrun.jsonio import JsonObject
from secrun.record import record
from secrun.trust import limits, ring
from secrun.trust.ring import KeyRing, RingKey

_LIST_SCHEMA = "secrun.dev/trust-list/v1"
_PLAN_SCHEMA = "secrun.dev/trust-plan/v1"
_SHORTEST = 8
_SHOWN_DIGITS = 16


@record
class _Described:
    """A key as people know it."""

    fingerprint: str
    kind: str
    names: tuple[str, ...]
    problem: str = ""


def _prefix(args: Arguments) -> str | None:
    """Return the prefix that was given, "" for --root, None for neither; raises UsageError for both."""
    word = args.text("prefix")
    if word is not None and args.flag("root"):
        raise UsageError("--prefix and --root are two different things", hint="give one of them")
    if args.flag("root"):
        return ""
    return None if word is None else ring.check_prefix(word.rstrip("/"))


def _describe(data: bytes, source: str) -> list[tuple[_Described, bytes]]:
    """Return the keys in a file; raises UsageError for one that cannot be used."""
    try:
        return _openpgp(data) if ring.is_openpgp(data) else [_pem(data)]
    except ValueError as error:
        raise UsageError(
            f"key {source}: {error}",
            hint="expected an OpenPGP key (gpg --export) or a public key in PEM",
            code="usage-key",
        ) from error


def _pem(data: bytes) -> tuple[_Described, bytes]:
    from secrun.trust import publickey

    key = publickey.load(data)
    return _Described(fingerprint=publickey.fingerprint(key), kind=publickey.kind(key), names=()), data


def _openpgp(data: bytes) -> list[tuple[_Described, bytes]]:
    import time

    from secrun.trust import openpgp

    found: list[tuple[_Described, bytes]] = []
    for certificate in openpgp.load(data):
        if certificate.has_secret_keys:
            raise ValueError("it holds a secret key: export the public one")
        bad = not openpgp.usable([certificate], time.time())
        described = _Described(
            fingerprint=openpgp.fingerprint(certificate),
            kind="OpenPGP",
            names=tuple(str(name) for name in certificate.user_ids),
            problem=("revoked" if certificate.is_revoked else "expired") if bad else "",
        )
        found.append((described, bytes(certificate)))
    if not found:
        raise ValueError("it holds no key")
    return found


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:200]


def _reviewed(context: Context, described: _Described, prefix: str, *, skip: bool) -> bool:
    """Show a key and ask whether it is the right one; raises UsageError where nobody can be asked."""
    scope = f"images of {prefix}" if prefix else "ANY image"
    context.err.write(f"key for {scope}:\n  {described.kind} {described.fingerprint}\n")
    for name in described.names:
        context.err.write(f"  {_printable(name)}\n")
    if described.problem:
        raise UsageError(f"key {described.fingerprint} is {described.problem}", code="usage-key")
    if skip:
        return True
    if not sys.stdin.isatty():
        raise UsageError(
            "nobody can be asked whether the fingerprint is right: standard input is no terminal",
            hint="compare it yourself and give --skip-fingerprint-review",
            code="usage-review",
        )
    context.err.write("Is this the key that you mean? Type yes or no: ")
    context.err.flush()
    return sys.stdin.readline().strip().lower() == "yes"


def add(args: Arguments, context: Context) -> int:
    """Put keys into the ring."""
    prefix = _prefix(args)
    if prefix is None:
        raise UsageError(
            "a key must be for something: implicit trust without bounds is refused",
            hint="give --prefix REGISTRY/NAME, or --root to trust it for any image",
            code="usage-prefix",
        )
    keys = KeyRing(context.layout.trust)
    status = 0
    for word in args.many("key"):
        for described, data in _describe(read_file(Path(word), limits.MAX_KEY_BYTES), word):
            if not _reviewed(context, described, prefix, skip=args.flag("skip_fingerprint_review")):
                context.err.write(f"secrun: note: {described.fingerprint} is not trusted\n")
                status = 1
                continue
            path = keys.path_of(prefix, described.fingerprint)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
            context.out.write(f"{path}\n")
    return status


def _kind(key: RingKey) -> str:
    return "openpgp" if key.is_openpgp else "pem"


def _row(key: RingKey) -> JsonObject:
    return {
        "prefix": key.prefix,
        "fingerprint": key.fingerprint,
        "kind": _kind(key),
        "path": str(key.path),
    }


def list_keys(args: Arguments, context: Context) -> int:
    """List the ring."""
    found = list(KeyRing(context.layout.trust).all())
    if args.text("format") == "json":
        write_json(context, {"schema": _LIST_SCHEMA, "keys": [_row(key) for key in found]})
        return 0
    rows = [(key.prefix or "(any image)", _kind(key), key.fingerprint) for key in found]
    table(context, ("PREFIX", "KIND", "FINGERPRINT"), rows, legend=not args.flag("no_legend"))
    return 0


def _matching(keys: list[RingKey], word: str) -> list[RingKey]:
    """Return the keys whose fingerprint begins with `word`; raises UsageError or StateError."""
    digits = word.lower().removeprefix("0x")
    if len(digits) < _SHORTEST or any(char not in "0123456789abcdef" for char in digits):
        raise UsageError(f"{word[:100]!r} is not at least {_SHORTEST} digits of a fingerprint")
    found = [key for key in keys if key.fingerprint.startswith(digits)]
    if len({key.fingerprint for key in found}) > 1:
        raise UsageError(f"{word[:100]!r} means several keys", hint="write more digits")
    if not found:
        raise StateError(f"no trusted key begins with {word[:100]!r}", hint="see secrun trust list")
    return found


def remove(args: Arguments, context: Context) -> int:
    """Take keys out of the ring."""
    prefix = _prefix(args)
    for word in args.many("fingerprint"):
        keys = [key for key in KeyRing(context.layout.trust).all() if prefix is None or key.prefix == prefix]
        for key in _matching(keys, word):
            key.path.unlink()
            fsync_dir(key.path.parent)
            context.out.write(f"{key.path}\n")
            _prune(key.path.parent, context.layout.trust)
    return 0


def _prune(folder: Path, top: Path) -> None:
    """Remove folders that hold no key any more."""
    while folder not in (top, top.parent) and not os.listdir(folder):
        folder.rmdir()
        folder = folder.parent


def show(args: Arguments, context: Context) -> int:
    """Show a key in full, or what is demanded of an image."""
    word = args.required("what")
    if "/" in word or ":" in word:
        return _show_plan(args, context, word)
    keys = _matching(list(KeyRing(context.layout.trust).all()), word)
    described = _describe(keys[0].data, str(keys[0].path))
    if args.text("format") == "json":
        rows: list[JsonObject] = [
            {**_row(key), "names": [*described[0][0].names], "problem": described[0][0].problem}
            for key in keys
        ]
        write_json(context, {"schema": _LIST_SCHEMA, "keys": rows})
        return 0
    one = described[0][0]
    context.out.write(f"fingerprint={one.fingerprint}\nkind={one.kind}\n")
    context.out.write("".join(f"name={_printable(name)}\n" for name in one.names))
    context.out.write(f"problem={one.problem}\n" if one.problem else "")
    context.out.write("".join(f"prefix={key.prefix or '(any image)'}\n" for key in keys))
    return 0


def _show_plan(args: Arguments, context: Context, word: str) -> int:
    from secrun.image import identity
    from secrun.image import reference as references
    from secrun.image.reference import StoredReference
    from secrun.trust import plan as plans

    reference = references.localize(references.parse(word))
    if isinstance(reference, StoredReference):
        raise UsageError(f"{word[:200]!r} is no reference with a registry or a transport")
    policy = args.text("policy")
    subject = identity.subject(reference)
    found = plans.load_for(subject, Path(policy) if policy else None, context.layout.trust).plan(subject)
    row: JsonObject = {
        "image": subject.name,
        "policy": found.policy_source,
        "scope": found.scope,
        "requirements": [*found.labels],
        "keys": [item.path or "(in the policy)" for item in found.key_files()],
        "rule": found.rule.source if found.rule else "",
    }
    if args.text("format") == "json":
        write_json(context, {"schema": _PLAN_SCHEMA, **row})
        return 0
    for name, value in row.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        context.out.write(f"{name}={shown}\n")
    return 0


def generate_key(args: Arguments, context: Context) -> int:
    """Make a key pair."""
    from secrun.trust import privatekey

    name = Path(args.required("name"))
    private, public = name.with_name(f"{name.name}.key"), name.with_name(f"{name.name}.pub")
    for path in (private, public):
        if path.exists():
            raise StateError(f"{path} exists already", hint="choose another name", code="state-target")
    passphrase = read_passphrase(args)
    if len(passphrase) > PASSPHRASE_LIMIT:
        raise UsageError(f"a passphrase has at most {PASSPHRASE_LIMIT} bytes")
    key = privatekey.generate()
    write_atomic(private, key.private_pem(passphrase), mode=0o600)
    write_atomic(public, key.public_pem)
    context.out.write(f"{private}\n{public}\n{key.fingerprint}\n")
    return 0
