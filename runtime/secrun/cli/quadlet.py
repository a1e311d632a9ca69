"""From a `.container` or `.pod` file to a systemd service that runs it; pure (podman-systemd.unit(5)).

A file has podman's sections and keys where secrun has the same thing, and three keys of its own: Stage1=,
Profile=, SecrunArgs=. What cannot be honoured is an error and never left out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from secrun.cli.table import Kind
from secrun.errors import UsageError
from secrun.pod.request import DEFAULT_STOP_TIMEOUT_SECONDS
from secrun.record import record

SECTIONS = {".container": "Container", ".pod": "Pod"}
MAX_BYTES = 256 * 1024
_COPIED = ("Unit", "Service", "Install")
_SECTION = re.compile(r"\[([A-Za-z0-9-]+)\]\Z")
_KEY = re.compile(r"[A-Za-z0-9-]+\Z")
_TRUE, _FALSE = ("1", "yes", "true", "on"), ("0", "no", "false", "off")
# Longer than any --stop-timeout that a file gives, plus what ending the pod takes.
_STOP_MARGIN_SECONDS = 15

# Of an app: key, option, and how the option takes it.
APP_KEYS: dict[str, tuple[str, Kind]] = {
    "Entrypoint": ("--entrypoint", Kind.TEXT),
    "Environment": ("--env", Kind.LIST),
    "EnvironmentFile": ("--env-file", Kind.TEXT),
    "EnvironmentHost": ("--env-host", Kind.FLAG),
    "User": ("--user", Kind.TEXT),
    "Group": ("--group", Kind.TEXT),
    "GroupAdd": ("--group-add", Kind.TEXT),
    "WorkingDir": ("--workdir", Kind.TEXT),
    "ReadOnly": ("--read-only", Kind.FLAG),
    "ReadOnlyTmpfs": ("--read-only-tmpfs", Kind.FLAG),
    "Volume": ("--volume", Kind.TEXT),
    "Mount": ("--mount", Kind.TEXT),
    "Tmpfs": ("--tmpfs", Kind.TEXT),
    "Secret": ("--secret", Kind.TEXT),
    "AddCapability": ("--cap-add", Kind.LIST),
    "DropCapability": ("--cap-drop", Kind.LIST),
    "AddDevice": ("--device", Kind.TEXT),
    "Sysctl": ("--sysctl", Kind.LIST),
    "Ulimit": ("--ulimit", Kind.TEXT),
    "Memory": ("--memory", Kind.TEXT),
    "PidsLimit": ("--pids-limit", Kind.TEXT),
    "StopSignal": ("--stop-signal", Kind.TEXT),
    "StopTimeout": ("--stop-timeout", Kind.TEXT),
    "HealthCmd": ("--health-cmd", Kind.TEXT),
    "HealthInterval": ("--health-interval", Kind.TEXT),
    "HealthOnFailure": ("--health-on-failure", Kind.TEXT),
    "HealthRetries": ("--health-retries", Kind.TEXT),
    "HealthStartPeriod": ("--health-start-period", Kind.TEXT),
    "HealthTimeout": ("--health-timeout", Kind.TEXT),
    "Label": ("--label", Kind.LIST),
    "Annotation": ("--annotation", Kind.LIST),
    "RunInit": ("--init", Kind.FLAG),
    "Profile": ("--profile", Kind.TEXT),
}
_SECURITY = {
    "SeccompProfile": "seccomp=",
    "SecurityLabelType": "label=type:",
    "SecurityLabelLevel": "label=level:",
    "Mask": "mask=",
    "Unmask": "unmask=",
}
POD_KEYS: dict[str, tuple[str, Kind]] = {
    "HostName": ("--hostname", Kind.TEXT),
    "Network": ("--net", Kind.TEXT),
    "PublishPort": ("--publish", Kind.TEXT),
    "DNS": ("--dns", Kind.TEXT),
    "DNSSearch": ("--dns-search", Kind.TEXT),
    "DNSOption": ("--dns-opt", Kind.TEXT),
    "AddHost": ("--add-host", Kind.TEXT),
    "Pull": ("--pull", Kind.TEXT),
    "Stage1": ("--stage1", Kind.TEXT),
}


@record
class Entry:
    """One `Key=Value` of a section, and its line."""

    line: int
    key: str
    value: str


@record
class Sections:
    """A unit file as it stands."""

    name: str
    entries: Mapping[str, tuple[Entry, ...]]


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines without comments, joined where one ends in a backslash (systemd.syntax(7))."""
    begin = 0
    parts: list[str] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if parts and line.startswith(("#", ";")):
            continue
        if not parts:
            if not line or line.startswith(("#", ";")):
                continue
            begin = number
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield begin, " ".join(part.strip() for part in parts)
            parts = []
    if parts:
        yield begin, " ".join(part.strip() for part in parts)


def parse(name: str, text: str) -> Sections:
    """Parse a unit file; raises UsageError with the line."""
    found: dict[str, list[Entry]] = {}
    section = ""
    for number, line in _logical(text):
        match = _SECTION.match(line)
        if match:
            section = match[1]
            found.setdefault(section, [])
            continue
        key, equals, value = line.partition("=")
        if not equals or not _KEY.match(key.strip()):
            raise _wrong(name, number, f"expected [Section] or Key=Value, got {line[:80]!r}")
        if not section:
            raise _wrong(name, number, f"{key.strip()}= stands before any section")
        found[section].append(Entry(line=number, key=key.strip(), value=value.strip()))
    return Sections(name=name, entries={key: tuple(value) for key, value in found.items()})


def _wrong(name: str, line: int, text: str) -> UsageError:
    return UsageError(f"{name}, line {line}: {text}", code="usage-unit-file")


def _word(text: str) -> str:
    """Quote one word for ExecStart=; specifiers and variables stay what the file's author made them."""
    if text and not re.search(r"[\s\"'\\;]", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _words(name: str, entry: Entry) -> list[str]:
    """Split a value into words as systemd does, quotes taken away."""
    import shlex

    try:
        return shlex.split(entry.value)
    except ValueError as error:
        raise _wrong(name, entry.line, f"{entry.key}={entry.value[:80]}: {error}") from error


def _boolean(name: str, entry: Entry) -> bool:
    value = entry.value.lower()
    if value not in (*_TRUE, *_FALSE):
        raise _wrong(name, entry.line, f"{entry.key}={entry.value[:80]} is neither true nor false")
    return value in _TRUE


def _kept(entries: Sequence[Entry]) -> list[Entry]:
    """Drop what an empty assignment of the same key takes back (systemd.syntax(7))."""
    result: list[Entry] = []
    for entry in entries:
        if entry.value:
            result.append(entry)
        else:
            result = [item for item in result if item.key != entry.key]
    return result


def _option(name: str, entry: Entry, flag: str, kind: Kind) -> list[str]:
    if kind is Kind.FLAG:
        return [flag] if _boolean(name, entry) else []
    values = _words(name, entry) if kind is Kind.LIST else [entry.value]
    return [f"{flag}={value}" for value in values]


def _security(name: str, entry: Entry) -> list[str] | None:
    if entry.key == "NoNewPrivileges":
        return [] if _boolean(name, entry) else ["--security-opt=no-new-privileges=false"]
    if entry.key == "SecurityLabelDisable":
        return ["--security-opt=label=disable"] if _boolean(name, entry) else []
    word = _SECURITY.get(entry.key)
    return None if word is None else [f"--security-opt={word}{entry.value}"]


def _unknown(name: str, entry: Entry, known: Sequence[str]) -> UsageError:
    import difflib

    near = difflib.get_close_matches(entry.key, known, n=1)
    hint = f"did you mean {near[0]}=?" if near else "SecrunArgs= gives any option of secrun run"
    return UsageError(
        f"{name}, line {entry.line}: {entry.key}= cannot be honoured", hint=hint, code="usage-unit-file"
    )


def _last(entries: Sequence[Entry], key: str) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.key == key), None)


def _container(file: Sections, entries: Sequence[Entry]) -> list[str]:
    """Return the words after `secrun run` for a [Container], quoted."""
    options: list[str] = []
    known = {**POD_KEYS, **APP_KEYS}
    own = ("Image", "Exec", "ContainerName", "SecrunArgs")
    for entry in entries:
        security = _security(file.name, entry)
        if entry.key in own:
            continue
        if security is not None:
            options += map(_word, security)
        elif entry.key in known:
            options += map(_word, _option(file.name, entry, *known[entry.key]))
        else:
            raise _unknown(file.name, entry, [*known, *_SECURITY, *own])
    image, command = _last(entries, "Image"), _last(entries, "Exec")
    if image is None:
        raise UsageError(f"{file.name}: [Container] names no Image=", code="usage-unit-file")
    name = _last(entries, "ContainerName")
    options += [_word(f"--name={name.value}")] if name else []
    options += [entry.value for entry in entries if entry.key == "SecrunArgs"]
    return [*options, _word(image.value), *(["--", command.value] if command else [])]


def _pod(file: Sections, entries: Sequence[Entry]) -> list[str]:
    """Return the words after `secrun run` for a [Pod]: its apps are in the file of --pod-manifest."""
    options: list[str] = []
    for entry in entries:
        if entry.key in POD_KEYS:
            options += map(_word, _option(file.name, entry, *POD_KEYS[entry.key]))
        elif entry.key not in ("Manifest", "SecrunArgs"):
            raise _unknown(file.name, entry, [*POD_KEYS, "Manifest", "SecrunArgs"])
    manifest = _last(entries, "Manifest")
    if manifest is None:
        raise UsageError(f"{file.name}: [Pod] names no Manifest=", code="usage-unit-file")
    options += [entry.value for entry in entries if entry.key == "SecrunArgs"]
    return [*options, _word(f"--pod-manifest={manifest.value}")]


def _stop_seconds(name: str, entries: Sequence[Entry]) -> int:
    entry = _last(entries, "StopTimeout")
    if entry is None:
        return DEFAULT_STOP_TIMEOUT_SECONDS + _STOP_MARGIN_SECONDS
    if not (entry.value.isascii() and entry.value.isdigit()):
        raise _wrong(name, entry.line, f"StopTimeout={entry.value[:80]} is no number of seconds")
    return int(entry.value) + _STOP_MARGIN_SECONDS


def _service(file: Sections, program: str, words: Sequence[str], stop_seconds: int) -> list[str]:
    """Return the [Service] section: what the file says wins, but for how the pod is started."""
    given = file.entries.get("Service", ())
    for entry in given:
        if entry.key in ("Type", "ExecStart", "KillMode", "NotifyAccess"):
            raise _wrong(file.name, entry.line, f"{entry.key}= is not the file's to say")
    lines = [
        "[Service]",
        "Type=notify",
        # What finishes the pod is a child of the supervisor, and has to measure the end.
        "KillMode=mixed",
        f"TimeoutStopSec={stop_seconds}",
        f"ExecStart={_word(program)} run --rm {' '.join(words)}",
    ]
    return [*lines, *(f"{entry.key}={entry.value}" for entry in given)]


def service_name(name: str) -> str:
    """Return the unit that a file becomes."""
    return f"{name.rpartition('.')[0]}.service"


def render(file: Sections, program: str) -> str:
    """Return the service; `program` is the path of secrun. Raises UsageError for what cannot be honoured."""
    suffix = f".{file.name.rpartition('.')[2]}"
    section = SECTIONS.get(suffix)
    if section is None:
        raise UsageError(
            f"{file.name}: expected a name that ends in {' or '.join(SECTIONS)}", code="usage-unit-file"
        )
    for name in file.entries:
        if name not in (section, *_COPIED) and not name.startswith("X-"):
            raise UsageError(f"{file.name}: unknown section [{name}]", code="usage-unit-file")
    entries = _kept(file.entries.get(section, ()))
    words = _container(file, entries) if suffix == ".container" else _pod(file, entries)
    unit = [f"{entry.key}={entry.value}" for entry in file.entries.get("Unit", ())]
    if not any(line.startswith("Description=") for line in unit):
        unit.append(f"Description=secrun pod of {file.name}")
    install = [f"{entry.key}={entry.value}" for entry in file.entries.get("Install", ())]
    parts = [
        f"# Made by secrun generate from {file.name}",
        "[Unit]",
        "Wants=network-online.target",
        "After=network-online.target",
        *unit,
        "",
        *_service(file, program, words, _stop_seconds(file.name, entries)),
    ]
    if install:
        parts += ["", "[Install]", *install]
    return "\n".join(parts) + "\n"


def wanted_by(file: Sections) -> dict[str, list[str]]:
    """Return the links of [Install] that a generator makes: `wants` and `requires`, each with its units."""
    install = file.entries.get("Install", ())
    links: dict[str, list[str]] = {"wants": [], "requires": []}
    for entry in _kept(install):
        kind = {"WantedBy": "wants", "RequiredBy": "requires"}.get(entry.key)
        if kind is not None:
            links[kind] += entry.value.split()
    return links
