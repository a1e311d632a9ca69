"""What a host and a verifier say to each other (docs/verifier-service.md); pure.

What a verifier answers is as strange as what a host sends to it: it is parsed into these records or refused.
"""

import hashlib
import re
from collections.abc import Iterable
from enum import StrEnum

from secrun.errors import StateError
from secrun.image.retry import TRANSIENT_STATUSES
from secrun.printable import printable
from secrun.record import record
from secrun_attest.enrolproof import proof_of, transcript
from secrun_attest.errors import FormatError
from secrun_attest.evidence import BANKS, MAX_PCRS
from secrun_attest.fields import (
    DIGEST_PREFIX,
    FieldError,
    Fields,
    as_integer,
    as_text,
    parse_json,
    to_base64,
)
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.limits import MAX_PCR, MAX_RECORDS
from secrun_attest.record import Bank, Epoch, epoch_json, parse_epoch
from secrun_attest.verify import Status

# A challenge, a credential, a problem: some kilobytes.
MAX_ANSWER = 64 << 10
# A verdict names each pod that was not removed, with reasons; and all of it again in the token.
MAX_VERDICT = 16 << 20
NONCE_SIZE = 32
_MAX_PODS = 100_000
_MAX_REASONS = 1000
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
# Bearer tokens (RFC 6750, 2.1): what goes into a header must not end it.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{20,512}=*\Z")


class Then(StrEnum):
    """What a host does about a problem."""

    AGAIN = "again"
    """Begin a new session at once."""
    WAIT = "wait"
    """Begin a new session later."""
    ENROL = "enrol"
    """Enrol, then begin a new session."""
    REJECTED = "rejected"
    """Nothing: the evidence proves nothing to this verifier."""
    FAIL = "fail"
    """Nothing: somebody has to look."""


@record
class Problem:
    """Why a verifier refuses a request; `step` is the number of the check, None if it is no check."""

    status: int
    code: str
    step: int | None
    detail: str
    hint: str
    retry: bool


@record
class Begun:
    """The first half of an enrolment: what went both ways, and the credential to activate."""

    id: str
    audience: str
    members: JsonObject
    credential_blob: bytes
    encrypted_secret: bytes


@record
class Enrolled:
    """The end of an enrolment."""

    token: str
    software: bool


@record
class Challenge:
    """What the verifier asks for; `epoch` is that of the log it knows, up to `log_from` records."""

    id: str
    nonce: bytes
    audience: str
    bank: Bank
    pcrs: tuple[int, ...]
    runtime_pcr: int
    epoch: Epoch | None
    log_from: int

    def since(self, epoch: Epoch) -> int:
        """Return the first record to send of the log of `epoch`."""
        return self.log_from if self.epoch == epoch else 0


@record
class Module:
    """What the verifier thinks of the host (`host`) or of a pod (`pod:UUID`)."""

    name: str
    status: str
    reasons: tuple[str, ...]


@record
class Verdict:
    """What a verifier makes of evidence that it believes."""

    status: Status
    policy: str
    appraised: int
    log_count: int
    head: str
    modules: tuple[Module, ...]


@record
class Rejection:
    """Evidence that proves nothing to the verifier."""

    code: str
    step: int
    detail: str


_AGAIN = frozenset({"E_NONCE_EXPIRED", "E_NONCE_USED", "E_NONCE_UNKNOWN"})
_ENROL = frozenset({"E_AUTH", "E_FORBIDDEN", "E_NOT_FOUND"})


def what_then(problem: Problem) -> Then:
    """Return what a host does about a problem with its session."""
    if problem.retry or problem.code in _AGAIN:
        return Then.AGAIN
    if problem.status in TRANSIENT_STATUSES:
        return Then.WAIT
    if problem.code in _ENROL:
        return Then.ENROL
    return Then.FAIL if problem.step is None else Then.REJECTED


def rejection(problem: Problem) -> Rejection | None:
    """Return the rejection that a problem is; None if it says nothing about the evidence."""
    if problem.step is None or what_then(problem) is not Then.REJECTED:
        return None
    return Rejection(code=problem.code, step=problem.step, detail=problem.detail)


def words(problem: Problem) -> str:
    """Return a problem for people."""
    if not problem.code:
        return f"HTTP status {problem.status}, and no word why"
    return printable(f"{problem.detail} ({problem.code})")


def check_host(host: str) -> None:
    """Raise StateError for a name that verifiers do not take."""
    if not _HOST.match(host):
        raise StateError(
            f"{host[:80]!r} cannot be a host's name at a verifier: up to 200 letters, digits, '.', '_', '-'",
            hint="secrun attest init --force --host NAME gives another",
            code="state-attest-host",
        )


def enrol_request(host: str, *, ek_pub: bytes, ek_chain: Iterable[bytes], ak_pub: bytes) -> JsonObject:
    """Return the body of POST /v1/enroll; our keys are primary keys of the endorsement hierarchy."""
    return {
        "host": host,
        "ek_pub": to_base64(ek_pub),
        "ek_chain": [to_base64(item) for item in ek_chain],
        "ak_pub": to_base64(ak_pub),
        "ak_parent": "endorsement",
    }


def proof_request(begun: Begun, secret: bytes) -> JsonObject:
    """Return the body of the proof: only who opened the credential can make it."""
    return {"proof": proof_of(secret, transcript(begun.members)).hex()}


def session_request(host: str, epoch: Epoch, count: int) -> JsonObject:
    """Return the body of POST /v1/sessions."""
    return {"host": host, "have": {"epoch": epoch_json(epoch), "recnum": count}}


def parse_begun(data: bytes, wish: JsonObject) -> Begun:
    """Parse the answer to `wish`; raises FormatError."""
    fields = _fields(data, "enrolment", MAX_ANSWER)
    answer: JsonObject = {
        name: fields.text(name, limit=limit)
        for name, limit in (("id", 100), ("host", 255), ("audience", 255))
    }
    credential = {name: fields.base64(name) for name in ("credential_blob", "encrypted_secret")}
    fields.integer("expires")
    fields.done()
    answer |= {name: to_base64(value) for name, value in credential.items()}
    _expect(answer["host"], wish["host"], "enrolment.host")
    return Begun(
        id=_identifier(answer["id"]),
        audience=as_text(answer["audience"], "enrolment.audience"),
        members=wish | answer,
        **credential,
    )


def parse_enrolled(data: bytes, host: str, ak_name: bytes) -> Enrolled:
    """Parse the answer to a proof; raises FormatError."""
    fields = _fields(data, "enrolment", MAX_ANSWER)
    _expect(fields.text("host", limit=255), host, "enrolment.host")
    _expect(fields.text("ak_name", limit=200), ak_name.hex(), "enrolment.ak_name")
    enrolled = Enrolled(
        token=check_token(fields.text("token", limit=600)),
        software=_flag(fields.take("software"), "software"),
    )
    fields.done()
    return enrolled


def parse_challenge(data: bytes, host: str, audience: str) -> Challenge:
    """Parse the answer that begins a session; raises FormatError."""
    fields = _fields(data, "session", MAX_ANSWER)
    _expect(fields.text("host", limit=255), host, "session.host")
    _expect(fields.text("state", limit=20), "waiting", "session.state")
    # The quote says for whom it is made. A verifier that may ask for others' names could pass it on to them.
    _expect(fields.text("audience", limit=255), audience, "session.audience")
    fields.integer("issued")
    fields.integer("expires")
    # What the log gives there is for the verifier to know: we replay our own.
    fields.take("log_base")
    challenge = Challenge(
        id=_identifier(fields.text("id", limit=100)),
        nonce=fields.hex("nonce", sizes=(NONCE_SIZE,)),
        audience=audience,
        bank=_bank(fields.text("bank", limit=20)),
        pcrs=tuple(as_integer(item, "pcrs", limit=MAX_PCR) for item in fields.items("pcrs", limit=MAX_PCRS)),
        runtime_pcr=fields.integer("runtime_pcr", limit=MAX_PCR),
        epoch=parse_epoch(fields.take("epoch")) if fields.has("epoch") else None,
        log_from=fields.integer("log_from", limit=MAX_RECORDS),
    )
    fields.done()
    return challenge


def parse_verdict(data: bytes, host: str, session: str) -> Verdict:
    """Parse the answer to evidence; raises FormatError."""
    fields = _fields(data, "verdict", MAX_VERDICT)
    _expect(fields.text("id", limit=100), session, "verdict.id")
    _expect(fields.text("host", limit=255), host, "verdict.host")
    _expect(fields.text("state", limit=20), "complete", "verdict.state")
    parse_epoch(fields.take("epoch"))
    # An EAR for relying parties; they get it from the verifier.
    fields.text("token", limit=MAX_VERDICT)
    modules = fields.mapping("modules", limit=_MAX_PODS)
    verdict = Verdict(
        status=_status(fields.text("status", limit=20)),
        policy=f"{DIGEST_PREFIX}{fields.digest('policy').hex()}",
        appraised=fields.integer("appraised"),
        log_count=fields.integer("log_count", limit=MAX_RECORDS),
        head=fields.hex("head").hex(),
        modules=tuple(_module(name, value) for name, value in modules.items()),
    )
    fields.done()
    return verdict


def parse_problem(status: int, data: bytes) -> Problem:
    """Parse a refusal; one that a proxy made has a status and nothing that we read."""
    try:
        return _problem(status, _fields(data, "problem", MAX_ANSWER))
    except FormatError:
        return Problem(status=status, code="", step=None, detail="", hint="", retry=False)


def _problem(status: int, fields: Fields) -> Problem:
    problem = Problem(
        status=status,
        code=fields.text("code", limit=100),
        step=fields.integer("step", limit=100) if fields.has("step") else None,
        detail=fields.text("detail"),
        hint=fields.text("hint"),
        retry=_flag(fields.take("retry"), "retry"),
    )
    for name in ("type", "title"):
        fields.text(name)
    fields.integer("status")
    fields.done()
    return problem


def check_token(text: str) -> str:
    """Return a bearer token; raises FieldError for what cannot be one, without showing it."""
    if not _TOKEN.match(text):
        raise FieldError("the token is not 20 to 512 characters that a bearer token may have")
    return text


def file_name(address: str) -> str:
    """Return the name of the file that keeps what is known of a verifier."""
    return f"{hashlib.sha256(address.encode()).hexdigest()}.json"


def _fields(data: bytes, what: str, limit: int) -> Fields:
    return Fields(parse_json(data, what=what, limit=limit), what)


def _expect(got: JsonValue, expected: JsonValue, what: str) -> None:
    if got != expected:
        raise FieldError(f"{what} is {str(got)[:80]!r}, expected {str(expected)[:80]!r}")


def _identifier(value: JsonValue) -> str:
    # It goes into a path.
    if not isinstance(value, str) or not _ID.match(value):
        raise FieldError(f"the id is {str(value)[:80]!r}, expected letters, digits, '_' and '-'")
    return value


def _flag(value: JsonValue, what: str) -> bool:
    if not isinstance(value, bool):
        raise FieldError(f"{what} is not true or false")
    return value


def _bank(text: str) -> Bank:
    if text not in BANKS:
        raise FieldError(f"session.bank is {text!r}, expected one of {', '.join(BANKS)}")
    return BANKS[text]


def _status(text: str) -> Status:
    if text not in tuple(Status):
        raise FieldError(f"the status is {text!r}, expected one of {', '.join(Status)}")
    return Status(text)


def _module(name: str, value: JsonValue) -> Module:
    fields = Fields(value, "module")
    module = Module(
        name=as_text(name, "module", limit=200),
        status=fields.text("status", limit=20),
        reasons=tuple(as_text(item, "reason") for item in fields.items("reasons", limit=_MAX_REASONS)),
    )
    fields.done()
    return module
