"""Who runs this command, as the kernel knows them: user, login and unit."""

import os
from pathlib import Path

from secrun.record import record
from secrun_attest.jcs import JsonObject

_LOGIN = Path("/proc/self/loginuid")
_GROUPS = Path("/proc/self/cgroup")
# (uid_t)-1: nobody logged in on the way to this process (audit(7)).
_NO_LOGIN = 2**32 - 1
_SUFFIXES = (".service", ".scope")
_MAX_UNIT = 255


@record
class Actor:
    """The real uid, the uid that logged in, and the unit or scope; None and empty if there is none."""

    uid: int
    login: int | None = None
    unit: str = ""

    def to_json(self) -> JsonObject:
        """Return what events say of it."""
        found: JsonObject = {"uid": self.uid}
        if self.login is not None:
            found["login"] = self.login
        if self.unit:
            found["unit"] = self.unit
        return found


def parse_login(text: str) -> int | None:
    """Return the uid that logged in."""
    word = text.strip()
    return int(word) if word.isascii() and word.isdigit() and int(word) != _NO_LOGIN else None


def parse_unit(text: str) -> str:
    """Return the innermost unit in the lines of cgroup(7)'s /proc/PID/cgroup; empty if there is none."""
    for line in text.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" or controllers == "name=systemd":
            units = [part for part in path.split("/") if part.endswith(_SUFFIXES) and part.isascii()]
            if units:
                return units[-1][:_MAX_UNIT]
    return ""


def _read(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""  # a kernel without audit, or a /proc that hides it


def here() -> Actor:
    """Return who runs this process."""
    return Actor(uid=os.getuid(), login=parse_login(_read(_LOGIN)), unit=parse_unit(_read(_GROUPS)))
