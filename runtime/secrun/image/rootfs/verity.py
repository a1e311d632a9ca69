"""dm-verity hash trees, format 1, with veritysetup's superblock in front.

Source: Documentation/admin-guide/device-mapper/verity.rst and the on-disk format wiki page of cryptsetup.
"""

import hashlib
import mmap
import os
import struct
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from secrun.image.rootfs.forks import run_shares

BLOCK = 4096
_DIGEST = 32
_PER_BLOCK = BLOCK // _DIGEST

# A salt keeps one pre-computed table from serving many volumes; here equal input must give equal bytes, so
# it is a constant: sha256("secrun rootfs image format 1").
SALT = bytes.fromhex("565c73dbf7e3b0b359f778a6375367e0289484401f31d346a5485f1f175d9df3")
UUID = bytes.fromhex("513193ecad2445ecbc2dc744cc6574e4")

_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")

# Blocks are read in runs of so many bytes: large enough to hide the system call, small enough for the cache.
_RUN = 1 << 20


def level_sizes(data_blocks: int) -> list[int]:
    """Return the number of hash blocks per level, the one next to the data first."""
    sizes = []
    count = data_blocks
    while count > 1:
        count = -(-count // _PER_BLOCK)
        sizes.append(count)
    return sizes


def tree_size(data_blocks: int) -> int:
    """Return the bytes that follow the data: one block with the superblock, then the levels."""
    return BLOCK * (1 + sum(level_sizes(data_blocks)))


def superblock(data_blocks: int) -> bytes:
    """Return the block that makes the tree self-describing for `veritysetup --hash-offset`."""
    fields = _SUPERBLOCK.pack(
        b"verity\0\0", 1, 1, UUID, b"sha256", BLOCK, BLOCK, data_blocks, len(SALT), SALT
    )
    return fields.ljust(BLOCK, b"\0")


def _hash_file_blocks(fd: int, first: int, last: int, out: memoryview) -> None:
    """Put the digests of blocks `first` to `last` (excluded) of `fd` into their places in `out`."""
    base = hashlib.sha256(SALT)
    buffer = memoryview(bytearray(_RUN))
    position = first * BLOCK
    end = last * BLOCK
    while position < end:
        want = min(_RUN, end - position)
        got = os.preadv(fd, [buffer[:want]], position)
        if got != want:
            raise EOFError(f"file ends at {position + got}, expected {end}")
        digests = bytearray()
        for offset in range(0, want, BLOCK):
            state = base.copy()
            state.update(buffer[offset : offset + BLOCK])
            digests += state.digest()
        place = position // BLOCK * _DIGEST
        out[place : place + len(digests)] = digests
        position += want


def _next_level(level: bytes) -> bytes:
    base = hashlib.sha256(SALT)
    digests = bytearray()
    view = memoryview(level)
    for offset in range(0, len(level), BLOCK):
        state = base.copy()
        state.update(view[offset : offset + BLOCK])
        digests += state.digest()
    return bytes(digests)


def _padded(digests: bytes) -> bytes:
    return digests.ljust(-(-len(digests) // BLOCK) * BLOCK, b"\0")


def compute(
    fd: int, data_size: int, *, processes: int, meanwhile: Callable[[], None] = lambda: None
) -> tuple[str, bytes]:
    """Hash `data_size` bytes of `fd`; return the root hash in hex and the bytes that follow the data.

    With more than one process the work is forked and `meanwhile` runs beside it; see `forks` for the
    conditions. `data_size` is a positive multiple of the block size.
    """
    blocks, rest = divmod(data_size, BLOCK)
    if rest or blocks < 2:
        raise ValueError(f"a verity tree needs two or more whole blocks, got {data_size} bytes")
    with mmap.mmap(-1, blocks * _DIGEST) as shared, memoryview(shared) as digests:
        bounds = [blocks * share // processes for share in range(processes + 1)]
        run_shares(
            [partial(_hash_file_blocks, fd, first, last, digests) for first, last in pairwise(bounds)],
            meanwhile=meanwhile,
        )
        leaves = shared[:]
    levels = [_padded(leaves)]
    while len(levels[-1]) > BLOCK:
        levels.append(_padded(_next_level(levels[-1])))
    root = _next_level(levels[-1]).hex()
    return root, superblock(blocks) + b"".join(reversed(levels))
