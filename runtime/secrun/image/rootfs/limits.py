"""Limits on what an image may ask of the renderer; every one is an error that names it when crossed.

An image is written by a stranger. Each bound is far above what real images use (the largest public
ones have about 40 GB and 500,000 files) and far below what would hurt the host.
"""

# Decompressed bytes of all layers, and separately the sum of all file sizes (sparse holes count: they are
# hashed). Scratch space is spent up to this bound before an image is refused.
MAX_IMAGE_BYTES = 64 << 30

# Deflate cannot exceed 1,032:1, and a tar of ordinary files stays below 30:1; zstd knows no bound. Zeros in
# small layers compress well and harm nobody, so the ratio counts only beyond a floor.
MAX_RATIO = 250
RATIO_FLOOR_BYTES = 256 << 20

# zstd(1) itself refuses larger windows without --long; a frame header may ask for up to 3.75 TiB of memory.
MAX_ZSTD_WINDOW = 128 << 20

# `xz -9` needs 65 MiB; a header may ask for up to 4 GiB.
MAX_XZ_MEMORY = 128 << 20

# Tar headers read, and likewise nodes made (implicit parents count): bounds memory (about 1.5 kB per node)
# and time (about 20 microseconds per header).
MAX_ENTRIES = 1_000_000

# Linux: PATH_MAX includes the NUL, NAME_MAX does not.
MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255
MAX_LINK_TARGET_BYTES = 4095

# Half of what PATH_MAX allows at most; real trees stay below 64.
MAX_PATH_DEPTH = 1024

# filepath-securejoin, which umoci resolves with, gives up after as many.
MAX_SYMLINKS = 255

# Extended headers of one entry: xattrs dominate, and Linux stores at most 64 KiB per value.
MAX_PAX_BYTES = 1 << 20
MAX_GNU_LONG_BYTES = MAX_PATH_BYTES + 1

# XATTR_NAME_MAX is 255; EROFS keeps a value's size in 16 bits and the set of an inode in 256 KiB.
MAX_XATTR_NAME_BYTES = 255
MAX_XATTR_VALUE_BYTES = 65_535
MAX_XATTR_SET_BYTES = 128 << 10

# Fragments of one sparse file; GNU tar writes one per hole.
MAX_SPARSE_EXTENTS = 65_536

# chown(2) reserves 2**32 - 1.
MAX_ID = 2**32 - 2

# Linux device numbers: 12 bits of major, 20 of minor.
MAX_MAJOR = (1 << 12) - 1
MAX_MINOR = (1 << 20) - 1

# Years 1 to 9999, what every date library can print.
MIN_MTIME_SECONDS = -62_135_596_800
MAX_MTIME_SECONDS = 253_402_300_799

# /etc/passwd and /etc/group of an image: read on every `run`, so they stay small.
MAX_ACCOUNT_FILE_BYTES = 1 << 20
MAX_ACCOUNTS = 10_000

# The sandboxed worker. Address space holds MAX_ENTRIES nodes and the digests of MAX_IMAGE_BYTES of blocks.
WORKER_ADDRESS_SPACE = 6 << 30
WORKER_CPU_SECONDS = 1800
WORKER_OPEN_FILES = 1024
WORKER_PROCESSES = 64
# An EROFS file is at most the data, 4 KiB per entry of rounding and metadata, and 1/127 of it for the tree.
WORKER_FILE_BYTES = MAX_IMAGE_BYTES + MAX_ENTRIES * 8192 + (MAX_IMAGE_BYTES >> 6)
# Answer of the worker: two account tables and a few digests.
MAX_ANSWER_BYTES = 16 << 20

# Layers of one image: two open files each, and overlay-based tools stop at 127.
MAX_LAYERS = 256

# Of the xattr names that were left out, as many are reported.
MAX_DROPPED_NAMES = 64

# The record beside a rootfs image; its account tables dominate.
MAX_RECORD_BYTES = 16 << 20
