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
class Runtime:
    """Digests of secrun's own code that may have measured."""

    binaries: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Images that may run, by manifest digest, rootfs tree digest or reference glob; the rest is denied.

    A reference is what the host says it asked for; a digest is what ran. Globs are for registries whose
    signatures the host's own trust policy enforces.
    """

    manifests: frozenset[bytes] = frozenset()
    trees: frozenset[bytes] = frozenset()
    references: tuple[str, ...] = ()
    forbidden_operations: frozenset[str] = frozenset()
    forbidden_relaxations: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Tell whether there is no reference value for any image."""
        return not (self.manifests or self.trees or self.references)

    def allows(self, *, reference: str, manifest: bytes, tree: bytes) -> bool:
        """Tell whether an image may run."""
        return (
            manifest in self.manifests
            or tree in self.trees
            or any(fnmatchcase(reference, glob) for glob in self.references)
        )

    def forbids(self, relaxation: str) -> bool:
        """Tell whether a relaxation of the confinement is forbidden."""
        return any(fnmatchcase(relaxation, glob) for glob in self.forbidden_relaxations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One version of a policy; times are seconds since 1970, `max_age` counts from the nonce."""

    id: str
    version: int
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
    fields = Fields(parse_json(data, what="policy", limit=MAX_POLICY), "policy")
    if (version := fields.integer("v")) != VERSION:
        raise FieldError(f"the policy has format {version}, this verifier reads {VERSION}")
    policy = Policy(
        id=fields.text("id", limit=255),
        version=fields.integer("version"),
        not_before=fields.integer("not_before"),
        not_after=fields.integer("not_after"),
        pcr=fields.integer("pcr", limit=MAX_PCRS - 1),
        bank=_bank(fields.text("bank", limit=20)),
        selection=_selection(fields.items("selection", limit=MAX_PCRS)),
        hierarchies=frozenset(_hierarchy(item) for item in fields.items("hierarchies", limit=3)),
        keys=_digests(fields, "keys", sizes=(34, 50, 66)) if fields.has("keys") else None,
        software_tpm=_boolean(fields.take("software_tpm"), "policy.software_tpm"),
        max_age=fields.integer("max_age"),
        platform=_platform(fields.object("platform")),
        runtime=_runtime(fields.object("runtime")),
        workload=_workload(fields.object("workload")),
        digest=hashlib.sha256(data).digest(),
    )
    fields.done()
    return _consistent(policy)


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


def _boolean(value: JsonValue, what: str) -> bool:
    if not isinstance(value, bool):
        raise FieldError(f"{what} is neither true nor false")
    return value


def _digests(fields: Fields, name: str, *, sizes: tuple[int, ...]) -> frozenset[bytes]:
    what = f"{fields.what}.{name}"
    return frozenset(as_hex(item, what, sizes=sizes) for item in fields.items(name, limit=MAX_ENTRIES))


def _measured(fields: Fields, name: str) -> frozenset[bytes]:
    what = f"{fields.what}.{name}"
    return frozenset(as_digest(item, what) for item in fields.items(name, limit=MAX_ENTRIES))


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    what = f"{fields.what}.{name}"
    return tuple(as_text(item, what) for item in fields.items(name, limit=MAX_ENTRIES))


def _platform(fields: Fields) -> Platform:
    values = Fields(fields.take("pcrs"), "policy.platform.pcrs")
    found = [
        (index, _digests(values, str(index), sizes=(32, 48, 64)))
        for index in range(MAX_PCRS)
        if values.has(str(index))
    ]
    values.done()
    fields.done()
    return Platform(pcrs=tuple(found))


def _runtime(fields: Fields) -> Runtime:
    runtime = Runtime(binaries=_measured(fields, "binaries"))
    fields.done()
    return runtime


def _workload(fields: Fields) -> Workload:
    workload = Workload(
        manifests=_measured(fields, "manifests"),
        trees=_measured(fields, "trees"),
        references=_texts(fields, "references"),
        forbidden_operations=frozenset(_texts(fields, "forbidden_operations")),
        forbidden_relaxations=_texts(fields, "forbidden_relaxations"),
    )
    fields.done()
    return workload
