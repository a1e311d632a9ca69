"""What a caller asks for, parsed and checked before anything is touched."""

import os
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from secrun.errors import UsageError
from secrun.image.fetch import FetchOptions
from secrun.network.configs import Places
from secrun.network.request import NetworkRequest
from secrun.pod.lifecycle import HealthRequest
from secrun.pod.security import SecurityRequest
from secrun.record import field, record
from secrun.stage1.lifecycle import Restart
from secrun.stage1.machine import MachineRequest
from secrun.stage1.manifest import Limits
from secrun.stage1.secret import Secret
from secrun.stage1.volume import EmptyVolume, Volume

# appc AC name, and a file name, a unit name and a crun container name at once.
_APP_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?\Z")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?\Z")  # HOST_NAME_MAX is 64
_ENV_NAME = re.compile(r"[^=\0]+\Z")
_SIZE = re.compile(r"(\d{1,18})([bkmgt]?)\Z")
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9}(?:\.\d{1,6})?)s?)?\Z")
# The smallest limit under which a process can start at all (podman refuses below 6 MiB as well).
MIN_MEMORY_BYTES = 6 << 20
# ext4 needs some of it for itself.
MIN_STORAGE_BYTES = 16 << 20
_ID_PREFIX = "sha256:"
_SHOWN_DIGITS = 12
MAX_APPS = 64
MAX_ENV_FILE_BYTES = 1 << 20
# The manifest holds them, and every list reads manifests.
MAX_MARKS_CHARACTERS = 16 * 1024
DEFAULT_STOP_TIMEOUT_SECONDS = 10
# Rows and columns where the caller has no terminal to copy; none would make a terminal of 0 by 0.
USUAL_TERMINAL = (24, 80)


class Systemd(StrEnum):
    """Whether an app is a system container: its program an init that manages services."""

    FALSE = "false"
    TRUE = "true"
    ALWAYS = "always"
    """Whatever its program is called."""


@record
class DeclaredVolume:
    """A volume that is known by a name only: `read_only` None if nothing was said."""

    name: str
    source: str
    read_only: bool | None
    empty: EmptyVolume | None = None
    """The pod's own, if it is not a place of the host."""


@record
class AppRequest:
    """One app as asked for; None and empty mean: what the image says."""

    image: str
    name: str | None = None
    args: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[tuple[str, str], ...] = ()
    host_env: Mapping[str, str] = field(default_factory=dict)
    """The caller's variables; whatever the image or the request says wins."""
    unset_env: tuple[str, ...] = ()
    """Variables of the image or of secrun that the app does not get."""
    umask: int | None = None
    user: str | None = None
    groups: tuple[str, ...] = ()
    """Supplementary groups beside the user's own: names of the image or numbers."""
    workdir: str | None = None
    read_only: bool = False
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    stdin: bool = False
    sockets: tuple[str, ...] = ()
    """A name for each of the caller's sockets that it gets (secrun.pod.sockets)."""
    volumes: tuple[Volume, ...] = ()
    declared: tuple[DeclaredVolume, ...] = ()
    empty_volumes: tuple[EmptyVolume, ...] = ()
    limits: Limits = field(default_factory=Limits)
    security: SecurityRequest = field(default_factory=SecurityRequest)
    stop_timeout_seconds: int = DEFAULT_STOP_TIMEOUT_SECONDS
    stop_signal: str | None = None
    labels: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    systemd: Systemd = Systemd.FALSE
    restart: Restart = field(default_factory=Restart)
    health: HealthRequest = field(default_factory=HealthRequest)


@record
class PodRequest:
    """A pod as asked for."""

    apps: tuple[AppRequest, ...]
    fetch: FetchOptions
    hostname: str | None = None
    net: NetworkRequest = field(default_factory=NetworkRequest)
    places: Places = field(default_factory=Places)
    """Where configurations and plugins of networks are."""
    flavour: str = "nspawn"
    machine: MachineRequest = field(default_factory=MachineRequest)
    uuid_file: Path | None = None


def app_name(text: str) -> str:
    """Check an app's name; raises UsageError."""
    if not _APP_NAME.match(text):
        raise UsageError(
            f"{text[:80]!r} cannot be an app's name",
            hint="lower-case letters, digits, dots and dashes, at most 63; give one with --name",
            code="usage-app-name",
        )
    return text


def default_app_name(reference: str) -> str:
    """Derive an app's name from an image reference: the last part of its name, made fit; pure.

    An image ID gives its first digits, as lists show it.
    """
    if reference.startswith(_ID_PREFIX):
        reference = reference.removeprefix(_ID_PREFIX)[:_SHOWN_DIGITS]
    text = reference.split("@", maxsplit=1)[0].rstrip("/").rpartition("/")[2]
    text = text.partition(",")[0].removesuffix(".aci")
    text = text.rpartition(":")[0] or text
    text = re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")[:63].rstrip("-.")
    return app_name(text or "app")


def host_name(text: str) -> str:
    """Check a host name (hostname(7)); raises UsageError."""
    if not _HOST_NAME.match(text):
        raise UsageError(f"{text[:80]!r} is not a host name of at most 64 characters")
    return text


def unicode_text(text: str, what: str) -> str:
    """Check that a word is UTF-8, since the OCI configuration is JSON; raises UsageError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} {text[:80]!r} is not UTF-8") from error
    if "\0" in text:
        raise UsageError(f"{what} contains a NUL byte")
    return text


def size(text: str) -> int:
    """Parse a size such as 512m into bytes; raises UsageError."""
    match = _SIZE.match(text.lower())
    if match is None:
        raise UsageError(f"{text[:80]!r} is not a size", hint="a number with b, k, m, g or t, e.g. 512m")
    return int(match[1]) * _UNITS[match[2]]


def memory(text: str) -> int:
    """Parse a memory limit into bytes; raises UsageError."""
    value = size(text)
    if value < MIN_MEMORY_BYTES:
        raise UsageError(f"--memory {text}: the least that works is {MIN_MEMORY_BYTES >> 20}m")
    return value


def storage(text: str) -> int:
    """Parse the size of a scratch disk into bytes; raises UsageError."""
    value = size(text)
    if value < MIN_STORAGE_BYTES:
        raise UsageError(f"--storage {text}: the least that works is {MIN_STORAGE_BYTES >> 20}m")
    return value


def cpus(text: str) -> int:
    """Parse a number of CPUs into thousandths; raises UsageError."""
    try:
        millis = round(float(text) * 1000)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--cpus {text[:80]!r} is not a number") from error
    if not 10 <= millis <= 1_000_000:
        raise UsageError(f"--cpus {text[:80]} is not between 0.01 and 1000")
    return millis


def cpu_weight(shares: int) -> int:
    """Return the weight of cgroup2 for shares of cgroup v1, 2 to 262,144, as OCI runtimes convert them."""
    return 1 + (shares - 2) * 9999 // 262_142


def duration(text: str) -> float:
    """Parse a duration such as 90s, 5m, 1h30m or 30d into seconds; raises UsageError."""
    match = _DURATION.match(text)
    if match is None or not text:
        raise UsageError(f"{text[:80]!r} is not a duration", hint="e.g. 30s, 5m, 1h30m, 30d")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def environment(
    assignments: Iterable[str], files: Iterable[Path], caller: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Merge --env-file and --env, the latter winning; NAME alone copies the caller's value."""
    result: dict[str, str] = {}
    for path in files:
        result.update(_env_file(path))
    for text in assignments:
        name, equals, value = unicode_text(text, "--env").partition("=")
        if not _ENV_NAME.match(name):
            raise UsageError(f"--env {text[:80]!r} has no name")
        if equals:
            result[name] = value
        elif name in caller:
            result[name] = unicode_text(caller[name], f"the variable {name}")
    return tuple(result.items())


def umask(text: str | None) -> int | None:
    """Parse a file mode mask in octal (umask(2)); raises UsageError."""
    if text is None:
        return None
    if not re.fullmatch(r"0?[0-7]{1,3}", text):
        raise UsageError(f"--umask {text[:80]!r} is not an octal number from 0 to 777")
    return int(text, 8)


def caller_environment(caller: Mapping[str, str]) -> dict[str, str]:
    """Return all of the caller's variables; raises UsageError for one that is not UTF-8."""
    return {name: unicode_text(value, f"the variable {name}") for name, value in caller.items()}


def marks(words: Iterable[str], option: str) -> tuple[str, ...]:
    """Check `NAME=VALUE` words of --label and --annotation and sort them; the last of a name counts.

    A name alone has an empty value, as in podman. Raises UsageError.
    """
    found: dict[str, str] = {}
    for word in words:
        name, _, value = unicode_text(word, option).partition("=")
        if not name:
            raise UsageError(f"{option} {word[:80]!r} has no name")
        found[name] = value
    result = tuple(f"{name}={value}" for name, value in sorted(found.items()))
    if sum(map(len, result)) > MAX_MARKS_CHARACTERS:
        raise UsageError(f"{option}: more than {MAX_MARKS_CHARACTERS} characters for one app")
    return result


def _env_file(path: Path) -> dict[str, str]:
    try:
        data = path.read_bytes()[: MAX_ENV_FILE_BYTES + 1]
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"--env-file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--env-file {path} is not UTF-8") from error
    if len(data) > MAX_ENV_FILE_BYTES:
        raise UsageError(f"--env-file {path} is larger than {MAX_ENV_FILE_BYTES} bytes")
    result: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--env-file {path}, line {number}: expected NAME=VALUE")
        result[name.strip()] = value
    return result


def terminal_size(fd: int = 0) -> tuple[int, int] | None:
    """Return rows and columns of a terminal, None if `fd` is none or does not know."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return None
    return (size.lines, size.columns) if size.lines and size.columns else None


def stop_signal(text: str | None) -> int:
    """Parse an image's StopSignal (a name with or without SIG, or a number); raises UsageError."""
    if not text:
        return int(signal.SIGTERM)
    if text.isdecimal() and 1 <= int(text) <= 64:
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    offset = 0
    for base, sign in (("SIGRTMIN+", 1), ("SIGRTMAX-", -1)):
        if name.startswith(base) and name[len(base) :].isdecimal():
            offset, name = sign * int(name[len(base) :]), base[:-1]
    found = getattr(signal, name, None)
    if not isinstance(found, signal.Signals) or not 1 <= found + offset <= 64:
        raise UsageError(f"{text[:40]!r} is not a signal", code="image-stop-signal")
    return int(found) + offset


def check_pod(request: PodRequest) -> Sequence[str]:
    """Return the apps' names; raises UsageError for a pod that has no meaning."""
    if not request.apps:
        raise UsageError("a pod needs at least one image")
    if len(request.apps) > MAX_APPS:
        raise UsageError(f"a pod has at most {MAX_APPS} apps, got {len(request.apps)}")
    names = [app.name or default_app_name(app.image) for app in request.apps]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two apps are called {twice[0]!r}", hint="tell them apart with --name")
    if len(names) > 1 and any(app.terminal or app.stdin for app in request.apps):
        raise UsageError("-i and -t need a pod of one app", code="usage-interactive")
    if len(names) > 1 and any(app.sockets for app in request.apps):
        raise UsageError("sockets of the caller's are for a pod of one app", code="usage-sockets")
    return names
