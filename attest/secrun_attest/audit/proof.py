"""One leaf shown alone: its bytes, a proof of inclusion and the signed head, as C2SP tlog-proof has it."""

import base64
import binascii

from secrun_attest import frozen
from secrun_attest.audit import merkle
from secrun_attest.audit.chain import Chain
from secrun_attest.audit.note import MAX_NOTE, MAX_SIZE, Checkpoint, NoteError, Verifier, open_checkpoint
from secrun_attest.limits import MAX_EVENT_DATA

MAGIC = b"c2sp.org/tlog-proof@v1\n"
MAX_PROOF = MAX_NOTE + 2 * MAX_EVENT_DATA + 64 * merkle.MAX_HEIGHT


@frozen.record
class Shown:
    """A leaf that is proved to be in the log."""

    index: int
    data: bytes
    head: Checkpoint


def make_proof(chain: Chain, index: int, note: bytes, head: Checkpoint) -> bytes:
    """Return the proof of a leaf, whose bytes are its `extra` line; raises ProofError, ChainError."""
    path = merkle.inclusion_proof(chain.read_hash, index, head.size)
    data = next((data for _, data, _ in chain.leaves(index, index + 1)), None)
    if data is None:
        raise merkle.ProofError(f"leaf {index} was pruned: only its hash is left")
    lines = [f"extra {base64.b64encode(data).decode()}", f"index {index}"]
    lines += [base64.b64encode(item).decode() for item in path]
    return MAGIC + "\n".join(lines).encode() + b"\n\n" + note


def open_proof(data: bytes, key: Verifier) -> Shown:
    """Return the leaf that a proof shows; raises FormatError unless `key` signed a head that it is under."""
    if len(data) > MAX_PROOF or not data.startswith(MAGIC):
        raise NoteError("it is no proof of a leaf, or too large")
    body, gap, note = data[len(MAGIC) :].partition(b"\n\n")
    head = open_checkpoint(note, key)
    lines = body.decode("ascii", "replace").split("\n")
    if not gap or len(lines) < 2 or not lines[0].startswith("extra ") or not lines[1].startswith("index "):
        raise NoteError("a proof of a leaf has not its lines")
    number = lines[1].removeprefix("index ")
    if not (number.isascii() and number.isdigit() and len(number) <= len(str(MAX_SIZE))):
        raise NoteError(f"a proof is of leaf {number[:20]!r}")
    index, leaf = int(number), _base64(lines[0].removeprefix("extra "))
    path = [_base64(line) for line in lines[2:]]
    if merkle.root_of_inclusion(merkle.leaf_hash(leaf), index, head.size, path) != head.root:
        raise merkle.ProofError(f"leaf {index} does not lead to the root that was signed")
    return Shown(index=index, data=leaf, head=head)


def _base64(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise NoteError(f"{text[:60]!r} is not base64") from error
