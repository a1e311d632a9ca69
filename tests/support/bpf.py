"""A classic BPF machine for seccomp programs, to ask a filter what it would decide."""

import struct


def run_bpf(program: bytes, number: int, args: tuple[int, ...]) -> int:
    """Run a classic BPF program on a struct seccomp_data (linux/filter.h, linux/seccomp.h)."""
    data = struct.pack("<iIQ6Q", number, 0xC000003E, 0, *args)
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = 0
    while True:
        op, jump_true, jump_false, k = code[position]
        position += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif op == 0x54:
            accumulator &= k
        elif op == 0x05:
            position += k
        elif op in (0x15, 0x25, 0x35):
            true = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}[op]
            position += jump_true if true else jump_false
        elif op == 0x06:
            return k
        else:
            raise AssertionError(f"unknown BPF operation {op:#x}")
