"""What the verifier itself knows before evidence comes: whom it asked, with which nonce, and until when."""

from dataclasses import dataclass

from secrun_attest.wire import Hierarchy


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """A host whose attestation key the verifier has accepted.

    `parent` is the qualified name of the key's parent, or None for a primary key of `hierarchy`. `software`
    says that the endorsement is a software TPM's, or that there was none.
    """

    host: str
    ak_name: bytes
    hierarchy: Hierarchy = Hierarchy.ENDORSEMENT
    parent: bytes | None = None
    software: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One challenge; times are seconds since 1970.

    The caller consumes it atomically before appraising: `used` is what the consuming update found, so that
    of two concurrent answers one sees True. `state_digest` is that of the state when the session began.
    """

    nonce: bytes
    issued: int
    expires: int
    audience: str
    enrolment: Enrolment | None
    used: bool = False
    state_digest: bytes | None = None
