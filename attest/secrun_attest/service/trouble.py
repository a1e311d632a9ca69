"""Why a request is refused: stable codes, their HTTP status, and problem documents (RFC 9457)."""

import json
from enum import StrEnum

from secrun_attest.errors import AttestError
from secrun_attest.jcs import JsonObject
from secrun_attest.rejection import Code, RejectedError

# A rejection is 422 but for these: what a client does next differs.
_REJECTED = 422
_REJECTIONS: dict[Code, int] = {
    Code.NONCE_UNKNOWN: 404,
    Code.NONCE_USED: 409,
    Code.NONCE_EXPIRED: 410,
    Code.STATE: 409,
}

_REJECTION_TITLES: dict[Code, str] = {
    Code.FORMAT: "the evidence is malformed",
    Code.NONCE_UNKNOWN: "there is no such session",
    Code.NONCE_EXPIRED: "the session has expired",
    Code.NONCE_USED: "the session was answered before",
    Code.AK_UNKNOWN: "the key is not the enrolled one",
    Code.AK_ATTR: "the key is not a restricted signing key of an allowed kind",
    Code.SIG: "the quote is not signed by the key",
    Code.QUOTE_TYPE: "what was signed is not a quote",
    Code.QN: "the key is of another hierarchy",
    Code.NONCE_BIND: "the quote was made for something else",
    Code.PCRSEL: "the quote selects other PCRs",
    Code.PCRDIGEST: "the PCR values are not those quoted",
    Code.EPOCH: "the TPM's counters or clock went back",
    Code.BASELINE: "what lay in the PCRs before is not explained",
    Code.LOG_RECNUM: "the records are not those asked for",
    Code.LOG_PCR: "a record is of another PCR",
    Code.LOG_BANK: "a record lacks a digest of a bank",
    Code.LOG_DIGEST: "a record's digest is not that of its bytes",
    Code.LOG_CONTENT: "a record is of an unknown kind",
    Code.REPLAY: "the log does not give the quoted PCR",
    Code.SEM: "the events cannot have happened so",
    Code.CONTENT: "a document was not measured",
    Code.POLICY: "the policy does not allow it",
    Code.STATE: "another session of this host ended meanwhile",
}


class Trouble(StrEnum):
    """Codes of errors that are not rejections by the verifier's checks."""

    REQUEST = "E_REQUEST"
    AUTH = "E_AUTH"
    FORBIDDEN = "E_FORBIDDEN"
    NOT_FOUND = "E_NOT_FOUND"
    METHOD = "E_METHOD"
    TIMEOUT = "E_TIMEOUT"
    TOO_LARGE = "E_TOO_LARGE"
    MEDIA_TYPE = "E_MEDIA_TYPE"
    RATE = "E_RATE"
    BUSY = "E_BUSY"
    DATABASE = "E_DATABASE"
    NO_POLICY = "E_NO_POLICY"
    ENROL_UNKNOWN = "E_ENROL_UNKNOWN"
    ENROL_EXPIRED = "E_ENROL_EXPIRED"
    EK_ATTR = "E_EK_ATTR"
    EK_UNTRUSTED = "E_EK_UNTRUSTED"
    EK_CONFLICT = "E_EK_CONFLICT"
    AK_ATTR = "E_AK_ATTR"
    PROOF = "E_PROOF"
    POLICY_VERSION = "E_POLICY_VERSION"
    POLICY_UNSIGNED = "E_POLICY_UNSIGNED"


TROUBLES: dict[Trouble, tuple[int, str]] = {
    Trouble.REQUEST: (422, "the request has no meaning"),
    Trouble.AUTH: (401, "no credentials, or wrong ones"),
    Trouble.FORBIDDEN: (403, "these credentials are for something else"),
    Trouble.NOT_FOUND: (404, "there is nothing here"),
    Trouble.METHOD: (405, "this page does not do that"),
    Trouble.TIMEOUT: (408, "the body came too slowly"),
    Trouble.TOO_LARGE: (413, "the body is too large"),
    Trouble.MEDIA_TYPE: (415, "the body is not of a type that is read here"),
    Trouble.RATE: (429, "too many requests"),
    Trouble.BUSY: (503, "too much at once"),
    Trouble.DATABASE: (503, "the database does not answer"),
    Trouble.NO_POLICY: (503, "there is no policy yet"),
    Trouble.ENROL_UNKNOWN: (404, "there is no such enrolment"),
    Trouble.ENROL_EXPIRED: (410, "the enrolment has expired"),
    Trouble.EK_ATTR: (422, "the endorsement key is not of an allowed kind"),
    Trouble.EK_UNTRUSTED: (403, "the endorsement key is not vouched for"),
    Trouble.EK_CONFLICT: (409, "host and endorsement key do not belong together"),
    Trouble.AK_ATTR: (422, "the attestation key is not of an allowed kind"),
    Trouble.PROOF: (403, "the proof is wrong"),
    Trouble.POLICY_VERSION: (409, "another version is in force"),
    Trouble.POLICY_UNSIGNED: (403, "only signed policies are accepted"),
}


class ServiceError(AttestError):
    """A request is refused; `retry_after` is in seconds, 0 if coming back later does not help."""

    def __init__(self, trouble: Trouble, message: str, *, hint: str = "", retry_after: int = 0) -> None:
        super().__init__(message, hint=hint, code=trouble.value)
        self.trouble = trouble
        self.retry_after = retry_after


def status_of(error: ServiceError | RejectedError) -> int:
    """Return the HTTP status that says what kind of error it is."""
    if isinstance(error, RejectedError):
        return _REJECTIONS.get(error.reason, _REJECTED)
    return TROUBLES[error.trouble][0]


def problem(error: ServiceError | RejectedError) -> JsonObject:
    """Return the problem document about `error`."""
    if isinstance(error, RejectedError):
        title, step, retry = _REJECTION_TITLES[error.reason], error.step, error.reason is Code.STATE
    else:
        title, step, retry = TROUBLES[error.trouble][1], None, False
    return {
        "type": f"urn:secrun:problem:{error.code}",
        "title": title,
        "status": status_of(error),
        "code": error.code,
        "step": step,
        "detail": error.message,
        "hint": error.hint,
        "retry": retry,
    }


def to_json(value: JsonObject) -> bytes:
    """Return compact JSON; text from hosts may hold anything, so it is escaped to ASCII."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")
