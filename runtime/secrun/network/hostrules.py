"""The built-in network's rules on the host: a few for each family, as long as its bridge is there.

The `bridge` and `firewall` plugins would make and take back theirs for each pod and address, by three dozen
runs of iptables(8): most of the time that joining takes. These hold for the whole network, so that a pod has
none of its own; and while nobody has changed the host's rules, as the kernel tells by a number, none is run.
"""

import os
import struct
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW
from _socket import socket as raw_socket
from pathlib import Path

from secrun import launch
from secrun.errors import ExternalError, HostError, NetworkError
from secrun.files import write_atomic
from secrun.network import namespace
from secrun.network.builtin import Subnets
from secrun.network.configs import plugin_path
from secrun.record import record

_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin")
_SECONDS = 30.0
_OUTPUT = 65536
# linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h
_NETLINK_NETFILTER = 12
_GET_GENERATION = 10 << 8 | 16
_NEW_GENERATION = 10 << 8 | 15
_GENERATION_ID = 1
_REQUEST = struct.Struct("=IHHIIBBH")
_ATTRIBUTE = struct.Struct("=HH")
_ANSWER_BYTES = 4096
_ANSWER_SECONDS = 5.0


@record
class Rule:
    """One rule of iptables(8); `first` if it has to come before those that are there."""

    program: str
    table: str
    chain: str
    words: tuple[str, ...]
    first: bool = False

    def as_change(self, change: str) -> tuple[str, ...]:
        """Return the words of a command."""
        return ("--wait", "--table", self.table, change, self.chain, *self.words)


def rules(own: Subnets, *, v6: bool) -> list[Rule]:
    """Return the rules of a network; pure.

    What leaves the bridge gets the host's address, and is let through, with its answers and with what comes
    to a published port, also on hosts that forward nothing else (as the plugin `firewall` does for a pod).
    """
    comment = ("-m", "comment", "--comment", f"secrun {own.bridge}")
    found: list[Rule] = []
    for program, net in (("iptables", own.v4), ("ip6tables", own.v6)) if v6 else (("iptables", own.v4),):
        out = ("-s", net, "!", "-o", own.bridge, *comment, "-j", "MASQUERADE")
        through = ("-s", net, "-i", own.bridge, *comment, "-j", "ACCEPT")
        known = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED,DNAT")
        back = ("-d", net, "-o", own.bridge, *known, *comment, "-j", "ACCEPT")
        found += [
            Rule(program=program, table="nat", chain="POSTROUTING", words=out),
            Rule(program=program, table="filter", chain="FORWARD", words=through, first=True),
            Rule(program=program, table="filter", chain="FORWARD", words=back, first=True),
        ]
    return found


def _run(rule: Rule, change: str) -> launch.Completed:
    path = plugin_path(rule.program, _FOLDERS)
    if path is None:
        raise HostError(f"{rule.program} is not installed", hint="install iptables", code="host-program")
    try:
        return launch.exchange(
            [path, *rule.as_change(change)],
            stdin=b"",
            environment=launch.BASE_ENVIRONMENT,
            timeout=_SECONDS,
            limit=_OUTPUT,
        )
    except ExternalError as error:
        raise NetworkError(error.message, code="network-rule") from error


def _generation() -> int | None:
    """Return the number that grows with each change of the namespace's nftables; None without them."""
    try:
        control = raw_socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError:
        return None
    try:
        control.settimeout(_ANSWER_SECONDS)
        control.sendto(_REQUEST.pack(_REQUEST.size, _GET_GENERATION, 1, 1, 0, 0, 0, 0), (0, 0))
        return parse_generation(control.recv(_ANSWER_BYTES))
    except OSError:
        return None
    finally:
        control.close()


def parse_generation(answer: bytes) -> int | None:
    """Read the kernel's answer; pure. None if it is another."""
    if len(answer) < _REQUEST.size or _REQUEST.unpack_from(answer)[1] != _NEW_GENERATION:
        return None
    at = _REQUEST.size
    while at + _ATTRIBUTE.size <= len(answer):
        size, kind = _ATTRIBUTE.unpack_from(answer, at)
        if size < _ATTRIBUTE.size:
            return None
        if kind == _GENERATION_ID:
            return int.from_bytes(answer[at + _ATTRIBUTE.size : at + size], "big")
        at += (size + 3) & ~3
    return None


class HostRules:
    """The rules of one network, and the file that says which state of the host was seen to have them."""

    def __init__(self, own: Subnets, note: Path, *, v6: bool) -> None:
        self._own = own
        self._note = note
        self._rules = rules(own, v6=v6)

    def ensure(self) -> None:
        """Make the rules that are missing; raises NetworkError or HostError."""
        state = self._state()
        noted = self._note.read_text().split("\n") if self._note.exists() else []
        if state and state in noted and namespace.exists(self._own.bridge):
            return
        missing = [rule for rule in self._rules if _run(rule, "-C").returncode != 0]
        if not missing:
            # iptables of the older kind changes nothing that the number counts: it says nothing there.
            if state and noted and noted[0]:
                self._write(f"{noted[0]}\n{state}")
            return
        for rule in missing:
            self._add(rule)
        self._write("counted" if state and self._state() != state else "")

    def _add(self, rule: Rule) -> None:
        done = _run(rule, "-I" if rule.first else "-A")
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise NetworkError(f"network {self._own.bridge}: {rule.program}: {said}", code="network-rule")

    @staticmethod
    def _state() -> str:
        """Name the state of this namespace's rules; empty if nothing counts them."""
        number = _generation()
        if number is None:
            return ""
        own = os.stat("/proc/thread-self/ns/net")
        return f"{namespace.boot_id()} {own.st_dev} {own.st_ino} {number}"

    def _write(self, text: str) -> None:
        write_atomic(self._note, text.encode(), durable=False)

    def remove(self) -> None:
        """Remove the rules; two pods that started at once may have made one twice."""
        self._note.unlink(missing_ok=True)
        for rule in self._rules:
            while _run(rule, "-D").returncode == 0:
                pass
