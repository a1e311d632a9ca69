"""What the process that parses layers may do: nothing but its work."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from secrun.errors import HostError, ImageError
from secrun.image import rootfs
from secrun.image.rootfs import limits
from secrun.image.rootfs.sandbox import Confined, run_confined
from secrun.jsonio import JsonObject
from secrun.paths import Layout
from secrun.syscalls import CLONE_NEWUSER, LinuxSyscalls
from support.layers import file, store_layers, tar
from support.waiting import gone, wait_until

LAYERS = [tar(file(b"a", b"content"))]


def layout_in(folder: Path) -> Layout:
    return Layout(folder / "root", folder / "run")


def confined(body: Callable[[], JsonObject], *keep_fds: int) -> JsonObject:
    def prepare() -> None:
        import glob  # noqa: F401 - what the body needs is imported while there are files

    return run_confined(Confined(body=body, prepare=prepare, keep_fds=keep_fds), LinuxSyscalls())


class TestSandbox:
    def test_kernel_shows_no_rights(self) -> None:
        reader, writer = os.pipe()
        go_reader, go_writer = os.pipe()

        def body() -> JsonObject:
            os.write(writer, b"%d\n" % os.getpid())
            os.read(go_reader, 1)
            return {"uid": os.getuid(), "groups": len(os.getgroups())}

        watcher = os.fork()
        if watcher == 0:
            os.close(writer)
            pid = int(os.read(reader, 100))
            status = Path(f"/proc/{pid}/status").read_text()
            spaces = {
                name: os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
                for name in ("user", "net", "ipc", "uts", "mnt", "cgroup")
            }
            interfaces = Path(f"/proc/{pid}/net/dev").read_text().count(":")
            fds = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            good = (
                not any(spaces.values())
                and fields["NoNewPrivs"] == "1"
                and fields["Seccomp"] == "2"
                and all(
                    int(fields[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
                )
                and all(int(uid) >= 0x70000000 for uid in fields["Uid"].split())
                and all(int(gid) >= 0x70000000 for gid in fields["Gid"].split())
                and not fields["Groups"].strip()
                and interfaces == 1
                and Path(f"/proc/{pid}/uid_map").read_text() == ""
                and len(fds) == 6  # three that lead nowhere, the answer, and the two given
            )
            os.write(go_writer, b"x")
            if not good:
                os.write(2, repr((spaces, fields, fds, interfaces)).encode())
            os._exit(0 if good else 1)
        answer = confined(body, writer, go_reader)
        assert os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1]) == 0
        for end in (reader, writer, go_reader, go_writer):
            os.close(end)
        # Unmapped: the worker does not even know its own number.
        assert answer == {"uid": 65534, "groups": 0}

    def test_no_path_can_be_opened_or_made(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        readable = tmp_path / "readable"
        readable.write_text("x")
        readable.chmod(0o666)

        def body() -> JsonObject:
            refused = 0
            for attempt in (
                lambda: os.open(readable, os.O_RDONLY),
                lambda: os.open("/etc/hostname", os.O_RDONLY),
                lambda: os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT),
                lambda: os.mkdir(tmp_path / "dir"),
                lambda: os.unlink(readable),
                lambda: os.execv("/bin/true", ["true"]),
                lambda: os.listdir("/"),
            ):
                try:
                    attempt()
                except PermissionError:
                    refused += 1
            return {"refused": refused}

        assert LinuxSyscalls().landlock_abi(), "this kernel has no Landlock"
        assert confined(body) == {"refused": 7}

    def test_no_new_namespace_brings_capabilities_back(self) -> None:
        calls = LinuxSyscalls()

        def body() -> JsonObject:
            try:
                calls.unshare(CLONE_NEWUSER)
            except PermissionError:
                return {"refused": True}
            return {}

        assert confined(body) == {"refused": True}

    def test_no_signal_reaches_anybody(self) -> None:
        target = os.getpid()

        def body() -> JsonObject:
            try:
                os.kill(target, signal.SIGUSR1)
            except PermissionError:
                return {"refused": True}
            return {}

        assert confined(body) == {"refused": True}

    def test_no_network(self) -> None:
        import socket

        listener = socket.create_server(("127.0.0.1", 0))

        def body() -> JsonObject:
            try:
                client = socket.socket()
                client.connect(listener.getsockname())
            except OSError:
                return {"refused": True}
            return {}

        with listener:
            assert confined(body) == {"refused": True}

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
    def test_death_names_the_signal(self, number: signal.Signals) -> None:
        def body() -> JsonObject:
            signal.pthread_kill(threading.get_ident(), number)
            return {}

        with pytest.raises(ImageError, match=number.name):
            confined(body)

    def test_worker_dies_with_its_caller(self) -> None:
        reader, writer = os.pipe()

        def body() -> JsonObject:
            os.write(writer, b"%d\n" % os.getpid())
            signal.pause()
            return {}

        caller = os.fork()
        if caller == 0:
            confined(body, writer)
            os._exit(0)
        worker = os.read(reader, 100).decode().strip()
        os.kill(caller, signal.SIGKILL)
        os.waitpid(caller, 0)
        wait_until(lambda: gone(worker))
        os.close(reader)
        os.close(writer)

    def test_defect_in_the_worker_brings_its_traceback(self) -> None:
        def body() -> JsonObject:
            raise ZeroDivisionError("a defect")

        with pytest.raises(ImageError, match="ZeroDivisionError: a defect"):
            confined(body)

    def test_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from secrun.image.rootfs import sandbox

        small = [
            (kind, 1 << 30 if kind == sandbox.resource.RLIMIT_AS else value)
            for kind, value in sandbox._LIMITS
        ]
        monkeypatch.setattr(sandbox, "_LIMITS", small)
        with pytest.raises(ImageError, match="memory"):
            confined(lambda: {"size": len(bytearray(2 << 30))})

    def test_answer_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_ANSWER_BYTES", 10_000)
        with pytest.raises(ImageError, match="larger than"):
            confined(lambda: {"x": "y" * 1_000_000})

    def test_refused_namespaces_are_a_host_error_and_nothing_is_rendered(self, tmp_path: Path) -> None:
        class NoNamespaces(LinuxSyscalls):
            def unshare(self, flags: int) -> None:
                raise PermissionError(1, "Operation not permitted")

        layout = layout_in(tmp_path)
        with pytest.raises(HostError) as caught:
            rootfs.ensure(layout, store_layers(tmp_path / "blobs", LAYERS), calls=NoNamespaces())
        assert caught.value.code == "host-sandbox"
        assert list(layout.rootfs.glob("*")) == list(layout.scratch.glob("*")) == []

    def test_interrupted_caller_leaves_no_worker(self) -> None:
        reader, writer = os.pipe()

        def body() -> JsonObject:
            os.write(writer, b"%d\n" % os.getpid())
            signal.pause()
            return {}

        def interrupt(_number: int, _frame: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(KeyboardInterrupt):
                confined(body, writer)
        finally:
            signal.signal(signal.SIGALRM, before)
        pid = int(os.read(reader, 100))
        os.close(reader)
        os.close(writer)
        assert not Path(f"/proc/{pid}").exists()
