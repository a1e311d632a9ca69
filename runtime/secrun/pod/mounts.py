"""What a caller says about volumes, in every spelling: -v, podman's --mount, rkt's --volume with --mount."""

from collections.abc import Mapping, Sequence

from secrun.errors import UsageError
from secrun.paths import Layout
from secrun.pod import request, security, volumes
from secrun.pod.request import DeclaredVolume
from secrun.record import record
from secrun.stage1.manifest import Relabel, Volume
from secrun.stage1.security import Tmpfs

_TRUE = ("true", "1", "")
_FALSE = ("false", "0")


@record
class Mounts:
    """What an app sees beside its image."""

    volumes: tuple[Volume, ...]
    tmpfs: tuple[Tmpfs, ...]
    declared: tuple[DeclaredVolume, ...] = ()
    """Volumes by name, for the mount points that an image names."""


def _bad(option: str, text: str, problem: str, hint: str = "") -> UsageError:
    return UsageError(f"{option} {text[:120]!r}: {problem}", hint=hint, code="usage-volume")


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


def _host_volume(layout: Layout, source: str, target: str, access: str) -> Volume:
    """Return a volume as -v spells it; a source without a slash is a named volume."""
    if source and "/" not in source:
        source = str(volumes.data_path(layout, source))
    escaped = source.replace("\\", "\\\\").replace(":", "\\:")
    return request.volume(f"{escaped}:{target.replace(':', chr(92) + ':')}{access}")


def _short(layout: Layout, text: str) -> Volume:
    """Parse -v HOST:POD[:OPTIONS] or -v NAME:POD[:OPTIONS]."""
    name, colon, rest = text.partition(":")
    if colon and volumes.is_name(name):
        return request.volume(f"{str(volumes.data_path(layout, name)).replace(':', chr(92) + ':')}:{rest}")
    return request.volume(text)


# Names that podman-run(1) gives one thing.
_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
}
_KNOWN = {
    "bind": {"type", "source", "target", "readonly", "relabel"},
    "volume": {"type", "source", "target", "readonly", "relabel"},
    "tmpfs": {"type", "target", "readonly", "size", "mode"},
}
_RELABELS = {"shared": Relabel.SHARED, "private": Relabel.PRIVATE, "z": Relabel.SHARED, "Z": Relabel.PRIVATE}


def _long(layout: Layout, text: str, given: Mapping[str, str]) -> Volume | Tmpfs:
    """Parse podman's --mount type=bind|volume|tmpfs,..."""
    pairs = {_ALIASES.get(key, key): value for key, value in given.items()}
    kind = pairs.get("type", "volume")
    if kind not in _KNOWN:
        raise _bad("--mount", text, f"type {kind[:40]!r} is none of {', '.join(sorted(_KNOWN))}")
    unknown = sorted(set(pairs) - _KNOWN[kind])
    if unknown or "target" not in pairs:
        what = f"{unknown[0][:40]!r} is not known for type {kind}" if unknown else "it has no target"
        raise _bad("--mount", text, what)
    read_only = _flag("--mount", text, pairs["readonly"]) if "readonly" in pairs else False
    if kind == "tmpfs":
        options = [f"{key}={pairs[key]}" for key in ("size", "mode") if key in pairs]
        options += ["ro"] if read_only else []
        return security.tmpfs(pairs["target"] + (f":{','.join(options)}" if options else ""))
    source = pairs.get("source", "")
    if (kind == "bind") != source.startswith("/"):
        wanted = "an absolute path" if kind == "bind" else "a volume's name"
        raise _bad("--mount", text, f"source {source[:80]!r} is not {wanted}")
    words = ["ro"] if read_only else []
    if "relabel" in pairs:
        if pairs["relabel"] not in _RELABELS:
            raise _bad("--mount", text, "relabel is neither shared nor private")
        words.append(str(_RELABELS[pairs["relabel"]]))
    return _host_volume(layout, source, pairs["target"], f":{','.join(words)}" if words else "")


def _declared(text: str) -> DeclaredVolume:
    """Parse rkt's --volume NAME,kind=host,source=PATH[,readOnly=BOOL][,recursive=BOOL]."""
    name, *words = text.split(",")
    pairs = _pairs("--volume", text, words)
    if not volumes.is_name(name):
        raise _bad("--volume", text, f"{name[:80]!r} is not a volume's name")
    if pairs.get("kind") != "host":
        raise _bad("--volume", text, "only kind=host is possible", "a folder in memory is --tmpfs")
    unknown = sorted(set(pairs) - {"kind", "source", "readonly", "recursive"})
    if unknown or not _flag("--volume", text, pairs.get("recursive", "")):
        raise _bad("--volume", text, f"{unknown[0] if unknown else 'recursive=false'} is not possible")
    read_only = _flag("--volume", text, pairs["readonly"]) if "readonly" in pairs else None
    return DeclaredVolume(name=name, source=pairs.get("source", ""), read_only=read_only)


def declared_at(layout: Layout, found: DeclaredVolume, target: str, *, read_only: bool = False) -> Volume:
    """Return a declared volume at a place; `read_only` counts where its declaration says nothing."""
    said = read_only if found.read_only is None else found.read_only
    return _host_volume(layout, found.source, target, ":ro" if said else "")


def _mounted(
    layout: Layout, text: str, given: Mapping[str, str], known: Mapping[str, DeclaredVolume]
) -> Volume:
    """Parse rkt's --mount volume=NAME,target=PATH."""
    if set(given) != {"volume", "target"}:
        raise _bad("--mount", text, "expected volume=NAME,target=PATH")
    found = known.get(given["volume"])
    if found is None:
        hint = "declare it: --volume NAME,kind=host,source=PATH"
        raise _bad("--mount", text, f"there is no --volume {given['volume'][:80]}", hint)
    return declared_at(layout, found, given["target"])


def parse(layout: Layout, short: Sequence[str], long: Sequence[str]) -> Mounts:
    """Parse all -v and --mount of an app; raises UsageError."""
    declared: dict[str, DeclaredVolume] = {}
    found: list[Volume] = []
    tmpfs: list[Tmpfs] = []
    for text in short:
        if ",kind=" in text:
            item = _declared(text)
            if item.name in declared:
                raise _bad("--volume", text, "the name is given twice")
            declared[item.name] = item
        else:
            found.append(_short(layout, text))
    for text in long:
        given = _pairs("--mount", text, text.split(","))
        made = _mounted(layout, text, given, declared) if "volume" in given else _long(layout, text, given)
        if isinstance(made, Tmpfs):
            tmpfs.append(made)
        else:
            found.append(made)
    return Mounts(volumes=tuple(found), tmpfs=tuple(tmpfs), declared=tuple(declared.values()))
