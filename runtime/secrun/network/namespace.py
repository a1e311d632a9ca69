"""Network namespaces of pods: made, looked into, and found again.

A pod's namespace is kept by a descriptor that the pod's waiter holds, and by the pod's own processes. No
file or mount pins it: when the last of them dies, however it dies, the kernel takes its interfaces down.
"""

import errno
import fcntl
import os
import struct
from _socket import AF_INET, SOCK_CLOEXEC, SOCK_DGRAM
from _socket import socket as raw_socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from secrun.fields import Fields
from secrun.jsonio import JsonObject
from secrun.record import record
from secrun.syscalls import CLONE_NEWNET, Syscalls

_OWN = "/proc/thread-self/ns/net"
# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFHWADDR = 0x8927
_SIOCGIFMTU = 0x8921
_SIOCBRDELBR = 0x89A1
_IFF_UP = 0x1
_IFREQ = struct.Struct("16s24s")
_FLAGS = struct.Struct("16sh22x")
_NUMBER = struct.Struct("16si20x")
# The namespace belongs to the host's user namespace, so that no pod can change its addresses, routes or
# filters. What an ordinary service needs of the network takes no privilege in it instead: low ports, and
# echo requests (ip(7), icmp(7)).
_SYSCTLS = (
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
)


@record
class Identity:
    """Which namespace it is: device and inode of its nsfs file, within one boot of the host."""

    boot: str
    device: int
    inode: int
    fd: int
    """The descriptor's number in the processes that inherit it."""

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {"boot": self.boot, "device": self.device, "inode": self.inode, "fd": self.fd}

    @classmethod
    def from_fields(cls, fields: Fields) -> "Identity":
        """Parse the JSON form; raises StateError."""
        found = cls(
            boot=fields.text("boot"),
            device=fields.integer("device"),
            inode=fields.integer("inode"),
            fd=fields.integer("fd"),
        )
        fields.end()
        return found


@record
class Link:
    """An interface as it is inside a namespace; the MTU is in bytes."""

    name: str
    mac: str
    mtu: int


def boot_id() -> str:
    """Return the kernel's name for this boot."""
    with open("/proc/sys/kernel/random/boot_id") as stream:
        return stream.read().strip()


def identity(fd: int) -> Identity:
    """Return what tells this namespace from all others."""
    status = os.fstat(fd)
    return Identity(boot=boot_id(), device=status.st_dev, inode=status.st_ino, fd=fd)


def path_of(fd: int) -> str:
    """Return a path that other processes of this host can open while this process holds `fd`."""
    return f"/proc/{os.getpid()}/fd/{fd}"


@contextmanager
def entered(call: Syscalls, fd: int) -> Iterator[None]:
    """Be in another network namespace for a while; this process must have one thread."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        call.setns(fd, CLONE_NEWNET)
        try:
            yield
        finally:
            call.setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def create(call: Syscalls) -> int:
    """Make a namespace with its loopback interface up; return a descriptor of it."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        call.unshare(CLONE_NEWNET)
        try:
            fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            try:
                set_up("lo")
                for name, value in _SYSCTLS:
                    with open(f"/proc/sys/{name}", "w") as stream:
                        stream.write(value)
            except BaseException:
                os.close(fd)
                raise
        finally:
            call.setns(home, CLONE_NEWNET)
    finally:
        os.close(home)
    return fd


@contextmanager
def _control() -> "Iterator[int]":
    control = raw_socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        yield control.fileno()
    finally:
        control.close()


def set_up(name: str, *, up: bool = True) -> None:
    """Bring an interface of the current namespace up or down (netdevice(7)); raises OSError."""
    with _control() as control:
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, _FLAGS.pack(name.encode(), 0))
        flags: int = _FLAGS.unpack(answer)[1]
        wanted = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, _FLAGS.pack(name.encode(), wanted))


def exists(name: str) -> bool:
    """Tell whether the current namespace has an interface of this name."""
    with _control() as control:
        try:
            fcntl.ioctl(control, _SIOCGIFFLAGS, _FLAGS.pack(name.encode(), 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
    return True


def delete_bridge(name: str) -> None:
    """Remove a bridge that is down; raises OSError."""
    with _control() as control:
        fcntl.ioctl(control, _SIOCBRDELBR, name.encode() + b"\0")


def links(call: Syscalls, fd: int, names: Sequence[str]) -> tuple[Link, ...]:
    """Look at interfaces in a namespace; raises OSError if one is missing."""
    found: list[Link] = []
    with entered(call, fd), _control() as control:
        for name in names:
            ask = _IFREQ.pack(name.encode(), b"")
            mtu: int = _NUMBER.unpack(fcntl.ioctl(control, _SIOCGIFMTU, ask))[1]
            hardware: bytes = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFHWADDR, ask))[1][2:8]
            found.append(Link(name=name, mac=hardware.hex(":"), mtu=mtu))
    return tuple(found)


def inherited(known: Identity) -> int | None:
    """Return the descriptor of a namespace that this process was given, None if it was not."""
    try:
        status = os.fstat(known.fd)
    except OSError:
        return None
    same = (status.st_dev, status.st_ino) == (known.device, known.inode)
    return known.fd if same and known.boot == boot_id() else None
