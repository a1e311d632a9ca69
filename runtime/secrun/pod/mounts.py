"""What a caller says about volumes, in every spelling: -v, podman's --mount, rkt's --volume with --mount."""

import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from secrun.errors import UsageError
from secrun.paths import Layout
from secrun.pod import request, security, volumes
from secrun.pod.request import DeclaredVolume
from secrun.record import record, replace
from secrun.stage1.security import Tmpfs
from secrun.stage1.uidrange import SIZE
from secrun.stage1.volume import EmptyVolume, Relabel, Volume

_TRUE = ("true", "1", "")
_FALSE = ("false", "0")
_MODE = re.compile(r"0?[0-7]{3,4}\Z")


@record
class Mounts:
    """What an app sees beside its image."""

    volumes: tuple[Volume, ...]
    empty_volumes: tuple[EmptyVolume, ...]
    tmpfs: tuple[Tmpfs, ...]
    declared: tuple[DeclaredVolume, ...] = ()
    """Volumes by name, for the mount points that an image names."""


@record
class _Access:
    """What is said of a volume beside what it is and where."""

    read_only: bool = False
    relabel: Relabel = Relabel.NONE
    executable: bool = True
    fill: bool | None = None
    """None if nothing was said."""

    def host(self, source: str, target: str, *, fill: bool = False) -> Volume:
        """Return a volume of the host; `fill` unless something else was said, never if it is read-only."""
        wanted = fill if self.fill is None else self.fill
        return Volume(
            source=source,
            target=target,
            read_only=self.read_only,
            relabel=self.relabel,
            executable=self.executable,
            fill=wanted and not self.read_only,
        )

    def own(self, volume: EmptyVolume) -> EmptyVolume:
        """Return a volume of the pod's own with this said of it."""
        fill = volume.fill if self.fill is None else self.fill
        return replace(volume, read_only=self.read_only, executable=self.executable, fill=fill)


_PROPAGATION = "mounts below a volume do not pass between host and pod: their owners would not be the pod's"
# Each word of -v: what it is about, and what it says.
_WORDS: Mapping[str, tuple[str, _Access]] = {
    "ro": ("access", _Access(read_only=True)),
    "rw": ("access", _Access()),
    "z": ("label", _Access(relabel=Relabel.SHARED)),
    "Z": ("label", _Access(relabel=Relabel.PRIVATE)),
    "noexec": ("programs", _Access(executable=False)),
    "exec": ("programs", _Access()),
    "nocopy": ("copy", _Access(fill=False)),
    "copy": ("copy", _Access(fill=True)),
    **dict.fromkeys(("private", "rprivate"), ("propagation", _Access())),
    **dict.fromkeys(("nosuid", "nodev", "rbind"), ("", _Access())),
}
_REFUSED: Mapping[str, str] = {
    "U": "owners are mapped one to one, so none has to change; secrun volume create takes --uid and --gid",
    **dict.fromkeys(("slave", "rslave", "shared", "rshared"), _PROPAGATION),
    **dict.fromkeys(
        ("suid", "dev"), "no volume gives set-user-ID programs or devices; --device shows a device"
    ),
}


def _bad(option: str, text: str, problem: str, hint: str = "") -> UsageError:
    return UsageError(f"{option} {text[:120]!r}: {problem}", hint=hint, code="usage-volume")


def _access(option: str, text: str, words: Iterable[str]) -> _Access:
    """Put the words of one volume together; raises UsageError for one that is unknown or contradicts."""
    said: dict[str, str] = {}
    found = _Access()
    for word in words:
        if word in _REFUSED:
            raise _bad(option, text, f"{word!r} is not possible", _REFUSED[word])
        if word not in _WORDS:
            raise _bad(
                option, text, f"option {word[:40]!r} is not known", f"known: {' '.join(sorted(_WORDS))}"
            )
        about, access = _WORDS[word]
        if about and about in said:
            raise _bad(option, text, f"{said[about]} and {word} say two things of one kind")
        said[about] = word
        found = _Access(
            read_only=found.read_only or access.read_only,
            relabel=access.relabel or found.relabel,
            executable=found.executable and access.executable,
            fill=found.fill if access.fill is None else access.fill,
        )
    return found


def _pairs(option: str, text: str, words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key.lower() in found:
            raise _bad(option, text, f"{key[:40]!r} is given twice")
        found[key.lower()] = value
    return found


def _flag(option: str, text: str, value: str) -> bool:
    if value not in _TRUE + _FALSE:
        raise _bad(option, text, f"{value[:40]!r} is neither true nor false")
    return value in _TRUE


def _split_escaped(text: str) -> list[str]:
    """Split at colons; a backslash keeps the next character."""
    parts = [""]
    escaped = False
    for char in text:
        if escaped or char not in "\\:":
            parts[-1] += char
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            parts.append("")
    return parts


def _source(option: str, text: str, source: str) -> str:
    """Return what a place of the host really is: that gets bound and measured, no link that may change."""
    path = Path(source)
    if not path.is_absolute():
        raise _bad(option, text, f"{source[:80]!r} is not an absolute path")
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise _bad(option, text, f"{source} does not exist on this host") from error
    if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
        raise _bad(option, text, f"{source} is a device", "--device shows a device to an app")
    return str(path.resolve())


def _target(option: str, text: str, target: str) -> str:
    if not target.startswith("/"):
        raise _bad(option, text, f"{target[:80]!r} is not an absolute path")
    return "/" + "/".join(part for part in target.split("/") if part not in ("", "."))


def short(layout: Layout, text: str) -> Volume | EmptyVolume:
    """Parse -v [HOST|NAME:]POD[:ro,z,noexec,nocopy]; the host's side must exist; raises UsageError."""
    parts = _split_escaped(request.unicode_text(text, "volume"))
    if len(parts) > 3 or not parts[-1]:
        hint = "write \\: for a colon in a path"
        raise _bad("volume", text, "it is not HOST:POD[:OPTIONS], NAME:POD or POD", hint)
    if len(parts) == 1:
        return EmptyVolume(name="", target=_target("volume", text, parts[0]), fill=True)
    access = _access("volume", text, parts[2].split(",") if len(parts) == 3 else ())
    return _of_host(layout, "volume", text, (parts[0], parts[1]), access)


def _of_host(layout: Layout, option: str, text: str, where: tuple[str, str], access: _Access) -> Volume:
    """Return a named volume, or a place of the host, which has a slash in it."""
    source, target = where[0], _target(option, text, where[1])
    if source and "/" not in source:
        named = str(volumes.data_path(layout, source).resolve())
        return access.host(named, target, fill=True)
    if access.fill:
        raise _bad(option, text, "only volumes of secrun are filled from the image", "secrun volume create")
    return access.host(_source(option, text, source), target)


# Names that podman-run(1) and docker-run(1) give one thing.
_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
    "volume-nocopy": "nocopy",
    "bind-propagation": "propagation",
}
_COMMON = {"type", "target", "readonly"}
_OWN = {"mode", "uid", "gid"}
_KNOWN = {
    "bind": _COMMON | {"source", "relabel", "noexec", "propagation"},
    "volume": _COMMON | {"source", "relabel", "noexec", "nocopy"} | _OWN,
    "tmpfs": _COMMON | {"size", "mode"},
}
# podman's other types, and what there is instead.
_NOT_HERE = {
    "image": "what runs beside an app is an app; files of an image come out by secrun image export",
    "artifact": "files of an artifact come out by skopeo copy",
    "devpts": "an app has a /dev/pts of its own",
    "ramfs": "memory without a limit is the host's; type=tmpfs has one",
    "glob": "each source is named, so that what is mounted is measured",
}
_RELABELS = {"shared": "z", "private": "Z", "z": "z", "Z": "Z"}


def _long(layout: Layout, text: str, given: Mapping[str, str]) -> Volume | EmptyVolume | Tmpfs:
    """Parse podman's --mount type=bind|volume|tmpfs,..."""
    pairs = {_ALIASES.get(key, key): value for key, value in given.items()}
    kind = pairs.get("type", "volume")
    if kind not in _KNOWN:
        error = _bad("--mount", text, f"type {kind[:40]!r} is none of {', '.join(sorted(_KNOWN))}")
        error.hint = _NOT_HERE.get(kind, error.hint)
        raise error
    unknown = sorted(set(pairs) - _KNOWN[kind])
    if unknown or "target" not in pairs:
        what = f"{unknown[0][:40]!r} is not known for type {kind}" if unknown else "it has no target"
        raise _bad("--mount", text, what)
    if kind == "tmpfs":
        options = [f"{key}={pairs[key]}" for key in ("size", "mode") if key in pairs]
        options += ["ro"] if "readonly" in pairs and _flag("--mount", text, pairs["readonly"]) else []
        return security.tmpfs(pairs["target"] + (f":{','.join(options)}" if options else ""))
    access = _access("--mount", text, _words(text, pairs))
    source = pairs.get("source", "")
    if kind == "volume" and not source:
        target = _target("--mount", text, pairs["target"])
        return access.own(_empty("--mount", text, EmptyVolume(name="", target=target, fill=True), pairs))
    if (kind == "bind") != source.startswith("/") or _OWN & set(pairs):
        wanted = (
            "an absolute path" if kind == "bind" else "a volume's name, which has no mode and owner here"
        )
        raise _bad("--mount", text, f"source {source[:80]!r} is not {wanted}")
    return _of_host(layout, "--mount", text, (source, pairs["target"]), access)


def _words(text: str, pairs: Mapping[str, str]) -> list[str]:
    """Return what --mount says in the words of -v."""
    flags = (("readonly", "ro"), ("noexec", "noexec"), ("nocopy", "nocopy"))
    words = [word for key, word in flags if key in pairs and _flag("--mount", text, pairs[key])]
    if "relabel" in pairs:
        if pairs["relabel"] not in _RELABELS:
            raise _bad("--mount", text, "relabel is neither shared nor private")
        words.append(_RELABELS[pairs["relabel"]])
    return [*words, pairs["propagation"]] if "propagation" in pairs else words


def _empty(option: str, text: str, volume: EmptyVolume, pairs: Mapping[str, str]) -> EmptyVolume:
    """Give a volume of the pod's own the mode and owner that were asked for."""
    mode, owners = pairs.get("mode", volume.mode), [pairs.get(key, "0") for key in ("uid", "gid")]
    if not _MODE.match(mode):
        raise _bad(option, text, f"mode {mode[:20]!r} is not one of chmod(1), in digits")
    if not all(value.isdecimal() and value.isascii() and int(value) < SIZE for value in owners):
        raise _bad(option, text, f"an owner is not a number from 0 to {SIZE - 1}")
    return replace(volume, mode=mode.lstrip("0") or "0", uid=int(owners[0]), gid=int(owners[1]))


_HOST_KEYS = {"kind", "source", "readonly", "recursive"}


def _declared(text: str) -> DeclaredVolume:
    """Parse rkt's --volume NAME,kind=host,source=PATH[,readOnly=..] or NAME,kind=empty[,mode=,uid=,gid=]."""
    name, *words = text.split(",")
    pairs = _pairs("--volume", text, words)
    if not volumes.is_name(name):
        raise _bad("--volume", text, f"{name[:80]!r} is not a volume's name")
    kind = pairs.get("kind")
    if kind not in ("host", "empty"):
        raise _bad("--volume", text, "its kind is neither host nor empty", "a folder in memory is --tmpfs")
    unknown = sorted(set(pairs) - (_HOST_KEYS if kind == "host" else {"kind", *_OWN}))
    if unknown or not _flag("--volume", text, pairs.get("recursive", "")):
        raise _bad("--volume", text, f"{unknown[0] if unknown else 'recursive=false'} is not possible")
    if kind == "empty":
        empty = _empty("--volume", text, EmptyVolume(name=name, target="/"), pairs)
        return DeclaredVolume(name=name, source="", read_only=None, empty=empty)
    read_only = _flag("--volume", text, pairs["readonly"]) if "readonly" in pairs else None
    return DeclaredVolume(name=name, source=pairs.get("source", ""), read_only=read_only)


def declared(texts: Iterable[str]) -> dict[str, DeclaredVolume]:
    """Return what all --volume of a pod declare by name; whichever app they stand at, all may mount it."""
    found: dict[str, DeclaredVolume] = {}
    for text in texts:
        if ",kind=" in text:
            item = _declared(text)
            if item.name in found:
                raise _bad("--volume", text, "the name is given twice")
            found[item.name] = item
    return found


def declared_at(
    layout: Layout, found: DeclaredVolume, target: str, *, read_only: bool = False
) -> Volume | EmptyVolume:
    """Return a declared volume at a place; `read_only` counts where its declaration says nothing."""
    access = _Access(read_only=read_only if found.read_only is None else found.read_only)
    if found.empty is not None:
        return access.own(replace(found.empty, target=_target("--volume", found.name, target)))
    if "/" not in found.source:
        raise _bad("--volume", found.name, f"source {found.source[:80]!r} is not an absolute path")
    return _of_host(layout, "--volume", found.name, (found.source, target), access)


def _mounted(
    layout: Layout, text: str, given: Mapping[str, str], known: Mapping[str, DeclaredVolume]
) -> Volume | EmptyVolume:
    """Parse rkt's --mount volume=NAME,target=PATH[,readOnly=BOOL]."""
    pairs = {_ALIASES.get(key, key): value for key, value in given.items()}
    if not {"volume", "target"} <= set(pairs) <= {"volume", "target", "readonly"}:
        raise _bad("--mount", text, "expected volume=NAME,target=PATH")
    found = known.get(pairs["volume"])
    if found is None:
        hint = "declare it: --volume NAME,kind=host,source=PATH or NAME,kind=empty"
        raise _bad("--mount", text, f"there is no --volume {pairs['volume'][:80]}", hint)
    read_only = "readonly" in pairs and _flag("--mount", text, pairs["readonly"])
    return declared_at(layout, found, pairs["target"], read_only=read_only)


def parse(
    layout: Layout, words: Sequence[str], long: Sequence[str], known: Mapping[str, DeclaredVolume]
) -> Mounts:
    """Parse all -v and --mount of an app, with what its pod declares; raises UsageError."""
    found: list[Volume | EmptyVolume | Tmpfs] = [
        short(layout, text) for text in words if ",kind=" not in text
    ]
    for text in long:
        given = _pairs("--mount", text, text.split(","))
        found.append(
            _mounted(layout, text, given, known) if "volume" in given else _long(layout, text, given)
        )
    return Mounts(
        volumes=tuple(item for item in found if isinstance(item, Volume)),
        empty_volumes=tuple(item for item in found if isinstance(item, EmptyVolume)),
        tmpfs=tuple(item for item in found if isinstance(item, Tmpfs)),
        declared=tuple(known.values()),
    )
