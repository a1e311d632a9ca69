"""rkt's `--seccomp mode=retain|remove,errno=NAME,SYSCALL,@GROUP/NAME,...` as a profile.

Both modes keep what the default profile knows of a call's arguments, and `remove` never opens anything: what
it does not name stays as the default has it. rkt's own `remove` allows every other call.
"""

import errno
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from secrun_policies.errors import PolicyError, near
from secrun_policies.seccomp import Action, Applies, Rule, SeccompProfile

MARK = "mode="
# rkt's limit is the length of a command line; nobody names more calls than there are.
MAX_WORDS = 600
EVERYTHING = "@appc.io/all"
NOTHING = "@appc.io/empty"
# rkt and Docker shipped lists of their time under these names; here they stand for the default profile.
_LISTS = ("rkt", "docker")
_ALLOWED, _REFUSED = "default-whitelist", "default-blacklist"
_SYSTEMD = "systemd"
_ALIASES = {"default-whitelist": ("default", "system-service")}
# Some numbers have two names, such as ENOTSUP and EOPNOTSUPP.
_KNOWN_ERRNO = {name: getattr(errno, name) for name in dir(errno) if name.startswith("E")}
_ANYWHERE = Applies()


def groups_path() -> Path:
    """Return the file of systemd's sets: beside the package in a source tree, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    inside = here / "data" / "seccomp" / "groups.json"
    return inside if inside.exists() else here.parent / "seccomp" / "groups.json"


@lru_cache(maxsize=1)
def systemd_groups() -> Mapping[str, tuple[str, ...]]:
    """Return the sets of systemd.exec(5), SystemCallFilter=, by name without `@`."""
    found = json.loads(groups_path().read_bytes())
    return {name: tuple(names) for name, names in found.items() if name != "comment"}


def _refuse(text: str, hint: str = "") -> PolicyError:
    return PolicyError(f"--seccomp: {text}", hint=hint, code="policy-seccomp-isolator")


def _named(profile: SeccompProfile, *, allowed: bool) -> frozenset[str]:
    """Return the calls that a profile lets through, or refuses, without any capability."""
    rules = [rule for rule in profile.rules if not rule.includes.caps]
    names = {name for rule in rules if rule.action is Action.ALLOW for name in rule.names}
    return frozenset(names if allowed else {n for rule in rules for n in rule.names} - names)


def _group(word: str, default: SeccompProfile) -> frozenset[str]:
    family, _, name = word[1:].partition("/")
    if family in _LISTS and name in (_ALLOWED, _REFUSED):
        return _named(default, allowed=name == _ALLOWED)
    groups = systemd_groups()
    if family == _SYSTEMD:
        members = _ALIASES.get(name, (name,))
        if all(member in groups for member in members):
            return frozenset(call for member in members for call in groups[member])
    known = (
        EVERYTHING,
        NOTHING,
        *(f"@{prefix}/{name}" for prefix in _LISTS for name in (_ALLOWED, _REFUSED)),
        *(f"@{_SYSTEMD}/{name}" for name in (*groups, *_ALIASES)),
    )
    raise _refuse(f"unknown group {word[:80]!r}", near(word, known) or "systemd.exec(5) lists the sets")


def _options(text: str) -> tuple[str, int | None, list[str]]:
    mode, number, words = "", None, list[str]()
    for word in text.split(","):
        key, equals, value = word.partition("=")
        if key == "mode" and equals:
            if mode or value not in ("retain", "remove"):
                raise _refuse(f"{word[:80]!r}: expected one mode=retain or mode=remove")
            mode = value
        elif key == "errno" and equals:
            if number is not None or value not in _KNOWN_ERRNO:
                hint = near(value, tuple(_KNOWN_ERRNO)) or "errno(3) lists the names"
                raise _refuse(f"{word[:80]!r}: expected one name of an error", hint)
            number = _KNOWN_ERRNO[value]
        elif equals or not word:
            raise _refuse(f"{word[:80]!r} is not understood", "mode=..., errno=..., calls, @group/name")
        else:
            words.append(word)
    if not mode or not words:
        raise _refuse(f"{text[:80]!r} needs a mode and at least one call or group")
    if len(words) > MAX_WORDS:
        raise _refuse(f"more than {MAX_WORDS} words")
    return mode, number, words


def within(text: str, default: SeccompProfile, known: Callable[[str], bool]) -> tuple[str, tuple[str, ...]]:
    """Return `text` with its groups cut to what `default` allows, and the calls by name that go beyond it.

    For whoever may narrow a filter but not widen it. Raises PolicyError.
    """
    profile = parse(text, default, known)
    mode, number, words = _options(text)
    if profile is None:
        return text, (EVERYTHING,)
    if mode == "remove":
        return text, ()
    allowed = _named(default, allowed=True)
    names = {
        name for word in words for name in (_group(word, default) & allowed if word[0] == "@" else (word,))
    }
    head = [f"{MARK}{mode}", *([f"errno={errno.errorcode[number]}"] if number is not None else [])]
    return ",".join([*head, *sorted(names)]), tuple(sorted(names - allowed))


def parse(text: str, default: SeccompProfile, known: Callable[[str], bool]) -> SeccompProfile | None:
    """Return the profile that `text` means, None for no filter at all; raises PolicyError.

    `known` tells whether a call exists: a misspelt one would protect nothing.
    """
    mode, number, words = _options(text)
    special = [word for word in words if word in (EVERYTHING, NOTHING)]
    if special and len(words) > 1:
        raise _refuse(f"{special[0]} stands alone")
    if words == [EVERYTHING] and mode == "retain":
        return None
    if words == [NOTHING] and mode == "remove":
        return default
    if special:
        raise _refuse(f"mode={mode},{special[0]} would leave no call to run a program with")
    names = set[str]()
    for word in words:
        if not word.startswith("@") and not known(word):
            raise _refuse(f"unknown call {word[:80]!r}", "syscalls(2) lists them")
        names |= _group(word, default) if word.startswith("@") else {word}
    # rkt kills what is not allowed unless an error is named.
    action = Action.KILL_PROCESS if number is None else Action.ERRNO
    if mode == "remove":
        return _remove(text, default, frozenset(names), (action, number))
    return _retain(text, default, frozenset(names), (action, number))


def _remove(
    text: str, default: SeccompProfile, names: frozenset[str], verdict: tuple[Action, int | None]
) -> SeccompProfile:
    action, number = verdict
    first = Rule(tuple(sorted(names)), action, number, (), _ANYWHERE, _ANYWHERE)
    return default._replace(name=text, rules=(first, *only(default, lambda name: name not in names)))


def _retain(
    text: str, default: SeccompProfile, names: frozenset[str], verdict: tuple[Action, int | None]
) -> SeccompProfile:
    """Keep the default's conditions for what it allows; what it refuses without a capability is opened."""
    action, number = verdict
    ruled = _named(default, allowed=True)
    kept = only(default, lambda name: name in names and name in ruled)
    opened = tuple(sorted(names - ruled))
    extra = (Rule(opened, Action.ALLOW, None, (), _ANYWHERE, _ANYWHERE),) if opened else ()
    return default._replace(name=text, rules=(*kept, *extra), default_action=action, default_errno=number)


def only(profile: SeccompProfile, wanted: Callable[[str], bool]) -> tuple[Rule, ...]:
    """Return the rules of a profile for the calls that are wanted."""
    return tuple(
        rule._replace(names=names)
        for rule in profile.rules
        if (names := tuple(name for name in rule.names if wanted(name)))
    )
