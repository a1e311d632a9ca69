"""What an app changed comes out as an image that runs, and says exactly what the app left."""

import dataclasses
import io
import json
import os
import signal
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun import locks
from secrun.errors import ImageError
from secrun.image import upper
from secrun.image.rootfs.sandbox import Confined, run_confined
from secrun.jsonio import JsonObject
from secrun.paths import Layout
from secrun.pod import export as exporting
from secrun.pod import removal
from secrun.stage1.uidrange import SIZE
from secrun.stage1.volumemount import mapping
from secrun.syscalls import LinuxSyscalls
from support.images import Entry, LayoutWriter, busybox_layer, directory, tar_layer
from support.secrun import Secrun

BASE = 0x20000 * 7
ANY = "--insecure-options=image"
# What the app does to its image, and what it sees of it then.
CHANGE = """
echo new >/root/new; chmod 4711 /root/new
rm /etc/group
rm -r /data; mkdir /data; echo fresh >/data/fresh
chmod 0700 /etc/passwd
mkdir /deep /deep/er; echo x >/deep/er/file
"""
LOOK = """
ls -R /etc /data /deep /root
cat /data/fresh /deep/er/file; stat -c '%a %u:%g %n' / /etc /root/new /etc/passwd
"""
DATA = [directory("data"), Entry(name="data/old", data=b"old"), Entry(name="data/sub/older", data=b"o")]


@pytest.fixture(scope="module")
def image(secrun: Secrun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of two layers with a history, of which an app can remove things."""
    folder = tmp_path_factory.mktemp("layout")
    LayoutWriter(folder).add_image(
        "two",
        [busybox_layer(), tar_layer(DATA)],
        config={"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "KEPT=yes"], "Labels": {"a": "b"}},
        docker=True,
    )
    return secrun("fetch", ANY, f"oci:{folder}:two").out.split()[-1]


def output(secrun: Secrun, image: str, script: str) -> str:
    return secrun("run", "--rm", *secrun.pod_options, image, "--", "/bin/sh", "-c", script).out


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {item.name: item for item in tar}


def layers_of(archive: Path) -> tuple[JsonObject, JsonObject, list[bytes]]:
    """Return manifest, configuration and layers of an archive."""
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            stream = tar.extractfile(name)
            assert stream is not None
            return stream.read()

        def blob(descriptor) -> bytes:
            return read("blobs/" + descriptor["digest"].replace(":", "/"))

        manifest = json.loads(blob(json.loads(read("index.json"))["manifests"][0]))
        layers = [blob(item) for item in manifest["layers"]]
        return manifest, json.loads(blob(manifest["config"])), layers


def test_what_an_app_left_runs_as_an_image_and_looks_the_same(secrun, image, tmp_path):
    uuid, done = secrun.kept(image, "--", "/bin/sh", "-c", CHANGE + LOOK)
    seen = done.out
    archive = tmp_path / "app.tar"
    digest = secrun("export", uuid, "-o", archive).out.strip()
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    again = secrun("fetch", ANY, f"oci-archive:{archive}").out.split()[-1]
    assert again == digest
    assert output(secrun, again, LOOK) == seen
    manifest, config, layers = layers_of(archive)
    top = members(layers[-1])
    assert {"etc/.wh.group", "data/.wh..wh..opq", "data/fresh", "root/new"} <= set(top)
    assert "bin/busybox" not in top
    assert config["config"]["Env"] == ["PATH=/bin", "KEPT=yes"]
    assert len(config["rootfs"]["diff_ids"]) == len(layers) == 3
    assert manifest["annotations"]["org.opencontainers.image.base.digest"] == image
    assert "docker" not in json.dumps(manifest["layers"])
    # Other tools see the same.
    shown = subprocess.run(["skopeo", "inspect", f"oci-archive:{archive}"], capture_output=True, check=True)
    assert json.loads(shown.stdout)["Digest"] == digest
    subprocess.run(["skopeo", "copy", "-q", f"oci-archive:{archive}", f"oci:{tmp_path}/oci:x"], check=True)
    unpack = ["umoci", "unpack", "--image", f"{tmp_path}/oci:x", str(tmp_path / "bundle")]
    subprocess.run(unpack, capture_output=True, check=True)
    rootfs = tmp_path / "bundle/rootfs"
    assert (rootfs / "data/fresh").read_text() == "fresh\n"
    assert not (rootfs / "data/old").exists()
    assert not (rootfs / "etc/group").exists()
    assert stat.S_IMODE((rootfs / "root/new").stat().st_mode) == 0o4711
    # The same pod gives the same bytes, and to standard output too.
    with (tmp_path / "again.tar").open("wb") as out:
        subprocess.run(secrun.argv("export", uuid), stdout=out, check=True)
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()
    # It is still an image that nobody signed.
    (tmp_path / "policy.json").write_text('{"default": [{"type": "reject"}]}')
    strict = ("--pull=never", f"--policy={tmp_path}/policy.json")
    refused = secrun("run", *strict, again, "--", "/bin/true", code=120)
    assert "reject" in refused.err
    secrun("image", "rm", again)
    secrun("rm", uuid)


def test_of_several_apps_one_is_named_and_what_did_not_end_is_refused(secrun, image, tmp_path):
    apps = (image, "--name=a", "--", "/bin/touch", "/a", "---", image, "--name=b", "--", "/bin/touch", "/b")
    uuid, _ = secrun.kept(*apps)
    assert "name one with --app: a, b" in secrun("export", uuid, "-o", tmp_path / "x", code=2).err
    assert "it has: a, b" in secrun("export", uuid, "--app=c", "-o", tmp_path / "x", code=2).err
    assert not (tmp_path / "x").exists()
    secrun("export", uuid, "--app=b", "-o", tmp_path / "b.tar")
    assert {"b"} == {name for name in members(layers_of(tmp_path / "b.tar")[2][-1]) if len(name) == 1} - {
        "."
    }
    taken = secrun("export", uuid, "--app=a", "-o", tmp_path / "b.tar", code=125)
    assert "exists already" in taken.err
    secrun("export", uuid, "--app=a", "-o", tmp_path / "b.tar", "--overwrite")
    assert "a" in members(layers_of(tmp_path / "b.tar")[2][-1])
    prepared = secrun.prepare("true")
    refused = secrun("export", prepared, "-o", tmp_path / "x", code=125)
    assert "is prepared, expected exited" in refused.err
    running = secrun.detach("sleep", "1000")
    refused = secrun("export", running, "-o", tmp_path / "x", code=125)
    assert "is running, expected exited" in refused.err
    for pod in (running, prepared, uuid):
        secrun.discard(pod)


def test_a_marked_pod_is_exported_and_one_whose_image_is_gone_says_so(secrun, tmp_path):
    folder = tmp_path / "layout"
    LayoutWriter(folder).add_image("own", [busybox_layer()], config={"Labels": {"of": "this test"}})
    image = secrun("fetch", ANY, f"oci:{folder}:own").out.split()[-1]
    uuid, _ = secrun.kept(image, "--", "/bin/touch", "/kept")
    secrun("gc", "--mark-only")
    secrun("export", uuid, "-o", tmp_path / "marked.tar")
    assert "kept" in members(layers_of(tmp_path / "marked.tar")[2][-1])
    secrun("image", "rm", image)
    gone = secrun("export", uuid, "-o", tmp_path / "gone.tar", code=125)
    assert "is not stored any more" in gone.err
    assert not (tmp_path / "gone.tar").exists()
    secrun("rm", uuid)


def test_after_a_reboot_what_was_kept_is_still_exported(secrun, image, tmp_path):
    uuid, _ = secrun.kept(image, "--", "/bin/touch", "/kept")
    # What need not survive one is gone.
    rebooted = dataclasses.replace(secrun, run_root=tmp_path / "fresh", options=("--attest=off",))
    rebooted("export", uuid, "-o", tmp_path / "kept.tar")
    assert "kept" in members(layers_of(tmp_path / "kept.tar")[2][-1])
    secrun("rm", uuid)


def test_while_it_is_read_nobody_else_takes_the_pod(secrun, image):
    uuid, _ = secrun.kept(image, "--", "/bin/touch", "/kept")
    layout = Layout(root=secrun.root, run_root=secrun.run_root)
    with exporting.ended(layout, uuid, None) as one:
        other = locks.open_dir(one.files.path)
        assert not locks.lock_fd(other, blocking=False)
        # Who only looks sees a pod that has ended.
        assert secrun.status(uuid)["state"] == "exited"
    assert locks.lock_fd(other, blocking=False)
    os.close(other)
    secrun("rm", uuid)


def test_what_a_full_disk_took_away_is_not_exported_as_if_nothing_had_changed(secrun, image, tmp_path):
    uuid, _ = secrun.kept(image, "--", "/bin/touch", "/kept")
    pod = secrun.root / "pods/run" / uuid
    removal.drop_written(pod)
    gone = secrun("export", uuid, "-o", tmp_path / "x.tar", code=125)
    assert "nothing is kept of app" in gone.err
    assert secrun("logs", uuid).out == ""
    assert not (tmp_path / "x.tar").exists()
    secrun("rm", uuid)


def test_the_file_is_whole_or_absent_when_the_command_is_killed_or_the_disk_is_full(secrun, image, tmp_path):
    uuid, _ = secrun.kept(image, "--", "/bin/dd", "if=/dev/zero", "of=/big", "bs=1048576", "count=48")
    small = tmp_path / "small"
    small.mkdir()
    call = LinuxSyscalls()
    call.mount("none", str(small), "tmpfs", 0, "size=8m")
    try:
        full = secrun("export", uuid, "-o", small / "x.tar", code=125)
        assert "no space left" in full.err
        assert list(small.iterdir()) == []
    finally:
        call.umount(str(small))
    before = sorted((secrun.root / "scratch").iterdir())
    with subprocess.Popen(
        secrun.argv("export", uuid), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        # It writes into a pipe that nobody empties: it is somewhere in the middle.
        assert process.stdout is not None
        assert process.stdout.read(1)
        assert sorted((secrun.root / "scratch").iterdir()) != before
        process.send_signal(signal.SIGKILL)
    secrun("gc", "--mark-only")
    secrun("gc", "--grace-period=1h")
    assert sorted((secrun.root / "scratch").iterdir()) == before
    secrun("rm", uuid)


def test_what_a_guest_changed_is_refused_with_a_reason(guests, tmp_path):
    uuid, _ = guests.kept(guests.image, "--", "/bin/true")
    refused = guests("export", uuid, "-o", tmp_path / "x", code=125)
    assert "was in the guest's memory" in refused.err
    assert "--stage1=nspawn" in refused.err
    guests("rm", uuid)


# The layer itself: what an app, or who broke out of it, can leave in the folder.


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "upper"
    folder.mkdir(mode=0o755)
    own(folder)
    return folder


def own(path: Path, uid: int = 0, gid: int = 0) -> Path:
    """Give a file to somebody of the pod."""
    os.chown(path, BASE + uid, BASE + gid, follow_symlinks=False)
    return path


def layer(tree: Path, out: Path) -> bytes:
    """Write the layer of a folder as an export does; return it."""
    calls = LinuxSyscalls()
    source = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    target = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        with mapping(calls, BASE, SIZE) as users:
            job = Confined(
                body=lambda: upper.write_layer(source, target),
                prepare=lambda: None,
                keep_fds=(source, target, users),
                readable=(source,),
                users=users,
            )
            run_confined(job, calls)
    finally:
        os.close(source)
        os.close(target)
    return out.read_bytes()


def acl(uid: int) -> bytes:
    """Return an access list that lets one more user read (linux/posix_acl_xattr.h)."""
    none = 0xFFFFFFFF
    entries = [(1, 6, none), (2, 4, uid), (4, 4, none), (16, 4, none), (32, 4, none)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_owners_and_attributes_are_what_the_app_saw(tree, tmp_path):
    secret, tool, shared = tree / "secret", tree / "tool", tree / "shared"
    secret.write_bytes(b"for nobody else")
    own(secret, 1000, 77).chmod(0)
    tool.write_bytes(b"tool")
    own(tool)
    # vfs_cap_data of revision 3: CAP_NET_RAW for the root of the pod (capabilities(7)).
    os.setxattr(tool, "security.capability", struct.pack("<IIIIII", 0x03000001, 1 << 13, 0, 0, 0, BASE))
    os.setxattr(tool, "user.note", b"\0binary")
    os.setxattr(tool, "user.overlay.origin", b"")
    shared.write_bytes(b"")
    own(shared)
    os.setxattr(shared, "system.posix_acl_access", acl(BASE + 42))
    found = members(layer(tree, tmp_path / "layer"))
    assert (found["secret"].uid, found["secret"].gid, found["secret"].mode) == (1000, 77, 0)
    assert (found["tool"].uid, found["tool"].gid) == (0, 0)
    attributes = found["tool"].pax_headers
    assert attributes["SCHILY.xattr.user.note"] == "\0binary"
    # What a layer has anywhere: revision 2, which names no namespace.
    raw = attributes["SCHILY.xattr.security.capability"].encode("utf-8", "surrogateescape")
    assert raw == struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    assert "SCHILY.xattr.user.overlay.origin" not in attributes
    listed = found["shared"].pax_headers["SCHILY.xattr.system.posix_acl_access"]
    assert listed.encode("utf-8", "surrogateescape") == acl(42)


def test_every_kind_of_file_and_every_name_is_told(tree, tmp_path):
    for name in ("a", "b\udcff\n", "n" * 255):
        (tree / name).write_text(name[:1])
        own(tree / name)
    os.link(tree / "a", tree / "z")
    (tree / "link").symlink_to("../../etc/passwd")
    own(tree / "link", 5, 5)
    os.mkfifo(tree / "pipe", 0o640)
    own(tree / "pipe")
    os.mknod(tree / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    own(tree / "null")
    os.mknod(tree / "gone", stat.S_IFCHR, 0)
    own(tree / "gone")
    (tree / "folder").mkdir(mode=0o1777)
    own(tree / "folder")
    os.setxattr(tree / "folder", "user.overlay.opaque", b"y")
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o600)
    data = layer(tree, tmp_path / "layer")
    found = members(data)
    assert found["z"].islnk()
    assert found["z"].linkname == "a"
    assert (found["link"].linkname, found["link"].uid) == ("../../etc/passwd", 5)
    assert found["pipe"].isfifo()
    assert (found["null"].ischr(), found["null"].devmajor, found["null"].devminor) == (True, 1, 3)
    assert found[".wh.gone"].size == 0
    assert {"folder", "folder/.wh..wh..opq", "b\udcff\n", "n" * 255} <= set(found)
    assert "gone" not in found
    assert "socket" not in found
    assert layer(tree, tmp_path / "second") == data


@pytest.mark.parametrize("name", ["redirect", "metacopy", "whiteout"])
def test_an_attribute_that_points_elsewhere_is_refused(tree, tmp_path, name):
    (tree / "x").write_bytes(b"")
    os.setxattr(tree / "x", f"user.overlay.{name}", b"/etc")
    with pytest.raises(ImageError, match=f"user.overlay.{name}, which secrun's overlays never write"):
        layer(tree, tmp_path / "layer")


def test_an_attribute_that_tar_cannot_name_is_refused(tree, tmp_path):
    (tree / "x").write_bytes(b"")
    os.setxattr(tree / "x", "user.a=b", b"")
    with pytest.raises(ImageError, match="no = in such names"):
        layer(tree, tmp_path / "layer")


def test_a_name_that_would_remove_something_is_refused(tree, tmp_path):
    (tree / ".wh.passwd").write_bytes(b"")
    with pytest.raises(ImageError, match="a name that means a removal"):
        layer(tree, tmp_path / "layer")


def test_a_tree_deeper_than_any_path_is_refused(tree, tmp_path):
    fd = os.open(tree, os.O_RDONLY)
    # Few and long: whoever cleans up after the tests recurses.
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with pytest.raises(ImageError, match="deeper than a path can say"):
        layer(tree, tmp_path / "layer")


def test_who_reads_the_folder_reads_nothing_else(tree, tmp_path):
    calls = LinuxSyscalls()
    outside = tmp_path / "outside"
    outside.write_text("x")
    own(outside, 1000)
    (tree / "link").symlink_to(outside)
    source = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)

    def body() -> JsonObject:
        refused = []
        for path, options in ((str(outside), {}), ("/etc/shadow", {}), ("link", {"dir_fd": source})):
            try:
                os.open(path, os.O_RDONLY, **options)
            except PermissionError:
                refused.append(path)
        for attempt in (
            lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=source),
            lambda: os.kill(1, 0),
        ):
            try:
                attempt()
            except PermissionError:
                refused.append("")
        return {"refused": len(refused), "uid": os.getuid()}

    with mapping(calls, BASE, SIZE) as users:
        job = Confined(
            body=body, prepare=lambda: None, keep_fds=(source, users), readable=(source,), users=users
        )
        answer = run_confined(job, calls)
    os.close(source)
    assert answer == {"refused": 5, "uid": 65534}
