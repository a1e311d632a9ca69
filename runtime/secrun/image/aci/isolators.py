"""Isolators of an app (appc spec, ace.md): what an image asks to be confined by.

What is not known is passed over and remembered by name, as the specification has it: whoever runs the image
is told.
"""

import re
from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, Decimal

from secrun.errors import ImageError
from secrun.image import fields
from secrun.image.aci import limits
from secrun.jsonio import JsonObject, JsonValue
from secrun.record import record, replace

_QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)([mkKMGTPE]|[KMGTPE]i)?\Z")
_POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_CAPABILITY = re.compile(r"CAP_[A-Z_]{1,40}\Z")
_CALL = re.compile(r"[a-z0-9_]{1,64}\Z|@[a-z0-9._-]{1,40}/[a-z0-9._-]{1,60}\Z")
_ERRNO = re.compile(r"E[A-Z0-9]{1,20}\Z")
_MAX_BYTES = 1 << 62
_SHARES = (2, 262_144)


@record
class Isolators:
    """What the isolators of an app say; None and empty are what they do not.

    `seccomp` is written as rkt's --seccomp has it; memory in bytes, CPU in thousandths of a core.
    """

    caps_retain: tuple[str, ...] | None = None
    caps_remove: tuple[str, ...] | None = None
    seccomp: str = ""
    no_new_privileges: bool | None = None
    oom_score_adj: int | None = None
    cpu_millis: int | None = None
    cpu_shares: int | None = None
    memory_bytes: int | None = None
    ignored: tuple[str, ...] = ()


def _bad(what: str, why: str) -> ImageError:
    return ImageError(
        f"{what}: {why}", hint="ace.md of the appc spec describes it", code="image-aci-isolator"
    )


def _object(value: JsonValue, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise _bad(what, f"value is {type(value).__name__}, expected an object")
    return value


def _number(value: JsonValue, what: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _bad(what, f"value is no whole number from {low} to {high}")
    return value


def quantity(text: str, what: str) -> Decimal:
    """Parse an amount such as 500m, 2G or 128Mi into base units; raises ImageError."""
    match = _QUANTITY.match(text)
    if match is None:
        raise _bad(what, f"{text[:40]!r} is no amount, such as 500m, 2G or 128Mi")
    suffix = match[2] or ""
    number = Decimal(match[1])
    if suffix == "m":
        return number / 1000
    base = 1024 if suffix.endswith("i") else 1000
    return number * base ** _POWERS[suffix[0]] if suffix else number


def _limit(value: JsonValue, what: str) -> Decimal | None:
    """Return the limit of a resource; a request alone limits nothing."""
    found = _object(value, what)
    for key in ("request", "limit"):
        item = found.get(key)
        if (item is not None and not isinstance(item, str | int)) or isinstance(item, bool):
            raise _bad(what, f"{key} is {type(item).__name__}, expected an amount")
    limit, request = found.get("limit"), found.get("request")
    if request is not None:
        quantity(str(request), what)
    return None if limit is None else quantity(str(limit), what)


def _up(amount: Decimal, what: str) -> int:
    whole = int(amount.to_integral_value(rounding=ROUND_CEILING))
    if not 0 < whole <= _MAX_BYTES:
        raise _bad(what, f"the limit {amount} is out of range")
    return whole


def _set(value: JsonValue, what: str, pattern: "re.Pattern[str]") -> tuple[str, ...]:
    words = fields.texts(_object(value, what), "set", what, limit=limits.MAX_LIST)
    wrong = next((word for word in words if not pattern.match(word)), None)
    if wrong is not None:
        raise _bad(what, f"{wrong[:80]!r} cannot be in its set")
    return words


def _caps_retain(found: Isolators, value: JsonValue, what: str) -> Isolators:
    return replace(found, caps_retain=_set(value, what, _CAPABILITY))


def _caps_remove(found: Isolators, value: JsonValue, what: str) -> Isolators:
    return replace(found, caps_remove=_set(value, what, _CAPABILITY))


def _seccomp(mode: str) -> "Callable[[Isolators, JsonValue, str], Isolators]":
    def read(found: Isolators, value: JsonValue, what: str) -> Isolators:
        names = _set(value, what, _CALL)
        errno = fields.text(_object(value, what), "errno", what)
        if not names:
            raise _bad(what, "its set is empty")
        if errno and not _ERRNO.match(errno):
            raise _bad(what, f"errno is {errno[:40]!r}, expected a name such as ENOSYS")
        if found.seccomp:
            raise _bad(what, "an app has one seccomp isolator at most")
        special = "@appc.io/all" if mode == "retain" else "@appc.io/empty"
        # These two mask all other words of their set.
        words = (special,) if special in names else names
        return replace(
            found, seccomp=",".join([f"mode={mode}", *([f"errno={errno}"] if errno else []), *words])
        )

    return read


def _no_new_privileges(found: Isolators, value: JsonValue, what: str) -> Isolators:
    if not isinstance(value, bool):
        raise _bad(what, "value is neither true nor false")
    return replace(found, no_new_privileges=value)


def _oom_score_adj(found: Isolators, value: JsonValue, what: str) -> Isolators:
    return replace(found, oom_score_adj=_number(value, what, -1000, 1000))


def _cpu_shares(found: Isolators, value: JsonValue, what: str) -> Isolators:
    return replace(found, cpu_shares=_number(value, what, *_SHARES))


def _cpu(found: Isolators, value: JsonValue, what: str) -> Isolators:
    limit = _limit(value, what)
    return found if limit is None else replace(found, cpu_millis=_up(limit * 1000, what))


def _memory(found: Isolators, value: JsonValue, what: str) -> Isolators:
    limit = _limit(value, what)
    return found if limit is None else replace(found, memory_bytes=_up(limit, what))


_KNOWN: Mapping[str, Callable[[Isolators, JsonValue, str], Isolators]] = {
    "os/linux/capabilities-retain-set": _caps_retain,
    "os/linux/capabilities-remove-set": _caps_remove,
    "os/linux/seccomp-retain-set": _seccomp("retain"),
    "os/linux/seccomp-remove-set": _seccomp("remove"),
    "os/linux/no-new-privileges": _no_new_privileges,
    "os/linux/oom-score-adj": _oom_score_adj,
    "os/linux/cpu-shares": _cpu_shares,
    "resource/cpu": _cpu,
    "resource/memory": _memory,
}


def parse_isolators(items: list[JsonObject], what: str) -> Isolators:
    """Parse the isolators of an app; raises ImageError naming `what`."""
    found = Isolators()
    seen: list[str] = []
    for number, item in enumerate(items):
        where = f"{what}[{number}]"
        name = fields.text(item, "name", where, None)
        read = _KNOWN.get(name)
        if "value" not in item or not name.isprintable() or len(name) > 255:
            raise _bad(where, f"{name[:80]!r} has no value, or is no name")
        if read is None:
            found = replace(found, ignored=(*found.ignored, name))
            continue
        if name in seen:
            raise _bad(where, f"{name} is given twice")
        seen.append(name)
        found = read(found, item["value"], f"{where}, {name}")
    if found.caps_retain is not None and found.caps_remove is not None:
        raise _bad(what, "capabilities-retain-set and capabilities-remove-set exclude one another")
    return found
