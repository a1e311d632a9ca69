"""Signed notes and checkpoints: the head of an audit log, signed with the host's own Ed25519 key.

Forms: C2SP signed-note and tlog-checkpoint. A text, an empty line, and lines of a dash, the signer's name,
and base64 of the key's 4-byte id and the signature over the text.
"""

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING

from secrun_attest import frozen
from secrun_attest.audit.merkle import HASH_SIZE
from secrun_attest.dsse import SigningKey, load_public_key, load_signing_key
from secrun_attest.errors import FormatError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"
_DASH = "\u2014 "
_ID_SIZE = 4
# A checkpoint is three lines and one signature; witnesses may have added some.
MAX_NOTE = 16 * 1024
MAX_SIZE = 2**53 - 1
MAX_NAME = 255


class NoteError(FormatError):
    """A note, its signature or a key is not what it should be."""

    code = "audit-note"


class OtherKeyError(NoteError):
    """A note is signed, but not by the key that is trusted."""

    code = "audit-checkpoint-key"


@frozen.record
class Verifier:
    """A public key under the name that its notes carry; an empty name takes any."""

    name: str
    raw: bytes

    def key_id(self, name: str) -> bytes:
        """Return the id that this key has under `name`."""
        return hashlib.sha256(name.encode() + b"\n" + _ED25519 + self.raw).digest()[:_ID_SIZE]

    def text(self) -> str:
        """Return the key as tools for transparency logs write it: NAME+ID+KEY."""
        key = base64.b64encode(_ED25519 + self.raw).decode()
        return f"{self.name}+{self.key_id(self.name).hex()}+{key}"

    def pem(self) -> bytes:
        """Return the key as SubjectPublicKeyInfo in PEM."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self.key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def key(self) -> "Ed25519PublicKey":
        """Return the key itself."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        return Ed25519PublicKey.from_public_bytes(self.raw)

    def signed(self, signature: bytes, data: bytes) -> bool:
        """Tell whether this key signed `data`."""
        from cryptography.exceptions import InvalidSignature

        try:
            self.key().verify(signature, data)
        except InvalidSignature:
            return False
        return True


class Signer:
    """The private key of an audit log."""

    def __init__(self, name: str, key: "Ed25519PrivateKey") -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = key
        self.verifier = Verifier(
            name=name, raw=key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        )

    def dsse(self) -> SigningKey:
        """Return the key as envelopes are signed with it."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        info = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return SigningKey(id=hashlib.sha256(info).hexdigest(), key=self._key)

    def sign(self, data: bytes) -> bytes:
        """Return the signature over `data`."""
        return self._key.sign(data)

    def note(self, text: str) -> bytes:
        """Return `text`, which ends with a line feed, as a signed note."""
        verifier = self.verifier
        signature = base64.b64encode(verifier.key_id(verifier.name) + self.sign(text.encode())).decode()
        return f"{text}\n{_DASH}{verifier.name} {signature}\n".encode()


@frozen.record
class Checkpoint:
    """The head of a log: how many leaves, and the root over them."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return what is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def note_name(host: str) -> str:
    """Return the name under which the log of `host` signs: no blanks and no plus (signed-note)."""
    word = "".join("-" if char in " +" or not char.isprintable() else char for char in host)
    return f"secrun.dev/audit/{word}"[:MAX_NAME]


def load_signer(name: str, pem: bytes, *, what: str) -> Signer:
    """Read the private key of a log from PEM; raises FormatError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = load_signing_key(pem, what=what).key
    if not isinstance(key, Ed25519PrivateKey):
        raise NoteError(f"{what} is not an Ed25519 key", code="audit-key")
    return Signer(name, key)


def load_verifier(data: bytes, *, what: str) -> Verifier:
    """Read a public key, PEM or NAME+ID+KEY; raises FormatError."""
    if data.lstrip().startswith(b"-----"):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key = load_public_key(data, what=what).key
        if not isinstance(key, Ed25519PublicKey):
            raise NoteError(f"{what} is not an Ed25519 key", code="audit-key")
        return Verifier(name="", raw=key.public_bytes(Encoding.Raw, PublicFormat.Raw))
    return _parse_text(data[:MAX_NOTE].decode("utf-8", "replace").strip(), what)


def _parse_text(text: str, what: str) -> Verifier:
    name, _, rest = text.partition("+")
    key_id, _, key = rest.partition("+")
    data = _base64(key)
    if not name or data[:1] != _ED25519 or len(data) != 1 + HASH_SIZE:
        raise NoteError(f"{what} is neither PEM nor NAME+ID+KEY with an Ed25519 key", code="audit-key")
    verifier = Verifier(name=name, raw=data[1:])
    if verifier.key_id(name).hex() != key_id:
        raise NoteError(f"{what} has another id than its key", code="audit-key")
    return verifier


def open_note(data: bytes, verifier: Verifier) -> str:
    """Return the text of a note that `verifier` signed.

    Raises OtherKeyError if only others did, NoteError if it is malformed or the signature is false.
    """
    text, signatures = _parse(data)
    names: list[str] = []
    for name, blob in signatures:
        if verifier.name not in ("", name) or blob[:_ID_SIZE] != verifier.key_id(name):
            names.append(f"{name[:80]} {blob[:_ID_SIZE].hex()}")
            continue
        if not verifier.signed(blob[_ID_SIZE:], text.encode()):
            raise NoteError(f"the signature of {name[:80]!r} is not over this text", code="audit-signature")
        return text
    wanted = verifier.name or "the key that was given"
    raise OtherKeyError(f"signed by {', '.join(names) or 'nobody'}, expected {wanted[:80]}")


def _parse(data: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    if len(data) > MAX_NOTE:
        raise NoteError(f"a note has {len(data)} bytes, the limit is {MAX_NOTE}")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NoteError("a note is not UTF-8") from error
    # The last empty line counts: a text may have others.
    text, gap, lines = whole.rpartition("\n\n")
    if not gap or not lines.endswith("\n"):
        raise NoteError("a note has no signatures, or its end is missing")
    found: list[tuple[str, bytes]] = []
    for line in lines[:-1].split("\n"):
        name, _, blob = line.removeprefix(_DASH).partition(" ")
        if not line.startswith(_DASH) or not name:
            raise NoteError(f"{line[:60]!r} is not a signature of a note")
        found.append((name, _base64(blob)))
    return f"{text}\n", found


def _base64(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise NoteError(f"{text[:60]!r} is not base64") from error


def open_checkpoint(data: bytes, verifier: Verifier) -> Checkpoint:
    """Return the checkpoint that `verifier` signed; raises as `open_note` does."""
    return parse_checkpoint(open_note(data, verifier))


def parse_checkpoint(text: str) -> Checkpoint:
    """Parse the text of a checkpoint, further lines allowed; raises NoteError."""
    lines = text.split("\n")
    if len(lines) < 4 or not lines[0]:
        raise NoteError("a checkpoint has too few lines")
    size = lines[1]
    if not (
        size.isascii() and size.isdigit() and len(size) <= len(str(MAX_SIZE)) and str(int(size)) == size
    ):
        raise NoteError(f"a checkpoint has the size {size[:20]!r}")
    root = _base64(lines[2])
    if len(root) != HASH_SIZE:
        raise NoteError(f"a checkpoint has a root of {len(root)} bytes")
    return Checkpoint(origin=lines[0], size=int(size), root=root)
