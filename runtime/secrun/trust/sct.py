"""Signed certificate timestamps: that a signer's certificate was promised to a public log (RFC 6962)."""

import datetime as dt
from typing import TYPE_CHECKING

from secrun.trust import publickey
from secrun.trust.faults import SignatureFaultError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from cryptography.x509.certificate_transparency import SignedCertificateTimestamp

    from secrun.trust.trustedroot import TrustedRoot

# RFC 6962, 3.2: version 1, signature type certificate_timestamp, entry type precert_entry.
_HEAD = b"\x00\x00"
_PRECERT = b"\x00\x01"


def check(leaf: "Certificate", issuer: "Certificate", root: "TrustedRoot") -> None:
    """Raise SignatureFaultError unless one log of the trusted root promised to list `leaf`."""
    from cryptography import x509

    try:
        promises = leaf.extensions.get_extension_for_class(
            x509.PrecertificateSignedCertificateTimestamps
        ).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise SignatureFaultError("its certificate has no promise of a public log") from error
    why = "its certificate has no promise of a public log"
    for promise in promises:
        try:
            _check_one(promise, leaf, issuer, root)
        except SignatureFaultError as error:
            why = error.reason
            continue
        return
    raise SignatureFaultError(why)


def _check_one(
    promise: "SignedCertificateTimestamp",
    leaf: "Certificate",
    issuer: "Certificate",
    root: "TrustedRoot",
) -> None:
    import hashlib

    milliseconds = _milliseconds(promise.timestamp)
    log = root.certificate_log(promise.log_id, milliseconds / 1000)
    tbs = leaf.tbs_precertificate_bytes
    extensions = promise.extension_bytes
    issuer_key = hashlib.sha256(publickey.der(publickey.checked(issuer.public_key()))).digest()
    signed = b"".join(
        (
            _HEAD,
            milliseconds.to_bytes(8, "big"),
            _PRECERT,
            issuer_key,
            len(tbs).to_bytes(3, "big"),
            tbs,
            len(extensions).to_bytes(2, "big"),
            extensions,
        )
    )
    publickey.verify(log.key, promise.signature, signed)


def _milliseconds(moment: dt.datetime) -> int:
    """Return milliseconds since 1970 of a time in UTC; a float would lose some."""
    since = moment.replace(tzinfo=None) - dt.datetime(1970, 1, 1)  # noqa: DTZ001 - both are UTC without saying it
    return since // dt.timedelta(milliseconds=1)
