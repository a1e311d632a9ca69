"""OCI runtime configurations (runtime-spec 1.0.2), one per app; pure."""

import re
from collections.abc import Mapping, Sequence

from secrun.errors import UsageError
from secrun.jsonio import JsonObject, JsonValue
from secrun.record import record, replace
from secrun.stage1 import places
from secrun.stage1.manifest import Network
from secrun.stage1.secret import Secret
from secrun.stage1.security import Device, Tmpfs
from secrun.stage1.volume import EmptyVolume, Volume

OCI_VERSION = "1.0.2"
SALT_ANNOTATION = "dev.secrun.salt"
TPM = "/dev/tpmrm0"
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
    umask: int | None = None

    def to_oci(self, confinement: Mapping[str, JsonValue]) -> JsonObject:
        """Return the runtime-spec `process` object; `confinement` adds its own fields."""
        user: JsonObject = {"uid": self.uid, "gid": self.gid, "additionalGids": list(self.groups)}
        if self.umask is not None:
            user["umask"] = self.umask
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


# An app that is held begins as the agent, by a descriptor since no image holds it, and waits to be let go.
HOLD = ("/proc/self/fd/3", "hold")


def held(process: Process) -> Process:
    """Return the process with the agent before its own program (docs/agent-protocol.md)."""
    return replace(process, args=(*HOLD, *process.args))


def check_process(
    process: Process, command: tuple[str, ...], confinement: Mapping[str, JsonValue], salt: str
) -> JsonObject:
    """Return the OCI process of a health check: the app's own with another command, without its terminal.

    `salt` is there for the same reason as that of `runtime_config`; the runtime passes over it.
    """
    words = replace(process, args=command, terminal=False, console_size=None)
    return {**words.to_oci(confinement), SALT_ANNOTATION: salt}


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


def _cgroup_mounts() -> list[JsonValue]:
    """Show the app its own control group as the root of all, writable (runtime-spec, config.md, mounts)."""
    return [_mount("/sys/fs/cgroup", "cgroup", "cgroup", "rw", "nosuid", "noexec", "nodev")]


# A file that the app may read.
_SEALED = ("bind", "ro", "nosuid", "nodev", "noexec")


def _etc_mounts(names: Sequence[str]) -> list[JsonValue]:
    return [_mount(f"/etc/{name}", "bind", f"{places.POD}/etc/{name}", *_SEALED) for name in names]


@record
class Extras:
    """What an app sees beside its image: volumes, folders in memory, devices, secrets."""

    volumes: tuple[Volume, ...] = ()
    empty_volumes: tuple[EmptyVolume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    devices: tuple[Device, ...] = ()
    secrets: tuple[Secret, ...] = ()
    control_group: bool = False
    """One of its own, which the app may divide."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Where they are inside the app."""
        kinds = (self.volumes, self.empty_volumes, self.tmpfs, self.devices, self.secrets)
        return tuple(item.target for kind in kinds for item in kind)


def _volume_mount(source: str, volume: Volume | EmptyVolume) -> JsonObject:
    """Bind a volume; what is mounted or unmounted below it later, on either side, stays there."""
    options = ["rbind", "rprivate", "ro" if volume.read_only else "rw", "nosuid", "nodev"]
    options += [] if volume.executable else ["noexec"]
    return _mount(volume.target, "bind", source, *options)


def _tpm_mounts() -> list[JsonValue]:
    """Show the pod's own TPM, by the kernel's resource manager: apps cannot see each other's objects."""
    return [_mount(TPM, "bind", TPM, "bind", "rw", "nosuid", "noexec")]


def _tmpfs_mount(tmpfs: Tmpfs) -> JsonObject:
    options = ["ro" if tmpfs.read_only else "rw", "nosuid", "nodev", f"mode={tmpfs.mode}"]
    options += [] if tmpfs.executable else ["noexec"]
    options += [f"size={tmpfs.size}"] if tmpfs.size else []
    return _mount(tmpfs.target, "tmpfs", "tmpfs", *options)


def _extra_mounts(app: str, extras: Extras) -> list[JsonValue]:
    """Return the mounts in the order of their targets: what lies inside another comes after it."""
    found = {tmpfs.target: _tmpfs_mount(tmpfs) for tmpfs in extras.tmpfs}
    for index, volume in enumerate(extras.volumes):
        found[volume.target] = _volume_mount(places.volume(app, index), volume)
    for empty in extras.empty_volumes:
        found[empty.target] = _volume_mount(places.empty_volume(empty.name), empty)
    for index, device in enumerate(extras.devices):
        source = places.device(app, index)
        found[device.target] = _mount(device.target, "bind", source, "bind", "rw", "nosuid", "noexec")
    for index, secret in enumerate(extras.secrets):
        found[secret.target] = _mount(secret.target, "bind", places.secret(app, index), *_SEALED)
    return [found[target] for target in sorted(found)]


def check_targets(extras: Extras) -> None:
    """Raise UsageError for targets that are no absolute paths, hide the app's own, or are used twice."""
    seen: set[str] = set()
    for target in extras.targets:
        if not _TARGET.match(target) or ".." in target.split("/"):
            raise UsageError(f"volume target {target!r} is not an absolute path without ..")
        if target.rstrip("/") in ("", "/dev") or target.split("/")[1] in ("proc", "sys"):
            raise UsageError(f"volume target {target!r} would hide what the app needs")
        if target in seen:
            raise UsageError(f"two volumes have the target {target!r}")
        seen.add(target)


def _namespaces(linux: Mapping[str, JsonValue], extras: Extras) -> list[JsonValue]:
    """Return the app's own namespaces, and by name the pod's network if its settings change.

    crun sets no sysctl of a namespace that the bundle does not name (runtime-spec, config-linux.md, sysctl).
    """
    own: list[JsonValue] = [{"type": "pid"}, {"type": "mount"}]
    own += [{"type": "cgroup"}] if extras.control_group else []
    return [*own, {"type": "network", "path": "/proc/self/ns/net"}] if linux.get("sysctl") else own


def runtime_config(
    *,
    app: str,
    salt: str,
    process: Process,
    network: Network,
    etc: Sequence[str],
    read_only: bool,
    extras: Extras,
    vtpm: bool = False,
    process_confinement: Mapping[str, JsonValue],
    linux_confinement: Mapping[str, JsonValue],
) -> JsonObject:
    """Return the OCI config.json of one app.

    `etc` names the files of /etc that are the pod's, not the image's.
    `salt` is random: the digest of the whole, which others see, must not let them guess an environment.
    Network, IPC, UTS and user namespaces are the pod's; hence no `hostname` and no id mappings here.
    """
    return {
        "ociVersion": OCI_VERSION,
        "root": {"path": places.rootfs(app), "readonly": read_only},
        "process": process.to_oci(process_confinement),
        "mounts": [
            *_base_mounts(network),
            *(_cgroup_mounts() if extras.control_group else ()),
            *_etc_mounts(etc),
            *_extra_mounts(app, extras),
            *(_tpm_mounts() if vtpm else ()),
        ],
        "linux": {**linux_confinement, "namespaces": _namespaces(linux_confinement, extras)},
        "annotations": {SALT_ANNOTATION: salt},
    }
