"""What a verifier accepts: rules for freshness and keys; reference values of platform, runtime, workload."""

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatchcase

from secrun_attest.evidence import BANKS, MAX_PCRS
from secrun_attest.fields import FieldError, Fields, as_digest, as_hex, as_text, parse_json
from secrun_attest.jcs import JsonValue
from secrun_attest.record import DIGEST_SIZES, Bank
from secrun_attest.wire import Hierarchy

VERSION = 1
# Reference values for ten thousand images, with room.
MAX_POLICY = 8 << 20
MAX_ENTRIES = 20_000

KVM = "kvm"
ACCELERATORS = (KVM, "tcg")

# Keys of the owner hierarchy show counters with a secret of their own added: epochs cannot be told apart.
HIERARCHIES = {
    "endorsement": Hierarchy.ENDORSEMENT,
    "platform": Hierarchy.PLATFORM,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Accepted values of PCRs of the pinned bank; a PCR that is not listed has no reference value."""

    pcrs: tuple[tuple[int, frozenset[bytes]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A kernel and the initramfs it may boot with, and the command lines it may be given.

    A command line lacks the last word, which is another one for each pod.
    """

    kernel: bytes
    initrd: bytes
    command_lines: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Rules for the virtual machines of pods; `required` is for pods that have none.

    Emulation has to be allowed by name: it isolates by a translator that its makers call no boundary.
    """

    required: bool = False
    accelerators: frozenset[str] = frozenset({KVM})
    guests: tuple[Guest, ...] = ()

    def guest(self, *, kernel: bytes, initrd: bytes) -> Guest | None:
        """Return the entry of a kernel and an initramfs that belong together."""
        return next((one for one in self.guests if (one.kernel, one.initrd) == (kernel, initrd)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Digests of secrun's own code that may have measured, and of stage1: of the image or of its tree."""

    binaries: frozenset[bytes] = frozenset()
    stage1: frozenset[bytes] = frozenset()
    machines: Machines = Machines()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Images that may run; the rest is denied.

    `images` are manifest and tree digest and, unless it is empty, the dm-verity root hash: what a verifier
    computed from an image must be what the host mounted. Alone, a manifest digest binds the configuration
    and a tree digest the files.

    A reference is what the host says it asked for; a digest is what ran. Globs are for registries whose
    signatures the host's own trust policy enforces.
    """

    images: frozenset[tuple[bytes, bytes, bytes]] = frozenset()
    manifests: frozenset[bytes] = frozenset()
    trees: frozenset[bytes] = frozenset()
    references: tuple[str, ...] = ()
    forbidden_operations: frozenset[str] = frozenset()
    forbidden_relaxations: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Tell whether there is no reference value for any image."""
        return not (self.images or self.manifests or self.trees or self.references)

    def allows(self, *, reference: str | None, manifest: bytes, tree: bytes, verity_root: bytes) -> bool:
        """Tell whether an image may run; a `reference` of None vouches for nothing."""
        return (
            (manifest, tree, b"") in self.images
            or (manifest, tree, verity_root) in self.images
            or manifest in self.manifests
            or tree in self.trees
            or (reference is not None and any(fnmatchcase(reference, glob) for glob in self.references))
        )

    def forbids(self, relaxation: str) -> bool:
        """Tell whether a relaxation of the confinement is forbidden."""
        return any(fnmatchcase(relaxation, glob) for glob in self.forbidden_relaxations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One version of a policy; times are seconds since 1970, `max_age` counts from the nonce.

    Who has seen this version takes none below `min_version` any more: policyfile.py.
    """

    id: str
    version: int
    min_version: int
    not_before: int
    not_after: int
    pcr: int
    bank: Bank
    selection: tuple[int, ...]
    hierarchies: frozenset[Hierarchy]
    keys: frozenset[bytes] | None
    software_tpm: bool
    max_age: int
    platform: Platform
    runtime: Runtime
    workload: Workload
    digest: bytes


def parse_policy(data: bytes) -> Policy:
    """Parse a policy; raises FormatError. Its digest is that of the bytes, which are what is signed."""
    value = parse_json(data, what="policy", limit=MAX_POLICY)
    return policy_of(value, digest=hashlib.sha256(data).digest())


def policy_of(value: JsonValue, *, digest: bytes) -> Policy:
    """Read a policy out of parsed JSON; `digest` covers all the bytes it came from. Raises FormatError."""
    fields = Fields(value, "policy")
    if (form := fields.integer("v")) != VERSION:
        raise FieldError(f"the policy has format {form}, this verifier reads {VERSION}")
    version = fields.integer("version")
    policy = Policy(
        id=fields.text("id", limit=255),
        version=version,
        min_version=minimum_version(fields, version),
        not_before=fields.integer("not_before"),
        not_after=fields.integer("not_after"),
        pcr=fields.integer("pcr", limit=MAX_PCRS - 1),
        bank=_bank(fields.text("bank", limit=20)),
        selection=_selection(fields.items("selection", limit=MAX_PCRS)),
        hierarchies=frozenset(_hierarchy(item) for item in fields.items("hierarchies", limit=3)),
        keys=_digests(fields, "keys", sizes=(34, 50, 66)) if fields.has("keys") else None,
        software_tpm=fields.boolean("software_tpm"),
        max_age=fields.integer("max_age"),
        platform=platform_of(fields.object("platform")),
        runtime=runtime_of(fields.object("runtime")),
        workload=workload_of(fields.object("workload")),
        digest=digest,
    )
    fields.done()
    return _consistent(policy)


def minimum_version(fields: Fields, version: int) -> int:
    """Return the oldest version that may still be used once `version` was seen; by default none older."""
    if not fields.has("min_version"):
        return version
    return fields.integer("min_version", limit=version)


def _consistent(policy: Policy) -> Policy:
    if policy.pcr not in policy.selection:
        raise FieldError(f"policy.selection leaves out PCR {policy.pcr}, where the runtime measures")
    size = DIGEST_SIZES[policy.bank]
    for index, values in policy.platform.pcrs:
        if index not in policy.selection or index == policy.pcr:
            raise FieldError(f"policy.platform.pcrs: PCR {index} is not selected, or is the runtime's own")
        if any(len(value) != size for value in values):
            raise FieldError(f"policy.platform.pcrs: a value of PCR {index} is not of {policy.bank}")
    return policy


def _bank(name: str) -> Bank:
    # SHA-1 is extended with the others, but collisions in it are cheap: it proves nothing.
    if name not in BANKS or name == "sha1":
        raise FieldError(f"policy.bank is {name!r}, expected sha256, sha384 or sha512")
    return BANKS[name]


def _selection(values: list[JsonValue]) -> tuple[int, ...]:
    indices = tuple(item for item in values if type(item) is int and 0 <= item < MAX_PCRS)
    if len(indices) != len(values) or list(indices) != sorted(set(indices)):
        raise FieldError("policy.selection is not an ascending list of PCR numbers")
    return indices


def _hierarchy(value: JsonValue) -> Hierarchy:
    name = as_text(value, "policy.hierarchies")
    if name not in HIERARCHIES:
        raise FieldError(f"policy.hierarchies has {name[:40]!r}, expected one of {', '.join(HIERARCHIES)}")
    return HIERARCHIES[name]


def _digests(fields: Fields, name: str, *, sizes: tuple[int, ...]) -> frozenset[bytes]:
    what = f"{fields.what}.{name}"
    return frozenset(as_hex(item, what, sizes=sizes) for item in fields.items(name, limit=MAX_ENTRIES))


def _measured(fields: Fields, name: str) -> frozenset[bytes]:
    what = f"{fields.what}.{name}"
    return frozenset(as_digest(item, what) for item in fields.items(name, limit=MAX_ENTRIES))


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    what = f"{fields.what}.{name}"
    return tuple(as_text(item, what) for item in fields.items(name, limit=MAX_ENTRIES))


def platform_of(fields: Fields) -> Platform:
    """Read the platform layer of a policy; raises FieldError."""
    values = Fields(fields.take("pcrs"), "policy.platform.pcrs")
    found = [
        (index, _digests(values, str(index), sizes=(32, 48, 64)))
        for index in range(MAX_PCRS)
        if values.has(str(index))
    ]
    values.done()
    fields.done()
    return Platform(pcrs=tuple(found))


def runtime_of(fields: Fields) -> Runtime:
    """Read the runtime layer of a policy; raises FieldError."""
    runtime = Runtime(
        binaries=_measured(fields, "binaries"),
        stage1=_measured(fields, "stage1") if fields.has("stage1") else frozenset(),
        machines=_machines(fields.object("machines")) if fields.has("machines") else Machines(),
    )
    fields.done()
    return runtime


def _machines(fields: Fields) -> Machines:
    machines = Machines(
        required=fields.boolean("required") if fields.has("required") else False,
        accelerators=_accelerators(fields) if fields.has("accelerators") else Machines().accelerators,
        guests=_guests(fields) if fields.has("guests") else (),
    )
    fields.done()
    return machines


def _accelerators(fields: Fields) -> frozenset[str]:
    names = frozenset(_texts(fields, "accelerators"))
    if not names or not names <= set(ACCELERATORS):
        got = ", ".join(sorted(names)) or "nothing"
        raise FieldError(f"{fields.what}.accelerators has {got[:80]}, expected {' or '.join(ACCELERATORS)}")
    return names


def _guests(fields: Fields) -> tuple[Guest, ...]:
    found: dict[tuple[bytes, bytes], Guest] = {}
    for item in fields.items("guests", limit=MAX_ENTRIES):
        inner = Fields(item, f"{fields.what}.guests")
        guest = Guest(
            kernel=inner.digest("kernel"),
            initrd=inner.digest("initrd"),
            command_lines=frozenset(_texts(inner, "command_lines")),
        )
        inner.done()
        if found.setdefault((guest.kernel, guest.initrd), guest) is not guest:
            raise FieldError(f"{inner.what} has kernel sha256:{guest.kernel.hex()} with its initrd twice")
    return tuple(found.values())


def _images(fields: Fields) -> frozenset[tuple[bytes, bytes, bytes]]:
    found = set()
    for item in fields.items("images", limit=MAX_ENTRIES):
        image = Fields(item, "policy.workload.images")
        root = image.hex("verity_root", sizes=(32,)) if image.has("verity_root") else b""
        found.add((image.digest("manifest"), image.digest("tree"), root))
        image.done()
    return frozenset(found)


def workload_of(fields: Fields) -> Workload:
    """Read the workload layer of a policy; raises FieldError."""
    workload = Workload(
        images=_images(fields) if fields.has("images") else frozenset(),
        manifests=_measured(fields, "manifests"),
        trees=_measured(fields, "trees"),
        references=_texts(fields, "references"),
        forbidden_operations=frozenset(_texts(fields, "forbidden_operations")),
        forbidden_relaxations=_texts(fields, "forbidden_relaxations"),
    )
    fields.done()
    return workload
