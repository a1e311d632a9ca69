"""The signed heads of an audit log, and the key that signs them."""

import os
import time
from pathlib import Path

from secrun_attest import jcs
from secrun_attest.audit.chain import Chain, ChainError
from secrun_attest.audit.note import (
    MAX_NOTE,
    Checkpoint,
    Signer,
    Verifier,
    load_signer,
    load_verifier,
    open_checkpoint,
)
from secrun_attest.dsse import MAX_PEM
from secrun_attest.errors import FormatError
from secrun_attest.fields import Fields, parse_json
from secrun_attest.logstore import sync_directory

KEY_NAME, PUBLIC_NAME, HEADS_NAME = "key.pem", "key.pub", "checkpoints"


def signer(folder: Path, name: str) -> Signer:
    """Return the key of the audit log in `folder`, made under `name` if there is none; raises ChainError."""
    path = folder / KEY_NAME
    try:
        pem, public = _read(path, MAX_PEM), _read(folder / PUBLIC_NAME, MAX_NOTE)
    except FileNotFoundError:
        if (folder / HEADS_NAME).exists():
            raise ChainError(
                f"{path} is gone, and with it the key that signed the heads of this log",
                hint="put it back; or move the folder away: a new audit log with a new key begins",
                code="audit-key",
            ) from None
        return _made(folder, name)
    try:
        known = load_verifier(public, what=str(folder / PUBLIC_NAME))
        found = load_signer(known.name, pem, what=str(path))
    except FormatError as error:
        raise ChainError(error.message, hint=error.hint, code="audit-key") from error
    if found.verifier != known:
        raise ChainError(f"{path} is not the key of {PUBLIC_NAME} beside it", code="audit-key")
    return found


def public_key(folder: Path) -> Verifier | None:
    """Return the public key of the audit log in `folder`; None if it has none yet."""
    try:
        return load_verifier(_read(folder / PUBLIC_NAME, MAX_NOTE), what=str(folder / PUBLIC_NAME))
    except FileNotFoundError:
        return None


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(limit + 1)


def _made(folder: Path, name: str) -> Signer:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    made = Signer(name, key)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # The public part first: the private one being there says that both are.
    _write(folder / PUBLIC_NAME, f"{made.verifier.text()}\n".encode())
    _write(folder / KEY_NAME, pem)
    return made


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, path)
    sync_directory(path.parent)


def heads(folder: Path) -> list[bytes]:
    """Return the signed heads in the order in which they were made; raises ChainError."""
    try:
        data = (folder / HEADS_NAME).read_bytes()
    except FileNotFoundError:
        return []
    found: list[bytes] = []
    try:
        for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]:
            fields = Fields(parse_json(line, what="checkpoint", limit=2 * MAX_NOTE), "checkpoint")
            fields.integer("t")
            found.append(fields.text("note", limit=MAX_NOTE).encode())
            fields.done()
    except FormatError as error:
        raise ChainError(
            f"{folder / HEADS_NAME} is damaged: {error.message}", code="audit-damaged"
        ) from error
    return found


def sign_head(chain: Chain, key: Signer) -> tuple[Checkpoint, bytes]:
    """Sign the head of the log, keep it, and return it; one that is signed already is returned again.

    Raises ChainError if the last signed head is not how this log began: it went back, or was forked.
    """
    known = heads(chain.folder)
    head = Checkpoint(origin=key.verifier.name, size=chain.size, root=chain.frontier().root())
    if known:
        last = open_checkpoint(known[-1], key.verifier)
        if last.size > chain.size or chain.frontier(last.size).root() != last.root:
            raise ChainError(
                f"this log of {chain.size} leaves does not begin with the {last.size} that were signed last",
                hint="the folder was put back from a copy: bring back the newer one",
                code="audit-fork",
            )
        if last == head:
            return head, known[-1]
    note = key.note(head.text())
    _append(chain.folder / HEADS_NAME, jcs.encode({"t": time.time_ns() // 1_000_000, "note": note.decode()}))
    return head, note


def _append(path: Path, line: bytes) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.ftruncate(fd, os.pread(fd, size, 0).rfind(b"\n") + 1)  # a writer died here
        os.write(fd, line + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(path.parent)
