"""Stored images as the JSON that `fetch`, `image list` and `image inspect` print (docs/images.md)."""

import json
import time
from collections.abc import Sequence

from secrun.image.config import ImageConfig
from secrun.image.entries import Entry
from secrun.image.fetch import StoredImage
from secrun.image.manifest import Manifest
from secrun.image.rootfs.model import RootfsImage, rootfs_key
from secrun.image.store import ImageStore
from secrun.jsonio import JsonObject, JsonValue, parse_object

FETCH_SCHEMA = "secrun.dev/image/v1"
LIST_SCHEMA = "secrun.dev/image-list/v1"
INSPECT_SCHEMA = "secrun.dev/image-inspect/v1"
_MAX_ADMISSION_BYTES = 64 * 1024


def fetched_json(image: StoredImage, rendered: RootfsImage) -> JsonObject:
    """Return what `fetch` says about one image."""
    return {
        "schema": FETCH_SCHEMA,
        "id": str(image.manifest_digest),
        "reference": image.reference,
        "names": list(image.names),
        "config": str(image.config_digest),
        "platform": str(image.config.platform),
        "size": image.manifest_size + sum(layer.size for layer in image.layers),
        "imported_at": image.imported_at,
        "rootfs": str(rendered.key),
        "tree": str(rendered.tree_digest),
        "admission": image.admission.to_json(),
    }


def stamp(seconds: float) -> str:
    """Return a time since the epoch as RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def entry_json(entry: Entry, size: int | None, used_at: float) -> JsonObject:
    """Return what `image list` says about one reference; `size` in bytes, None of a damaged image."""
    return {
        "id": str(entry.digest),
        "reference": entry.reference,
        "tag": entry.tag,
        "name": entry.name,
        "platform": str(entry.descriptor.platform or ""),
        "size": size,
        "source_digest": str(entry.source_digest),
        "imported_at": entry.imported_at,
        "last_used_at": stamp(used_at),
    }


def _config_json(config: ImageConfig) -> JsonObject:
    return {
        "architecture": config.architecture,
        "os": config.os,
        "variant": config.variant,
        "created": config.created,
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "env": list(config.env),
        "user": config.user,
        "working_dir": config.working_dir,
        "stop_signal": config.stop_signal,
        "healthcheck": [] if config.healthcheck is None else [*config.healthcheck.test],
        "volumes": list(config.volumes),
        "exposed_ports": list(config.exposed_ports),
        "labels": dict(config.labels),
    }


def _layers_json(store: ImageStore, manifest: Manifest, config: ImageConfig) -> list[JsonValue]:
    return [
        {
            "digest": str(layer.digest),
            "diff_id": str(diff_id),
            "media_type": layer.media_type,
            "size": layer.size,
            "stored": store.has(layer),
        }
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
    ]


def _reference_json(entry: Entry) -> JsonObject:
    what = f"admission of {entry.reference}"
    return {
        "reference": entry.reference,
        "tag": entry.tag,
        "name": entry.name,
        "given_name": entry.given,
        "source_digest": str(entry.source_digest),
        "imported_at": entry.imported_at,
        # The decision when it was fetched; each use decides anew.
        "admission": parse_object(entry.admission.encode(), what=what, limit=_MAX_ADMISSION_BYTES),
    }


def inspect_json(store: ImageStore, entries: Sequence[Entry]) -> JsonObject:
    """Return all that is known of one image with the references `entries`; raises StateError, ImageError."""
    first = entries[0]
    known = store.needed_facts(first)
    manifest, config = known.manifest, known.config
    return {
        "id": str(first.digest),
        "media_type": first.descriptor.media_type,
        "manifest_size": first.descriptor.size,
        "config_digest": str(manifest.config.digest),
        "platform": str(config.platform),
        "references": [_reference_json(entry) for entry in entries],
        "config": _config_json(config),
        "layers": _layers_json(store, manifest, config),
        "rootfs": str(rootfs_key(config.diff_ids)),
    }


def inspect_text(image: JsonObject) -> str:
    """Return the same for people: one `name=value` per line, lists as JSON."""
    lines: list[str] = []
    for name, value in image.items():
        nested = value.items() if isinstance(value, dict) else [("", value)]
        for inner, item in nested:
            # What an image says of itself must not reach the terminal as it is.
            plain = isinstance(item, str) and item.isprintable()
            shown = item if plain else json.dumps(item)
            lines.append(f"{name}{'.' if inner else ''}{inner}={shown}")
    return "".join(f"{line}\n" for line in lines)
