"""Run a command in a stand-in for stage1: own user, mount, pid, net, ipc and uts namespaces, own root.

`python agent_stage.py TOP COMMAND...`: TOP holds the folders pod, images, rw, host and agent, which appear
as /pod and so on. It exits with the command's status. The command is not PID 1, as in a pod.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

BASE = 1_310_720_000
RANGE = 65_536

_NEWNS, _NEWUTS, _NEWIPC = 0x20000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG = 1
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    )


def _die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def _prepare_root(top: Path, root: str) -> None:
    _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
    _mount("none", root, "tmpfs", data="mode=755")
    os.chown(root, BASE, BASE)
    os.chdir(root)
    for name in ("usr", "proc", "dev", "sys", "run", "tmp", "old"):
        Path(name).mkdir()
        os.chown(name, BASE, BASE)
    for name in ("bin", "sbin", "lib", "lib64"):
        Path(name).symlink_to(f"usr/{name}")
    _mount("/usr", "usr", flags=_MS_BIND)
    _mount("/dev", "dev", flags=_MS_BIND | _MS_REC)
    for name in ("pod", "images", "rw", "host", "agent"):
        Path(name).mkdir()
        _mount(str(top / name), name, flags=_MS_BIND | _MS_REC)
    _mount("sysfs", "sys", "sysfs")
    # crun wants pure cgroup2 here, whatever the host has.
    _mount("cgroup2", "sys/fs/cgroup", "cgroup2")
    for name in ("usr", "pod", "images", "agent"):
        _mount("none", name, flags=_MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _enter_root(root: str) -> None:
    # Mounts copied into a new user namespace are locked; pivot_root(2) wants one of its own.
    _mount(root, root, flags=_MS_BIND | _MS_REC)
    os.chdir(root)
    _mount("proc", "proc", "proc")
    _mount("none", "run", "tmpfs", data="mode=755")
    _check(_libc.syscall(_SYS_PIVOT_ROOT[os.uname().machine], b".", b"old"))
    _check(_libc.umount2(b"/old", _MNT_DETACH))
    os.chdir("/")


def _wait_for(pid: int) -> int:
    while True:
        done, status = os.wait()
        if done == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _init(root: str, command: list[str]) -> int:
    """Be PID 1: run the command as a child and reap what it leaves.

    Asked to power off, end everything as systemd-shutdown does: SIGTERM to every process.
    """
    _die_with_parent()
    signal.signal(signal.SIGRTMIN + 14, lambda *_: os.kill(-1, signal.SIGTERM))
    _enter_root(root)
    pid = os.fork()
    if pid == 0:
        os.execvp(command[0], command)
    return _wait_for(pid)


def _namespaces(root: str, command: list[str], asked: int, answered: int) -> int:
    _check(_libc.unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS))
    os.write(asked, b"?")
    os.read(answered, 1)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # After the change of credentials, which would clear it (prctl(2)).
    _die_with_parent()
    pid = os.fork()
    if pid == 0:
        os._exit(_init(root, command))
    return _wait_for(pid)


def main() -> int:
    top, command = Path(sys.argv[1]), sys.argv[2:]
    # Any folder that everybody may search; the mount is private.
    root = "/mnt"
    os.set_inheritable(0, True)
    _check(_libc.unshare(_NEWNS))
    _prepare_root(top, root)
    asked_read, asked_write = os.pipe()
    answered_read, answered_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os._exit(_namespaces(root, command, asked_write, answered_read))
    os.read(asked_read, 1)
    for kind in ("uid", "gid"):
        Path(f"/proc/{pid}/{kind}_map").write_text(f"0 {BASE} {RANGE}\n")
    os.write(answered_write, b"!")
    return _wait_for(pid)


if __name__ == "__main__":
    sys.exit(main())
