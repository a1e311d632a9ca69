"""The verb that makes systemd units, by hand or as a generator at boot (systemd.generator(7))."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from secrun.cli import quadlet
from secrun.cli.guard import report
from secrun.cli.table import Arguments, Context
from secrun.errors import SecrunError, UsageError
from secrun.files import write_atomic

PLACES = (Path("/etc/secrun/systemd"), Path("/run/secrun-systemd"), Path("/usr/share/secrun/systemd"))


def _program() -> str:
    """Return the command that users have: the script that started this process, else the one in PATH."""
    import shutil

    started = Path(sys.argv[0])
    if started.name == "secrun" and started.is_absolute():
        return str(started)
    return shutil.which("secrun") or "/usr/bin/secrun"


def _read(path: Path) -> quadlet.Sections:
    try:
        with path.open("rb") as stream:
            data = stream.read(quadlet.MAX_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", code="usage-unit-file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8", code="usage-unit-file") from error
    if len(data) > quadlet.MAX_BYTES:
        raise UsageError(f"{path} has more than {quadlet.MAX_BYTES} bytes", code="usage-unit-file")
    return quadlet.parse(path.name, text)


def _installed() -> Iterator[Path]:
    """Yield the files of all places by name; of one name the first place counts."""
    found: dict[str, Path] = {}
    for place in PLACES:
        names = os.listdir(place) if place.is_dir() else []
        for name in names:
            if f".{name.rpartition('.')[2]}" in quadlet.SECTIONS:
                found.setdefault(name, place / name)
    yield from (found[name] for name in sorted(found))


def _install(folder: Path, file: quadlet.Sections, text: str) -> None:
    """Write a unit and the links that make it start, as a generator has to."""
    name = quadlet.service_name(file.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / name, text.encode(), mode=0o644, durable=False)
    for kind, units in quadlet.wanted_by(file).items():
        for unit in units:
            if "/" in unit:
                raise UsageError(f"{file.name}: {unit!r} is no unit", code="usage-unit-file")
            links = folder / f"{unit}.{kind}"
            links.mkdir(exist_ok=True)
            link = links / name
            link.unlink(missing_ok=True)
            link.symlink_to(f"../{name}")


def generate(args: Arguments, context: Context) -> int:
    """Print services, or write them and their links into a folder; one wrong file stops no other."""
    output, program = args.text("output"), _program()
    words = args.many("file")
    if not words and output is None:
        raise UsageError("no file to make a unit of", hint="secrun generate FILE.container")
    status = 0
    for path in map(Path, words) if words else _installed():
        try:
            file = _read(path)
            text = quadlet.render(file, program)
            if output is None:
                context.out.write(text)
            else:
                _install(Path(output), file, text)
        except SecrunError as error:
            report(error)
            status = error.exit_code
    return status
