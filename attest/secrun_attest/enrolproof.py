"""What a host proves when it enrols, computed alike by the host and by the verifier."""

import hashlib
import hmac

from secrun_attest import jcs
from secrun_attest.jcs import JsonObject

TRANSCRIPT = b"secrun-enroll-v1\0"


def transcript(members: JsonObject) -> bytes:
    """Return what the proof authenticates: all that went over the wire in both directions."""
    return TRANSCRIPT + hashlib.sha256(jcs.encode(members)).digest()


def proof_of(secret: bytes, text: bytes) -> bytes:
    """Return HMAC-SHA256 of a transcript under the activated secret."""
    return hmac.digest(secret, text, "sha256")
