"""What a caller asks for that confines an app more or less: one record, and the words of each option."""

import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from secrun.errors import UsageError
from secrun.record import record, replace
from secrun.stage1.security import Device, Tmpfs
from secrun_policies import labels
from secrun_policies.confine import RLIMITS, UNLIMITED, Rlimit
from secrun_policies.errors import PolicyError, near

_OOM_SCORE = "/proc/self/oom_score_adj"
_LIMIT = re.compile(r"([a-z]+)=([0-9]{1,20}|-1|unlimited)(?::([0-9]{1,20}|-1|unlimited))?\Z")
_MODE = re.compile(r"[0-7]{3,4}\Z")
_SIZE = re.compile(r"[0-9]{1,12}[kmg]?\Z")
_TMPFS_FLAGS = ("exec", "noexec", "ro", "rw")
# Folders that programs expect to write (podman-run(1), --read-only-tmpfs).
WRITABLE_FOLDERS = ("/run", "/tmp", "/var/tmp")  # noqa: S108 - inside the app
_SECURITY_WORDS = ("label", "mask", "no-new-privileges", "seccomp", "unmask")
# Words of other tools for what secrun does not have, and what it has instead.
_FOREIGN = {
    "apparmor": "pods are confined by SELinux labels where the kernel has them, not by AppArmor",
    "proc-opts": "an app's /proc is always its own; use mask= and unmask=",
    "systempaths": "use unmask=ALL",
}


@record
class SecurityRequest:
    """What was said about confinement; None and empty mean: as the profile has it.

    `capabilities` names exactly what the app gets. `labels` are the words after `label=` (SELinux).
    """

    profile: str | None = None
    seccomp: str | None = None
    capabilities: tuple[str, ...] | None = None
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    new_privileges: bool | None = None
    mask: tuple[str, ...] = ()
    unmask: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int | None = None
    devices: tuple[Device, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    read_only_tmpfs: bool = False
    privileged: bool = False
    labels: tuple[str, ...] = ()
    strict_read_back: bool = False
    record: bool = False
    """The kernel asks about each call that the filter allows: somebody must answer."""


def _number(word: str) -> int:
    return UNLIMITED if word in ("-1", "unlimited") else int(word)


def ulimit(text: str) -> Rlimit:
    """Parse --ulimit NAME=SOFT[:HARD]; raises UsageError."""
    match = _LIMIT.match(text)
    if match is None:
        raise UsageError(
            f"--ulimit {text[:80]!r} is not NAME=SOFT[:HARD]", hint="e.g. nofile=1024:4096, core=0"
        )
    name = f"RLIMIT_{match[1].upper()}"
    if name not in RLIMITS:
        raise UsageError(
            f"--ulimit {match[1]}: there is no such limit", hint=near(name, RLIMITS) or "getrlimit(2)"
        )
    soft = _number(match[2])
    return Rlimit(name=name, soft=soft, hard=_number(match[3]) if match[3] else soft)


def sysctl(text: str) -> tuple[str, str]:
    """Parse --sysctl NAME=VALUE; raises UsageError."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UsageError(f"--sysctl {text[:80]!r} is not NAME=VALUE")
    return name.replace("/", "."), value


def inherited_oom_score() -> int:
    """Return secrun's own oom_score_adj, the least that a pod can have."""
    with open(_OOM_SCORE, encoding="ascii") as stream:
        return int(stream.read())


def oom_score_adj(value: int | None, inherited: int) -> int | None:
    """Check --oom-score-adj; raises UsageError for what a pod cannot give itself."""
    if value is None:
        return None
    if not -1000 <= value <= 1000:
        raise UsageError(f"--oom-score-adj {value} is not between -1000 and 1000")
    if value < inherited:
        raise UsageError(
            f"--oom-score-adj {value} is less than secrun's own, {inherited}",
            hint="the root of a pod's user namespace cannot lower it; run secrun itself with a lower one",
            code="usage-oom-score",
        )
    return value


def device(text: str) -> Device:
    """Parse --device HOST[:POD[:rw]]; raises UsageError."""
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(part.startswith("/") for part in parts[:2]):
        raise UsageError(f"--device {text[:80]!r} is not HOST[:POD[:rw]]", hint="e.g. /dev/fuse")
    if len(parts) == 3 and parts[2] not in ("rw", "rwm"):
        raise UsageError(
            f"--device {text[:80]!r}: access {parts[2][:8]!r} cannot be enforced in a user namespace",
            hint="rw is what can be had; no app can make device nodes anyway",
            code="usage-device",
        )
    source = Path(parts[0])
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise UsageError(f"--device {parts[0][:80]}: {error.strerror}", code="usage-device") from error
    if not stat.S_ISCHR(mode) and not stat.S_ISBLK(mode):
        raise UsageError(f"--device {parts[0][:80]} is not a device node", code="usage-device")
    target = parts[1] if len(parts) > 1 else parts[0]
    return Device(source=str(source.resolve()), target=_tidy(target, "--device"))


def _tidy(path: str, option: str) -> str:
    if not path.startswith("/") or any(part in (".", "..") for part in path.split("/")) or "\0" in path:
        raise UsageError(f"{option} {path[:80]!r} is not an absolute path without ..")
    tidy = "/" + "/".join(part for part in path.split("/") if part)
    if tidy == "/":
        raise UsageError(f"{option} {path[:80]!r} would hide the app's root")
    return tidy


def tmpfs(text: str) -> Tmpfs:
    """Parse --tmpfs FOLDER[:OPTION,...]; nosuid and nodev always hold; raises UsageError."""
    target, _, words = text.partition(":")
    options = {"noexec": True, "ro": False}
    size, mode = "", "1777"
    for word in filter(None, words.split(",")):
        key, _, value = word.partition("=")
        if key == "size" and _SIZE.match(value):
            size = value
        elif key == "mode" and _MODE.match(value):
            mode = value
        elif word in _TMPFS_FLAGS:
            options["noexec" if "exec" in word else "ro"] = word in ("noexec", "ro")
        elif word not in ("nosuid", "nodev"):
            raise UsageError(
                f"--tmpfs {text[:80]!r}: option {word[:40]!r} is not known",
                hint="size=BYTES[k|m|g], mode=OCTAL, ro, rw, exec, noexec",
            )
    return Tmpfs(
        target=_tidy(target, "--tmpfs"),
        size=size,
        mode=mode,
        read_only=options["ro"],
        executable=not options["noexec"],
    )


def userns(text: str | None) -> None:
    """Check --userns: every pod has one of its own, so nothing else can be asked for; raises UsageError."""
    if text not in (None, "auto", "private"):
        raise UsageError(
            f"--userns={text[:40]}: a pod always has a user namespace with ids of its own",
            hint="leave it out, or say auto",
            code="usage-userns",
        )


def _flag(word: str, value: str) -> bool:
    if value not in ("", "true", "false"):
        raise UsageError(f"--security-opt {word}={value[:40]}: expected true or false")
    return value != "false"


def security_options(words: Iterable[str]) -> SecurityRequest:
    """Parse --security-opt words; raises UsageError for one that is not known or given twice."""
    result = SecurityRequest()
    for word in words:
        key, value = _split(word)
        if key == "seccomp":
            if result.seccomp is not None:
                raise UsageError("--security-opt seccomp is given twice")
            result = replace(result, seccomp=value)
        elif key == "no-new-privileges":
            result = replace(result, new_privileges=not _flag(key, value))
        elif key == "mask":
            result = replace(result, mask=(*result.mask, *filter(None, value.split(":"))))
        elif key == "unmask":
            result = replace(result, unmask=(*result.unmask, *filter(None, value.split(":"))))
        else:
            result = replace(result, labels=(*result.labels, _label(value)))
    return result


def _label(value: str) -> str:
    """Check one word after `label=`; whether the host can do it is decided when the pod is."""
    try:
        labels.parse_option(value)
    except PolicyError as error:
        raise UsageError(error.message, hint=error.hint, code="usage-security-opt") from error
    return value


def _split(word: str) -> tuple[str, str]:
    """Return key and value of one word, `KEY=VALUE` or `KEY:VALUE`; raises UsageError."""
    match = re.match(r"([a-z-]+)(?:[=:](.*))?\Z", word, re.DOTALL)
    key = match[1] if match else word
    if key in _FOREIGN:
        raise UsageError(f"--security-opt {key}: {_FOREIGN[key]}", code="usage-security-opt")
    if match is None or key not in _SECURITY_WORDS:
        raise UsageError(
            f"--security-opt {word[:80]!r} is not known",
            hint=near(key, _SECURITY_WORDS) or f"known: {', '.join(_SECURITY_WORDS)}",
            code="usage-security-opt",
        )
    value = match[2] or ""
    if key != "no-new-privileges" and not value:
        raise UsageError(f"--security-opt {key} needs a value", code="usage-security-opt")
    return key, value


def capabilities(
    add: tuple[str, ...], drop: tuple[str, ...], retain: Sequence[str], remove: Sequence[str]
) -> SecurityRequest:
    """Join podman's and rkt's ways to say it; raises UsageError if both are used.

    `--caps-retain` is exactly these, `--caps-remove` the default set without these.
    """
    kept = tuple(name for word in retain for name in word.split(",") if name)
    removed = tuple(name for word in remove for name in word.split(",") if name)
    ways = [bool(add or drop), bool(retain), bool(remove)]
    if sum(ways) > 1:
        raise UsageError(
            "--caps-retain, --caps-remove and --cap-add/--cap-drop exclude one another",
            code="usage-capabilities",
        )
    return SecurityRequest(capabilities=kept if retain else None, cap_add=add, cap_drop=(*drop, *removed))


def raised(rlimits: Iterable[Rlimit], hard: Mapping[str, int]) -> None:
    """Raise UsageError if a limit is above what a pod can have; `hard` are secrun's own limits by name."""
    for limit in rlimits:
        most = hard.get(limit.name, UNLIMITED)
        if limit.hard > most:
            asked = "unlimited" if limit.hard == UNLIMITED else str(limit.hard)
            name = limit.name.removeprefix("RLIMIT_").lower()
            raise UsageError(
                f"--ulimit {name}: {asked} is above this host's {most}",
                hint="a pod can only lower limits; raise the one that secrun is started with",
                code="usage-ulimit",
            )
