"""What a pod sees at /pod: written when it is prepared, and held against its manifest when it starts.

The manifest is what is measured, so what runs has to be what the manifest says, hours later too.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import StateError
from secrun.network.plan import Dns, mounted
from secrun.stage1 import units
from secrun.stage1.manifest import PodManifest
from secrun.stage1.podfiles import PodFiles

_UNITS = "units"
_MANAGER = "system.conf"


def _bundle_name(app: str) -> str:
    return f"apps/{app}/config.json"


def _health_name(app: str) -> str:
    return f"apps/{app}/health.json"


def _derived(manifest: PodManifest, *, guest: bool) -> dict[str, bytes]:
    """Return the files that follow from the manifest alone, and whether the pod is a machine."""
    dns = Dns() if manifest.connection is None else manifest.connection.dns
    rendered = units.render(manifest, mounted(dns), guest=guest)
    texts = {f"{_UNITS}/{name}": text for name, text in rendered.items()}
    texts[_MANAGER] = units.manager_text(manifest)
    return {name: text.encode() for name, text in texts.items()}


def contents(
    manifest: PodManifest,
    bundles: Mapping[str, bytes],
    health: Mapping[str, bytes],
    etc: Mapping[str, bytes],
    *,
    guest: bool,
) -> Mapping[str, bytes]:
    """Return what lies at /pod, by relative path; `health` are the processes of health checks; pure."""
    result = _derived(manifest, guest=guest)
    result |= {_bundle_name(app): data for app, data in bundles.items()}
    result |= {_health_name(app): data for app, data in health.items()}
    return result | {f"etc/{name}": data for name, data in etc.items()}


def etc_folder(files: PodFiles) -> Path:
    """Return where the files lie that apps see in /etc."""
    return files.config / "etc"


def write(files: PodFiles, config: Mapping[str, bytes]) -> None:
    """Write all of it; world readable in the pod, but behind a 0700 folder on the host."""
    for name, data in config.items():
        path = files.config / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)


def check(files: PodFiles, manifest: PodManifest) -> None:
    """Raise StateError unless units and bundles on disk are those of the manifest, and no others."""
    derived = _derived(manifest, guest=manifest.machine is not None)
    wanted = {name: Digest.of(data) for name, data in derived.items()}
    wanted |= {_bundle_name(app.name): app.bundle for app in manifest.apps}
    wanted |= {_health_name(app.name): app.health.process for app in manifest.apps if app.health}
    for name, digest in wanted.items():
        if _digest(files.config / name) != digest:
            raise _changed(manifest, name, "is not what was decided when the pod was prepared")
    for name in _present(files.config):
        if name not in wanted:
            raise _changed(manifest, name, "was not there when the pod was prepared")


def _digest(path: Path) -> Digest | None:
    try:
        return Digest.of(path.read_bytes())
    except FileNotFoundError:
        return None


def _present(config: Path) -> list[str]:
    """List what systemd and crun would read, whatever put it there."""
    found = [
        os.path.relpath(os.path.join(base, name), config)
        for folder in (_UNITS, "apps")
        for base, _, names in os.walk(config / folder)
        for name in names
    ]
    return sorted(found)


def _changed(manifest: PodManifest, name: str, how: str) -> StateError:
    return StateError(
        f"pod {manifest.uuid}: config/{name} {how}",
        hint="prepare the pod again; secrun or somebody else changed since",
        code="state-config",
    )
