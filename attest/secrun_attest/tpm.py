"""What the event log needs of a TPM."""

from collections.abc import Mapping
from enum import StrEnum

from secrun_attest import frozen
from secrun_attest.record import Bank

# Importing `typing` takes 2 ms, and at run time this protocol is only a name; type checkers know this one.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object


@frozen.record
class TpmClock:
    """TPMS_TIME_INFO's counters: `clock` in milliseconds; `safe` is off after a loss of power."""

    reset: int
    restart: int
    safe: bool
    clock: int


class TpmKind(StrEnum):
    """What a host says of its TPM: a chip (or firmware of the CPU), or a program."""

    SOFTWARE = "software"
    HARDWARE = "hardware"


class Tpm(Protocol):
    """A TPM; each method raises TpmError if it certainly did nothing, TpmTransportError if nobody knows."""

    def clock(self) -> TpmClock:
        """Return the counters that name the boot epoch."""

    def read_pcr(self, pcr: int) -> Mapping[Bank, bytes]:
        """Return the PCR's value in every allocated bank; raises TpmError for a bank that Bank lacks."""

    def extend(self, pcr: int, digests: Mapping[Bank, bytes]) -> None:
        """Extend all banks in one command."""
