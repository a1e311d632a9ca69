"""The SELinux module in the host's policy: install, compare, remove (semodule(8))."""

import re
import tempfile
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from secrun import selinux
from secrun.errors import ExternalError, HostError
from secrun.launch import run
from secrun.paths import DEFAULT_ROOT, DEFAULT_RUN_ROOT, Layout
from secrun.record import record
from secrun.selinux import Mode
from secrun_policies.profiles import selinux_module_path

NAME = "secrun"
_VERSION = re.compile(r"; The SELinux module of secrun, version (\d+)")
# As in the module: labelled by their pod's start, not by the host's relabelling.
_OF_PODS = "/[^/]+/[^/]+/(config|host|rw|lv|pod.img|scratch.img|stage1.log)(/.*)?"
# Written by hand it has some 20 KiB.
_MAX_BYTES = 1 << 20
# Rebuilding a policy of a hundred thousand rules takes seconds, an emulated machine minutes.
_SECONDS = 900.0


class ModuleState(StrEnum):
    """What the host's policy has of the module."""

    ABSENT = "absent"
    CURRENT = "current"
    OTHER = "other"
    """Another version, or the same for other places."""


@record
class ModuleStatus:
    """The module on this host; versions are None where there is no module."""

    state: ModuleState
    shipped: int
    installed: int | None


def version_of(text: str) -> int | None:
    """Return the version that a module says it is; pure."""
    match = _VERSION.match(text)
    return int(match[1]) if match else None


def _pattern(path: Path) -> str:
    """Return a regular expression for a path.

    CIL's strings know no quote inside: what is not plain is matched as any one character.
    """
    return re.sub(r"[^A-Za-z0-9/_-]", ".", str(path))


def file_context(path: Path, label: str, *, below: bool) -> str:
    """Return the statement that labels a path, or a folder and what is below it; pure."""
    pattern = _pattern(path) + ("(/.*)?" if below else "")
    return f'(filecon "{pattern}" {"any" if below else "file"} (system_u object_r {label} ((s0) (s0))))\n'


def module_text(shipped: str, agent: Path, layout: Layout) -> str:
    """Return the module for this host: what is shipped, and where this installation's files are; pure."""
    places = [file_context(agent, "secrun_exec_t", below=False)]
    if layout.root != DEFAULT_ROOT:
        places.append(file_context(layout.root, "secrun_var_t", below=True))
        places.append(f'(filecon "{_pattern(layout.pods)}{_OF_PODS}" any ())\n')
    if layout.run_root != DEFAULT_RUN_ROOT:
        places.append(file_context(layout.run_root, "secrun_run_t", below=True))
    return shipped + "\n; --- This installation\n\n" + "".join(places)


def shipped_text() -> str:
    """Return the module as it is shipped."""
    return selinux_module_path().read_text("utf-8")


def _installed_text() -> str | None:
    """Return the module as the policy's store has it; None if it is not there."""
    names = run(["semodule", "--list-modules=full"], timeout=_SECONDS).stdout.decode("utf-8", "replace")
    if not any(line.split()[1:2] == [NAME] for line in names.splitlines()):
        return None
    with tempfile.TemporaryDirectory(prefix="secrun-policy-") as folder:
        run(["semodule", "--cil", f"--extract={NAME}"], cwd=Path(folder), timeout=_SECONDS)
        with Path(folder, f"{NAME}.cil").open("rb") as stream:
            return stream.read(_MAX_BYTES).decode("utf-8", "replace")


def status(text: str) -> ModuleStatus:
    """Compare the installed module with `text`; raises HostError if semodule is missing."""
    installed = _installed_text()
    if installed is None:
        state = ModuleState.ABSENT
    else:
        state = ModuleState.CURRENT if installed.strip() == text.strip() else ModuleState.OTHER
    return ModuleStatus(
        state=state,
        shipped=version_of(text) or 0,
        installed=None if installed is None else version_of(installed),
    )


def _relabel(paths: Iterable[Path]) -> None:
    """Give what is there the labels that the policy now says; a host without SELinux has none."""
    if selinux.mode() is Mode.OFF:
        return
    there = [path for path in paths if path.exists()]
    if there:
        run(["restorecon", "-R", *there], timeout=_SECONDS)


def install(text: str, places: Iterable[Path]) -> None:
    """Put the module into the policy and label what it is about; raises HostError if it is refused."""
    with tempfile.TemporaryDirectory(prefix="secrun-policy-") as folder:
        file = Path(folder, f"{NAME}.cil")
        file.write_text(text, "utf-8")
        try:
            run(["semodule", f"--install={file}"], timeout=_SECONDS)
        except ExternalError as error:
            raise HostError(
                f"the host's policy does not take the module: {error.message}",
                hint="it is written for the reference policy with MCS, as Debian's selinux-policy-default",
                code="host-selinux",
            ) from error
    _relabel(places)


def remove(places: Iterable[Path]) -> None:
    """Take the module out of the policy; its labels become those of the folders' places."""
    run(["semodule", f"--remove={NAME}"], timeout=_SECONDS)
    there = [path for path in places if path.exists()]
    if selinux.mode() is not Mode.OFF:
        # A policy may have no label for what is below /run, and nobody writes where one is that is gone.
        for path in there:
            run(["chcon", "-R", f"--reference={path.parent}", path], timeout=_SECONDS)
    _relabel(there)
