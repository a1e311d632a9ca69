"""What the builder of guest images reads of a kernel: its release, its modules and their order."""

import lzma
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import HostError
from secrun_kvm import kernel, modules
from secrun_kvm.modules import Module
from support import kernels

X86, ARM = kernel._PLATFORMS["x86_64"], kernel._PLATFORMS["aarch64"]
NAMES = st.from_regex(r"\A[a-z][a-z0-9]{0,5}\Z")


def test_a_kernel_file_tells_its_release():
    assert X86.release(kernels.bzimage()) == kernels.RELEASE
    assert X86.release(kernels.bzimage(sectors=0x27, pointer=0x4000)) == kernels.RELEASE
    assert ARM.release(kernels.arm_image()) == "6.1.0-7-arm64"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF" + bytes(10_000),
        kernels.bzimage()[:0x300],
        kernels.bzimage(pointer=0x400)[:0x400],
        # Just behind the setup part, where the compressed kernel is.
        kernels.bzimage(sectors=1, pointer=0x200),
        kernels.bzimage(pointer=0),
        kernels.bzimage(b"../../tmp/x (y)"),
        kernels.bzimage(b"6.1/../../tmp (y)"),
        kernels.bzimage(b" 6.1"),
        kernels.bzimage(b"6" * 65),
    ],
)
def test_a_header_that_leads_nowhere_is_refused(data):
    with pytest.raises(ValueError, match=r"header|version"):
        X86.release(data)


def test_an_arm_image_without_a_version_is_refused():
    for data in (b"", kernels.arm_image(b"Linux version ../.. (x)"), kernels.bzimage()):
        with pytest.raises(ValueError, match=r"header|version"):
            ARM.release(data)


@given(st.lists(st.tuples(st.integers(0x1F0, 0x3FF), st.integers(0, 255)), max_size=6), st.integers(0, 1600))
def test_no_header_leads_out_of_the_file(changes, size):
    data = bytearray(kernels.bzimage())
    for offset, value in changes:
        data[offset] = value
    with suppress(ValueError):
        found = X86.release(bytes(data[:size]))
        assert "/" not in found
        assert not found.startswith(".")


def test_the_newest_kernel_is_found_by_number():
    names = [
        "vmlinuz-6.1.0-9-cloud-amd64",
        "vmlinuz-6.1.0-56-cloud-amd64",
        "vmlinuz-6.1.0-100-amd64",
        "vmlinuz-6.1.0-200-rt-amd64",
        "vmlinuz-6.1.0-300-cloud-arm64",
        "initrd.img-6.1.0-400-cloud-amd64",
        "vmlinuz-6.1.0-500-cloud-amd64.dpkg-tmp",
        "vmlinuz",
    ]
    assert kernel.newest(names, X86.names) == "vmlinuz-6.1.0-56-cloud-amd64"
    names += ["vmlinuz-6.12.43+deb13-cloud-amd64", "vmlinuz-6.12.9+bpo-cloud-amd64"]
    assert kernel.newest(names, X86.names) == "vmlinuz-6.12.43+deb13-cloud-amd64"
    names += ["vmlinuz-6.13~rc2-cloud-amd64", "vmlinuz-6.13-cloud-amd64"]
    assert kernel.newest(names, X86.names) == "vmlinuz-6.13-cloud-amd64"
    assert kernel.newest(["vmlinuz-6.1.0-56-arm64", "vmlinuz-6.1.0-57-cloud-arm64"], ARM.names) == (
        "vmlinuz-6.1.0-56-arm64"
    )
    assert kernel.newest([], X86.names) is None


@given(st.lists(st.from_regex(r"\A[0-9a-z.+~-]{0,12}\Z"), min_size=1))
def test_any_names_can_be_compared(versions):
    found = kernel.newest([f"vmlinuz-{version}-cloud-amd64" for version in versions], X86.names)
    assert found is None or X86.names.fullmatch(found)


def read(dep=kernels.MODULES, built_in=kernels.BUILTIN):
    return modules.parse(kernels.RELEASE, kernels.dep(dep), kernels.builtin(built_in))


def order(found, group):
    return [module.name for module in found if module.group == group]


def test_modules_are_loaded_after_what_they_need_and_once():
    found = modules.resolve(read(), modules.GROUPS, ("sha256-ssse3", "nosuch"))
    assert order(found, "hash") == ["sha256_ssse3"]
    assert order(found, "base") == [
        *("virtio_ring", "virtio", "virtio_blk", "virtio_console", "dm_mod"),
        *("reed_solomon", "dm_bufio", "dm_verity", "libcrc32c", "erofs", "overlay"),
    ]
    assert order(found, "pci") == ["virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"]
    assert order(found, "mmio") == ["virtio_mmio"]
    assert order(found, "net") == ["failover", "net_failover", "virtio_net"]
    assert order(found, "virtiofs") == ["fuse", "virtiofs"]
    assert order(found, "ext4") == order(found, "tpm") == []


@pytest.mark.parametrize("name", [name for names in modules.GROUPS.values() for name in names])
def test_a_kernel_that_lacks_a_module_is_refused_by_its_name(name):
    with_all = {**kernels.MODULES, **dict.fromkeys(kernels.BUILTIN, ())}
    modules.resolve(read(with_all, ()), modules.GROUPS)
    with pytest.raises(HostError, match=f"no module {name.replace('-', '_')},"):
        modules.resolve(read({key: with_all[key] for key in with_all if key != name}, ()), modules.GROUPS)


def test_a_dependency_that_is_not_listed_is_named():
    with pytest.raises(HostError, match="erofs needs libcrc32c"):
        modules.resolve(
            read({key: needs for key, needs in kernels.MODULES.items() if key != "libcrc32c"}),
            modules.GROUPS,
        )


@given(st.lists(NAMES, unique=True, min_size=1, max_size=12), st.data())
def test_every_module_comes_after_its_dependencies(names, data):
    """depmod lists all that a module needs, also indirectly, what is loaded first last."""
    needs = {}
    for index, name in enumerate(names):
        direct = data.draw(st.lists(st.sampled_from(names[:index]), unique=True)) if index else []
        closure = dict.fromkeys(direct)
        for other in direct:
            closure |= dict.fromkeys(needs[other])
        needs[name] = tuple(sorted(closure, key=names.index, reverse=True))
    wanted = data.draw(st.lists(st.sampled_from(names), unique=True))
    groups = {"base": wanted[:2], "pci": wanted[2:]}
    found = modules.resolve(read(needs, ()), groups)
    for group in groups:
        loaded = order(found, "base") + (order(found, "pci") if group == "pci" else [])
        assert len(set(loaded)) == len(loaded)
        assert set(groups[group]) <= set(loaded)
        for place, name in enumerate(loaded):
            assert set(needs[name]) <= set(loaded[:place])


@pytest.mark.parametrize(
    "line", ["kernel/a.ko", "../a.ko:", "kernel/../../a.ko:", "/a.ko:", "a.o:", "a.ko: ../b.ko", "a b.ko:"]
)
def test_a_line_that_is_no_path_below_the_folder_is_refused(line):
    with pytest.raises(HostError, match=r"modules\.dep"):
        modules.parse("1", f"{line}\n", "")


def test_a_module_that_is_listed_twice_is_refused():
    with pytest.raises(HostError, match="lists a_b twice"):
        modules.parse("1", "kernel/a-b.ko:\nupdates/a_b.ko:\n", "")


@given(st.text(alphabet="ab/.ko: \n-_\0x", max_size=200), st.text(alphabet="ab/.ko\n", max_size=60))
def test_any_list_is_read_or_refused(dep, builtin):
    with suppress(HostError):
        found = modules.parse("1", dep, builtin)
        assert all(".." not in path.split("/") and path[0] != "/" for path in found.paths.values())


def packed(suffix, data):
    return {
        ".ko": lambda: data,
        ".ko.xz": lambda: lzma.compress(data),
        ".ko.zst": lambda: zstandard.compress(data),
    }[suffix]()


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.zst"])
def test_packed_modules_are_unpacked(suffix):
    data = b"\x7fELF" + bytes(range(256)) * 100
    path = Path(f"/lib/modules/x/dm-mod{suffix}")
    assert modules.unpacked(path, packed(suffix, data)) == data
    with pytest.raises(HostError, match="no ELF"):
        modules.unpacked(path, packed(suffix, b"#!/bin/sh"))


@pytest.mark.parametrize("suffix", [".ko.xz", ".ko.zst"])
def test_damaged_and_swollen_modules_are_refused(suffix, monkeypatch):
    path = Path(f"/lib/modules/x/dm-mod{suffix}")
    whole = packed(suffix, b"\x7fELF" + bytes(100_000))
    for data in (b"", b"garbage" * 10, whole[: len(whole) // 2], whole[:-1]):
        with pytest.raises(HostError, match="dm-mod"):
            modules.unpacked(path, data)
    monkeypatch.setattr(modules, "MAX_MODULE_BYTES", 50_000)
    with pytest.raises(HostError, match=r"50000 bytes|decompress"):
        modules.unpacked(path, whole)


@given(st.binary(max_size=200), st.sampled_from([".ko", ".ko.xz", ".ko.zst", ".ko.bz2"]))
def test_any_module_is_unpacked_or_refused(data, suffix):
    for magic in (b"", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"\x7fELF"):
        with suppress(HostError):
            modules.unpacked(Path(f"/x/y{suffix}"), magic + data)


def test_an_unknown_packing_is_named():
    with pytest.raises(HostError, match=r"\.ko, \.ko\.xz, \.ko\.zst"):
        modules.unpacked(Path("/x/y.ko.bz2"), b"BZh")


def test_a_module_lies_below_its_release(monkeypatch):
    monkeypatch.setattr(modules, "FOLDER", Path("/m"))
    module = Module(group="base", name="virtio", path="kernel/drivers/virtio/virtio.ko")
    assert modules.file_of(module, "6.1") == Path("/m/6.1/kernel/drivers/virtio/virtio.ko")
