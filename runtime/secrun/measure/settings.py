"""Whether pods have to be measured, and by which TPM."""

from enum import StrEnum
from pathlib import Path

from secrun.record import record

AUTO = "auto"
SOFTWARE = "software"
DEVICE = Path("/dev/tpmrm0")


class Mode(StrEnum):
    """What happens to a pod that cannot be measured."""

    REQUIRED = "required"
    """It does not start."""
    PREFERRED = "preferred"
    """It starts with a warning; that it did is measured as soon as the TPM is back."""
    OFF = "off"
    """Nothing is measured now; what ran is named in the log as soon as measuring is on again."""


@record
class AttestSettings:
    """The `[attest]` part of the configuration."""

    mode: Mode = Mode.REQUIRED
    tcti: str = AUTO
    """AUTO, SOFTWARE for the root's own software TPM, or a TCTI."""
