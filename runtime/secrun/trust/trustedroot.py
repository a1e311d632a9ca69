"""A sigstore trusted root: the authorities and logs that keyless signatures are checked against, offline."""

import datetime as dt
from typing import TYPE_CHECKING

from secrun.errors import ImageError
from secrun.jsonio import JsonObject, parse_object
from secrun.record import record
from secrun.trust import chain, dsse, limits, publickey
from secrun.trust.faults import SignatureFaultError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from secrun.trust.publickey import PublicKey

_MEDIA_TYPES = tuple(f"application/vnd.dev.sigstore.trustedroot{end}" for end in (
    "+json;version=0.1", ".v0.1+json", ".v0.2+json",
))  # fmt: skip


@record
class Span:
    """From when to when something counts, in seconds since 1970; 0 is no bound."""

    start: float
    end: float

    def covers(self, at: float) -> bool:
        """Tell whether a moment lies in it."""
        return self.start <= at and (not self.end or at <= self.end)


@record
class Log:
    """A transparency log: its ID and its key."""

    log_id: bytes
    key: "PublicKey"
    span: Span


@record
class Authority:
    """A certificate authority: its root, and what it issues certificates with."""

    roots: tuple["Certificate", ...]
    intermediates: tuple["Certificate", ...]
    span: Span


@record
class TrustedRoot:
    """All that a trusted root names, but for timestamp authorities."""

    logs: tuple[Log, ...]
    certificate_logs: tuple[Log, ...]
    authorities: tuple[Authority, ...]

    def log(self, log_id: bytes, at: float) -> Log:
        """Return the log with an ID that was in use at a moment; raises SignatureFaultError."""
        return _find(self.logs, log_id, at, "its log entry")

    def certificate_log(self, log_id: bytes, at: float) -> Log:
        """Return the log of certificates with an ID; raises SignatureFaultError."""
        return _find(self.certificate_logs, log_id, at, "the log promise in its certificate")


def _find(logs: tuple[Log, ...], log_id: bytes, at: float, what: str) -> Log:
    for log in logs:
        if log.log_id == log_id and log.span.covers(at):
            return log
    raise SignatureFaultError(
        f"{what} is by a log ({log_id.hex()[:16]}) that the trusted root does not name"
    )


def _moment(text: str) -> float:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        dsse.bad(f"{text[:40]!r} is no time")
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


def _span(source: JsonObject) -> Span:
    value = source.get("validFor")
    if not isinstance(value, dict):
        return Span(start=0, end=0)
    start, end = value.get("start"), value.get("end")
    return Span(
        start=_moment(start) if isinstance(start, str) else 0,
        end=_moment(end) if isinstance(end, str) else 0,
    )


def _log(source: JsonObject) -> Log:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    key = dsse.member(source, "publicKey")
    try:
        loaded = publickey.checked(load_der_public_key(dsse.raw(key, "rawBytes")))
    except (ValueError, UnsupportedAlgorithm):
        dsse.bad("a log's key cannot be used")
    return Log(log_id=dsse.raw(dsse.member(source, "logId"), "keyId"), key=loaded, span=_span(key))


def _authority(source: JsonObject) -> Authority:
    certificates = [
        chain.load_der(dsse.raw(item, "rawBytes"), "a certificate of an authority")
        for item in dsse.items(dsse.member(source, "certChain"), "certificates", limits.MAX_CERTIFICATES)
    ]
    if not certificates:
        dsse.bad("an authority has no certificate")
    return Authority(roots=(certificates[-1],), intermediates=tuple(certificates[:-1]), span=_span(source))


def parse(data: bytes) -> TrustedRoot:
    """Parse a trusted_root.json; raises ValueError saying what is wrong with it."""
    publickey.need_cryptography()
    try:
        document = parse_object(data, what="it", limit=limits.MAX_TRUSTED_ROOT_BYTES)
        if (kind := dsse.text(document, "mediaType")) not in _MEDIA_TYPES:
            dsse.bad(f"its mediaType is {kind[:80]!r}")
        count = limits.MAX_TRUSTED_ROOT_ITEMS
        return TrustedRoot(
            logs=tuple(map(_log, dsse.items(document, "tlogs", count))),
            certificate_logs=tuple(map(_log, dsse.items(document, "ctlogs", count))),
            authorities=tuple(map(_authority, dsse.items(document, "certificateAuthorities", count))),
        )
    except ImageError as error:
        raise ValueError(error.message) from error
    except SignatureFaultError as error:
        raise ValueError(error.reason.replace("it is malformed: ", "")) from error
