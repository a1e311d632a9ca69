"""Kernel files and module folders made by hand: what the builder of guest images reads, and no more."""

import struct
from collections.abc import Mapping
from pathlib import Path

RELEASE = "6.1.0-7-cloud-amd64"
# Debian 12's cloud kernel in small: what needs what, and what is built in.
MODULES: Mapping[str, tuple[str, ...]] = {
    "virtio_ring": (),
    "virtio": ("virtio_ring",),
    "virtio_mmio": ("virtio", "virtio_ring"),
    "virtio_pci_legacy_dev": (),
    "virtio_pci_modern_dev": (),
    "virtio_pci": ("virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio", "virtio_ring"),
    "virtio_blk": ("virtio", "virtio_ring"),
    "virtio_console": ("virtio", "virtio_ring"),
    "dm-mod": (),
    "dm-bufio": ("dm-mod",),
    "reed_solomon": (),
    "dm-verity": ("dm-bufio", "dm-mod", "reed_solomon"),
    "libcrc32c": (),
    "erofs": ("libcrc32c",),
    "overlay": (),
    "failover": (),
    "net_failover": ("failover",),
    "virtio_net": ("net_failover", "failover", "virtio", "virtio_ring"),
    "fuse": (),
    "virtiofs": ("virtio", "virtio_ring", "fuse"),
    "sha256-ssse3": (),
}
BUILTIN = ("ext4", "tpm", "tpm_tis", "tpm_crb")


def bzimage(
    text: bytes = f"{RELEASE} (x@y) #1 SMP".encode(), *, sectors: int = 1, pointer: int = 0x100
) -> bytes:
    """Return the setup part of a bzImage, whose header says that `text` lies at 0x200 + `pointer`."""
    data = bytearray((sectors + 1) * 512 + 4096)
    data[0x1F1] = sectors
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, 0x20F)
    struct.pack_into("<H", data, 0x20E, pointer)
    data[0x200 + pointer : 0x200 + pointer + len(text)] = text
    return bytes(data)


def arm_image(text: bytes = b"Linux version 6.1.0-7-arm64 (x@y) #1") -> bytes:
    return bytes(56) + b"ARM\x64" + bytes(100) + text + bytes(100)


def module_path(name: str) -> str:
    return f"kernel/drivers/{name}.ko"


def dep(modules: Mapping[str, tuple[str, ...]]) -> str:
    lines = (
        f"{module_path(name)}: {' '.join(map(module_path, needs))}".rstrip()
        for name, needs in modules.items()
    )
    return "".join(f"{line}\n" for line in lines)


def builtin(names: tuple[str, ...]) -> str:
    return "".join(f"kernel/fs/{name}.ko\n" for name in names)


def install(
    boot: Path,
    folder: Path,
    release: str = RELEASE,
    *,
    modules: Mapping[str, tuple[str, ...]] = MODULES,
    built_in: tuple[str, ...] = BUILTIN,
) -> Path:
    """Put a kernel and its modules where a package would; return the kernel."""
    boot.mkdir(parents=True, exist_ok=True)
    kernel = boot / f"vmlinuz-{release}"
    kernel.write_bytes(bzimage(f"{release} (x@y)".encode()))
    top = folder / release
    (top / "kernel/drivers").mkdir(parents=True)
    for name in modules:
        (top / module_path(name)).write_bytes(b"\x7fELF" + name.encode())
    (top / "modules.dep").write_text(dep(modules))
    (top / "modules.builtin").write_text(builtin(built_in))
    return kernel
