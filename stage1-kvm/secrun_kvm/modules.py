"""Which modules a guest loads and in which order, and their bytes: modprobe's work, done at build time.

Sources: modules.dep(5); the file modules.builtin (Documentation/kbuild/kbuild.rst). Modules go into the
initramfs as they are in the package, for stripping would drop their signature.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from secrun.errors import HostError
from secrun.record import record

FOLDER = Path("/lib/modules")
# A full Debian kernel lists 4,000 modules in 600 kB.
MAX_LIST_BYTES = 16 << 20
# The largest drivers have 10 MB; what a guest loads has less than one.
MAX_MODULE_BYTES = 32 << 20
# What `xz -9` needs to decompress.
_MAX_XZ_MEMORY = 80 << 20
# A module's dependencies are counted in tens.
_MAX_DEPENDENCIES = 256

# By when the guest needs them: unless it is emulated, always, for the bus its devices are on, for what
# the pod asks for.
HASH = "hash"
BASE = "base"
GROUPS: Mapping[str, tuple[str, ...]] = {
    BASE: ("virtio_blk", "virtio_console", "dm-mod", "dm-verity", "erofs", "overlay"),
    "pci": ("virtio_pci",),
    "mmio": ("virtio_mmio",),
    "ext4": ("ext4",),
    "virtiofs": ("virtiofs",),
    "net": ("virtio_net",),
    "tpm": ("tpm_tis", "tpm_crb"),
}

_LINE = re.compile(r"((?:[A-Za-z0-9_+.-]+/)*([A-Za-z0-9_-]+)\.ko(?:\.[a-z0-9]+)?)")


@record
class Modules:
    """The modules of one kernel release: where each lies and what it needs; and what needs no module."""

    release: str
    paths: Mapping[str, str]
    needs: Mapping[str, tuple[str, ...]]
    """Names in the order in which they are loaded."""
    builtin: frozenset[str]


@record
class Module:
    """One module to load: the group, its name, and its file below the folder of its release."""

    group: str
    name: str
    path: str


def _name(path: str, what: str) -> str:
    """Return the name that the kernel knows a module by: it writes all dashes as underscores."""
    found = _LINE.fullmatch(path)
    if found is None or ".." in path.split("/"):
        raise _bad(what, f"it names {path[:160]!r}")
    return _underscored(found[2])


def _bad(what: str, problem: str) -> HostError:
    return HostError(
        f"{what} is not usable: {problem}",
        hint="reinstall the kernel's package, which runs depmod",
        code="host-kernel",
    )


def parse(release: str, dep: str, builtin: str) -> Modules:
    """Read the texts of modules.dep and modules.builtin; raises HostError naming the file and the line."""
    paths, needs = dict[str, str](), dict[str, tuple[str, ...]]()
    for line in dep.splitlines():
        what = "modules.dep"
        path, colon, rest = line.partition(":")
        if not colon:
            raise _bad(what, f"it has the line {line[:160]!r}")
        name = _name(path, what)
        if name in paths:
            raise _bad(what, f"it lists {name} twice")
        words = rest.split()
        if len(words) > _MAX_DEPENDENCIES:
            raise _bad(what, f"{name} needs more than {_MAX_DEPENDENCIES} modules")
        paths[name] = path
        # depmod(8) writes first what is loaded last.
        needs[name] = tuple(_name(word, what) for word in reversed(words))
    return Modules(
        release=release,
        paths=paths,
        needs=needs,
        builtin=frozenset(_name(line, "modules.builtin") for line in builtin.splitlines()),
    )


def read(release: str) -> Modules:
    """Read the lists of a release; raises HostError if its modules are not installed."""
    texts = []
    for path in lists(release):
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_LIST_BYTES + 1)
        except OSError as error:
            raise HostError(
                f"the modules of kernel {release} are not installed: {path}: {error.strerror}",
                hint="install the package that the kernel comes from, or name another kernel with --kernel",
                code="host-kernel",
            ) from error
        if len(data) > MAX_LIST_BYTES:
            raise _bad(str(path), f"it has more than {MAX_LIST_BYTES} bytes")
        texts.append(data.decode("utf-8", "replace"))
    return parse(release, *texts)


def lists(release: str) -> tuple[Path, Path]:
    """Return the files that `read` reads."""
    return FOLDER / release / "modules.dep", FOLDER / release / "modules.builtin"


def resolve(
    modules: Modules, groups: Mapping[str, Sequence[str]], optional: Iterable[str] = ()
) -> tuple[Module, ...]:
    """Return what has to be loaded, in order, once per group and never again after `base`; pure.

    Modules that the kernel has built in are left out, and those of `optional`, the group `hash`, that it
    does not have; raises HostError naming any other that it lacks.
    """
    names = [_underscored(name) for name in optional]
    result = _group(modules, HASH, [name for name in names if name in modules.paths])
    for group, wanted in groups.items():
        result += _group(modules, group, [_underscored(name) for name in wanted])
    always = {module.name for module in result if module.group == BASE}
    order = [module for module in result if module.group in (HASH, BASE) or module.name not in always]
    return tuple(dict.fromkeys(order))


def _underscored(name: str) -> str:
    return name.replace("-", "_")


def _group(modules: Modules, group: str, names: Iterable[str]) -> list[Module]:
    found = list[Module]()
    for name in names:
        if name in modules.builtin:
            continue
        if name not in modules.paths:
            raise HostError(
                f"kernel {modules.release} has no module {name}, which guests need",
                hint="use a kernel that has it: secrun stage1 build kvm --kernel FILE",
                code="host-kernel",
            )
        for item in (*modules.needs[name], name):
            if item not in modules.paths:
                raise _bad("modules.dep", f"{name} needs {item}, which it does not list")
            found.append(Module(group=group, name=item, path=modules.paths[item]))
    return found


def _xz(data: bytes) -> bytes:
    import lzma  # of no use for the modules of Debian 12, as below

    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY)
    try:
        found = unpacker.decompress(data, MAX_MODULE_BYTES + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"it cannot be decompressed: {error}") from error
    if not unpacker.eof and len(found) <= MAX_MODULE_BYTES:
        raise ValueError("it ends too early")
    return found


def _zstd(data: bytes) -> bytes:
    import zstandard

    try:
        # Told in the frame, and reserved before it is decompressed.
        if zstandard.frame_content_size(data) > MAX_MODULE_BYTES:
            raise ValueError(f"it has more than {MAX_MODULE_BYTES} bytes")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_MODULE_BYTES)
    except zstandard.ZstdError as error:
        raise ValueError(f"it cannot be decompressed: {error}") from error


_UNPACKERS: Mapping[str, Callable[[bytes], bytes]] = {".ko": bytes, ".ko.xz": _xz, ".ko.zst": _zstd}


def content(path: Path) -> bytes:
    """Return a module as the kernel loads it, decompressed; raises HostError naming the file."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MODULE_BYTES + 1)
    except OSError as error:
        raise _bad(str(path), error.strerror or "it cannot be read") from error
    return unpacked(path, data)


def unpacked(path: Path, data: bytes) -> bytes:
    """Decompress a module's bytes by the name of its file, in bounded memory; raises HostError."""
    unpacker = _UNPACKERS.get(path.name[path.name.find(".ko") :])
    if unpacker is None:
        raise _bad(str(path), f"modules may be packed as {', '.join(_UNPACKERS)}")
    try:
        found = unpacker(data)
    except ValueError as error:
        raise _bad(str(path), str(error)) from error
    if len(found) > MAX_MODULE_BYTES:
        raise _bad(str(path), f"it has more than {MAX_MODULE_BYTES} bytes")
    if not found.startswith(b"\x7fELF"):
        raise _bad(str(path), "it is no ELF file")
    return found


def file_of(module: Module, release: str) -> Path:
    """Return where a module lies on this host."""
    return Path(os.path.join(FOLDER, release, module.path))
