"""What is built for a guest, judged by cpio, modprobe and the kernel's own package."""

import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secrun.paths import Layout
from secrun.record import replace
from secrun.stage1.imagestore import load
from secrun_kvm import kernel as kernels
from secrun_kvm import modules
from secrun_kvm.guestimage import GuestImage, ensure_guest
from secrun_kvm.initramfs import Node, archive


def tool(*words, **options):
    return subprocess.run(words, check=True, capture_output=True, **options).stdout


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Layout:
    top = tmp_path_factory.mktemp("guest")
    return Layout(root=top / "root", run_root=top / "run")


@pytest.fixture(scope="module")
def image(layout) -> GuestImage:
    return ensure_guest(layout)


def test_the_kernel_is_the_one_that_its_name_says(image):
    assert kernels.installed().name == f"vmlinuz-{image.release}"


def test_cpio_extracts_what_the_manifest_lists(layout, image, tmp_path):
    tool("cpio", "--extract", "--quiet", input=image.initrd.read_bytes(), cwd=tmp_path)
    listed = {}
    manifest = load(layout, "kvm", image.digest).manifest
    tree = (replace(item, path=f"/stage1{item.path}".rstrip("/")) for item in manifest.files)
    for item in (*manifest.guest.initrd_files, *tree):
        path = tmp_path / item.path.lstrip("/")
        facts = path.lstat()
        assert facts.st_mode & 0o7777 == item.mode
        assert (facts.st_uid, facts.st_gid) == (0, 0)
        listed[item.path] = item
        if item.kind == "file":
            assert tool("sha256sum", path).split()[0].decode() == item.sha256
    found = {f"/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*")}
    assert found == set(listed)
    console = (tmp_path / "dev/console").stat()
    assert stat.S_ISCHR(console.st_mode)
    assert (os.major(console.st_rdev), os.minor(console.st_rdev)) == (5, 1)


def test_every_file_of_it_has_a_package_or_is_ours(layout, image):
    guest = load(layout, "kvm", image.digest).manifest.guest
    files = [guest.kernel, *guest.initrd_files]
    ours = {item.path for item in files if item.kind == "file" and not item.package}
    assert ours == {"/init", "/secrun/modules", "/secrun/salt"}
    assert {item.package for item in files if item.package} == {f"linux-image-{image.release}"}
    assert all(item.version for item in files if item.package)


def test_modprobe_would_load_the_same_before_each(image):
    """What kmod loads first comes first here too, from the files of the package, signature and all."""
    order = modules.resolve(modules.read(image.release), modules.GROUPS, ("sha256-ssse3",))
    ours = [os.path.realpath(modules.file_of(module, image.release)) for module in order]
    for name in ("dm-verity", "erofs", "virtio_blk", "virtio_pci", "virtiofs", "virtio_net"):
        shown = tool("modprobe", "--show-depends", "--set-version", image.release, name).decode()
        lines = (line.split() for line in shown.splitlines())
        needed = [os.path.realpath(words[1]) for words in lines if words[0] == "insmod"]
        # A soft dependency: a faster crc32c than the one that is built in, which reads two superblocks.
        needed = [path for path in needed if not path.endswith("/crc32c-intel.ko")]
        places = [ours.index(path) for path in needed]
        assert max(places) == places[-1]
    signed = modules.content(modules.file_of(order[0], image.release))
    assert signed.endswith(b"~Module signature appended~\n")


BUILD = """
import os, sys
from pathlib import Path
from secrun.paths import Layout
from secrun_kvm.guestimage import ensure_guest
os.umask(0o077)
image = ensure_guest(Layout(root=Path(sys.argv[1]), run_root=Path(sys.argv[2])))
print(image.digest)
"""


def test_another_process_with_another_seed_clock_and_umask_builds_the_same_bytes(image, tmp_path):
    bare = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    words = (sys.executable, "-c", BUILD, tmp_path / "root", tmp_path / "run")
    assert tool(*words, env=bare).decode().strip() == str(image.digest)
    folder = tmp_path / "root/stage1" / image.kernel.parent.name
    for name in ("vmlinuz", "initrd", "stage1.erofs", "manifest.json"):
        assert (folder / name).read_bytes() == (image.kernel.parent / name).read_bytes()


# Names that cpio can list line by line.
WORDS = st.text(alphabet="abcXYZ019._-é", min_size=1, max_size=20).filter(
    lambda word: word not in (".", "..")
)
FILES = st.dictionaries(WORDS, st.tuples(st.binary(max_size=300), st.integers(0, 0o777)), max_size=8)


@settings(max_examples=30)
@given(FILES)
def test_cpio_reads_any_archive(tmp_path_factory, files):
    nodes = [
        Node(path="d", mode=stat.S_IFDIR | 0o755),
        *(
            Node(path=f"d/{name}", mode=stat.S_IFREG | mode, data=data)
            for name, (data, mode) in files.items()
        ),
    ]
    folder = tmp_path_factory.mktemp("cpio")
    tool("cpio", "--extract", "--preserve-modification-time", input=archive(nodes), cwd=folder)
    found = {path.name: (path.read_bytes(), path.stat().st_mode & 0o777) for path in folder.glob("d/*")}
    assert found == files
    assert all(path.stat().st_mtime == 0 for path in folder.glob("d/*"))
