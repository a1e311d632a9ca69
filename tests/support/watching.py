"""Watch the system calls of a command, and who makes them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.secrun import Secrun

_CALLS = "%net,read,readv,pread64,preadv,mmap,open,openat,openat2,splice,sendfile,copy_file_range"
_BIRTHS = "clone,clone3,fork,vfork,setuid,setreuid,setresuid"
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
# Not socket and bind alone: urllib3 looks while it is loaded whether there is IPv6.
NETWORK = re.compile(
    r"(?:connect|listen|accept4?|(?:recv|send)(?:from|to|m?msg)|p?(?:read|write)v?|p(?:read|write)64|splice|"
    r"sendfile)\(.*?(?:<(?:TCP|UDP|RAW)(?:v6)?:\[|sa_family=AF_INET)"
)


@dataclass
class Watched:
    """What strace saw, call by call, each with the effective user id of who made it."""

    calls: list[tuple[int, str, str]] = field(default_factory=list)

    def by(self, *, root: bool) -> list[str]:
        return [f"{name}({rest}" for uid, name, rest in self.calls if (uid == 0) == root]


def watch(
    secrun: Secrun,
    trace: Path,
    *words: str | os.PathLike[str],
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Watched:
    """Run a command under strace."""
    which = ("-e", f"trace={_CALLS},{_BIRTHS}")
    strace = ("strace", "-f", *options, "-yy", "-s", "256", "-o", str(trace), *which)
    watched = Secrun(
        root=secrun.root,
        run_root=secrun.run_root,
        # A software TPM that is started stays, and strace would wait for it.
        options=("--attest=off",),
        prefix=(*secrun.prefix, *strace),
    )
    watched(*words, environment=environment)
    return read_trace(trace.read_text(errors="replace"))


def read_trace(text: str) -> Watched:
    """Follow who is whose child and who became whom."""
    uids: dict[str, int] = {}
    begun: dict[str, tuple[str, str]] = {}
    found = Watched()
    for line in text.splitlines():
        if (match := _RESUMED.match(line)) is not None:
            pid, name, rest = match.groups()
            rest = begun.pop(pid, (name, ""))[1] + rest
        elif (match := _LINE.match(line)) is not None:
            pid, name, rest = match.groups()
            if "<unfinished ...>" in rest:
                begun[pid] = (name, rest)
                # It has begun, whatever comes of it.
                found.calls.append((uids.setdefault(pid, 0), name, rest))
                continue
        else:
            continue
        uid = uids.setdefault(pid, 0)
        found.calls.append((uid, name, rest))
        result = rest.rpartition(" = ")[2].split(" ")[0]
        if name in ("clone", "clone3", "fork", "vfork") and result.isdecimal() and int(result) > 0:
            uids[result] = uid
        elif name.startswith("set") and result == "0" and name != "setsockopt":
            numbers = [int(word) for word in re.findall(r"-?\d+", rest.partition(")")[0])]
            uids[pid] = numbers[1 if name == "setresuid" else -1]
    return found
