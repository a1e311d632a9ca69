"""Random and mutated bytes through the agent's parsers; AGENT_FUZZ_SEED repeats a run."""

import os
import random
import select
import struct
import time
from pathlib import Path

import pytest

from host.agent_kit import Running, built_agent, pack

# By the --fuzz option.
BUDGET_SECONDS = {"unit": 2.0, "short": 10.0, "long": 120.0}
BATCH = 400
MAX_INPUT = 100_000


def seeds() -> list[bytes]:
    """Valid examples of everything that is parsed."""
    frames = [
        pack(kind, bytes(size)) for kind in (*range(1, 13), *range(0x81, 0x8A)) for size in (0, 2, 5, 8)
    ]
    hello = pack(1, b"\x03\x00web") + pack(2, bytes(8)) + pack(3, b"out\n") + pack(6, b"\x07\x00")
    execute = pack(0x85, b"\x04\x18\x00\x50\x00\x02\x00sh\x04\x00/bin{}")
    programs = [Path(path).read_bytes()[:65536] for path in ("/bin/dash", "/bin/busybox")]
    scripts = [b"#!/bin/sh\necho\n", b"#! \t/usr/bin/env -S python3\n", b"#!" + b"x" * 300]
    lines = [b"line\n" * 50, b"x" * 40_000 + b"\n", b"\n" * 500, b"a" * 16_384 + b"\nb"]
    verity = f"{'a1' * 32} 5c00"
    more = f"image a app-0 2 {verity}\nvolume a 0 t ro .\nvolume a 1 t rw f\n"
    network = (
        "secrun-network 1\nlink eth0 02:00:00:00:00:01 1500\naddress 192.0.2.2/24\naddress fd00::2/64\n"
    )
    tables = [
        f"17 {verity}\n",
        f"quiet secrun.pod=9:{'a1' * 32}\n",
        "base /secrun/modules.d/virtio.ko\npci /secrun/modules.d/virtio_pci.ko\n",
        "secrun-guest 1\nhostname h\nuuid 01234567-89ab-cdef-0123-456789abcdef\nscratch\ntpm\n" + more,
        network + "route 0.0.0.0/0 192.0.2.1\nroute fd01::/64 -\nlink eth1 02:00:00:00:00:02 65535\n",
    ]
    kinds = (*range(0x41, 0x44), *range(0x51, 0x57))
    link = b"".join(pack(kind, bytes(size)) for kind in kinds for size in (0, 2, 8, 32))
    channel = (
        pack(0x61, b"\x01\x00\x01") + pack(0x62, b"\x01\x00" + hello) + pack(0x63, b"\x01\x00\x00\x01\0\0")
    )
    console = b"secrun-stage0: 254:0 is disk a\r\n[1] device-mapper: verity: 254:0: block 3 is corrupted\r\n"
    return [
        link,
        channel + pack(0x64, b"\x01\x00"),
        b"pid 7\nCapEff 0000000000000000\nuid_map 0 0 4294967295\ncgroup /system.slice/a\n",
        console + b"Kernel panic - not syncing: x\r\n",
        *(table.encode() for table in tables),
        *frames,
        hello,
        execute,
        *programs,
        *scripts,
        *lines,
        pack(3, bytes(65_536)),
        b"",
    ]


def mutate(data: bytes, chance: random.Random, pool: list[bytes]) -> bytes:
    """Change a few places: flipped bytes, numbers at the edges, cuts, repeats, splices."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(6):
            case 0 if changed:
                changed[at % len(changed)] = chance.randrange(256)
            case 1:
                edge = chance.choice([0, 1, 0x7F, 0xFF, 65_535, 65_536, 65_537, 2**31, 2**32 - 1, 2**63])
                changed[at : at + 8] = edge.to_bytes(8, chance.choice(["little", "big"]))
            case 2:
                del changed[at:]
            case 3:
                changed[at:at] = chance.randbytes(chance.randrange(64))
            case 4:
                changed += changed[: at % 5000]
            case _:
                changed[at:at] = chance.choice(pool)[: chance.randrange(1, 5000)]
    return bytes(changed[:MAX_INPUT])


def drive(inputs: list[bytes]) -> bool:
    """Give one process all inputs; whether it kept every promise."""
    read, write = os.pipe()
    answer, answer_end = os.pipe()
    process = Running([built_agent().with_name("agent-fuzz")], stdin=read, stdout=answer_end)
    os.close(read)
    os.close(answer_end)
    data = memoryview(b"".join(struct.pack("<I", len(each)) + each for each in inputs))
    try:
        while data:
            select.select([], [write], [])
            data = data[os.write(write, data[:65_536]) :]
    except BrokenPipeError:
        return False
    finally:
        os.close(write)
    told = os.read(answer, 100)
    os.close(answer)
    return process.wait() == 0 and told == b"%d\n" % len(inputs)


def smallest(inputs: list[bytes]) -> bytes:
    """The one input of a failing batch that fails alone, or all of them."""
    return next((each for each in inputs if not drive([each])), b"".join(inputs))


def test_parsers_keep_their_promises(pytestconfig: pytest.Config) -> None:
    seed = int(os.environ.get("AGENT_FUZZ_SEED", str(time.time_ns())))
    chance, pool = random.Random(seed), seeds()
    assert drive(pool), f"a valid example fails: {smallest(pool)[:200]!r}"
    deadline, count = time.monotonic() + BUDGET_SECONDS[pytestconfig.getoption("--fuzz")], 0
    while time.monotonic() < deadline:
        batch = [mutate(chance.choice(pool), chance, pool) for _ in range(BATCH)]
        assert drive(batch), f"seed {seed}, after {count} inputs: {smallest(batch)[:2000]!r}"
        count += len(batch)
    print(f"{count} inputs")
    assert count >= BATCH
