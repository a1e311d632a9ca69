"""A network namespace that plays the host, so that bridges, leases and rules never touch the real one."""

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.secrun import Secrun

# One process that lives as long as the namespace is needed; its loopback is up, as on any host.
_HOLDER = "ip link set lo up && echo ready && exec sleep 1000000"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostNet:
    """The namespace, and commands inside it."""

    pid: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words that run a command in the namespace."""
        return ("nsenter", "--target", str(self.pid), "--net", "--")

    def run(self, *words: str, check: bool = True, stdin: str = "") -> str:
        """Run a command in the namespace; return its stdout."""
        done = subprocess.run(
            [*self.prefix, *words], capture_output=True, text=True, input=stdin, check=False, timeout=60
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def fetch(self, url: str) -> str:
        """Fetch a page as a program of the host; empty if nobody answers."""
        return self.run("timeout", "5", "busybox", "wget", "-q", "-O", "-", url, check=False)

    def links(self) -> set[str]:
        """Name the interfaces, the loopback apart."""
        lines = self.run("ip", "-o", "link").splitlines()
        return {line.split(": ")[1].split("@")[0] for line in lines} - {"lo"}

    def rules(self) -> list[str]:
        """List the firewall rules of both families, without the plugins' empty chains and jumps."""
        listed = [
            line for tool in ("iptables-save", "ip6tables-save") for line in self.run(tool).splitlines()
        ]
        return [line for line in listed if line.startswith("-A") and not _fixed(line)]

    def __call__(self, secrun: Secrun) -> Secrun:
        """Return the command line as a program of this host."""
        return dataclasses.replace(secrun, prefix=self.prefix)


def _fixed(line: str) -> bool:
    """Tell whether a rule is one that plugins make once and for all pods."""
    marks = ("CNI firewall plugin", "-j CNI-HOSTPORT-DNAT", "CNI portfwd", "-A CNI-HOSTPORT-MASQ ")
    return any(mark in line for mark in marks)


@contextmanager
def made() -> Iterator[HostNet]:
    """Make the namespace; with the last process in it everything in it goes."""
    words = ["unshare", "--net", "sh", "-c", _HOLDER]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"ready\n"
            yield HostNet(pid=holder.pid)
        finally:
            holder.kill()


def leases(secrun: Secrun) -> list[str]:
    """Name the addresses that the built-in network of a root has given out."""
    folder = Path(secrun.run_root, "network", "default")
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in names if name != "lock" and not name.startswith("last_reserved_ip"))
