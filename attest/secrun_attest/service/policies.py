"""Policies and reference values: taken in versions that only go up, joined when evidence is appraised."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from secrun_attest.errors import FormatError
from secrun_attest.evidence import MAX_PCRS
from secrun_attest.fields import FieldError, Fields, as_digest, as_hex, as_text, parse_json
from secrun_attest.jcs import JsonValue
from secrun_attest.policy import MAX_ENTRIES, MAX_POLICY, Platform, Policy
from secrun_attest.record import DIGEST_SIZES
from secrun_attest.service.store import Store
from secrun_attest.service.trouble import ServiceError, Trouble

VALUES_VERSION = 1
VALUES_ID = "values"
JOINED = b"secrun-policy-values-v1\0"
# Parsed ones; hosts of one verifier share a handful.
MAX_CACHED = 32

Opener = Callable[[bytes], Policy]


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Reference values that are added to those of a policy."""

    version: int
    pcrs: tuple[tuple[int, frozenset[bytes]], ...]
    binaries: frozenset[bytes]
    manifests: frozenset[bytes]
    trees: frozenset[bytes]
    references: tuple[str, ...]
    digest: bytes


def parse_values(data: bytes) -> Values:
    """Parse reference values; raises FormatError."""
    fields = Fields(parse_json(data, what="reference values", limit=MAX_POLICY), "values")
    if (version := fields.integer("v")) != VALUES_VERSION:
        raise FieldError(f"reference values have format {version}, this verifier reads {VALUES_VERSION}")
    pcrs = fields.object("pcrs")
    values = Values(
        version=fields.integer("version"),
        pcrs=tuple(
            (
                index,
                frozenset(as_hex(item, "a PCR", sizes=(32, 48, 64)) for item in _items(pcrs, str(index))),
            )
            for index in range(MAX_PCRS)
            if pcrs.has(str(index))
        ),
        binaries=_digests(fields, "binaries"),
        manifests=_digests(fields, "manifests"),
        trees=_digests(fields, "trees"),
        references=tuple(as_text(item, "values.references") for item in _items(fields, "references")),
        digest=hashlib.sha256(data).digest(),
    )
    pcrs.done()
    fields.done()
    return values


def _items(fields: Fields, name: str) -> list[JsonValue]:
    return fields.items(name, limit=MAX_ENTRIES)


def _digests(fields: Fields, name: str) -> frozenset[bytes]:
    return frozenset(as_digest(item, f"values.{name}") for item in _items(fields, name))


def join(policy: Policy, values: Values) -> Policy:
    """Return `policy` with `values` added; the digest covers both.

    A value of a PCR that the policy does not select, or of another bank's size, says nothing here.
    """
    pcrs, size = dict(policy.platform.pcrs), DIGEST_SIZES[policy.bank]
    for index, values_of in values.pcrs:
        allowed = frozenset(value for value in values_of if len(value) == size)
        if allowed and index in policy.selection and index != policy.pcr:
            pcrs[index] = pcrs.get(index, frozenset()) | allowed
    workload, runtime = policy.workload, policy.runtime
    return replace(
        policy,
        platform=Platform(pcrs=tuple(sorted(pcrs.items()))),
        runtime=replace(runtime, binaries=runtime.binaries | values.binaries),
        workload=replace(
            workload,
            manifests=workload.manifests | values.manifests,
            trees=workload.trees | values.trees,
            references=workload.references + values.references,
        ),
        digest=hashlib.sha256(JOINED + policy.digest + values.digest).digest(),
    )


class Policies:
    """The policies in the database; `default` is the id of the one that sessions use."""

    def __init__(self, store: Store, *, default: str, opener: Opener, signed: bool) -> None:
        self.default = default
        self._store = store
        self._open = opener
        self._signed = signed
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[bytes, bytes | None], Policy] = OrderedDict()

    def current(self, identifier: str = "") -> Policy:
        """Return the policy `identifier` (the default one if empty) with the reference values of now.

        Raises ServiceError: NO_POLICY if the default is not there, NOT_FOUND if another is not.
        """
        identifier = identifier or self.default
        digest, values = self._store.digests(("policy", identifier), ("values", VALUES_ID))
        if digest is None:
            trouble = Trouble.NO_POLICY if identifier == self.default else Trouble.NOT_FOUND
            hint = f"PUT /v1/policies/{identifier}, or start with --policy"
            raise ServiceError(trouble, f"there is no policy {identifier!r}", hint=hint, retry_after=30)
        with self._lock:
            found = self._cache.get((digest, values))
        if found is None:
            found = self._load(identifier)
            with self._lock:
                self._cache[digest, values] = found
                if len(self._cache) > MAX_CACHED:
                    self._cache.popitem(last=False)
        return found

    def _load(self, identifier: str) -> Policy:
        policy = self._open(self.raw(identifier))
        values = self._store.document("values", VALUES_ID)
        return policy if values is None else join(policy, parse_values(values))

    def raw(self, identifier: str) -> bytes:
        """Return a policy byte for byte as it was put; raises ServiceError NOT_FOUND."""
        data = self._store.document("policy", identifier)
        if data is None:
            raise ServiceError(Trouble.NOT_FOUND, f"there is no policy {identifier!r}")
        return data

    def put(self, identifier: str, data: bytes) -> None:
        """Take a policy; raises ServiceError if it is malformed, not signed as it must be, or not newer."""
        try:
            policy = self._open(data)
        except FormatError as error:
            raise ServiceError(Trouble.REQUEST, error.message, hint="see docs/verifier.md") from error
        if policy.id != identifier:
            raise ServiceError(Trouble.REQUEST, f"the policy's id is {policy.id!r}, expected {identifier!r}")
        self._put("policy", identifier, policy.version, data)

    def put_initial(self, identifier: str, data: bytes) -> bool:
        """Take a policy at the start; False if a newer version is in force already, which then stays."""
        try:
            self.put(identifier, data)
        except ServiceError as error:
            if error.trouble is not Trouble.POLICY_VERSION:
                raise
            if self._open(self.raw(identifier)).version <= self._open(data).version:
                raise  # other bytes of the same version
            return False
        return True

    def put_values(self, data: bytes) -> None:
        """Take reference values; raises ServiceError as `put` does."""
        if self._signed:
            hint = "write them into the policy and sign it"
            raise ServiceError(Trouble.POLICY_UNSIGNED, "reference values are not signed", hint=hint)
        try:
            values = parse_values(data)
        except FormatError as error:
            raise ServiceError(Trouble.REQUEST, error.message) from error
        self._put("values", VALUES_ID, values.version, data)

    def _put(self, kind: str, identifier: str, version: int, data: bytes) -> None:
        digest = hashlib.sha256(data).digest()
        if not self._store.put_document(kind, identifier, version, digest, data):
            text = f"{kind} {identifier!r}: version {version} is not newer than the one in force"
            raise ServiceError(Trouble.POLICY_VERSION, text, hint="raise the version with each change")
