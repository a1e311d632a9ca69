"""The system call door against the running kernel; needs root."""

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from secrun import syscalls
from secrun.syscalls import LinuxSyscalls


def in_child(body: Callable[[], None]) -> int:
    """Run `body` in a forked child and return its exit status (signals negative)."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:  # noqa: BLE001 - a forked child must never return into pytest
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def status_field(name: str) -> str:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return line.split(":", 1)[1].strip()
    raise AssertionError(name)


def test_mount_and_umount_in_a_private_namespace(tmp_path: Path) -> None:
    def body() -> None:
        calls = LinuxSyscalls()
        calls.unshare(syscalls.CLONE_NEWNS)
        calls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        calls.mount("scratch", str(tmp_path), "tmpfs", syscalls.MS_NODEV, "size=64k,mode=0700")
        assert os.path.ismount(tmp_path)
        calls.umount(str(tmp_path))
        assert not os.path.ismount(tmp_path)

    assert in_child(body) == 0
    assert not os.path.ismount(tmp_path)


def test_a_failing_call_carries_errno_and_the_object(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        LinuxSyscalls().umount(str(tmp_path / "absent"))
    assert caught.value.filename == str(tmp_path / "absent")


def test_no_new_privs_and_no_capabilities_are_seen_by_the_kernel() -> None:
    def body() -> None:
        calls = LinuxSyscalls()
        calls.no_new_privs()
        calls.drop_bounding_set()
        calls.set_capabilities(0)
        assert status_field("NoNewPrivs") == "1"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status_field(name), 16) == 0, name

    assert in_child(body) == 0


def test_landlock_denies_paths_and_keeps_open_descriptors(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(b"still readable")

    def body() -> None:
        calls = LinuxSyscalls()
        fd = os.open(kept, os.O_RDONLY)
        calls.no_new_privs()
        assert calls.landlock_deny_all() == calls.landlock_abi()
        assert os.read(fd, 100) == b"still readable"
        with pytest.raises(PermissionError):
            os.open(kept, os.O_RDONLY)
        with pytest.raises(PermissionError):
            (tmp_path / "new").write_bytes(b"")

    assert LinuxSyscalls().landlock_abi() > 0, "this kernel has no Landlock: the test cannot run here"
    assert in_child(body) == 0


def test_parent_death_signal_ends_an_orphan() -> None:
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        ready_reader, ready_writer = os.pipe()
        if os.fork() == 0:
            LinuxSyscalls().parent_death_signal(signal.SIGKILL)
            os.write(ready_writer, b"x")
            signal.pause()
        os.read(ready_reader, 1)
        os._exit(0)
    os.close(writer)
    os.waitpid(middle, 0)
    # End of file comes only when the orphan, the last holder of the writing end, is gone.
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_setns_by_pidfd_joins_the_namespace_of_a_process() -> None:
    def body() -> None:
        calls = LinuxSyscalls()
        before = os.readlink("/proc/self/ns/uts")
        pidfd = os.pidfd_open(os.getpid())
        calls.unshare(syscalls.CLONE_NEWUTS)
        assert os.readlink("/proc/self/ns/uts") != before
        os.close(pidfd)
        parent = os.pidfd_open(os.getppid())
        calls.setns(parent, syscalls.CLONE_NEWUTS)
        assert os.readlink("/proc/self/ns/uts") == before

    assert in_child(body) == 0
