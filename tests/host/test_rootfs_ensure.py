"""Rendering from a user's side: once, confined, the same bytes for everybody, and nothing left behind."""

import compileall
import os
import shutil
import signal
import stat
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.errors import HostError, ImageError
from secrun.image import rootfs
from secrun.image.rootfs import Compression, LayerSource, limits
from secrun.image.rootfs.sandbox import Confined, run_confined
from secrun.jsonio import JsonObject
from secrun.launch import run
from secrun.paths import Layout
from secrun.syscalls import CLONE_NEWUSER, LinuxSyscalls
from support.erofs_judges import mounted, walk
from support.layers import Member, file, folder, pax, store_layers, symlink, tar

LAYERS = [
    tar(
        folder(b"etc"),
        file(b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:44::/srv:/x\n"),
        file(b"etc/group", b"www:x:44:web\n"),
        folder(b"etc/old"),
        file(b"etc/old/gone"),
        Member(name=b"su", mode=0o4755, uid=0, gid=70_000, data=b"x" * 9000),
        pax(file(b"odd\n\xff"), (b"SCHILY.xattr.user.k", b"v"), (b"SCHILY.xattr.trusted.t", b"v")),
    ),
    tar(file(b"etc/.wh.old"), symlink(b"out", b"/"), file(b"out/evil", b"inside")),
]


def layout_in(folder_: Path) -> Layout:
    return Layout(folder_ / "root", folder_ / "run")


def remains(layout: Layout) -> list[str]:
    """Everything below the layout's root that is not a finished image."""
    return sorted(
        str(path.relative_to(layout.root))
        for path in layout.root.rglob("*")
        if not path.is_dir() and path.parent != layout.rootfs
    ) + [path.name for path in layout.scratch.glob("*")]


@pytest.mark.parametrize("compression", list(Compression))
def test_layers_become_one_mountable_image(tmp_path: Path, compression: Compression) -> None:
    layout = layout_in(tmp_path)
    image = rootfs.ensure(layout, store_layers(tmp_path / "blobs", LAYERS, compression))
    assert rootfs.load(layout, image.key) == image
    assert [user.name for user in image.users] == ["root", "web"]
    assert image.groups[0].members == ("web",)
    assert image.max_id == 70_000
    assert image.dropped_xattrs == ("trusted.t",)
    assert remains(layout) == []
    rootfs.verify_file(image)
    with mounted(image.path, tmp_path / "mnt") as top:
        seen = walk(top)
        assert sorted(seen) == [
            b"",
            b"etc",
            b"etc/group",
            b"etc/passwd",
            b"evil",
            b"odd\n\xff",
            b"out",
            b"su",
        ]
        assert seen[b"evil"][5] == b"inside"
        assert stat.S_IMODE(os.lstat(top + b"/su").st_mode) == 0o4755


def test_second_call_only_loads(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layers = store_layers(tmp_path / "blobs", LAYERS)
    first = rootfs.ensure(layout, layers)
    shutil.rmtree(tmp_path / "blobs")
    assert rootfs.ensure(layout, layers) == first


def test_image_without_layers_is_an_empty_root(tmp_path: Path) -> None:
    image = rootfs.ensure(layout_in(tmp_path), [])
    with mounted(image.path, tmp_path / "mnt") as top:
        assert list(walk(top)) == [b""]


RENDER = """
import sys
from pathlib import Path
from secrun.digest import Digest
from secrun.image import rootfs
from secrun.paths import Layout
root, *blobs = map(Path, sys.argv[1:])
layers = []
for blob in blobs:
    digest = Digest.of(blob.read_bytes())
    layers.append(rootfs.LayerSource(path=blob, digest=digest, size=blob.stat().st_size,
                                     compression=rootfs.Compression.NONE, diff_id=digest))
image = rootfs.ensure(Layout(root, root / "run"), layers)
print(image.key, image.tree_digest, image.verity_root, rootfs.FORMAT_VERSION)
"""


def outside_view(
    work: Path, name: str, *, prefix: list[str], environment: dict[str, str]
) -> tuple[bytes, bytes]:
    """Render in a fresh interpreter under another user and environment; its words and the image's bytes."""
    root = work / name
    root.mkdir()
    root.chmod(0o777)
    blobs = sorted((work / "blobs").iterdir())
    code = work / "code"
    done = run(
        [*prefix, "/usr/bin/python3", "-c", RENDER, str(root), *map(str, blobs)],
        environment={"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        cwd=work,
    )
    (image,) = (root / "rootfs").glob("*.erofs")
    return done.stdout, image.read_bytes()


@pytest.fixture
def open_work(tmp_path: Path) -> Path:
    """A copy of secrun and of the layers that nobody can read, too."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent.name.startswith(("pytest-", "popen-", "test_")):
            parent.chmod(0o755)
    source = Path(rootfs.__file__).parents[2]
    shutil.copytree(source, tmp_path / "code" / "secrun", ignore=shutil.ignore_patterns("__pycache__"))
    store_layers(tmp_path / "blobs", LAYERS)
    run(["chmod", "-R", "a+rX", tmp_path])
    return tmp_path


def test_same_bytes_for_every_user_umask_locale_and_time_zone(open_work: Path) -> None:
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    views = [
        outside_view(open_work, "root", prefix=[], environment={}),
        outside_view(open_work, "nobody", prefix=as_nobody, environment={}),
        outside_view(
            open_work,
            "odd",
            prefix=["sh", "-c", 'umask 077; exec "$@"', "sh"],
            environment={
                "LC_ALL": "tr_TR.UTF-8",
                "LANG": "C",
                "TZ": "Asia/Kathmandu",
                "PYTHONHASHSEED": "7",
            },
        ),
    ]
    assert len(set(views)) == 1


def test_byte_code_in_an_image_stays_valid(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "module.py").write_text("VALUE = 42\n")
    compileall.compile_dir(tree, quiet=1)
    archive = tmp_path / "layer.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as stream:
        stream.add(tree, "app")
    image = rootfs.ensure(layout_in(tmp_path), store_layers(tmp_path / "blobs", [archive.read_bytes()]))
    with mounted(image.path, tmp_path / "mnt") as top:
        code = "import sys; sys.path.insert(0, sys.argv[1]); import module; assert module.VALUE == 42"
        said = run([sys.executable, "-v", "-c", code, os.fsdecode(top) + "/app"]).stderr.decode()
    cached = [line for line in said.splitlines() if "module.cpython" in line]
    assert any("matches" in line for line in cached), cached


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"size": 5}, "image-layer-size"),
        ({"diff_id": Digest.of(b"other")}, "image-diff-id"),
        ({"compression": Compression.GZIP}, "image-compression"),
        ({"path": Path("/nonexistent/blob")}, "image-blob-missing"),
    ],
)
def test_bad_layers_leave_nothing(tmp_path: Path, change: dict[str, object], code: str) -> None:
    layout = layout_in(tmp_path)
    (good,) = store_layers(tmp_path / "blobs", LAYERS[:1])
    fields = {name: getattr(good, name) for name in LayerSource.__slots__}
    with pytest.raises(ImageError) as caught:
        rootfs.ensure(layout, [LayerSource(**{**fields, **change})])
    assert caught.value.code == code
    assert remains(layout) == []
    assert list(layout.rootfs.iterdir()) == []


def test_bad_tar_names_layer_and_place(tmp_path: Path) -> None:
    layers = store_layers(tmp_path / "blobs", [tar(file(b"ok"), Member(name=b"bad", checksum=b"1"))])
    with pytest.raises(ImageError, match=rf"layer {layers[0].digest}, tar header at 512: header checksum"):
        rootfs.ensure(layout_in(tmp_path), layers)


def test_full_disk_is_a_host_error_and_leaves_nothing(tmp_path: Path) -> None:
    layers = store_layers(tmp_path / "blobs", [tar(file(b"big", os.urandom(3 << 20)))])
    small = tmp_path / "small"
    small.mkdir()
    calls = LinuxSyscalls()
    # The first size has no room for the decompressed layer, the second none for the image beside it.
    for size in ("1m", "5m"):
        calls.mount("small", str(small), "tmpfs", 0, f"size={size}")
        try:
            layout = Layout(small / "root", tmp_path / "run")
            with pytest.raises(HostError) as caught:
                rootfs.ensure(layout, layers)
            assert caught.value.code == "host-disk-full"
            assert remains(layout) == []
            assert list(layout.rootfs.iterdir()) == []
        finally:
            calls.umount(str(small))


def children(count: int, body: Callable[[], None]) -> list[int]:
    """Run `body` in forked processes at once; their exit codes."""
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                body()
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_callers_at_the_same_time_render_once(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layers = store_layers(tmp_path / "blobs", [tar(file(b"f", bytes(30 << 20)))])
    rendered = tmp_path / "rendered"

    def body() -> None:
        from secrun.image.rootfs import worker

        plain = worker.job

        def counted(*arguments: object) -> Confined:
            fd = os.open(rendered, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(fd, b"x")
            os.close(fd)
            return plain(*arguments)

        worker.job = counted
        rootfs.ensure(layout, layers)

    assert children(6, body) == [0] * 6
    assert rendered.read_bytes() == b"x"


def wait_until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def confined(body: Callable[[], JsonObject], *keep_fds: int) -> JsonObject:
    def prepare() -> None:
        import glob  # noqa: F401 - what the body needs is imported while there are files

    return run_confined(Confined(body=body, prepare=prepare, keep_fds=keep_fds), LinuxSyscalls())


def test_a_layer_whose_thread_dies_is_not_an_empty_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secrun.image.rootfs import render

    plain = render.expand

    def defect(blob_fd: int, out_fd: int, **options: object) -> int:
        if options["size"] == len(LAYERS[1]):
            raise ZeroDivisionError
        return plain(blob_fd, out_fd, **options)

    monkeypatch.setattr(render, "expand", defect)
    layout = layout_in(tmp_path)
    with pytest.raises(ImageError) as caught:
        rootfs.ensure(layout, store_layers(tmp_path / "blobs", LAYERS))
    assert caught.value.code == "image-worker"
    assert list(layout.rootfs.iterdir()) == []


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
            client = socket.socket()
            try:
                client.connect(listener.getsockname())
            except OSError:
                return {"refused": True}
            return {}

        with listener:
            assert confined(body) == {"refused": True}

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
    def test_death_names_the_signal(self, number: signal.Signals) -> None:
        def body() -> JsonObject:
            os.kill(os.getpid(), number)
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
        assert remains(layout) == []

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


def test_killed_caller_leaves_files_that_purge_removes_and_no_process(tmp_path: Path) -> None:
    layout = layout_in(tmp_path)
    layers = store_layers(tmp_path / "blobs", [tar(file(b"f", os.urandom(1 << 20) * 200))], Compression.GZIP)
    pid = os.fork()
    if pid == 0:
        rootfs.ensure(layout, layers)
        os._exit(0)
    wait_until(lambda: any(path.stat().st_size for path in layout.scratch.glob("*/layer-0.tar")))
    assert rootfs.purge_stale(layout) == [], "a living owner's folder is not stale"
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert workers
    wait_until(lambda: all(gone(worker) for worker in workers))
    assert len(rootfs.purge_stale(layout)) == 1
    assert remains(layout) == []
    assert rootfs.ensure(layout, layers).data_size > 200 << 20
