"""Errors of the attestation library: each has a stable `code`, a text and what to do next."""


class AttestError(Exception):
    """Base of every expected failure; `code` is stable and documented in docs/event-log.md."""

    code = "attest"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code:
            self.code = code


class FormatError(AttestError):
    """Bytes that claim to be an event, a record or a log are not one."""

    code = "format"


class LogError(AttestError):
    """The log on this host cannot take or give a record."""

    code = "log"


class BrokenEpochError(LogError):
    """The PCR holds what the log does not explain: nothing more can be proved until the TPM is reset."""

    code = "log-broken"


class TpmError(AttestError):
    """The TPM refused a command: it certainly did not happen."""

    code = "tpm"


class TpmTransportError(AttestError):
    """The way to the TPM failed: the command may or may not have happened."""

    code = "tpm-transport"
