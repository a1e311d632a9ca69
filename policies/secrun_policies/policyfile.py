"""Policy files: TOML, read strictly; an error names file, line and key.

A key that is skipped could be the one that protects, so an unknown one rejects the file.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

from secrun_policies import capabilities
from secrun_policies.errors import PolicyError, near
from secrun_policies.rules import MAX_STARS, Case, Profile, ReadBack, Rule, Selector

# Some hundred rules with their reasons; a larger file was given by mistake.
MAX_BYTES = 256 * 1024
MAX_RULES = 256
MAX_TEXT = 500
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?\Z")
FLAVOURS = ("nspawn", "kvm")
NETWORKS = ("none", "host", "cni")
ACCELERATORS = ("kvm", "tcg", "none")
LIMITS = ("memory", "cpu", "pids")
# Names that no file may give to a profile: they are secrun's own.
BUILT_IN_PROFILES = ("default", "strict")

# Dates and times are values of TOML too; nothing here takes one.
Toml: TypeAlias = object
_T = TypeVar("_T")


class PolicyFile(NamedTuple):
    """What one file says."""

    profiles: tuple[Profile, ...]
    rules: tuple[Rule, ...]
    cases: tuple[Case, ...]


def _line(text: str, header: str, number: int, key: str) -> int:
    """Return the line of `key` in the n-th table `header`, or that of the table; 0 if unclear."""
    start, seen = 0, 0
    name = re.escape(key.split(".", maxsplit=1)[0])
    for index, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*\[", line):
            if start and not re.match(rf"\s*\[+\s*{re.escape(header)}\s*[.\]]", line):
                return start
            if re.match(rf"\s*\[+\s*{re.escape(header)}\s*\]", line):
                seen += 1
                start = index if seen == number else 0
        elif start and re.match(rf"\s*[\"']?{name}[\"']?\s*[.=]", line):
            return index
    return start


class _Table:
    """One table being read; each value is taken once and by its type."""

    def __init__(self, value: Toml, *, file: str, text: str, header: str, number: int = 1) -> None:
        self._where = (file, text, header, number)
        if not isinstance(value, dict):
            raise self.error("", f"is a {type(value).__name__}, expected a table")
        self._left: dict[str, Toml] = dict(value)
        self.known: list[str] = []

    def error(self, key: str, problem: str, *, hint: str = "") -> PolicyError:
        file, text, header, number = self._where
        line = _line(text, header, number, key)
        place = f"{file}:{line}" if line else file
        what = f"{header}.{key}" if key else header
        return PolicyError(f"{place}: {what} {problem}", hint=hint, code="policy-file")

    def _take(self, key: str) -> Toml:
        self.known.append(key)
        return self._left.pop(key, None)

    def text(self, key: str) -> str | None:
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
            raise self.error(key, f"is {str(value)[:80]!r}, expected a text of 1 to {MAX_TEXT} characters")
        return value

    def required(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def flag(self, key: str) -> bool | None:
        value = self._take(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, f"is {str(value)[:80]!r}, expected true or false")
        return value

    def only_true(self, key: str) -> bool | None:
        """Take a flag of a rule that can only demand: false would look as if it allowed something."""
        value = self.flag(key)
        if value is False:
            raise self.error(key, "is false, which says nothing", hint="leave it out: a rule only demands")
        return value

    def only_false(self, key: str) -> bool | None:
        """Take a flag of a rule that can only forbid."""
        value = self.flag(key)
        if value is True:
            raise self.error(key, "is true, which says nothing", hint="leave it out: a rule only forbids")
        return value

    def number(self, key: str) -> int | None:
        value = self._take(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise self.error(key, f"is {str(value)[:80]!r}, expected a positive integer")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self._take(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(key, f"is a {type(value).__name__}, expected an array of texts")
        for item in value:
            if not isinstance(item, str) or not 0 < len(item) <= MAX_TEXT:
                raise self.error(key, f"holds {str(item)[:80]!r}, expected texts")
        return tuple(str(item) for item in value)

    def patterns(self, key: str) -> tuple[str, ...] | None:
        values = self.texts(key)
        for item in values or ():
            if item.count("*") > MAX_STARS:
                raise self.error(key, f"holds {item[:80]!r} with more than {MAX_STARS} stars")
        return values

    def choices(self, key: str, known: tuple[str, ...]) -> tuple[str, ...] | None:
        values = self.texts(key)
        for item in values or ():
            if item not in known:
                hint = near(item, known) or f"expected some of {', '.join(known)}"
                raise self.error(key, f"holds {item[:80]!r}", hint=hint)
        return values

    def capabilities(self, key: str) -> tuple[str, ...] | None:
        """Take names of capabilities; `default` stands for the default set."""
        values = self.texts(key)
        if values is None:
            return None
        names = set[str]()
        for item in values:
            names |= capabilities.DEFAULT if item == "default" else {self._capability(key, item)}
        return tuple(sorted(names))

    def _capability(self, key: str, name: str) -> str:
        try:
            return capabilities.parse_name(name)
        except PolicyError as error:
            raise self.error(key, f"holds an {error.message}", hint=error.hint) from error

    def labels(self, key: str) -> tuple[tuple[str, str], ...]:
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise self.error(key, f"is a {type(value).__name__}, expected a table of label = pattern")
        for name, pattern in value.items():
            if not isinstance(pattern, str) or pattern.count("*") > MAX_STARS:
                raise self.error(key, f"holds {name[:80]!r} = {str(pattern)[:80]!r}, expected a pattern")
        return tuple(sorted((name, str(pattern)) for name, pattern in value.items()))

    def read_back(self, key: str) -> ReadBack | None:
        value = self.text(key)
        if value is None:
            return None
        if value not in tuple(ReadBack):
            raise self.error(key, f"is {value[:80]!r}, expected {' or '.join(ReadBack)}")
        return ReadBack(value)

    def selector(self) -> Selector:
        return Selector(
            images=self.patterns("images") or (),
            except_images=self.patterns("except") or (),
            labels=self.labels("labels"),
        )

    def end(self) -> None:
        for key in self._left:
            hint = near(key, tuple(self.known)) or f"known: {', '.join(sorted(self.known))}"
            raise self.error(key[:80], "is not a known key", hint=hint)


def _profile(table: _Table, name: str, file: str) -> Profile:
    if not NAME.match(name) or name in BUILT_IN_PROFILES:
        raise table.error(
            "", "cannot be a profile's name", hint="lower-case letters, digits, dots and dashes"
        )
    select = table.selector()
    profile = Profile(
        name=name,
        source=file,
        select=select if select != Selector() else None,
        seccomp=table.text("seccomp"),
        capabilities=table.capabilities("capabilities"),
        cap_add=table.capabilities("cap_add") or (),
        cap_drop=table.texts("cap_drop") or (),
        no_new_privileges=table.flag("no_new_privileges"),
        read_only=table.flag("read_only"),
        read_only_tmpfs=table.flag("read_only_tmpfs"),
        mask=table.texts("mask") or (),
        unmask=table.texts("unmask") or (),
        ulimits=table.texts("ulimits") or (),
        memory=table.text("memory"),
        cpus=table.text("cpus"),
        pids_limit=table.number("pids_limit"),
        read_back=table.read_back("read_back"),
    )
    table.text("reason")
    table.end()
    if profile.capabilities is not None and (profile.cap_add or profile.cap_drop):
        raise table.error("capabilities", "says exactly which, so cap_add and cap_drop have no meaning")
    return profile


def _rule(table: _Table, file: str) -> Rule:
    rule = Rule(
        name=table.required("name"),
        source=file,
        reason=table.text("reason") or "",
        select=table.selector(),
        stage1=table.choices("stage1", FLAVOURS),
        network=table.choices("network", NETWORKS),
        accelerator=table.choices("accelerator", ACCELERATORS),
        profiles=table.texts("profiles"),
        seccomp=table.patterns("seccomp"),
        capabilities=table.capabilities("capabilities"),
        allow_relaxations=table.patterns("allow_relaxations"),
        deny_relaxations=table.patterns("deny_relaxations") or (),
        volumes=table.patterns("volumes"),
        devices=table.patterns("devices"),
        limits=table.choices("limits", LIMITS) or (),
        root=table.only_false("root"),
        read_only=table.only_true("read_only"),
        no_new_privileges=table.only_true("no_new_privileges"),
        enter=table.only_false("enter"),
        privileged=table.flag("privileged"),
        read_back=table.read_back("read_back"),
    )
    table.end()
    if not NAME.match(rule.name):
        raise table.error(
            "name", f"is {rule.name[:80]!r}", hint="lower-case letters, digits, dots and dashes"
        )
    if rule.read_back is ReadBack.WARN:
        raise table.error("read_back", "is warn, which is what happens anyway", hint="leave it out")
    return rule


def _case(table: _Table, file: str) -> Case:
    expected = table.required("expect")
    if expected not in ("allow", "deny"):
        raise table.error("expect", f"is {expected[:80]!r}, expected allow or deny")
    case = Case(
        name=table.required("name"),
        source=file,
        image=table.required("image"),
        flags=table.texts("flags") or (),
        labels=table.labels("labels"),
        allowed=expected == "allow",
        rule=table.text("rule") or "",
    )
    table.end()
    if case.allowed and case.rule:
        raise table.error("rule", "has no meaning with expect = allow")
    return case


def _document(data: bytes, file: str) -> tuple[str, Mapping[str, Toml]]:
    import tomllib

    if len(data) > MAX_BYTES:
        raise PolicyError(f"{file} has more than {MAX_BYTES} bytes", code="policy-file")
    try:
        text = data.decode("utf-8")
        found: Mapping[str, Toml] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{file} is not TOML: {error}", code="policy-file") from error
    return text, found


def parse(data: bytes, *, file: str) -> PolicyFile:
    """Parse one policy file; raises PolicyError naming file, line and key of what is not understood."""
    text, document = _document(data, file)
    for key in document:
        if key not in ("profile", "rule", "test"):
            raise PolicyError(
                f"{file}: {key[:80]} is not a known table",
                hint=near(key, ("profile", "rule", "test")) or "known: [profile.NAME], [[rule]], [[test]]",
                code="policy-file",
            )
    profiles = document.get("profile", {})
    if not isinstance(profiles, dict):
        raise PolicyError(f"{file}: profile is not a table", hint="write [profile.NAME]", code="policy-file")
    return PolicyFile(
        profiles=tuple(
            _profile(_Table(value, file=file, text=text, header=f"profile.{name}"), name, file)
            for name, value in profiles.items()
        ),
        rules=_several(document, "rule", file, text, _rule),
        cases=_several(document, "test", file, text, _case),
    )


def _several(
    document: Mapping[str, Toml], header: str, file: str, text: str, read: Callable[[_Table, str], _T]
) -> tuple[_T, ...]:
    found = document.get(header, [])
    if not isinstance(found, list):
        raise PolicyError(
            f"{file}: {header} is not an array", hint=f"write [[{header}]]", code="policy-file"
        )
    if len(found) > MAX_RULES:
        raise PolicyError(f"{file} has more than {MAX_RULES} {header}s", code="policy-file")
    return tuple(
        read(_Table(item, file=file, text=text, header=header, number=number), file)
        for number, item in enumerate(found, 1)
    )
