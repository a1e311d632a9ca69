"""Messages to the kernel's network: the few that connect a machine's interface (netlink(7), rtnetlink(7)).

pyroute2 knows them all, and takes as long to import as a machine takes to start.
"""

import os
import socket
import struct
from types import TracebackType
from typing import Self

# linux/netlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_ERROR = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")
# linux/rtnetlink.h, linux/if_link.h, linux/if.h
_RTM_NEWLINK, _RTM_SETLINK, _RTM_NEWQDISC, _RTM_NEWTFILTER = 16, 19, 36, 44
_LINK = struct.Struct("=BxHiII")
_IFLA_NET_NS_FD = 28
_IFF_UP = 0x1
# linux/rtnetlink.h, struct tcmsg; linux/pkt_sched.h
_TRAFFIC = struct.Struct("=BxxxiIII")
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TC_H_INGRESS, _INGRESS_HANDLE = 0xFFFFFFF1, 0xFFFF0000
# linux/pkt_cls.h: a filter that is a program, and what is done with what it matches
_TCA_BPF_ACT, _TCA_BPF_OPS_LEN, _TCA_BPF_OPS, _TCA_BPF_FLAGS = 1, 4, 5, 8
_ACT_DIRECT = 1
_INSTRUCTION_BYTES = 8
_TCA_ACT_KIND, _TCA_ACT_OPTIONS = 1, 2
_TC_ACT_SHOT, _TC_ACT_STOLEN = 2, 4
# linux/tc_act/tc_mirred.h
_MIRRED = struct.Struct("=IIiiiiI")
_TCA_MIRRED_PARMS, _TCA_EGRESS_REDIR = 2, 1
# linux/if_ether.h
_ETH_P_ALL = 0x0003
_MAX_ANSWER = 65536


def attribute(kind: int, data: bytes) -> bytes:
    """Return one attribute with its padding; pure."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _program(code: bytes) -> bytes:
    count = struct.pack("=H", len(code) // _INSTRUCTION_BYTES)
    return attribute(_TCA_BPF_OPS_LEN, count) + attribute(_TCA_BPF_OPS, code)


def redirected(target: int, code: bytes) -> bytes:
    """Return the options of a filter that sends what `code` matches out of interface `target`; pure."""
    what = attribute(_TCA_MIRRED_PARMS, _MIRRED.pack(0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, target))
    action = _text(_TCA_ACT_KIND, "mirred") + attribute(_TCA_ACT_OPTIONS, what)
    return _program(code) + attribute(_TCA_BPF_ACT, attribute(1, action))


def _dropped() -> bytes:
    """Return the options of a filter that drops everything: a program whose answer is the verdict."""
    code = struct.pack("=HBBI", 0x06, 0, 0, _TC_ACT_SHOT)
    return _program(code) + attribute(_TCA_BPF_FLAGS, struct.pack("=I", _ACT_DIRECT))


class Netlink:
    """A line to the network namespace that this thread is in; raises OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def _ask(self, kind: int, body: bytes, what: str, *, new: bool = False) -> None:
        flags = _NLM_F_REQUEST | _NLM_F_ACK | (_NLM_F_CREATE | _NLM_F_EXCL if new else 0)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        answer = self._socket.recv(_MAX_ANSWER)
        _, said, *_ = _HEADER.unpack_from(answer)
        code = -_ERROR.unpack_from(answer, _HEADER.size)[0] if said == _NLMSG_ERROR else 0
        if code:
            raise OSError(code, os.strerror(code), what)

    def move(self, name: str, namespace: int) -> None:
        """Give an interface to another namespace, by a descriptor of that; it is down there."""
        body = _LINK.pack(0, 0, socket.if_nametoindex(name), 0, 0)
        self._ask(_RTM_SETLINK, body + attribute(_IFLA_NET_NS_FD, struct.pack("=i", namespace)), name)

    def set_up(self, name: str) -> None:
        """Bring an interface up."""
        self._ask(_RTM_NEWLINK, _LINK.pack(0, 0, socket.if_nametoindex(name), _IFF_UP, _IFF_UP), name)

    def redirect(self, source: str, target: str, code: bytes) -> None:
        """Send what comes into `source` and is matched by `code` out of `target`, and drop the rest.

        `code` is a program of classic BPF. The namespace's own protocols see nothing of either.
        """
        number, other = socket.if_nametoindex(source), socket.if_nametoindex(target)
        body = _TRAFFIC.pack(0, number, _INGRESS_HANDLE, _TC_H_INGRESS, 0)
        self._ask(_RTM_NEWQDISC, body + _text(_TCA_KIND, "ingress"), source, new=True)
        # In the order in which they are asked; between the two nothing gets through that should not.
        for priority, options in ((2, _dropped()), (1, redirected(other, code))):
            info = priority << 16 | socket.htons(_ETH_P_ALL)
            body = _TRAFFIC.pack(0, number, 0, _INGRESS_HANDLE, info)
            body += _text(_TCA_KIND, "bpf") + attribute(_TCA_OPTIONS, options)
            self._ask(_RTM_NEWTFILTER, body, source, new=True)
