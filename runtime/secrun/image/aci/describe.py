"""The image manifest (appc spec 0.8) of a stored image; pure, the same bytes for the same image."""

import re

from secrun.errors import ImageError
from secrun.image.aci import manifest as manifests
from secrun.image.aci import oci
from secrun.image.config import ImageConfig
from secrun.image.rootfs.model import Passwd, RootfsImage
from secrun.jsonio import JsonObject, JsonValue, canonical

# The last published version of the specification.
_VERSION = "0.8.11"
_PROTOCOLS = ("tcp", "udp", "sctp")
_NAMELESS = "image"


def identifier(text: str) -> str:
    """Return a name as an AC Identifier: what it does not allow becomes a dash."""
    words = [re.sub(r"[^a-z0-9._~]+", "-", word).strip("-._~") for word in text.lower().split("/")]
    tidy = "/".join(re.sub(r"[-._~]{2,}", "-", word) for word in words if word)
    return tidy[: manifests.NAME_CHARS].strip("-._~/") or _NAMELESS


def ac_name(text: str) -> str:
    """Return a name as an AC Name: lower-case words joined by dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or _NAMELESS


def _account(user: str, rootfs: RootfsImage) -> Passwd | None:
    by_name = (entry for entry in rootfs.users if entry.name == user)
    by_number = (entry for entry in rootfs.users if user.isdecimal() and entry.uid == int(user))
    return next(by_name, None) or next(by_number, None)


def _owner(config: ImageConfig, rootfs: RootfsImage) -> tuple[str, str]:
    """Return user and group; without a group it is the user's own, as the OCI specification has it."""
    user, _, group = config.user.partition(":")
    user = user or "0"
    if not group:
        account = _account(user, rootfs)
        group = str(account.gid) if account else "0"
    return user, group


def _ports(config: ImageConfig) -> list[JsonValue]:
    found: list[JsonValue] = []
    for text in config.exposed_ports:
        number, _, protocol = text.partition("/")
        protocol = protocol or "tcp"
        if number.isdecimal() and protocol in _PROTOCOLS:
            found.append({"name": f"{number}-{protocol}", "port": int(number), "protocol": protocol})
    return found


def _mount_points(config: ImageConfig) -> list[JsonValue]:
    names: dict[str, str] = {}
    for path in config.volumes:
        base = ac_name(f"volume-{path}")
        words = (_numbered(base, number) for number in range(len(names) + 1))
        names[next(word for word in words if word not in names)] = path
    return [{"name": name, "path": path} for name, path in names.items()]


def _numbered(name: str, number: int) -> str:
    return f"{name}-{number}" if number else name


def _app(config: ImageConfig, rootfs: RootfsImage) -> JsonObject | None:
    words = [*config.entrypoint, *config.cmd]
    if not words:
        return None
    user, group = _owner(config, rootfs)
    return {
        "exec": list(words),
        "user": user,
        "group": group,
        "workingDirectory": config.working_dir or "/",
        "environment": [
            {"name": name, "value": value} for name, _, value in (word.partition("=") for word in config.env)
        ],
        "ports": _ports(config),
        "mountPoints": _mount_points(config),
    }


def _flattened(document: JsonObject) -> JsonObject:
    """Return the manifest that an image was converted from, without what is in its files now."""
    return {key: value for key, value in document.items() if key not in ("dependencies", "pathWhitelist")}


def _new(config: ImageConfig, rootfs: RootfsImage, name: str, version: str) -> JsonObject:
    labels: list[JsonValue] = [
        {"name": "arch", "value": oci.label_of(config.platform)},
        {"name": "os", "value": config.os},
    ]
    if version:
        labels.append({"name": "version", "value": version})
    document: JsonObject = {
        "acKind": "ImageManifest",
        "acVersion": _VERSION,
        "name": identifier(name),
        "labels": labels,
    }
    if config.created:
        document["annotations"] = [{"name": "created", "value": config.created}]
    app = _app(config, rootfs)
    return document if app is None else {**document, "app": app}


def describe(
    config: ImageConfig,
    rootfs: RootfsImage,
    *,
    own: JsonObject | None,
    name: str,
    version: str,
    what: str,
) -> bytes:
    """Return the manifest of an image with all files in one rootfs; raises ImageError.

    `own` is the manifest that it was converted from, which it keeps but for dependencies and whitelist.
    """
    document = _new(config, rootfs, name, version) if own is None else _flattened(own)
    data = canonical(document)
    try:
        manifests.parse(data, what=f"image manifest of {what}")
    except ImageError as error:
        raise ImageError(
            f"{what} cannot be said in a manifest of the appc spec: {error.message}",
            hint="export it with --format oci",
            code=error.code,
        ) from error
    return data
