"""What the checks inside the test machine are made of: plain Python, nothing of secrun's own."""

import base64
import json
import os
import re
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

WAIT_SECONDS = 240
STORE = Path("/var/lib/secrun")
SCOPES = Path("/sys/fs/cgroup/machine.slice")
LAYOUT = "oci:/opt/secrun-test/images:busybox"
OPEN = ("--insecure-options=image", "--pull=never")
RELAXED = (*OPEN, "--net=none")
# What one boot of the machine tells the next is on its disk.
NOTES = Path("/var/lib/secrun-test")
AUDIT = Path("/var/log/audit/audit.log")
# Files that a check hands to the outside.
OUT = Path("/run/secrun-test")
IDLE = ("sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.2; done")

LEFT_BY_PODS = ("secrun", "crun", "systemd-nspawn", "swtpm", "qemu", "virtiofsd")

# The kill was asked for; IMA lacks a hash that the TPM has.
EXPECTED_ERRORS = (
    "Memory cgroup out of memory",
    "ima: Can not allocate sha[0-9]+ ",
    # A guest's kernel tries what its processor may have; KVM says that it has not.
    r"kvm \[[0-9]+\]: vcpu[0-9]+, guest rIP: 0x[0-9a-f]+ Unhandled (WR|RD)MSR",
)

Check = Callable[[], object]
FIRST: dict[str, Check] = {}
"""The checks of the first boot, which ends by a power cut."""
SECOND: dict[str, Check] = {}
"""The checks of the second, which is shut down in order."""
THIRD: dict[str, Check] = {}
"""The checks of the third."""


def check(function: Check) -> Check:
    FIRST[function.__name__] = function
    return function


def after_the_power_cut(function: Check) -> Check:
    SECOND[function.__name__] = function
    return function


def after_the_shutdown(function: Check) -> Check:
    THIRD[function.__name__] = function
    return function


def tool(*words: str | os.PathLike[str], code: int | None = 0) -> str:
    done = subprocess.run(
        words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    assert code is None or done.returncode == code, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def secrun(*words: str | os.PathLike[str], code: int | None = 0) -> str:
    return tool("secrun", *words, code=code)


def run(*words: str, options: tuple[str, ...] = (), code: int | None = 0) -> str:
    return secrun("run", "--rm", *RELAXED, *options, LAYOUT, "--", *words, code=code)


def status(uuid: str) -> dict[str, object]:
    return json.loads(secrun("status", "--format=json", uuid))


def group(uuid: str) -> Path:
    """Return the control group of a pod."""
    return SCOPES / f"secrun-{uuid}.scope" / "pod"


def events(*root: str) -> list[tuple[str, dict]]:
    """Read the log of this epoch: operation and fields."""
    records = json.loads(secrun(*root, "attest", "log", "--format=cel-json"))
    bodies = (bytes.fromhex(record["content"]["event_data"])[8:].decode() for record in records)
    parts = (body.split(" ", 2) for body in bodies)
    return [(operation, json.loads(fields)) for _, operation, fields in parts]


def life(uuid: str) -> list[str]:
    return [operation for operation, fields in events() if fields.get("pod") == uuid]


def attest_status(*root: str) -> dict:
    return json.loads(secrun(*root, "attest", "status", "--format=json"))


def eventually(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


def started_service(name: str, *options: str, root: tuple[str, ...] = ()) -> str:
    """Start a pod as a transient service; return its UUID once the app's first line is in the journal."""
    saved = Path(f"/run/{name}-uuid")
    words = (*root, "run", *options, *RELAXED, f"--uuid-file-save={saved}", LAYOUT, "--", *IDLE)
    tool("systemd-run", f"--unit={name}", "--quiet", "/usr/bin/secrun", *words)
    journal = ("journalctl", f"--unit={name}", "--output=cat")
    eventually(lambda: "up" in tool(*journal).splitlines(), "the app's line in the journal")
    return saved.read_text().strip()


def commands() -> Iterator[str]:
    """Name the program of each process."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            yield path.read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended


def remains() -> list[str]:
    """List what a pod could have left on this host."""
    found = [str(path) for path in SCOPES.glob("secrun-*/")]
    found += tool("losetup", "--list", "--noheadings").splitlines()
    found += [str(path) for path in Path("/sys/block").glob("dm-*")]
    mounts = Path("/proc/mounts").read_text().splitlines()
    found += [line for line in mounts if re.search("secrun|erofs", line)]
    found += [name for name in commands() if name.startswith(LEFT_BY_PODS)]
    found += secrun("list", "-q").split()
    return found


def nothing_remains() -> None:
    eventually(lambda: not remains(), f"the end of everything, of {remains()} last")


def host_is_as_it_was() -> str:
    nothing_remains()
    assert tool("systemctl", "--failed", "--no-legend", "--plain") == ""
    log = tool("dmesg", "--level=emerg,alert,crit,err")
    left = [line for line in log.splitlines() if not re.search("|".join(EXPECTED_ERRORS), line)]
    assert not left, left
    return log


def from_outside(name: str) -> str:
    """Return what the kernel's command line says that the test gave to this boot."""
    (word,) = re.findall(rf"\bsecrun\.{name}=(\S+)", Path("/proc/cmdline").read_text())
    return word


def noted(name: str, text: str) -> None:
    """Keep something for the next boot, so that no power cut loses it."""
    NOTES.mkdir(exist_ok=True)
    with (NOTES / name).open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    for folder in (NOTES, NOTES.parent):
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def note(name: str) -> str:
    return (NOTES / name).read_text()


def hand_out(name: str, text: str) -> None:
    """Give the test outside a file."""
    OUT.mkdir(exist_ok=True)
    (OUT / name).write_text(text)


def handed_out() -> dict[str, str]:
    """Take what the last check hands out, as one line of the report carries it."""
    packed = {}
    for path in OUT.glob("*"):
        packed[path.name] = base64.b64encode(zlib.compress(path.read_bytes())).decode()
        path.unlink()
    return packed


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
