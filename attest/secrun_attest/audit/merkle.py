"""A Merkle tree over the records of an audit log: roots, proofs, and where its hashes lie in one file.

Hashing: RFC 6962, 2.1. Proofs: RFC 9162, 2.1.3 and 2.1.4. The file holds each leaf's hash and behind it
those of the subtrees that it completed, 32 bytes each, so it only grows.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

from secrun_attest.errors import FormatError

HASH_SIZE = 32
# A tree of 2**64 leaves is 64 high.
MAX_HEIGHT = 64
EMPTY_ROOT = hashlib.sha256(b"").digest()

# Gives the hash of a whole subtree: its height, 0 for a leaf, and its number at that height.
ReadHash = Callable[[int, int], bytes]


class ProofError(FormatError):
    """A proof does not lead from what it is about to the root."""

    code = "audit-proof"


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


def stored_count(size: int) -> int:
    """Return how many hashes the file of a tree with `size` leaves holds."""
    return 2 * size - size.bit_count()


def stored_index(height: int, number: int) -> int:
    """Return where in the file the hash of a whole subtree lies, counted in hashes."""
    last = (number + 1 << height) - 1
    return stored_count(last) + height


class Frontier:
    """The first leaves of a tree, as the hashes of the whole subtrees that they fall into, largest first."""

    __slots__ = ("peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self.peaks = list(peaks)
        if size < 0 or len(self.peaks) != size.bit_count():
            raise ProofError(f"{len(self.peaks)} hashes cannot stand for the first {size} leaves")

    def append(self, leaf: bytes) -> list[bytes]:
        """Add the hash of a leaf; return it and those of the subtrees that it completes."""
        made = [leaf]
        bits = self.size
        while bits & 1:
            leaf = node_hash(self.peaks.pop(), leaf)
            made.append(leaf)
            bits >>= 1
        self.peaks.append(leaf)
        self.size += 1
        return made

    def root(self) -> bytes:
        """Return the root of the tree that ends here."""
        if not self.peaks:
            return EMPTY_ROOT
        found = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            found = node_hash(peak, found)
        return found


def frontier(read: ReadHash, size: int) -> Frontier:
    """Return the frontier of the first `size` leaves."""
    peaks: list[bytes] = []
    at = 0
    for height in reversed(range(size.bit_length())):
        if size >> height & 1:
            peaks.append(read(height, at >> height))
            at += 1 << height
    return Frontier(size, peaks)


def _split(size: int) -> int:
    """Return the largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _root(read: ReadHash, low: int, high: int) -> bytes:
    size = high - low
    if size & (size - 1) == 0:
        height = size.bit_length() - 1
        return read(height, low >> height)
    middle = low + _split(size)
    return node_hash(_root(read, low, middle), _root(read, middle, high))


def inclusion_proof(read: ReadHash, index: int, size: int) -> list[bytes]:
    """Return the proof that leaf `index` is in the tree of `size` leaves."""
    if not 0 <= index < size:
        raise ProofError(f"there is no leaf {index} among {size}")
    low, high = 0, size
    found: list[bytes] = []
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            found.append(_root(read, middle, high))
            high = middle
        else:
            found.append(_root(read, low, middle))
            low = middle
    return found[::-1]


def consistency_proof(read: ReadHash, old: int, size: int) -> list[bytes]:
    """Return the proof that the tree of `old` leaves is how that of `size` leaves began."""
    if not 0 <= old <= size:
        raise ProofError(f"{old} leaves are no beginning of {size}")
    if old in (0, size):
        return []
    return _subproof(read, old, 0, size, whole=True)


def _subproof(read: ReadHash, old: int, low: int, high: int, *, whole: bool) -> list[bytes]:
    if old == high:
        return [] if whole else [_root(read, low, high)]
    middle = low + _split(high - low)
    if old <= middle:
        return [*_subproof(read, old, low, middle, whole=whole), _root(read, middle, high)]
    return [*_subproof(read, old, middle, high, whole=False), _root(read, low, middle)]


def root_of_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Return the root that a proof of inclusion leads to from a leaf's hash (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or len(proof) > MAX_HEIGHT:
        raise ProofError("has a proof of inclusion that cannot be")
    place, last, found = index, size - 1, leaf
    for item in proof:
        if last == 0:
            raise ProofError("has a proof of inclusion that is too long")
        if place & 1 or place == last:
            found = node_hash(item, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, item)
        place, last = place >> 1, last >> 1
    if last != 0:
        raise ProofError("has a proof of inclusion that is too short")
    return found


def check_consistency(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Raise ProofError unless the tree of `old` leaves is how that of `size` began (RFC 9162, 2.1.4.2)."""
    if not 0 <= old <= size or len(proof) > MAX_HEIGHT:
        raise ProofError("has a proof of consistency that cannot be")
    if old in (0, size):
        if proof or old_root != (root if old else EMPTY_ROOT):
            raise ProofError(f"a tree of {old} leaves has another root")
        return
    _climb(old, old_root, size, root, list(proof))


def _climb(old: int, old_root: bytes, size: int, root: bytes, path: list[bytes]) -> None:
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise ProofError("has a proof of consistency that is too short")
    place, last = old - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    first = second = path[0]
    for item in path[1:]:
        if last == 0:
            raise ProofError("has a proof of consistency that is too long")
        if place & 1 or place == last:
            first, second = node_hash(item, first), node_hash(item, second)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            second = node_hash(second, item)
        place, last = place >> 1, last >> 1
    if last != 0 or (first, second) != (old_root, root):
        raise ProofError(f"the tree of {old} leaves is not how that of {size} began")
