"""Why evidence is refused: one stable code per check of the verifier, and what was got instead of what."""

from enum import StrEnum

from secrun_attest.errors import AttestError


class Code(StrEnum):
    """Stable codes of the checks; docs/verifier.md lists them in the order in which they are made."""

    FORMAT = "E_FORMAT"
    NONCE_UNKNOWN = "E_NONCE_UNKNOWN"
    NONCE_EXPIRED = "E_NONCE_EXPIRED"
    NONCE_USED = "E_NONCE_USED"
    AK_UNKNOWN = "E_AK_UNKNOWN"
    AK_ATTR = "E_AK_ATTR"
    SIG = "E_SIG"
    QUOTE_TYPE = "E_QUOTE_TYPE"
    QN = "E_QN"
    NONCE_BIND = "E_NONCE_BIND"
    PCRSEL = "E_PCRSEL"
    PCRDIGEST = "E_PCRDIGEST"
    EPOCH = "E_EPOCH"
    BASELINE = "E_BASELINE"
    LOG_RECNUM = "E_LOG_RECNUM"
    LOG_PCR = "E_LOG_PCR"
    LOG_BANK = "E_LOG_BANK"
    LOG_DIGEST = "E_LOG_DIGEST"
    LOG_CONTENT = "E_LOG_CONTENT"
    REPLAY = "E_REPLAY"
    SEM = "E_SEM"
    CONTENT = "E_CONTENT"
    POLICY = "E_POLICY"
    STATE = "E_STATE"


STEPS: dict[Code, int] = {
    Code.FORMAT: 1,
    Code.NONCE_UNKNOWN: 2,
    Code.NONCE_EXPIRED: 2,
    Code.NONCE_USED: 2,
    Code.AK_UNKNOWN: 3,
    Code.AK_ATTR: 4,
    Code.SIG: 5,
    Code.QUOTE_TYPE: 6,
    Code.QN: 7,
    Code.NONCE_BIND: 8,
    Code.PCRSEL: 9,
    Code.PCRDIGEST: 10,
    Code.EPOCH: 11,
    Code.BASELINE: 12,
    Code.LOG_RECNUM: 13,
    Code.LOG_PCR: 13,
    Code.LOG_BANK: 13,
    Code.LOG_DIGEST: 13,
    Code.LOG_CONTENT: 13,
    Code.REPLAY: 14,
    Code.SEM: 15,
    Code.CONTENT: 16,
    Code.POLICY: 17,
    Code.STATE: 18,
}


class RejectedError(AttestError):
    """Evidence does not prove what it claims: `reason` is the code, `step` the number of the check."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message, code=code.value)
        self.reason = code

    @property
    def step(self) -> int:
        """Number of the check that failed, 1 to 18."""
        return STEPS[self.reason]
