"""The image manifest of the appc spec 0.8 (aci.md, types.md), parsed strictly into values.

Members that the specification does not name are passed over, as every executor does; what it names must be
as it says.
"""

import re
from collections.abc import Sequence

from secrun.errors import ImageError
from secrun.image import fields
from secrun.image.aci import limits
from secrun.image.aci.isolators import Isolators, parse_isolators
from secrun.jsonio import JsonObject, JsonValue, parse_object
from secrun.record import record

Pairs = tuple[tuple[str, str], ...]
NAME_CHARS = 255

_IDENTIFIER = re.compile(r"[a-z0-9]+(?:[-._~/][a-z0-9]+)*\Z")
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*\Z")
# SemVer 2.0.0 of the one major version that there is.
_VERSION = re.compile(r"0\.(?:0|[1-9]\d{0,5})\.(?:0|[1-9]\d{0,5})(?:[-+][0-9A-Za-z.+-]{1,100})?\Z")
# Digests of dependencies may be shortened.
_IMAGE_ID = re.compile(r"sha512-[0-9a-f]{32,128}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_HANDLERS = ("pre-start", "post-stop")
_MAX_ID = 2**32 - 2


@record
class MountPoint:
    """A place where the app expects data."""

    name: str
    path: str
    read_only: bool


@record
class NamedPort:
    """`count` ports from `port` on that the app listens on."""

    name: str
    port: int
    count: int
    protocol: str
    socket_activated: bool


@record
class App:
    """How an image is executed."""

    exec: tuple[str, ...]
    user: str
    group: str
    supplementary_gids: tuple[int, ...]
    working_directory: str
    environment: Pairs
    mount_points: tuple[MountPoint, ...]
    ports: tuple[NamedPort, ...]
    isolators: Isolators
    event_handlers: tuple[str, ...]


@record
class Dependency:
    """An image whose files lie below; `image_id` is empty, or the beginning of its ID; `size` in bytes."""

    name: str
    image_id: str
    labels: Pairs
    size: int | None


@record
class AciManifest:
    """One image manifest; `app` is None for images that are only depended on."""

    name: str
    labels: Pairs
    annotations: Pairs
    app: App | None
    dependencies: tuple[Dependency, ...]
    path_whitelist: tuple[str, ...]

    def label(self, name: str) -> str:
        """Return a label, empty if there is none."""
        return dict(self.labels).get(name, "")

    @property
    def full_name(self) -> str:
        """The name, and the version behind a colon if there is one."""
        version = self.label("version")
        return f"{self.name}:{version}" if version else self.name


def is_identifier(text: str) -> bool:
    """Tell whether `text` is an AC Identifier (types.md) of a length that can be handled."""
    return len(text) <= NAME_CHARS and _IDENTIFIER.match(text) is not None


def _bad(what: str, why: str) -> ImageError:
    return ImageError(f"{what}: {why}", hint="actool validate says more", code="image-aci-manifest")


def _shown(text: str) -> str:
    return repr(text[:80])


def _identifier(source: JsonObject, key: str, what: str) -> str:
    text = fields.text(source, key, what, None)
    if not is_identifier(text):
        raise _bad(what, f"{key} is {_shown(text)}, expected an AC Identifier, such as example.com/app")
    return text


def _ac_name(source: JsonObject, what: str) -> str:
    text = fields.text(source, "name", what, None)
    if len(text) > NAME_CHARS or not _NAME.match(text):
        raise _bad(what, f"name is {_shown(text)}, expected an AC Name: lower-case words joined by -")
    return text


def _flag(source: JsonObject, key: str, what: str) -> bool:
    value = source.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _bad(what, f"{key} is {type(value).__name__}, expected true or false")
    return value


def _unique(names: Sequence[str], what: str, kind: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _bad(what, f"two {kind} are called {_shown(twice)}")


def _pairs(source: JsonObject, key: str, what: str) -> Pairs:
    found: list[tuple[str, str]] = []
    for number, item in enumerate(fields.objects(source, key, what, limit=limits.MAX_LIST)):
        where = f"{what}, {key}[{number}]"
        found.append((_identifier(item, "name", where), fields.text(item, "value", where, None)))
    _unique([name for name, _ in found], what, key)
    return tuple(found)


def _labels(source: JsonObject, what: str) -> Pairs:
    found = _pairs(source, "labels", what)
    if any(name == "name" for name, _ in found):
        raise _bad(what, "no label can be called 'name'")
    return found


def _absolute(path: str, what: str, key: str) -> str:
    """Return a path of the rootfs without doubled and trailing slashes."""
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts or "." in parts:
        raise _bad(what, f"{key} is {_shown(path)}, expected an absolute path without ..")
    return "/" + "/".join(part for part in parts if part)


def _environment(source: JsonObject, what: str) -> Pairs:
    found: list[tuple[str, str]] = []
    for number, item in enumerate(fields.objects(source, "environment", what, limit=limits.MAX_LIST)):
        where = f"{what}, environment[{number}]"
        name = fields.text(item, "name", where, None)
        if not _VARIABLE.match(name):
            raise _bad(where, f"{_shown(name)} is no name of a variable")
        found.append((name, fields.text(item, "value", where, None)))
    _unique([name for name, _ in found], what, "variables")
    return tuple(found)


def _mount_points(source: JsonObject, what: str) -> tuple[MountPoint, ...]:
    found: list[MountPoint] = []
    for number, item in enumerate(fields.objects(source, "mountPoints", what, limit=limits.MAX_LIST)):
        where = f"{what}, mountPoints[{number}]"
        path = _absolute(fields.text(item, "path", where, None), where, "path")
        if path == "/":
            raise _bad(where, "a mount point at / would hide the image")
        name = _ac_name(item, where)
        found.append(MountPoint(name=name, path=path, read_only=_flag(item, "readOnly", where)))
    _unique([item.name for item in found], what, "mount points")
    _unique([item.path for item in found], what, "mount points")
    return tuple(found)


def _ports(source: JsonObject, what: str) -> tuple[NamedPort, ...]:
    found: list[NamedPort] = []
    for number, item in enumerate(fields.objects(source, "ports", what, limit=limits.MAX_LIST)):
        where = f"{what}, ports[{number}]"
        port = fields.integer(item, "port", where, limit=65535)
        count = 1
        if item.get("count") is not None:
            count = fields.integer(item, "count", where, limit=limits.MAX_PORT_COUNT)
        if port < 1 or count < 1 or port + count - 1 > 65535:
            raise _bad(where, f"{count} ports from {port} on are not between 1 and 65535")
        found.append(
            NamedPort(
                name=_ac_name(item, where),
                port=port,
                count=count,
                protocol=fields.text(item, "protocol", where, None),
                socket_activated=_flag(item, "socketActivated", where),
            )
        )
    _unique([item.name for item in found], what, "ports")
    return tuple(found)


def _event_handlers(source: JsonObject, what: str) -> tuple[str, ...]:
    found: list[str] = []
    for number, item in enumerate(fields.objects(source, "eventHandlers", what, limit=limits.MAX_LIST)):
        where = f"{what}, eventHandlers[{number}]"
        name = fields.text(item, "name", where, None)
        if name not in _HANDLERS:
            raise _bad(where, f"name is {_shown(name)}, expected {' or '.join(_HANDLERS)}")
        if not fields.texts(item, "exec", where, limit=limits.MAX_LIST):
            raise _bad(where, "exec is empty")
        found.append(name)
    _unique(found, what, "event handlers")
    return tuple(found)


def _gids(source: JsonObject, what: str) -> tuple[int, ...]:
    value: JsonValue = source.get("supplementaryGIDs")
    items = [] if value is None else value
    if not isinstance(items, list) or len(items) > limits.MAX_LIST:
        raise _bad(what, f"supplementaryGIDs is no list of at most {limits.MAX_LIST} numbers")
    found: list[int] = []
    for item in items:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item <= _MAX_ID:
            raise _bad(what, "supplementaryGIDs holds something that is no group's number")
        found.append(item)
    return tuple(dict.fromkeys(found))


def _owner(source: JsonObject, key: str, what: str) -> str:
    text = fields.text(source, key, what, None)
    if not text or ":" in text:
        raise _bad(what, f"{key} is {_shown(text)}, expected a name, a number or an absolute path")
    return _absolute(text, what, key) if text.startswith("/") else text


def _app(source: JsonObject, what: str) -> App:
    words = fields.texts(source, "exec", what, limit=limits.MAX_LIST)
    folder = fields.text(source, "workingDirectory", what)
    if "exec" in source and (not words or not words[0]):
        raise _bad(what, "exec is empty")
    return App(
        exec=words,
        user=_owner(source, "user", what),
        group=_owner(source, "group", what),
        supplementary_gids=_gids(source, what),
        working_directory=_absolute(folder, what, "workingDirectory") if folder else "",
        environment=_environment(source, what),
        mount_points=_mount_points(source, what),
        ports=_ports(source, what),
        isolators=parse_isolators(
            fields.objects(source, "isolators", what, limit=limits.MAX_LIST), f"{what}, isolators"
        ),
        event_handlers=_event_handlers(source, what),
    )


def _dependency(source: JsonObject, what: str) -> Dependency:
    image_id = fields.text(source, "imageID", what)
    if image_id and not _IMAGE_ID.match(image_id):
        raise _bad(what, f"imageID is {_shown(image_id)}, expected sha512- and 32 to 128 hex digits")
    size = None
    if source.get("size") is not None:
        # 0 is what writes who has not looked.
        size = fields.integer(source, "size", what, limit=limits.MAX_ACI_BYTES) or None
    return Dependency(
        name=_identifier(source, "imageName", what),
        image_id=image_id,
        labels=_labels(source, what),
        size=size,
    )


def parse(data: bytes, *, what: str) -> AciManifest:
    """Parse an image manifest; raises ImageError naming `what`."""
    return read(parse_object(data, what=what, limit=limits.MAX_MANIFEST_BYTES), what=what)


def document_of(data: bytes, *, what: str) -> JsonObject:
    """Return a manifest as the JSON object that it is, checked and without fractions; raises ImageError.

    None of what the specification names is a fraction; elsewhere they become words.
    """
    document = parse_object(data, what=what, limit=limits.MAX_MANIFEST_BYTES)
    read(document, what=what)
    return plain(document)


def plain(document: JsonObject) -> JsonObject:
    """Return a document with words instead of fractions, which canonical JSON has none of."""
    return {key: _plain(value) for key, value in document.items()}


def _plain(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) else value


def read(document: JsonObject, *, what: str) -> AciManifest:
    """Read an image manifest that was parsed as JSON; raises ImageError naming `what`."""
    kind = fields.text(document, "acKind", what, None)
    if kind != "ImageManifest":
        raise _bad(what, f"acKind is {_shown(kind)}, expected 'ImageManifest'")
    version = fields.text(document, "acVersion", what, None)
    if not _VERSION.match(version):
        raise _bad(what, f"acVersion is {_shown(version)}, expected a version 0.MINOR.PATCH")
    members = fields.objects(document, "dependencies", what, limit=limits.MAX_DEPENDENCIES)
    app = fields.mapping(document, "app", what)
    return AciManifest(
        name=_identifier(document, "name", what),
        labels=_labels(document, what),
        annotations=_pairs(document, "annotations", what),
        app=_app(app, f"{what}, app") if document.get("app") is not None else None,
        dependencies=tuple(
            _dependency(item, f"{what}, dependencies[{number}]") for number, item in enumerate(members)
        ),
        path_whitelist=tuple(
            _absolute(path, what, "pathWhitelist")
            for path in fields.texts(document, "pathWhitelist", what, limit=limits.MAX_WHITELIST)
        ),
    )
