"""The guest image builder: what it makes of a kernel and its modules, and when it builds again."""

import io
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from secrun import predict
from secrun.cli import stage1 as verbs
from secrun.cli.table import Arguments, Context
from secrun.digest import Digest
from secrun.errors import HostError, ImageError, SecrunError, StateError, UsageError
from secrun.paths import Layout
from secrun.record import replace
from secrun.stage1 import content, flavours, imagestore, provenance
from secrun.stage1.contract import Stage1Identity
from secrun.stage1.imagerecord import manifest_json, parse_manifest
from secrun_kvm import guestimage, initramfs, modules
from secrun_kvm import kernel as kernels
from secrun_kvm.guestimage import build_guest, ensure_guest, load_guest, verify_guest
from support import kernels as made

PROGRAM = Path("/usr/bin/sleep")
NEWER = "6.1.0-10-cloud-amd64"


class Kvm:
    """The flavour as its entry point gives it, as far as building goes."""

    name = "kvm"

    def build_image(self, layout, kernel):
        image = build_guest(layout, kernel)
        return Stage1Identity(digest=image.digest, tree=image.reference)

    def command_lines(self):
        return ()


def no_dpkg(*_, **__):
    raise HostError("dpkg-query is not installed")


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """A host with one small kernel and small programs, where asking dpkg takes no time."""
    monkeypatch.setattr(provenance, "run", no_dpkg)
    monkeypatch.setattr(content, "PROGRAMS", (PROGRAM,))
    monkeypatch.setattr(kernels, "BOOT", tmp_path / "boot")
    monkeypatch.setattr(kernels, "this_platform", lambda: kernels._PLATFORMS["x86_64"])
    monkeypatch.setattr(modules, "FOLDER", tmp_path / "modules")
    for name in ("agent", "stage0"):
        shutil.copy(PROGRAM, tmp_path / name)
    monkeypatch.setattr("secrun.stage1.imagebuild.agent_path", lambda: tmp_path / "agent")
    monkeypatch.setattr(guestimage, "stage0_path", lambda: tmp_path / "stage0")
    load = flavours.load
    monkeypatch.setattr(flavours, "load", lambda name: Kvm() if name == "kvm" else load(name))
    made.install(tmp_path / "boot", tmp_path / "modules")
    return Layout(root=tmp_path / "root", run_root=tmp_path / "run")


def manifest(layout, image):
    return imagestore.load(layout, "kvm", image.digest).manifest


def test_the_manifest_lists_kernel_initramfs_and_stage1(layout, tmp_path):
    image = ensure_guest(layout)
    found = manifest(layout, image)
    guest = found.guest
    assert guest.release == image.release == made.RELEASE
    for part, path in ((guest.kernel, image.kernel), (guest.initrd, image.initrd)):
        assert part.sha256 == Digest.of(path.read_bytes()).hex
    assert image.kernel.read_bytes() == (tmp_path / f"boot/vmlinuz-{made.RELEASE}").read_bytes()
    files = {item.path: item for item in guest.initrd_files}
    assert files["/init"].sha256 == Digest.of((tmp_path / "stage0").read_bytes()).hex
    assert files["/secrun/modules.d/dm_verity.ko"].sha256 == Digest.of(b"\x7fELFdm-verity").hex
    assert files["/dev/console"].kind == "char"
    assert files["/secrun/salt"].sha256 == Digest.of(f"{found.verity_salt}\n".encode()).hex
    assert {item.path for item in found.files} >= {"/usr/bin/secrun-agent", "/usr/bin/sleep"}


def test_what_a_package_does_not_own_has_no_place_in_the_manifest(layout, tmp_path):
    assert str(tmp_path) not in json.dumps(manifest_json(manifest(layout, ensure_guest(layout))))


def test_stage1_is_one_file_for_both_flavours(layout):
    image = ensure_guest(layout)
    (base,) = [item for item in imagestore.list_images(layout) if item.flavour == "nspawn"]
    shared = imagestore.load(layout, "nspawn", base.digest).path
    assert os.path.samefile(shared, image.kernel.parent / "stage1.erofs")


def test_the_initramfs_holds_the_tree_that_containers_have(layout, tmp_path):
    image = ensure_guest(layout)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    command = ["cpio", "-idmu", "--quiet", "stage1*"]
    subprocess.run(command, input=image.initrd.read_bytes(), cwd=folder, check=True)
    top = folder / "stage1"
    described = {item.path: item for item in manifest(layout, image).files}
    there = {f"/{path.relative_to(top)}".removesuffix("."): path for path in (top, *top.rglob("*"))}
    assert set(there) == set(described)
    for name, path in there.items():
        item, mode = described[name], path.lstat().st_mode
        assert item.kind == {"l": "link", "d": "dir", "-": "file"}[stat.filemode(mode)[0]]
        assert item.target == (os.readlink(path) if path.is_symlink() else "")
        if item.kind == "file":
            assert item.sha256 == Digest.of(path.read_bytes()).hex
        if item.kind != "link":
            assert item.mode == stat.S_IMODE(mode)


def test_a_tree_that_has_changed_on_the_host_is_not_put_into_a_guest(layout, tmp_path, monkeypatch):
    ensure_guest(layout)
    (base,) = [item for item in imagestore.list_images(layout) if item.flavour == "nspawn"]
    old = imagestore.load(layout, "nspawn", base.digest)
    with (tmp_path / "agent").open("ab") as stream:
        stream.write(b"\0")
    monkeypatch.setattr(guestimage, "ensure_stage1", lambda _: old)
    monkeypatch.setattr(guestimage, "RECIPE_VERSION", 1000)
    with pytest.raises(HostError, match="/usr/bin/secrun-agent of stage1 changed"):
        ensure_guest(layout)


def test_the_digest_covers_kernel_initramfs_and_stage1(layout, tmp_path):
    digests = {ensure_guest(layout).digest}
    kernel = tmp_path / f"boot/vmlinuz-{made.RELEASE}"
    for path in (kernel, tmp_path / "stage0", tmp_path / "agent"):
        with path.open("ab") as stream:
            stream.write(b"\0")
        digests.add(ensure_guest(layout).digest)
    module = tmp_path / "modules" / made.RELEASE / made.module_path("erofs")
    module.write_bytes(b"\x7fELFother")
    digests.add(ensure_guest(layout).digest)
    assert len(digests) == 5


def test_what_is_compared_covers_more_than_the_tree(layout):
    image = ensure_guest(layout)
    assert image.reference == image.digest
    (base,) = [item for item in imagestore.list_images(layout) if item.flavour == "nspawn"]
    assert base.reference == base.tree_digest == manifest(layout, image).tree_digest


def test_two_builds_are_bit_identical(layout, tmp_path):
    first = ensure_guest(layout)
    for path in tmp_path.glob("modules/**/*.ko"):
        os.utime(path, ns=(1, 1))
    old = os.umask(0o077)
    try:
        second = ensure_guest(Layout(root=tmp_path / "b", run_root=tmp_path / "brun"))
    finally:
        os.umask(old)
    assert second.digest == first.digest
    names = {path.name for path in first.kernel.parent.iterdir()}
    assert names == {"vmlinuz", "initrd", "stage1.erofs", "manifest.json"}
    for name in names:
        one, other = first.kernel.parent / name, second.kernel.parent / name
        assert one.read_bytes() == other.read_bytes()
        assert other.stat().st_mode & 0o777 == 0o644
    assert second.kernel.parent.stat().st_mode & 0o777 == 0o755


def test_an_unchanged_host_builds_nothing(layout, monkeypatch):
    first = ensure_guest(layout)
    monkeypatch.setattr(imagestore, "_build", lambda *_: pytest.fail("built again"))
    assert ensure_guest(layout) == first
    assert load_guest(layout, first.digest) == first


def test_the_newest_kernel_is_taken_and_the_old_image_stays(layout, tmp_path):
    first = ensure_guest(layout)
    made.install(tmp_path / "boot", tmp_path / "modules", NEWER)
    second = ensure_guest(layout)
    assert second.release == NEWER
    assert load_guest(layout, first.digest) == first
    assert imagestore.current(layout, "kvm") == second.digest


def test_a_kernel_without_its_modules_is_an_error_and_no_other_is_taken(layout, tmp_path):
    ensure_guest(layout)
    made.install(tmp_path / "boot", tmp_path / "modules", NEWER)
    shutil.rmtree(tmp_path / "modules" / NEWER)
    with pytest.raises(HostError, match=f"modules of kernel {NEWER} are not installed") as caught:
        ensure_guest(layout)
    assert caught.value.code == "host-kernel"


def test_a_kernel_that_lacks_a_module_is_an_error_that_names_it(layout, tmp_path):
    needs = {name: deps for name, deps in made.MODULES.items() if name != "overlay"}
    made.install(tmp_path / "boot", tmp_path / "modules", NEWER, modules=needs)
    with pytest.raises(HostError, match=f"kernel {NEWER} has no module overlay"):
        ensure_guest(layout)
    assert list(layout.scratch.glob("*")) == []


def test_a_module_file_that_is_gone_or_damaged_is_named(layout, tmp_path):
    module = tmp_path / "modules" / made.RELEASE / made.module_path("erofs")
    module.write_bytes(b"")
    with pytest.raises(HostError, match=r"erofs\.ko is not usable: it is no ELF"):
        ensure_guest(layout)
    module.unlink()
    with pytest.raises(HostError, match=r"erofs\.ko"):
        ensure_guest(layout)
    assert [item.flavour for item in imagestore.list_images(layout)] == ["nspawn"]


def test_without_a_kernel_the_package_is_named(layout, tmp_path):
    shutil.rmtree(tmp_path / "boot")
    with pytest.raises(HostError) as caught:
        ensure_guest(layout)
    assert "apt install linux-image-cloud-amd64" in caught.value.hint


@pytest.mark.parametrize("kind", ["folder", "fifo", "text", "absent"])
def test_a_named_kernel_that_is_none_is_refused(layout, tmp_path, kind):
    path = tmp_path / "mine"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "text":
        path.write_text("no kernel")
    with pytest.raises(HostError, match="mine") as caught:
        build_guest(layout, path)
    assert caught.value.code == "host-kernel"
    assert guestimage.chosen_kernel(layout) is None


def test_a_named_kernel_is_the_one_of_later_pods_until_the_next_build(layout, tmp_path):
    default = ensure_guest(layout)
    made.install(tmp_path / "elsewhere", tmp_path / "modules", "6.1.0-3-cloud-amd64")
    mine = tmp_path / "mine"
    (tmp_path / "elsewhere/vmlinuz-6.1.0-3-cloud-amd64").rename(mine)
    chosen = build_guest(layout, mine)
    assert chosen.release == "6.1.0-3-cloud-amd64"
    assert ensure_guest(layout) == chosen
    mine.rename(tmp_path / "moved")
    with pytest.raises(HostError, match="mine"):
        ensure_guest(layout)
    assert build_guest(layout, None) == ensure_guest(layout) == default


def test_a_damaged_choice_is_an_error(layout):
    ensure_guest(layout)
    (layout.stage1 / "kvm.kernel").write_bytes(b"\xff")
    with pytest.raises(StateError, match="names no kernel"):
        ensure_guest(layout)
    build_guest(layout, None)
    ensure_guest(layout)


@pytest.mark.parametrize("name", ["vmlinuz", "initrd", "stage1.erofs", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_missing_or_cut_file_is_noticed_and_built_again(layout, name, how):
    first = ensure_guest(layout)
    path = first.kernel.parent / name
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[:100])
    with pytest.raises(SecrunError):
        load_guest(layout, first.digest)
    assert ensure_guest(layout) == first
    assert path.read_bytes() == data


@pytest.mark.parametrize("name", ["vmlinuz", "initrd"])
def test_a_changed_byte_of_kernel_or_initramfs_is_found_by_reading(layout, name):
    image = ensure_guest(layout)
    verify_guest(layout, image.digest)
    path = image.kernel.parent / name
    data = bytearray(path.read_bytes())
    data[-600] ^= 1
    path.write_bytes(data)
    assert ensure_guest(layout) == image, "the size is the same"
    with pytest.raises(ImageError, match=f"{name} has the digest"):
        verify_guest(layout, image.digest)


def test_a_damaged_stage1_gets_no_second_name(layout):
    image = ensure_guest(layout)
    shutil.rmtree(image.kernel.parent)
    (base,) = imagestore.list_images(layout)
    path = imagestore.load(layout, "nspawn", base.digest).path
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"stage1\.erofs has the digest"):
        ensure_guest(layout)
    shutil.rmtree(path.parent)
    assert ensure_guest(layout) == image


def test_a_guest_without_its_part_of_the_manifest_is_refused(layout):
    image = ensure_guest(layout)
    path = image.kernel.parent / "manifest.json"
    damaged = replace(manifest(layout, image), guest=None)
    path.write_text(json.dumps(manifest_json(damaged)))
    with pytest.raises(StateError, match="describes another image"):
        load_guest(layout, image.digest)


def test_a_manifest_cannot_name_files_elsewhere(layout):
    image = ensure_guest(layout)
    written = manifest_json(manifest(layout, image))
    for part in ("kernel", "initrd"):
        changed = json.loads(json.dumps(written))
        changed["guest"][part]["path"] = "../../etc/shadow"
        with pytest.raises(StateError, match=f"guest.{part}"):
            parse_manifest(json.dumps(changed).encode(), what="x")


def test_unused_images_of_both_flavours_go_and_used_ones_stay(layout, tmp_path):
    images = []
    for _ in range(3):
        images.append(ensure_guest(layout))
        with (tmp_path / "agent").open("ab") as stream:
            stream.write(b"\0")
    before = imagestore.list_images(layout)
    bases = [item.digest for item in before if item.flavour == "nspawn"]
    removed = imagestore.remove_unused(layout, {images[0].digest})
    assert set(removed) == {images[1].digest, *bases[:2]}
    assert load_guest(layout, images[0].digest) == images[0]
    assert ensure_guest(layout).digest not in {image.digest for image in images}


def test_both_flavours_are_predicted(layout):
    image = ensure_guest(layout)
    found = predict.predict(layout, (), fetch())
    by_flavour = {item.flavour: item for item in found.stage1}
    guest, container = by_flavour["kvm"], by_flavour["nspawn"]
    assert (guest.digest, guest.tree) == (image.digest, image.digest)
    assert (guest.kernel, guest.initrd) == (image.kernel_digest, image.initrd_digest)
    assert (guest.verity_root, guest.file) == (container.verity_root, container.file)
    assert (container.kernel, container.initrd) == (None, None)
    text = json.dumps(predict.to_json(found)).encode()
    assert predict.parse(text, what="x") == found
    assert b'"kernel": null' not in text


def fetch():
    from secrun.image.fetch import FetchOptions

    return FetchOptions(policy=None)


@pytest.fixture
def verb(layout):
    def call(function, **values):
        out = io.StringIO()
        context = Context(layout=layout, out=out, err=io.StringIO(), settings={})
        given = {"format": "text", "flavour": None, "kernel": None, "digest": None, "no_legend": None}
        assert function(Arguments(values=given | values), context) == 0
        return out.getvalue()

    return call


def test_the_verbs_know_both_flavours(layout, verb):
    container = verb(verbs.build).strip()
    guest = verb(verbs.build, flavour="kvm").strip()
    listed = verb(verbs.list_built)
    assert [line.split()[:3] for line in listed.splitlines()[1:]] == [
        [container[7:19], "nspawn", "yes"],
        [guest[7:19], "kvm", "yes"],
    ]
    assert made.RELEASE in listed
    images = json.loads(verb(verbs.list_built, format="json"))["images"]
    assert [image["flavour"] for image in images] == ["nspawn", "kvm"]
    assert images[1]["kernel"]["release"] == made.RELEASE
    shown = verb(verbs.show, digest="kvm")
    for text in (
        f"digest       {guest}",
        "vmlinuz",
        "/init",
        "/secrun/modules.d/erofs.ko",
        "/usr/bin/sleep",
    ):
        assert text in shown
    assert verb(verbs.show, digest=guest[7:15]) == shown
    assert f"digest       {container}" in verb(verbs.show)
    assert json.loads(verb(verbs.show, digest="kvm", format="json"))["guest"]["release"] == made.RELEASE


def test_a_kernel_is_for_guests_only(verb, tmp_path):
    with pytest.raises(UsageError, match="--kernel"):
        verb(verbs.build, flavour="nspawn", kernel=str(tmp_path / f"boot/vmlinuz-{made.RELEASE}"))


def test_the_archive_says_the_same_whatever_the_order_of_files():
    files = {f"secrun/modules.d/{name}.ko": name.encode() for name in "abc"}
    backwards = dict(reversed(files.items()))
    one, other = (initramfs.archive(initramfs.nodes(b"init", (), given)) for given in (files, backwards))
    assert one == other
