"""Which frames pass between a guest and its network, as programs of classic BPF; pure.

In a container nobody can forge a packet or listen to those of others: that takes a right that no app has. A
guest that was taken over has that right, so the host's side holds it to the same: it sends with its own
addresses only, and is given what is for it or for everybody. A frame that is cut short does not pass.

Sources: Documentation/networking/filter.rst; RFC 826 (ARP), 791, 8200 (IPv6), 4861 (neighbours), 3810
(groups).
"""

import struct
from _socket import AF_INET, AF_INET6, inet_pton
from collections.abc import Iterable, Sequence

# struct sock_filter, and what is used of it.
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD = {1: 0x30, 2: 0x28, 4: 0x20}
_EQUAL, _ANY_BIT, _JUMP, _RETURN = 0x15, 0x45, 0x05, 0x06
# linux/bpf_common.h, BPF_MAXINSNS
_MAX_INSTRUCTIONS = 4096
# Any other number would be taken for a traffic class.
_PASS, _NO = 0xFFFFFFFF, 0
# linux/filter.h: SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT
_VLAN_TAG = 0xFFFFF000 + 48

# Offsets in a frame, from its Ethernet header on.
_TO, _FROM, _TYPE = 0, 6, 12
_ARP_STATION, _ARP_SENDER = 22, 28
_V4_SOURCE = 26
_V6_NEXT, _V6_SOURCE, _V6_PAYLOAD = 20, 22, 54
_ARP, _V4, _V6 = 0x0806, 0x0800, 0x86DD
# Headers behind which a message of ICMPv6 could hide: routing, destination options.
_HIDING = (43, 60)
_HOP_BY_HOP, _ICMP6 = 0, 58
# Membership reports, which are the only ones that Linux sends behind a hop-by-hop header.
_REPORTS = (131, 132, 143)
# What only routers say: queries for members, advertisements, redirects.
_OF_ROUTERS = (130, 134, 137)
_ADVERTISEMENT, _TARGET = 136, 62

Code = list[tuple[int, int, int, int]]


def _load(offset: int, size: int) -> tuple[int, int, int, int]:
    return (_LOAD[size], 0, 0, offset)


def _give(value: int) -> Code:
    return [(_RETURN, 0, 0, value)]


def _equal(offset: int, wanted: bytes, then: Code) -> Code:
    """Do `then`, which ends with a return or a jump, where `wanted` is at `offset`; else go on behind it."""
    tests: Code = []
    parts: list[tuple[int, bytes]] = []
    while wanted:
        size = 4 if len(wanted) >= 4 else 2 if len(wanted) >= 2 else 1
        parts.append((offset, wanted[:size]))
        offset, wanted = offset + size, wanted[size:]
    for index, (place, part) in enumerate(parts):
        # Over the loads and tests that are left, and over the jump that stands for `then`.
        left = 2 * (len(parts) - index - 1)
        tests += [_load(place, len(part)), (_EQUAL, 0, left + 1, int.from_bytes(part))]
    # Jumps of tests reach 255 instructions only.
    return [*tests, (_JUMP, 0, 0, 1), (_JUMP, 0, 0, len(then)), *then]


def _one_of(offset: int, size: int, numbers: Iterable[int], then: Code) -> Code:
    """Do `then`, which ends with a return, where one of `numbers` is at `offset`."""
    return [line for number in numbers for line in _equal(offset, number.to_bytes(size), then)]


def _raw(address: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)


def _link_local(mac: bytes) -> bytes:
    """Return the address that IPv6 makes of a hardware address (RFC 4291, appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


def _from_one_of(offset: int, own: Sequence[bytes], then: Code) -> Code:
    """Do `then` once, at the end, where one of `own` is at `offset`; else nothing passes."""
    blocks = [_equal(offset, address, [(_JUMP, 0, 0, 0)]) for address in own]
    code: Code = []
    left = sum(map(len, blocks)) + 1
    for block in blocks:
        left -= len(block)
        code += [*block[:-1], (_JUMP, 0, 0, left)]
    return [*code, *_give(_NO), *then]


def _v6(own: Sequence[bytes], senders: Sequence[bytes]) -> Code:
    report = _one_of(_V6_PAYLOAD + 8, 1, _REPORTS, _give(_PASS))
    # Of ICMPv6, in a header of eight bytes.
    options = [*_equal(_V6_PAYLOAD, bytes([_ICMP6, 0]), report), *_give(_NO)]
    target = _from_one_of(_TARGET, own, _give(_PASS))
    icmp = [
        *_one_of(_V6_PAYLOAD, 1, _OF_ROUTERS, _give(_NO)),
        *_equal(_V6_PAYLOAD, bytes([_ADVERTISEMENT]), target),
        *_give(_PASS),
    ]
    kinds = [
        *_one_of(_V6_NEXT, 1, _HIDING, _give(_NO)),
        *_equal(_V6_NEXT, bytes([_HOP_BY_HOP]), options),
        *_equal(_V6_NEXT, bytes([_ICMP6]), icmp),
        *_give(_PASS),
    ]
    return _from_one_of(_V6_SOURCE, senders, kinds)


def _packed(code: Code) -> bytes:
    if len(code) > _MAX_INSTRUCTIONS:
        raise ValueError(f"{len(code)} instructions, the kernel takes {_MAX_INSTRUCTIONS}")
    return b"".join(_INSTRUCTION.pack(*line) for line in code)


def outgoing(mac: str, addresses: Sequence[str]) -> bytes:
    """Return what a guest may send: ARP and IP, from its own addresses, and nothing that only routers say.

    `addresses` have no prefix length. Raises ValueError for more than a program can hold.
    """
    station = bytes.fromhex(mac.replace(":", ""))
    four = [_raw(address) for address in addresses if ":" not in address]
    six = [_link_local(station), *(_raw(address) for address in addresses if ":" in address)]
    # Who has no address yet sends from none.
    arp = _equal(_ARP_STATION, station, _from_one_of(_ARP_SENDER, [*four, bytes(4)], _give(_PASS)))
    kinds = [
        *_equal(_TYPE, _ARP.to_bytes(2), [*arp, *_give(_NO)]),
        *_equal(_TYPE, _V4.to_bytes(2), _from_one_of(_V4_SOURCE, [*four, bytes(4)], _give(_PASS))),
        *_equal(_TYPE, _V6.to_bytes(2), _v6(six, [*six, bytes(16)])),
        *_give(_NO),
    ]
    tagged = [_load(_VLAN_TAG, 4), (_EQUAL, 1, 0, 0), *_give(_NO)]
    return _packed([*tagged, *_equal(_FROM, station, kinds), *_give(_NO)])


def incoming(mac: str) -> bytes:
    """Return what a guest is given: frames for its own station, and those for many."""
    station = bytes.fromhex(mac.replace(":", ""))
    many = [_load(_TO, 1), (_ANY_BIT, 0, 1, 1), *_give(_PASS)]
    return _packed([*_equal(_TO, station, _give(_PASS)), *many, *_give(_NO)])
