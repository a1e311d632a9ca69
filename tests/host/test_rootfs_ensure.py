"""Rendering from a user's side: once, confined, the same bytes for everybody, and nothing left behind."""

import compileall
import os
import shutil
import signal
import stat
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.errors import HostError, ImageError
from secrun.image import rootfs
from secrun.image.rootfs import Compression, LayerSource
from secrun.image.rootfs.sandbox import Confined
from secrun.launch import run
from secrun.paths import Layout
from secrun.selfdigest import package_folder
from secrun.syscalls import LinuxSyscalls
from support.erofs_judges import mounted, walk
from support.layers import Member, file, folder, pax, store_layers, symlink, tar
from support.waiting import gone, wait_until

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
    for package in ("secrun", "secrun_attest", "secrun_policies"):
        source = package_folder(package)
        assert source is not None
        target = tmp_path / "code" / package
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
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
