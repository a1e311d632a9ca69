"""The firmware's event log (TCG crypto-agile format), read to explain PCR values. Little-endian.

Layout: TCG PC Client Platform Firmware Profile 1.05, 10.2. Event types are metadata that nothing hashes, so
none is trusted; the only thing taken from the log is the sequence of digests.
"""

import hashlib
import struct

from secrun_attest.evidence import MAX_PCRS
from secrun_attest.reader import WireError
from secrun_attest.wire import HASH_NAMES, HASH_SIZES

# Firmware logs have tens of kilobytes; the kernel's own limit on the area is far lower than this.
MAX_LOG = 4 << 20
MAX_EVENTS = 20_000
MAX_ALGORITHMS = 16
EV_NO_ACTION = 3
SPEC_ID = b"Spec ID Event03\0"
STARTUP_LOCALITY = b"StartupLocality\0"
_HEADER = struct.Struct("<II5II")
_EVENT = struct.Struct("<III")


def replay_firmware(log: bytes, bank: str) -> tuple[bytes, ...]:
    """Return the value of each PCR in `bank` after all events of `log`; raises WireError.

    A log with padding, an unknown algorithm of unknown size, or a bank missing from an event is refused.
    """
    if len(log) > MAX_LOG:
        raise WireError(f"firmware log has {len(log)} bytes, the limit is {MAX_LOG}")
    sizes, at = _header(log)
    wanted = next((alg for alg in sizes if HASH_NAMES.get(alg) == bank), None)
    if wanted is None:
        raise WireError(f"firmware log has no digests of bank {bank}")
    size = HASH_SIZES[bank]
    values = [b"\xff" * size if 17 <= index <= 22 else bytes(size) for index in range(MAX_PCRS)]
    for _ in range(MAX_EVENTS):
        if at == len(log):
            return tuple(values)
        pcr, kind, digests, body, at = _event(log, at, sizes)
        if kind != EV_NO_ACTION:
            values[pcr] = hashlib.new(bank, values[pcr] + digests[wanted]).digest()
        elif pcr == 0 and body.startswith(STARTUP_LOCALITY) and len(body) == len(STARTUP_LOCALITY) + 1:
            values[0] = _locality(values[0], body[-1:])
    raise WireError(f"firmware log has more than {MAX_EVENTS} events")


def _header(log: bytes) -> tuple[dict[int, int], int]:
    pcr, kind, *zeros, size = _unpack(_HEADER, log, 0)
    body = _slice(log, _HEADER.size, size)
    if pcr or kind != EV_NO_ACTION or any(zeros) or not body.startswith(SPEC_ID):
        raise WireError("firmware log does not begin with a Spec ID Event03")
    (count,) = _unpack(struct.Struct("<I"), body, 24)
    if not 1 <= count <= MAX_ALGORITHMS:
        raise WireError(f"firmware log declares {count} algorithms, expected 1 to {MAX_ALGORITHMS}")
    pair = struct.Struct("<HH")
    sizes: dict[int, int] = {}
    for index in range(count):
        alg, length = _unpack(pair, body, 28 + 4 * index)
        sizes[alg] = length
    if len(sizes) != count:
        raise WireError("firmware log declares an algorithm twice")
    for alg, length in sizes.items():
        if alg in HASH_NAMES and HASH_SIZES[HASH_NAMES[alg]] != length:
            raise WireError(f"firmware log says that algorithm {alg:#06x} has {length} bytes")
    end = 28 + 4 * count
    if len(body) != end + 1 + _slice(body, end, 1)[0]:
        raise WireError("firmware log: the header's vendor information does not end with it")
    return sizes, _HEADER.size + size


def _locality(value: bytes, locality: bytes) -> bytes:
    if any(value):
        raise WireError("firmware log: StartupLocality follows an event of PCR 0")
    return value[:-1] + locality


def _event(log: bytes, at: int, sizes: dict[int, int]) -> tuple[int, int, dict[int, bytes], bytes, int]:
    pcr, kind, count = _unpack(_EVENT, log, at)
    at += _EVENT.size
    if pcr >= MAX_PCRS or count != len(sizes):
        raise WireError(f"firmware log: an event of PCR {pcr} has {count} digests, expected {len(sizes)}")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        (alg,) = _unpack(struct.Struct("<H"), log, at)
        if alg not in sizes or alg in digests:
            raise WireError(f"firmware log: algorithm {alg:#06x} is not declared, or twice in one event")
        digests[alg] = _slice(log, at + 2, sizes[alg])
        at += 2 + sizes[alg]
    (size,) = _unpack(struct.Struct("<I"), log, at)
    return pcr, kind, digests, _slice(log, at + 4, size), at + 4 + size


def _unpack(layout: struct.Struct, data: bytes, at: int) -> tuple[int, ...]:
    return layout.unpack(_slice(data, at, layout.size))


def _slice(data: bytes, at: int, size: int) -> bytes:
    piece = data[at : at + size]
    if len(piece) != size:
        raise WireError(f"firmware log: {size} bytes wanted at offset {at}, there are {len(piece)}")
    return piece
