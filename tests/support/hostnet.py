"""A network namespace that plays the host, so that bridges, leases and rules never touch the real one."""

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.secrun import Secrun, eventually

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


def clean_up(secrun: Secrun) -> None:
    """End and remove every pod of a root."""
    running = [str(pod["uuid"]) for pod in secrun.pods() if pod["state"] == "running"]
    if running:
        secrun("stop", "--force", *running)
        for uuid in running:
            secrun("status", "--wait", uuid)
    secrun("gc", "--grace-period=0s", "--expire-prepared=0s")


def addresses(secrun: Secrun, uuid: str) -> list[str]:
    """Return a pod's addresses without their prefix lengths."""
    shown = secrun.status(uuid)["networks"]
    return [text.split("/")[0] for item in shown for text in item["addresses"]]


def served(net: HostNet, url: str) -> None:
    """Wait until a pod says `here` at this place."""
    eventually(lambda: net.fetch(url) == "here\n", f"a page at {url}")


@dataclasses.dataclass
class Listening:
    """A server of the host that says one line to whoever connects."""

    net: HostNet
    address: str

    def __enter__(self) -> int:
        code = (
            "import socket,sys\n"
            "kind=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
            "s=socket.create_server((sys.argv[1],0),family=kind)\n"
            "print(s.getsockname()[1], flush=True)\n"
            "c,_=s.accept(); c.sendall(b'from the host\\n')\n"
        )
        words = [*self.net.prefix, "/usr/bin/python3", "-c", code, self.address]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE)
        return int(self.process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def listening(net: HostNet, address: str) -> Listening:
    """Serve one connection as a program of the host; yields the port."""
    return Listening(net, address)


# Answers each datagram to port 53 with itself.
MIRROR = r"""
#include <arpa/inet.h>
#include <sys/socket.h>
int main(void) {
    struct sockaddr_in6 own = {.sin6_family = AF_INET6, .sin6_port = htons(53)}, peer;
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    char text[100];
    bind(fd, (struct sockaddr *)&own, sizeof own);
    for (;;) {
        socklen_t size = sizeof peer;
        ssize_t count = recvfrom(fd, text, sizeof text, 0, (struct sockaddr *)&peer, &size);
        sendto(fd, text, count, 0, (struct sockaddr *)&peer, size);
    }
}
"""


def compiled(folder: Path, source: str, name: str = "made") -> None:
    """Make a program for pods, which have no libraries."""
    (folder / f"{name}.c").write_text(source)
    subprocess.run(["gcc", "-static", "-o", folder / name, folder / f"{name}.c"], check=True)


SAY = """
import socket, sys
host, port, kind = sys.argv[1], int(sys.argv[2]), getattr(socket, sys.argv[3])
found = socket.getaddrinfo(host, port, type=kind)[0]
with socket.socket(found[0], kind) as client:
    client.settimeout(5)
    client.connect(found[4])
    client.send(b"asked\\n")
    sys.stdout.write(client.recv(100).decode())
"""


def say(net: HostNet, host: str, port: int, kind: str) -> str:
    """Say `asked` to a port as a program of the host; return the answer."""
    return net.run("/usr/bin/python3", "-c", SAY, host, str(port), kind, check=False)
