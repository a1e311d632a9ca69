"""What an ELF program needs to run: its loader and its shared libraries, found as the loader finds them.

Read here and not with ldd(1), which runs the loader and prints for people.
"""

import os
import struct
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from secrun.errors import HostError
from secrun.record import record

# elf(5)
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_MACHINES = {62: "x86_64", 183: "aarch64"}

# The host's own programs have a dozen of each; a file beyond these is damaged.
MAX_PROGRAM_HEADERS = 128
MAX_DYNAMIC_BYTES = 1 << 16
MAX_NAME_BYTES = 4096
MAX_LIBRARIES = 256


@record
class Elf:
    """What the dynamic section of one file asks for; a static program asks for nothing."""

    interpreter: str | None
    needed: tuple[str, ...]
    search: tuple[str, ...]


def _malformed(path: Path, why: str) -> HostError:
    return HostError(
        f"{path} is not a usable ELF file: {why}",
        hint="reinstall the package it belongs to",
        code="host-elf",
    )


class _Reader:
    """One ELF file, read where its headers point."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        head = self.read(0, _HEADER.size)
        fields = _HEADER.unpack(head)
        if head[:6] != b"\x7fELF\x02\x01":
            raise _malformed(path, "not 64-bit little-endian")
        if _MACHINES.get(fields[2]) != os.uname().machine:
            raise _malformed(path, f"made for machine {fields[2]}")
        if fields[10] > MAX_PROGRAM_HEADERS or fields[9] != _PROGRAM.size:
            raise _malformed(path, "program headers")
        table = self.read(fields[5], fields[10] * _PROGRAM.size)
        self.programs: list[tuple[int, ...]] = list(_PROGRAM.iter_unpack(table))

    def read(self, offset: int, size: int) -> bytes:
        """Read exactly `size` bytes at `offset`."""
        if offset >= 1 << 62:
            raise _malformed(self.path, "offset")
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise _malformed(self.path, "truncated")
        return data

    def text(self, offset: int) -> str:
        """Read a string that ends with a zero byte."""
        data = os.pread(self._fd, MAX_NAME_BYTES, offset) if offset < 1 << 62 else b""
        end = data.find(b"\0")
        if end < 0:
            raise _malformed(self.path, "string without end")
        return os.fsdecode(data[:end])

    def segment(self, kind: int) -> tuple[int, int] | None:
        """Return offset and size of the first segment of a kind."""
        for program in self.programs:
            if program[0] == kind:
                return program[2], program[5]
        return None

    def offset_of(self, address: int) -> int:
        """Translate an address of the dynamic section into an offset of the file."""
        for program in self.programs:
            if program[0] == _PT_LOAD and program[3] <= address < program[3] + program[5]:
                return address - program[3] + program[2]
        raise _malformed(self.path, "address outside of every segment")


def read_elf(path: Path) -> Elf:
    """Read what `path` needs; raises HostError if it is no ELF file of this machine."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read(_Reader(path, fd))
    finally:
        os.close(fd)


def _read(reader: _Reader) -> Elf:
    found = reader.segment(_PT_INTERP)
    interpreter = reader.text(found[0]) if found else None
    dynamic = reader.segment(_PT_DYNAMIC)
    if dynamic is None:
        return Elf(interpreter=interpreter, needed=(), search=())
    if dynamic[1] > MAX_DYNAMIC_BYTES or dynamic[1] % _DYNAMIC.size:
        raise _malformed(reader.path, "dynamic section")
    entries = list[tuple[int, int]]()
    for tag, value in _DYNAMIC.iter_unpack(reader.read(*dynamic)):
        if tag == 0:
            break
        entries.append((tag, value))
    tables = [value for tag, value in entries if tag == _DT_STRTAB]
    if len(tables) != 1:
        raise _malformed(reader.path, "string table")
    strings = reader.offset_of(tables[0])

    def texts(*tags: int) -> list[str]:
        return [reader.text(strings + value) for tag, value in entries if tag in tags]

    search = [folder for text in texts(_DT_RPATH, _DT_RUNPATH) for folder in text.split(":")]
    return Elf(interpreter=interpreter, needed=tuple(texts(_DT_NEEDED)), search=tuple(search))


def default_folders() -> tuple[Path, ...]:
    """Return where Debian's loader looks without a cache (ld.so(8)); multiarch folders first."""
    triplet = f"{os.uname().machine}-linux-gnu"
    return (Path(f"/usr/lib/{triplet}"), Path("/usr/lib"))


def _find(name: str, user: Path, search: Iterable[str], folders: Iterable[Path]) -> Path:
    if "/" in name:
        return Path(name)
    for folder in (*(Path(item.replace("$ORIGIN", str(user.parent))) for item in search), *folders):
        candidate = folder / name
        if candidate.is_file():
            return candidate
    raise HostError(
        f"{user} needs {name}, which is not on this host",
        hint="reinstall the package it belongs to",
        code="host-elf",
    )


def _closure_of(program: Path, folders: tuple[Path, ...]) -> set[Path]:
    """Walk breadth first: what is loaded satisfies every later request for its name, as in ld.so(8)."""
    loaded: dict[str, Path] = {}
    result = set[Path]()
    queue = deque([program])
    while queue:
        user = queue.popleft()
        elf = read_elf(user)
        if elf.interpreter is not None:
            result.add(Path(elf.interpreter))
        for name in elf.needed:
            if name not in loaded:
                loaded[name] = _find(name, user, elf.search, folders)
                queue.append(loaded[name])
        if len(loaded) > MAX_LIBRARIES:
            raise HostError(f"{program} needs more than {MAX_LIBRARIES} libraries", code="host-elf")
    return result | set(loaded.values())


def closure(programs: Iterable[Path]) -> frozenset[Path]:
    """Return the loaders and libraries that `programs` need, by the names they are asked for.

    Raises HostError naming the file and what it lacks.
    """
    folders = default_folders()
    return frozenset(path for program in programs for path in _closure_of(program, folders))
