"""The TPM 2.0 commands that the event log needs, as bytes: ReadClock, GetCapability, PCR_Read, PCR_Extend.

Sources: TPM 2.0 Library 1.59, part 1 (18: command and response structure, 19.4: password sessions), part 2
(6.6: response codes, 10: structures), part 3 (22.2, 22.4, 29.1, 30.2). A reply is hostile input.
"""

import struct
from collections.abc import Iterable, Mapping

from secrun_attest.reader import Reader, WireError
from secrun_attest.record import ALGORITHM_IDS, BANK_OF_ID, DIGEST_SIZES, Bank
from secrun_attest.tpm import TpmClock

_NO_SESSIONS = 0x8001
_SESSIONS = 0x8002
_HEADER = struct.Struct(">HII")
# TPM_RS_PW with an empty password, which is what a PCR has; continueSession means nothing here and is set.
_PASSWORD = struct.pack(">IHBH", 0x40000009, 0, 1, 0)
_PASSWORD_REPLY = struct.pack(">HBH", 0, 1, 0)
_CAP_PCRS = 5
# The PC client profile has 24 PCRs.
_SELECT_SIZE = 3

# A TPMS_CAPABILITY_DATA fills 1 KiB at most, and nothing that secrun asks for is longer.
MAX_REPLY = 2048
HEADER_SIZE = _HEADER.size

# The TPM asks to be asked again: RETRY, YIELDED, TESTING, NV_RATE.
AGAIN = frozenset({0x922, 0x908, 0x90A, 0x920})
# In failure mode a TPM says so to every command, perhaps to one that it had begun.
FAILURE = 0x101

_NAMES = {
    0x01E: "BAD_TAG",
    0x100: "INITIALIZE",
    0x101: "FAILURE",
    0x120: "DISABLED",
    0x125: "AUTH_MISSING",
    0x12D: "UPGRADE",
    0x130: "REBOOT",
    0x142: "COMMAND_SIZE",
    0x143: "COMMAND_CODE",
    0x144: "AUTHSIZE",
    0x904: "MEMORY",
    0x907: "LOCALITY",
    0x908: "YIELDED",
    0x909: "CANCELED",
    0x90A: "TESTING",
    0x920: "NV_RATE",
    0x921: "LOCKOUT",
    0x922: "RETRY",
    0x923: "NV_UNAVAILABLE",
}
# Format one: bits 0 to 5 and 7; bit 6 says whether bits 8 to 11 count parameters, else handles or sessions.
_FORMAT_ONE = {
    0x082: "ATTRIBUTES",
    0x083: "HASH",
    0x084: "VALUE",
    0x08B: "HANDLE",
    0x08E: "AUTH_FAIL",
    0x095: "SIZE",
    0x097: "TAG",
    0x098: "SELECTOR",
    0x09A: "INSUFFICIENT",
    0x0A2: "BAD_AUTH",
}


def describe(code: int) -> str:
    """Say in words what a response code that is not 0 means, as tpm2_rc_decode does."""
    layer, base = code >> 16, code & 0xFFFF
    above = " of the kernel's resource manager" if layer in {0x0B, 0x0C} else ""
    if base & 0x80:
        number = base >> 8 & 0xF
        if base & 0x40:
            where = f" of parameter {number}"
        elif number & 0x8:
            where = f" of session {number & 0x7}"
        else:
            where = f" of handle {number}" if number else ""
        name = _FORMAT_ONE.get(base & 0xBF, "an error") + where
    else:
        name = _NAMES.get(base, "an error")
    return f"TPM_RC {name}{above} ({code:#x})"


def read_clock() -> bytes:
    """Return TPM2_ReadClock."""
    return _command(0x181, b"")


def parse_clock(parameters: bytes) -> TpmClock:
    """Parse a TPMS_TIME_INFO; raises WireError."""
    reader = Reader(parameters, "answer to ReadClock")
    reader.take(8, "time")
    clock = reader.number(8, "clock")
    reset = reader.number(4, "resetCount")
    restart = reader.number(4, "restartCount")
    safe = reader.flag("safe")
    reader.end()
    return TpmClock(reset=reset, restart=restart, safe=safe, clock=clock)


def get_banks() -> bytes:
    """Return TPM2_GetCapability for the PCRs that are allocated."""
    return _command(0x17A, struct.pack(">III", _CAP_PCRS, 0, 1))


def parse_banks(parameters: bytes, pcr: int) -> tuple[int, ...]:
    """Parse the allocation; return the TPM_ALG_IDs of the banks that have `pcr`. Raises WireError."""
    reader = Reader(parameters, "answer to GetCapability")
    if reader.flag("moreData"):
        raise WireError("answer to GetCapability: there is more to the allocation of PCRs than it holds")
    if (kind := reader.number(4, "capability")) != _CAP_PCRS:
        raise WireError(f"answer to GetCapability: capability {kind:#x}, expected {_CAP_PCRS:#x}")
    found = [alg for alg, pcrs in reader.selections() if pcr in pcrs]
    reader.end()
    if len(set(found)) != len(found):
        raise WireError("answer to GetCapability: a bank stands twice in the allocation of PCRs")
    return tuple(found)


def pcr_read(pcr: int, banks: Iterable[Bank]) -> bytes:
    """Return TPM2_PCR_Read of one PCR in each of `banks`."""
    return _command(0x17E, _selection(pcr, banks))


def parse_pcr_values(parameters: bytes, pcr: int, banks: Iterable[Bank]) -> dict[Bank, bytes]:
    """Parse the values of one PCR; raises WireError unless they are of `banks`, in this order."""
    reader = Reader(parameters, "answer to PCR_Read")
    reader.take(4, "pcrUpdateCounter")
    asked = tuple((ALGORITHM_IDS[bank], (pcr,)) for bank in banks)
    if (selected := reader.selections()) != asked:
        raise WireError(f"answer to PCR_Read: it is of {selected}, asked was {asked}")
    if (count := reader.number(4, "digest count")) != len(asked):
        raise WireError(f"answer to PCR_Read: {count} values, expected {len(asked)}")
    values: dict[Bank, bytes] = {}
    for alg, _ in asked:
        bank = BANK_OF_ID[alg]
        values[bank] = reader.sized(f"value of {bank}")
        if len(values[bank]) != DIGEST_SIZES[bank]:
            size = len(values[bank])
            raise WireError(f"answer to PCR_Read: value of {bank} has {size} bytes")
    reader.end()
    return values


def pcr_extend(pcr: int, digests: Mapping[Bank, bytes]) -> bytes:
    """Return TPM2_PCR_Extend of one PCR in all banks of `digests` at once."""
    listed = b"".join(ALGORITHM_IDS[bank].to_bytes(2, "big") + value for bank, value in digests.items())
    handle = pcr.to_bytes(4, "big")
    session = len(_PASSWORD).to_bytes(4, "big") + _PASSWORD
    return _command(0x182, handle + session + len(digests).to_bytes(4, "big") + listed, _SESSIONS)


def parse_reply(command: bytes, reply: bytes) -> tuple[int, bytes]:
    """Parse a whole reply to `command`; return its response code and parameters. Raises WireError.

    A code that is not 0 has no parameters.
    """
    reader = Reader(reply, "reply")
    tag = reader.number(2, "tag")
    size = reader.number(4, "size")
    code = reader.number(4, "response code")
    if size != len(reply):
        raise WireError(f"reply: it says it has {size} bytes, there are {len(reply)}")
    asked = int.from_bytes(command[:2], "big")
    expected = asked if code == 0 else _NO_SESSIONS
    if tag != expected:
        raise WireError(f"reply: tag {tag:#06x} with code {code:#x}, expected tag {expected:#06x}")
    if code != 0:
        reader.end()
        return code, b""
    return 0, reader.rest() if asked == _NO_SESSIONS else _in_session(reader)


def reply_size(header: bytes) -> int:
    """Return how many bytes a reply has, from its first HEADER_SIZE; raises WireError beyond MAX_REPLY."""
    size = int(_HEADER.unpack(header)[1])
    if not HEADER_SIZE <= size <= MAX_REPLY:
        raise WireError(f"reply: it says it has {size} bytes, expected {HEADER_SIZE} to {MAX_REPLY}")
    return size


def _in_session(reader: Reader) -> bytes:
    parameters = reader.take(reader.number(4, "parameterSize"), "parameters")
    if (session := reader.rest()) != _PASSWORD_REPLY:
        raise WireError(f"reply: session area is {session[:40].hex()}, expected {_PASSWORD_REPLY.hex()}")
    return parameters


def _selection(pcr: int, banks: Iterable[Bank]) -> bytes:
    bits = (1 << pcr).to_bytes(_SELECT_SIZE, "little")
    one = [struct.pack(">HB", ALGORITHM_IDS[bank], _SELECT_SIZE) + bits for bank in banks]
    return len(one).to_bytes(4, "big") + b"".join(one)


def _command(code: int, body: bytes, tag: int = _NO_SESSIONS) -> bytes:
    return _HEADER.pack(tag, _HEADER.size + len(body), code) + body
