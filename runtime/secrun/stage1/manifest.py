"""The pod manifest: what stage0 decided, what stage1 runs, and what is measured.

It names environment variables but holds no values; the digest of each OCI bundle binds them.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, Self

from secrun.digest import Digest
from secrun.fields import Fields
from secrun.jsonio import JsonObject, canonical, parse_object
from secrun.record import field, record
from secrun.stage1.lifecycle import Health, Restart
from secrun.stage1.secret import Secret
from secrun.stage1.security import AppSecurity
from secrun.stage1.volume import EmptyVolume, Volume

if TYPE_CHECKING:
    from secrun.network.plan import Connection
    from secrun.stage1.label import Label
    from secrun.stage1.machine import Machine
    from secrun.trust.admission import Admission

SCHEMA = "secrun.dev/pod/v1"
FILE_NAME = "manifest"
# 64 apps with long command lines fit many times over; a larger file was not written by secrun.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024


class Network(StrEnum):
    """What network a pod sees."""

    NONE = "none"
    HOST = "host"
    CNI = "cni"
    """A namespace of its own that plugins connect; see `PodManifest.connection`."""


@record
class Limits:
    """Resource limits of an app; None means none. Memory in bytes, CPU in thousandths of a core.

    `swap_bytes` is swap alone, -1 without a limit; without a word a limit of memory allows none. Weights are
    cgroup2's, 1 to 10,000.
    """

    memory_bytes: int | None = None
    cpu_millis: int | None = None
    pids: int | None = None
    swap_bytes: int | None = None
    cpu_weight: int | None = None
    io_weight: int | None = None
    memory_low_bytes: int | None = None
    """What the kernel leaves the app when memory is short."""
    cpus: str = ""
    """Processors that it may run on, e.g. `0-2,5`; empty: all."""
    memory_nodes: str = ""

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "memory_bytes": self.memory_bytes,
            "cpu_millis": self.cpu_millis,
            "pids": self.pids,
            "swap_bytes": self.swap_bytes,
            "cpu_weight": self.cpu_weight,
            "io_weight": self.io_weight,
            "memory_low_bytes": self.memory_low_bytes,
            "cpus": self.cpus,
            "memory_nodes": self.memory_nodes,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        limits = cls(
            memory_bytes=fields.optional_integer("memory_bytes"),
            cpu_millis=fields.optional_integer("cpu_millis"),
            pids=fields.optional_integer("pids"),
            swap_bytes=fields.optional_integer("swap_bytes"),
            cpu_weight=fields.optional_integer("cpu_weight"),
            io_weight=fields.optional_integer("io_weight"),
            memory_low_bytes=fields.optional_integer("memory_low_bytes"),
            cpus=fields.text("cpus"),
            memory_nodes=fields.text("memory_nodes"),
        )
        fields.end()
        return limits

    @property
    def controllers(self) -> tuple[str, ...]:
        """Return the cgroup2 controllers that these limits need."""
        wanted = (
            ("memory", self.memory_bytes),
            ("memory", self.swap_bytes),
            ("cpu", self.cpu_millis),
            ("cpu", self.cpu_weight),
            ("pids", self.pids),
            ("io", self.io_weight),
            ("memory", self.memory_low_bytes),
            ("cpuset", self.cpus or None),
            ("cpuset", self.memory_nodes or None),
        )
        return tuple(dict.fromkeys(name for name, value in wanted if value is not None))


@record
class ImageIdentity:
    """Which image an app was made from, and the digests that bind its content."""

    reference: str
    manifest: Digest
    config: Digest
    rootfs: Digest
    tree: Digest
    verity_root: str
    admission: "Admission"

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "reference": self.reference,
            "manifest": str(self.manifest),
            "config": str(self.config),
            "rootfs": str(self.rootfs),
            "tree": str(self.tree),
            "verity_root": self.verity_root,
            "admission": self.admission.to_json(),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        from secrun.trust.admission import Admission

        identity = cls(
            reference=fields.text("reference"),
            manifest=Digest.parse(fields.text("manifest")),
            config=Digest.parse(fields.text("config")),
            rootfs=Digest.parse(fields.text("rootfs")),
            tree=Digest.parse(fields.text("tree")),
            verity_root=fields.text("verity_root"),
            admission=Admission.from_fields(fields.object("admission")),
        )
        fields.end()
        return identity


@record
class AppManifest:
    """One app: its image, its process, its relaxations."""

    name: str
    image: ImageIdentity
    args: tuple[str, ...]
    env_names: tuple[str, ...]
    search_path: str
    """PATH as the app sees it: the agent needs it to say which program is missing."""
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    read_only: bool
    terminal: bool
    stdin: bool
    stop_signal: int
    stop_timeout_seconds: int
    volumes: tuple[Volume, ...]
    limits: Limits
    capabilities: tuple[str, ...]
    relaxations: tuple[str, ...]
    bundle: Digest
    security: AppSecurity = field(default_factory=AppSecurity)
    empty_volumes: tuple[EmptyVolume, ...] = ()
    labels: tuple[str, ...] = ()
    """`NAME=VALUE`, for people and programs that look for pods; sorted."""
    annotations: tuple[str, ...] = ()
    """`NAME=VALUE`, for whoever wrote them; sorted."""
    secrets: tuple[Secret, ...] = ()
    systemd: bool = False
    """It is a system of its own: its first process manages services below a control group of its own."""
    restart: Restart = field(default_factory=Restart)
    health: Health | None = None
    sockets: int = 0
    """How many sockets of the caller's the app gets, as its descriptors from 3 on."""

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "name": self.name,
            "image": self.image.to_json(),
            "args": list(self.args),
            "env_names": list(self.env_names),
            "search_path": self.search_path,
            "cwd": self.cwd,
            "uid": self.uid,
            "gid": self.gid,
            "groups": list(self.groups),
            "read_only": self.read_only,
            "terminal": self.terminal,
            "stdin": self.stdin,
            "stop_signal": self.stop_signal,
            "stop_timeout_seconds": self.stop_timeout_seconds,
            "volumes": [volume.to_json() for volume in self.volumes],
            "limits": self.limits.to_json(),
            "capabilities": list(self.capabilities),
            "relaxations": list(self.relaxations),
            "bundle": str(self.bundle),
            "security": self.security.to_json(),
            "empty_volumes": [volume.to_json() for volume in self.empty_volumes],
            "labels": list(self.labels),
            "annotations": list(self.annotations),
            "secrets": [secret.to_json() for secret in self.secrets],
            "systemd": self.systemd,
            "restart": self.restart.to_json(),
            "health": None if self.health is None else self.health.to_json(),
            "sockets": self.sockets,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        app = cls(
            name=fields.text("name"),
            image=ImageIdentity.from_fields(fields.object("image")),
            args=fields.texts("args"),
            env_names=fields.texts("env_names"),
            search_path=fields.text("search_path"),
            cwd=fields.text("cwd"),
            uid=fields.integer("uid"),
            gid=fields.integer("gid"),
            groups=fields.integers("groups"),
            read_only=fields.flag("read_only"),
            terminal=fields.flag("terminal"),
            stdin=fields.flag("stdin"),
            stop_signal=fields.integer("stop_signal"),
            stop_timeout_seconds=fields.integer("stop_timeout_seconds"),
            volumes=tuple(Volume.from_fields(item) for item in fields.objects("volumes")),
            limits=Limits.from_fields(fields.object("limits")),
            capabilities=fields.texts("capabilities"),
            relaxations=fields.texts("relaxations"),
            bundle=Digest.parse(fields.text("bundle")),
            security=AppSecurity.from_fields(fields.object("security")),
            empty_volumes=tuple(EmptyVolume.from_fields(item) for item in fields.objects("empty_volumes")),
            labels=fields.texts("labels"),
            annotations=fields.texts("annotations"),
            secrets=tuple(Secret.from_fields(item) for item in fields.objects("secrets")),
            systemd=fields.flag("systemd"),
            restart=Restart.from_fields(fields.object("restart")),
            health=None if (item := fields.optional_object("health")) is None else Health.from_fields(item),
            sockets=fields.integer("sockets"),
        )
        fields.end()
        return app


def _machine(fields: Fields | None) -> "Machine | None":
    if fields is None:
        return None
    from secrun.stage1.machine import Machine  # pods without one need not know it

    return Machine.from_fields(fields)


def _connection(fields: Fields | None) -> "Connection | None":
    if fields is None:
        return None
    from secrun.network.plan import Connection

    return Connection.from_fields(fields)


def _label(fields: Fields | None) -> "Label | None":
    if fields is None:
        return None
    from secrun.stage1.label import Label  # hosts without SELinux need not know it

    return Label.from_fields(fields)


@record
class PodManifest:
    """Everything that was decided about a pod before it started."""

    uuid: str
    hostname: str
    network: Network
    flavour: str
    stage1: Digest
    stage1_tree: Digest
    created_ns: int
    relaxations: tuple[str, ...]
    outer_arguments: tuple[str, ...]
    """What the confinement compiler adds to the flavour's own command line."""
    outer_filter: Digest | None
    """The program of the system call filter around the whole pod; None leaves it to the flavour."""
    apps: tuple[AppManifest, ...]
    machine: "Machine | None" = None
    """The pod's virtual machine, if its flavour starts one."""
    label: "Label | None" = None
    """The pod's SELinux label, where the kernel has SELinux."""
    policy: Digest | None = None
    """The policy files that it was prepared under; None if there were none."""
    strict_read_back: bool = False
    """End the pod if the kernel enforces less than was compiled."""
    connection: "Connection | None" = None
    """Networks, ports, name servers and host names, if anything was said or decided about them."""

    def to_bytes(self) -> bytes:
        """Return the canonical JSON that is stored and measured."""
        return canonical(
            {
                "schema": SCHEMA,
                "uuid": self.uuid,
                "hostname": self.hostname,
                "network": str(self.network),
                "flavour": self.flavour,
                "stage1": str(self.stage1),
                "stage1_tree": str(self.stage1_tree),
                "created_ns": self.created_ns,
                "relaxations": list(self.relaxations),
                "outer_arguments": list(self.outer_arguments),
                "outer_filter": "" if self.outer_filter is None else str(self.outer_filter),
                "apps": [app.to_json() for app in self.apps],
                "machine": None if self.machine is None else self.machine.to_json(),
                "label": None if self.label is None else self.label.to_json(),
                "policy": "" if self.policy is None else str(self.policy),
                "strict_read_back": self.strict_read_back,
                "connection": None if self.connection is None else self.connection.to_json(),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a stored manifest; raises StateError or ImageError if it is not one."""
        fields = Fields.document(data, what="pod manifest", limit=MAX_MANIFEST_BYTES, schema=SCHEMA)
        network = fields.text("network")
        if network not in tuple(Network):
            fields.unexpected("network", network, "none, host or cni")
        manifest = cls(
            uuid=fields.text("uuid"),
            hostname=fields.text("hostname"),
            network=Network(network),
            flavour=fields.text("flavour"),
            stage1=Digest.parse(fields.text("stage1")),
            stage1_tree=Digest.parse(fields.text("stage1_tree")),
            created_ns=fields.integer("created_ns"),
            relaxations=fields.texts("relaxations"),
            outer_arguments=fields.texts("outer_arguments"),
            outer_filter=Digest.parse(text) if (text := fields.text("outer_filter")) else None,
            apps=tuple(AppManifest.from_fields(item) for item in fields.objects("apps")),
            machine=_machine(fields.optional_object("machine")),
            label=_label(fields.optional_object("label")),
            policy=Digest.parse(text) if (text := fields.text("policy")) else None,
            strict_read_back=fields.flag("strict_read_back"),
            connection=_connection(fields.optional_object("connection")),
        )
        fields.end()
        return manifest

    def app(self, name: str) -> AppManifest | None:
        """Return the app called `name`, if there is one."""
        return next((app for app in self.apps if app.name == name), None)


@record
class Outline:
    """What a list of pods shows of a manifest; `apps` are (name, image reference, image ID)."""

    created_ns: int
    apps: tuple[tuple[str, str, str], ...]
    labels: tuple[str, ...] = ()
    """Those of all apps."""

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse only what is shown; raises StateError or ImageError if that is damaged."""
        fields = Fields(parse_object(data, what="pod manifest", limit=MAX_MANIFEST_BYTES), "pod manifest")
        apps: list[tuple[str, str, str]] = []
        labels: tuple[str, ...] = ()
        for app in fields.objects("apps"):
            image = app.object("image")
            apps.append((app.text("name"), image.text("reference"), image.text("manifest")))
            labels += app.texts("labels")
        return cls(created_ns=fields.integer("created_ns"), apps=tuple(apps), labels=labels)
