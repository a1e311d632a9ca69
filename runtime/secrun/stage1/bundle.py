"""OCI runtime configurations (runtime-spec 1.0.2), one per app; pure."""

import re
from collections.abc import Mapping, Sequence

from secrun.errors import UsageError
from secrun.jsonio import JsonObject, JsonValue
from secrun.record import record
from secrun.stage1 import places
from secrun.stage1.manifest import Network, Volume

OCI_VERSION = "1.0.2"
SALT_ANNOTATION = "dev.secrun.salt"
_TARGET = re.compile(r"/[^\0]*\Z")


def console_size(size: tuple[int, int]) -> JsonObject:
    """Return the runtime-spec form of rows and columns."""
    return {"height": size[0], "width": size[1]}


@record
class Process:
    """What an app executes and as whom; numbers are those inside the pod's user namespace."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    terminal: bool
    console_size: tuple[int, int] | None = None
    """Rows and columns of the terminal from its first moment; without it a program may see none."""

    def to_oci(self, confinement: Mapping[str, JsonValue]) -> JsonObject:
        """Return the runtime-spec `process` object; `confinement` adds its own fields."""
        user: JsonObject = {"uid": self.uid, "gid": self.gid, "additionalGids": list(self.groups)}
        size: JsonObject = {}
        if self.console_size is not None:
            size = {"consoleSize": console_size(self.console_size)}
        return {
            **confinement,
            **size,
            "terminal": self.terminal,
            "user": user,
            "args": list(self.args),
            "env": list(self.env),
            "cwd": self.cwd,
        }


def _mount(target: str, kind: str, source: str, *options: str) -> JsonObject:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _sysfs(network: Network) -> JsonObject:
    if network is not Network.NONE:
        # A sysfs may only be mounted by the owner of the network namespace; bind the pod's filtered one.
        return _mount("/sys", "bind", "/sys", "rbind", "ro", "nosuid", "noexec", "nodev")
    return _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro")


def _base_mounts(network: Network) -> list[JsonValue]:
    return [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"
        ),
        _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),  # noqa: S108 - inside the app
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _sysfs(network),
    ]


def _etc_mounts(names: Sequence[str]) -> list[JsonValue]:
    return [
        _mount(f"/etc/{name}", "bind", f"{places.POD}/etc/{name}", "bind", "ro", "nosuid", "nodev", "noexec")
        for name in names
    ]


def _volume_mount(app: str, index: int, volume: Volume) -> JsonObject:
    access = "ro" if volume.read_only else "rw"
    source = places.volume(app, index)
    return _mount(volume.target, "bind", source, "rbind", access, "nosuid", "nodev")


def check_volumes(volumes: Sequence[Volume]) -> None:
    """Raise UsageError for targets that are no absolute paths or that are used twice."""
    seen: set[str] = set()
    for volume in volumes:
        if not _TARGET.match(volume.target) or ".." in volume.target.split("/"):
            raise UsageError(f"volume target {volume.target!r} is not an absolute path without ..")
        if volume.target.rstrip("/") in ("", "/proc", "/sys", "/dev"):
            raise UsageError(f"volume target {volume.target!r} would hide what the app needs")
        if volume.target in seen:
            raise UsageError(f"two volumes have the target {volume.target!r}")
        seen.add(volume.target)


def runtime_config(
    *,
    app: str,
    salt: str,
    process: Process,
    network: Network,
    etc: Sequence[str],
    read_only: bool,
    volumes: Sequence[Volume],
    process_confinement: Mapping[str, JsonValue],
    linux_confinement: Mapping[str, JsonValue],
) -> JsonObject:
    """Return the OCI config.json of one app.

    `etc` names the files of /etc that are the pod's, not the image's.
    `salt` is random: the digest of the whole, which others see, must not let them guess an environment.
    Network, IPC, UTS and user namespaces are the pod's; hence no `hostname` and no id mappings here.
    """
    namespaces: list[JsonValue] = [{"type": "pid"}, {"type": "mount"}]
    return {
        "ociVersion": OCI_VERSION,
        "root": {"path": places.rootfs(app), "readonly": read_only},
        "process": process.to_oci(process_confinement),
        "mounts": [
            *_base_mounts(network),
            *_etc_mounts(etc),
            *(_volume_mount(app, index, volume) for index, volume in enumerate(volumes)),
        ],
        "linux": {**linux_confinement, "namespaces": namespaces},
        "annotations": {SALT_ANNOTATION: salt},
    }
