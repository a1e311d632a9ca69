"""Enrolment: a host proves that one TPM holds its EK and its AK, and gets a token (TPM2_MakeCredential)."""

import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_bytes
from typing import TYPE_CHECKING

from secrun_attest import jcs
from secrun_attest.enrolproof import proof_of, transcript
from secrun_attest.errors import FormatError
from secrun_attest.evidence import MAX_CHAIN
from secrun_attest.fields import Fields, as_base64, to_base64
from secrun_attest.jcs import JsonObject
from secrun_attest.rejection import RejectedError
from secrun_attest.service.auth import new_token, token_hash
from secrun_attest.service.call import Call, Reply, bad_request, check_id, is_own_id, new_id, reply
from secrun_attest.service.credential import SECRET_SIZE, check_ek, make_credential
from secrun_attest.service.ekcert import check_chain
from secrun_attest.service.store import NewHost, Store
from secrun_attest.service.trouble import ServiceError, Trouble
from secrun_attest.verify import Enrolment
from secrun_attest.verify.checks import check_key
from secrun_attest.wire import Hierarchy, Public, name_of, parse_public, qualified_name

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

# ActivateCredential takes a second or two on slow TPMs.
PROOF_SECONDS = 60

PARENTS = {"endorsement": Hierarchy.ENDORSEMENT, "platform": Hierarchy.PLATFORM}
PARENT_EK = "ek"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A parsed request to enrol."""

    host: str
    ek: Public
    ak: Public
    ak_parent: str
    chain: tuple[bytes, ...]
    wire: JsonObject

    @property
    def parent(self) -> bytes | None:
        """The qualified name of the AK's parent, None for a primary key."""
        if self.ak_parent != PARENT_EK:
            return None
        # EKs are primary keys of the endorsement hierarchy.
        return qualified_name(Hierarchy.ENDORSEMENT.to_bytes(4, "big"), name_of(self.ek))

    def enrolment(self, *, software: bool) -> Enrolment:
        """Return what the verifier will hold evidence against."""
        hierarchy = PARENTS.get(self.ak_parent, Hierarchy.ENDORSEMENT)
        return Enrolment(
            host=self.host,
            ak_name=name_of(self.ak),
            hierarchy=hierarchy,
            parent=self.parent,
            software=software,
        )


def _wish(call: Call) -> _Wish:
    fields = call.fields("enrolment")
    try:
        wish = _parse(fields)
    except FormatError as error:
        raise bad_request(error.message) from error
    check_ek(wish.ek)
    try:
        check_key(wish.ak)
    except RejectedError as error:
        hint = "make a restricted signing key: tpm2_createak -G ecc -g sha256 -s ecdsa"
        raise ServiceError(Trouble.AK_ATTR, error.message, hint=hint) from error
    return wish


def _parse(fields: Fields) -> _Wish:
    host = check_id(fields.text("host", limit=255), "host")
    ek, ak = fields.base64("ek_pub"), fields.base64("ak_pub")
    chain = tuple(as_base64(item, "ek_chain") for item in fields.items("ek_chain", limit=MAX_CHAIN))
    ak_parent = fields.text("ak_parent", limit=20)
    if ak_parent not in (*PARENTS, PARENT_EK):
        raise bad_request(f"ak_parent is {ak_parent!r}, expected one of {PARENT_EK}, {', '.join(PARENTS)}")
    fields.done()
    wire: JsonObject = {
        "host": host,
        "ek_pub": to_base64(ek),
        "ek_chain": [to_base64(item) for item in chain],
        "ak_pub": to_base64(ak),
        "ak_parent": ak_parent,
    }
    public_ek, public_ak = parse_public(ek), parse_public(ak)
    name_of(public_ak)  # raises for a hash that has no Name
    return _Wish(host=host, ek=public_ek, ak=public_ak, ak_parent=ak_parent, chain=chain, wire=wire)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """What is kept between request and proof; the proof itself is computed ahead, the secret is not kept."""

    host: str
    ek_name: bytes
    ak_name: bytes
    hierarchy: int
    parent: bytes | None
    software: bool
    proof: bytes

    def dump(self) -> bytes:
        return json.dumps(
            {
                "host": self.host,
                "ek_name": self.ek_name.hex(),
                "ak_name": self.ak_name.hex(),
                "hierarchy": self.hierarchy,
                "parent": None if self.parent is None else self.parent.hex(),
                "software": int(self.software),
                "proof": self.proof.hex(),
            }
        ).encode()

    @classmethod
    def load(cls, data: bytes) -> "_Pending":
        fields = Fields(jcs.parse(data, what="stored enrolment", limit=len(data)), "stored enrolment")
        return cls(
            host=fields.text("host"),
            ek_name=fields.hex("ek_name"),
            ak_name=fields.hex("ak_name"),
            hierarchy=fields.integer("hierarchy"),
            parent=fields.hex("parent") if fields.has("parent") else None,
            software=fields.integer("software") == 1,
            proof=fields.hex("proof"),
        )


class Enroller:
    """POST /v1/enroll and its proof."""

    def __init__(
        self, store: Store, *, audience: str, roots: "Sequence[Certificate]", allow_software: bool
    ) -> None:
        self._store = store
        self._audience = audience
        self._roots = tuple(roots)
        self.allow_software = allow_software

    def begin(self, call: Call) -> Reply:
        """Check the keys and answer with a credential that only their TPM can open."""
        wish = _wish(call)
        name = name_of(wish.ek)
        self._check_owner(wish.host, name)
        enrolment = wish.enrolment(software=self._is_software(wish, call.now))
        secret, identifier = token_bytes(SECRET_SIZE), new_id()
        credential = make_credential(wish.ek, enrolment.ak_name, secret)
        answer: JsonObject = {
            "id": identifier,
            "host": wish.host,
            "audience": self._audience,
            "credential_blob": to_base64(credential.blob),
            "encrypted_secret": to_base64(credential.encrypted_secret),
        }
        pending = _Pending(
            host=wish.host,
            ek_name=name,
            ak_name=enrolment.ak_name,
            hierarchy=int(enrolment.hierarchy),
            parent=enrolment.parent,
            software=enrolment.software,
            proof=proof_of(secret, transcript(wish.wire | answer)),
        )
        expires = call.now + PROOF_SECONDS
        self._store.add_pending(identifier, pending.dump(), expires)
        return reply(answer | {"expires": expires}, status=201, location=f"/v1/enroll/{identifier}")

    def _is_software(self, wish: _Wish, now: int) -> bool:
        """Tell whether nobody vouches for the EK; raises ServiceError if somebody must."""
        if wish.chain and self._roots:
            check_chain(wish.chain, self._roots, wish.ek, now)
            return False
        if not self.allow_software:
            what = (
                "there are no --ek-roots to check its chain with" if wish.chain else "it has no certificate"
            )
            hint = "send ek_chain and set --ek-roots, or let software TPMs in: --allow-software-tpm"
            raise ServiceError(Trouble.EK_UNTRUSTED, f"the endorsement key: {what}", hint=hint)
        return True

    def _check_owner(self, host: str, ek_name: bytes) -> None:
        for owner, owned in self._store.owners(host, ek_name):
            if (owner, owned) != (host, ek_name):
                raise _conflict(host)

    def prove(self, call: Call) -> Reply:
        """Take the proof, enrol the host and answer with its token."""
        fields = call.fields("proof")
        try:
            proof = fields.hex("proof", sizes=(32,))
            fields.done()
        except FormatError as error:
            raise bad_request(error.message) from error
        identifier = call.path["id"]
        taken = self._store.take_pending(identifier) if is_own_id(identifier) else None
        if taken is None:
            raise ServiceError(Trouble.ENROL_UNKNOWN, "there is no such enrolment, or it was answered")
        data, expires = taken
        if not call.now < expires:
            raise ServiceError(Trouble.ENROL_EXPIRED, f"it expired at {expires}, now is {call.now}")
        pending = _Pending.load(data)
        if not hmac.compare_digest(proof, pending.proof):
            hint = "the secret was not activated under this EK and AK, or J differs: begin again"
            raise ServiceError(Trouble.PROOF, "the proof is not that of this enrolment", hint=hint)
        return self._enrol(pending, call.now)

    def _enrol(self, pending: _Pending, now: int) -> Reply:
        enrolment = Enrolment(
            host=pending.host,
            ak_name=pending.ak_name,
            hierarchy=Hierarchy(pending.hierarchy),
            parent=pending.parent,
            software=pending.software,
        )
        token = new_token()
        new = NewHost(enrolment=enrolment, ek_name=pending.ek_name, token_hash=token_hash(token), now=now)
        if not self._store.enrol(new):
            raise _conflict(pending.host)
        return reply(
            {
                "host": pending.host,
                "ak_name": pending.ak_name.hex(),
                "software": pending.software,
                "token": token,
            }
        )


def _conflict(host: str) -> ServiceError:
    return ServiceError(
        Trouble.EK_CONFLICT,
        f"host {host!r} is enrolled with another endorsement key, or this key is another host's",
        hint="if the TPM or the name was changed, an admin may DELETE the old host",
    )
