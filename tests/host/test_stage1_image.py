"""The stage1 image builder: what it reads, what it makes of it, when it builds again."""

import os
import shutil
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.digest import Digest
from secrun.errors import HostError, ImageError, SecrunError, StateError
from secrun.image import rootfs
from secrun.paths import Layout
from secrun.stage1 import agent, content, imagebuild, imagestore, provenance
from secrun.stage1.elf import closure, read_elf
from secrun.stage1.imagebuild import ensure_stage1
from secrun.stage1.imagerecord import parse_inputs, parse_manifest
from secrun.stage1.imagestore import current, list_images, load, remove_unused, verify

PROGRAM = Path("/usr/bin/sleep")


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """A small recipe, so that a build costs little and needs no package beyond coreutils."""
    monkeypatch.setattr(content, "PROGRAMS", (PROGRAM,))
    return Layout(root=tmp_path / "root", run_root=tmp_path / "run")


@pytest.fixture
def agent_file(tmp_path):
    path = tmp_path / "agent"
    shutil.copy(PROGRAM, path)
    return path


def paths(layout, image):
    return {item.path: item for item in load(layout, "nspawn", image.digest).manifest.files}


def test_an_elf_program_names_its_loader_and_libraries():
    elf = read_elf(PROGRAM)
    assert elf.interpreter is not None
    assert "ld-linux" in elf.interpreter
    assert "libc.so.6" in elf.needed


def test_the_closure_agrees_with_the_loader():
    import subprocess

    program = Path("/usr/bin/python3.11")
    listed = subprocess.run(["ldd", program], capture_output=True, check=True, text=True).stdout
    expected = {
        os.path.realpath(word)
        for line in listed.splitlines()
        for word in line.split()
        if word.startswith("/")
    }
    assert {os.path.realpath(path) for path in closure((program,))} == expected


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_raise_anything_but_a_host_error(data, magic):
    path = Path(f"/dev/shm/elf-{os.getpid()}")
    path.write_bytes((b"\x7fELF\x02\x01" if magic else b"") + data)
    try:
        with pytest.raises(HostError, match="not a usable ELF"):
            read_elf(path)
    finally:
        path.unlink()


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_program_is_refused_or_read(changes):
    data = bytearray(PROGRAM.read_bytes())
    for offset, value in changes:
        data[offset] = value
    path = Path(f"/dev/shm/elf-damaged-{os.getpid()}")
    path.write_bytes(data)
    try:
        with suppress(HostError):
            read_elf(path)
    finally:
        path.unlink()


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("secrun.stage1.elf.default_folders", lambda: (tmp_path,))
    with pytest.raises(HostError, match=r"needs libc\.so\.6"):
        closure((PROGRAM,))


@pytest.mark.parametrize(
    ("name", "find"), [("secrun-agent", agent.agent_path), ("secrun-stage0", agent.stage0_path)]
)
def test_a_program_beside_the_package_comes_first(tmp_path, monkeypatch, name, find):
    monkeypatch.setattr(agent.secrun, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(agent, "INSTALLED", tmp_path / "installed")
    with pytest.raises(HostError, match=name) as caught:
        find()
    assert "make setup" in caught.value.hint
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / name).touch()
    assert find() == tmp_path / "installed" / name
    (tmp_path / "_agent").mkdir()
    (tmp_path / "_agent" / name).touch()
    assert find() == tmp_path / "_agent" / name


def test_the_manifest_lists_what_is_in_the_image(layout, agent_file):
    image = ensure_stage1(layout, agent_file)
    found = paths(layout, image)
    assert found["/usr/bin/secrun-agent"].sha256 == Digest.of(agent_file.read_bytes()).hex
    assert found["/usr/bin/sleep"].sha256 == Digest.of(PROGRAM.read_bytes()).hex
    assert found["/usr/bin/sleep"].package == "coreutils"
    assert found["/usr/bin/sleep"].version
    assert found["/etc/systemd/system.conf"].target == "/pod/system.conf"
    assert found["/etc/machine-id"].size == 0
    assert found["/lib64"].target == "usr/lib64"
    assert any(path.startswith("/usr/lib64/ld-linux") for path in found) or os.uname().machine != "x86_64"
    assert {"/proc", "/sys", "/dev", "/run", "/tmp", "/pod", "/images", "/rw", "/host", "/volumes"} <= set(
        found
    )


def test_two_builds_are_bit_identical(layout, agent_file, tmp_path):
    first = ensure_stage1(layout, agent_file)
    os.utime(agent_file, ns=(1, 1))
    elsewhere = tmp_path / "elsewhere" / "another-name"
    elsewhere.parent.mkdir()
    shutil.copy(agent_file, elsewhere)
    old = os.umask(0o077)
    try:
        second = ensure_stage1(Layout(root=tmp_path / "b", run_root=tmp_path / "brun"), elsewhere)
    finally:
        os.umask(old)
    assert second.digest == first.digest
    assert second.path.read_bytes() == first.path.read_bytes()
    assert second.manifest_path.read_bytes() == first.manifest_path.read_bytes()


def test_an_unchanged_host_builds_nothing(layout, agent_file, monkeypatch):
    first = ensure_stage1(layout, agent_file)
    monkeypatch.setattr(imagestore, "_build", lambda *_: pytest.fail("built again"))
    assert ensure_stage1(layout, agent_file) == first


def test_a_changed_agent_gives_another_image_and_keeps_the_old_one(layout, agent_file):
    first = ensure_stage1(layout, agent_file)
    with agent_file.open("ab") as stream:
        stream.write(b"\0")
    second = ensure_stage1(layout, agent_file)
    assert second.digest != first.digest
    assert load(layout, "nspawn", first.digest) == first
    assert [item.digest for item in list_images(layout)] == [first.digest, second.digest]
    assert current(layout, "nspawn") == second.digest


def test_a_touched_agent_is_looked_at_again_and_is_the_same_image(layout, agent_file):
    first = ensure_stage1(layout, agent_file)
    os.utime(agent_file)
    inode = first.path.stat().st_ino
    assert ensure_stage1(layout, agent_file) == first
    assert first.path.stat().st_ino == inode, "an image that pods use was replaced"


def test_a_new_version_of_secrun_builds_again(layout, agent_file, monkeypatch):
    first = ensure_stage1(layout, agent_file)
    monkeypatch.setitem(content.TEXTS, "usr/lib/os-release", "ID=secrun-stage1\nVERSION_ID=999\n")
    assert ensure_stage1(layout, agent_file).digest != first.digest


def test_a_removed_image_is_built_again(layout, agent_file):
    first = ensure_stage1(layout, agent_file)
    shutil.rmtree(first.path.parent)
    with pytest.raises(HostError) as caught:
        load(layout, "nspawn", first.digest)
    assert caught.value.code == "host-stage1-gone"
    assert ensure_stage1(layout, agent_file) == first
    assert first.path.exists()


@pytest.mark.parametrize("name", ["stage1.erofs", "manifest.json"])
def test_a_truncated_image_is_noticed_and_built_again(layout, agent_file, name):
    first = ensure_stage1(layout, agent_file)
    os.truncate(first.path.parent / name, 100)
    with pytest.raises(SecrunError):
        load(layout, "nspawn", first.digest)
    assert ensure_stage1(layout, agent_file) == first
    verify(first)


def test_a_changed_byte_is_found_by_reading(layout, agent_file):
    image = ensure_stage1(layout, agent_file)
    verify(image)
    with image.path.open("r+b") as stream:
        stream.seek(5000)
        byte = stream.read(1)
        stream.seek(5000)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ImageError, match="expected sha256"):
        verify(image)


def test_an_image_under_another_name_is_refused(layout, agent_file):
    image = ensure_stage1(layout, agent_file)
    other = Digest("sha256", "0" * 64)
    shutil.copytree(image.path.parent, layout.stage1 / f"nspawn-{other.hex}")
    with pytest.raises(StateError):
        load(layout, "nspawn", other)


def test_an_input_that_changes_while_it_is_copied_is_copied_again(layout, agent_file, monkeypatch):
    real, calls = imagebuild._write, []

    def pack(*args):
        calls.append(1)
        result = real(*args)
        if len(calls) == 1:
            agent_file.write_bytes(agent_file.read_bytes() + b"\0")
        return result

    monkeypatch.setattr(imagebuild, "_write", pack)
    image = ensure_stage1(layout, agent_file)
    assert len(calls) == 2
    assert paths(layout, image)["/usr/bin/secrun-agent"].sha256 == Digest.of(agent_file.read_bytes()).hex


def test_callers_at_the_same_time_build_once(layout, agent_file, monkeypatch):
    real, calls, images = imagestore._build, [], []

    def build(*args):
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(imagestore, "_build", build)
    threads = [
        threading.Thread(target=lambda: images.append(ensure_stage1(layout, agent_file))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(images) == 4
    assert len(set(images)) == 1


def test_a_failed_build_leaves_nothing(layout, tmp_path, monkeypatch):
    with pytest.raises(HostError, match="nosuch"):
        ensure_stage1(layout, tmp_path / "nosuch")
    monkeypatch.setattr(content, "PROGRAMS", (Path("/usr/bin/nosuch"),))
    with pytest.raises(HostError) as caught:
        ensure_stage1(layout, PROGRAM)
    assert "apt install" in caught.value.hint
    assert list_images(layout) == []
    assert not any(layout.scratch.glob("*"))


def test_a_killed_build_leaves_only_what_gc_removes(layout, agent_file, monkeypatch):
    started, go = os.pipe()

    def pack(*_):
        os.write(go, b"x")
        signal.pause()

    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(imagebuild, "_write", pack)
        ensure_stage1(layout, agent_file)
        os._exit(1)
    os.read(started, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(list(layout.scratch.iterdir())) == 1
    assert list_images(layout) == []
    assert len(rootfs.purge_stale(layout)) == 1
    assert list(layout.scratch.iterdir()) == []
    assert ensure_stage1(layout, agent_file).path.exists()


def test_unused_images_go_and_used_ones_stay(layout, agent_file):
    digests = []
    for _ in range(3):
        digests.append(ensure_stage1(layout, agent_file).digest)
        agent_file.write_bytes(agent_file.read_bytes() + b"\0")
    assert remove_unused(layout, {digests[0]}) == [digests[1]]
    assert {item.digest for item in list_images(layout)} == {digests[0], digests[2]}


def test_no_image_is_no_error(layout):
    assert list_images(layout) == []
    assert current(layout, "nspawn") is None
    assert remove_unused(layout, ()) == []


def test_packages_of_files_under_either_name():
    found = provenance.packages_of([Path("/usr/bin/sleep"), Path("/usr/lib/nosuch"), Path(sys.executable)])
    assert found[Path("/usr/bin/sleep")].name == "coreutils"
    assert Path("/usr/lib/nosuch") not in found


def test_owners_of_diverted_and_shared_files_are_not_guessed():
    output = (
        "diversion by dash from: /bin/sh\n"
        "a, b: /etc/shared\nlibc6:amd64: /lib/libc.so.6\nlocal diversion to: /x\n\nnonsense\n"
    )
    assert provenance.parse_owners(output) == {"/lib/libc.so.6": "libc6:amd64"}


@given(st.binary(max_size=100))
def test_records_that_secrun_did_not_write_are_refused(data):
    with pytest.raises(SecrunError):
        parse_inputs(data)
    with pytest.raises(SecrunError):
        parse_manifest(data, what="x")
