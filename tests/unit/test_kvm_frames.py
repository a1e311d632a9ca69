"""What passes between a guest and its network: the kernel itself runs the programs, on a socket."""

import ctypes
import socket
import struct

import pytest

from secrun_kvm import framefilter

SO_ATTACH_FILTER = 26
MAC, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("0200000000ff")
FOUR, SIX = ("192.0.2.7", "198.51.100.1"), ("fd00::7", "fd00::8")
LINK_LOCAL = "fe80::ff:fe00:1"
OUT = framefilter.outgoing("02:00:00:00:00:01", [*FOUR, *SIX])
IN = framefilter.incoming("02:00:00:00:00:01")


def passes(program: bytes, frame: bytes) -> bool:
    """Ask the kernel: what a program refuses never reaches the other socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    code = ctypes.create_string_buffer(program, len(program))
    attached = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, attached)
        ours.send(frame)
        try:
            return theirs.recv(65536, socket.MSG_DONTWAIT) == frame
        except BlockingIOError:
            return False


def ethernet(kind: int, payload: bytes, *, sender: bytes = MAC, to: bytes = b"\xff" * 6) -> bytes:
    return to + sender + struct.pack(">H", kind) + payload


def arp(address: str, *, station: bytes = MAC, **changes) -> bytes:
    raw = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + station + socket.inet_aton(address) + bytes(10)
    return ethernet(0x0806, raw, **changes)


def four(address: str, **changes) -> bytes:
    raw = bytes([0x45]) + bytes(11) + socket.inet_aton(address) + bytes([192, 0, 2, 1]) + b"data"
    return ethernet(0x0800, raw, **changes)


def six(address: str, following: int = 17, payload: bytes = bytes(40), **changes) -> bytes:
    source = socket.inet_pton(socket.AF_INET6, address)
    raw = bytes([0x60, 0, 0, 0, 0, len(payload), following, 255]) + source + bytes(16) + payload
    return ethernet(0x86DD, raw, **changes)


def neighbour(target: str, kind: int = 136, **changes) -> bytes:
    body = bytes([kind]) + bytes(7) + socket.inet_pton(socket.AF_INET6, target) + b"\2\1" + MAC
    return six(SIX[0], 58, body, **changes)


def hidden(header: int, inner: int, kind: int, length: int = 0) -> bytes:
    """An ICMPv6 message behind another header of eight bytes."""
    return six(LINK_LOCAL, header, bytes([inner, length]) + bytes(6) + bytes([kind]) + bytes(40))


HONEST = {
    "arp": arp(FOUR[0]),
    "arp of the second address": arp(FOUR[1]),
    "arp probe": arp("0.0.0.0"),
    "ipv4": four(FOUR[0]),
    "ipv4 of the second address": four(FOUR[1]),
    "ipv4 without an address": four("0.0.0.0"),
    "ipv6": six(SIX[0]),
    "ipv6 of the second address": six(SIX[1]),
    "ipv6 of the link": six(LINK_LOCAL),
    "ipv6 without an address": six("::"),
    "ping": six(SIX[0], 58, bytes([128]) + bytes(40)),
    "fragment": six(SIX[0], 44),
    "neighbour advertisement": neighbour(SIX[1]),
    "neighbour advertisement of the link": neighbour(LINK_LOCAL),
    "neighbour solicitation": neighbour("fd00::1", 135),
    "router solicitation": six(LINK_LOCAL, 58, bytes([133]) + bytes(40)),
    "membership report": hidden(0, 58, 143),
}
FORGED = {
    "arp for another": arp("192.0.2.1"),
    "arp of another station": arp(FOUR[0], station=OTHER),
    "arp from another station": arp(FOUR[0], sender=OTHER),
    "ipv4": four("192.0.2.8"),
    "ipv4 from another station": four(FOUR[0], sender=OTHER),
    "ipv6": six("fd00::9"),
    "ipv6 of another link": six("fe80::ff:fe00:2"),
    "ipv6 from another station": six(SIX[0], sender=OTHER),
    "neighbour advertisement": neighbour("fd00::1"),
    "router advertisement": six(LINK_LOCAL, 58, bytes([134]) + bytes(40)),
    "redirect": six(LINK_LOCAL, 58, bytes([137]) + bytes(40)),
    "query": six(LINK_LOCAL, 58, bytes([130]) + bytes(40)),
    "query behind options": hidden(0, 58, 130),
    "advertisement behind options": hidden(0, 58, 136),
    "advertisement behind long options": hidden(0, 58, 143, length=1),
    "two headers of options": hidden(0, 60, 143),
    "routing header": hidden(43, 58, 136),
    "destination options": hidden(60, 58, 136),
    "vlan": ethernet(0x8100, bytes(50)),
    "spanning tree": ethernet(0x0027, b"\x42\x42\x03" + bytes(36)),
    "pppoe": ethernet(0x8863, bytes(50)),
    "nothing": b"",
    "cut in the header": six(SIX[0])[:30],
    "cut before the target": neighbour(SIX[1])[:70],
}


@pytest.mark.parametrize("frame", HONEST.values(), ids=HONEST)
def test_a_guest_sends_from_its_own_addresses(frame):
    assert passes(OUT, frame)


@pytest.mark.parametrize("frame", FORGED.values(), ids=FORGED)
def test_a_guest_sends_nothing_that_is_forged(frame):
    assert not passes(OUT, frame)


@pytest.mark.parametrize(
    ("to", "given"), [(MAC, True), (b"\xff" * 6, True), (b"\x33\x33\0\0\0\1", True), (OTHER, False)]
)
def test_a_guest_hears_what_is_for_it_or_for_many(to, given):
    assert passes(IN, ethernet(0x0800, b"x", sender=OTHER, to=to)) == given


def test_without_addresses_only_what_needs_none_passes():
    program = framefilter.outgoing("02:00:00:00:00:01", [])
    assert passes(program, arp("0.0.0.0"))
    assert passes(program, six(LINK_LOCAL))
    assert not passes(program, four(FOUR[0]))
    assert not passes(program, six(SIX[0]))


def test_many_addresses_are_one_program_and_too_many_an_error():
    many = [f"fd00::{number:x}" for number in range(1, 101)]
    program = framefilter.outgoing("02:00:00:00:00:01", many)
    assert passes(program, six(many[0]))
    assert passes(program, six(many[-1]))
    assert not passes(program, six("fd00::1000"))
    with pytest.raises(ValueError, match="instructions"):
        framefilter.outgoing("02:00:00:00:00:01", [f"fd00::{number:x}" for number in range(1, 1000)])
