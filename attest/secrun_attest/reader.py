"""Big-endian fields out of TPM structures that somebody else wrote, each bounded and accounted for.

Loaded on the start path of a pod: it imports next to nothing.
"""

from secrun_attest.errors import FormatError

# A TPM2B has a 16-bit size, but none of the structures here comes near it: the largest is an RSA-4096 key.
MAX_STRUCTURE = 2048
# Implementations have at most 16 banks, and a selection names each once.
MAX_SELECTIONS = 16
# 24 PCRs are 3 bytes; the PC client profile requires exactly that, some parts answer with 4.
MAX_SELECT_SIZE = 4


class WireError(FormatError):
    """The bytes are not the structure they should be; the text says which field."""

    code = "tpm-structure"


class Reader:
    """Takes fields off the front of `data`; each method raises WireError naming `what` and the field."""

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) > MAX_STRUCTURE:
            raise WireError(f"{what} has {len(data)} bytes, the limit is {MAX_STRUCTURE}")
        self.data = data
        self.what = what
        self.at = 0

    def take(self, size: int, field: str) -> bytes:
        """Take `size` bytes."""
        end = self.at + size
        if end > len(self.data):
            have = len(self.data) - self.at
            raise WireError(f"{self.what}: {field} needs {size} bytes at offset {self.at}, there are {have}")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, size: int, field: str) -> int:
        """Take an unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size, field), "big")

    def flag(self, field: str) -> bool:
        """Take a TPMI_YES_NO."""
        if (value := self.number(1, field)) > 1:
            raise WireError(f"{self.what}: {field} is {value}, expected 0 or 1")
        return value == 1

    def sized(self, field: str) -> bytes:
        """Take a TPM2B: a 16-bit size and as many bytes."""
        return self.take(self.number(2, f"size of {field}"), field)

    def rest(self) -> bytes:
        """Take all that is left."""
        return self.take(len(self.data) - self.at, "rest")

    def end(self) -> None:
        """Expect that nothing is left."""
        if self.at != len(self.data):
            raise WireError(f"{self.what}: {len(self.data) - self.at} bytes follow its end")

    def selections(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Take a TPML_PCR_SELECTION: per bank its TPM_ALG_ID and the numbers of the PCRs, ascending."""
        count = self.number(4, "selection count")
        if count > MAX_SELECTIONS:
            raise WireError(f"{self.what} selects {count} banks, the limit is {MAX_SELECTIONS}")
        return tuple(self._selection() for _ in range(count))

    def _selection(self) -> tuple[int, tuple[int, ...]]:
        alg = self.number(2, "bank")
        size = self.number(1, "sizeofSelect")
        if size > MAX_SELECT_SIZE:
            raise WireError(f"{self.what}: sizeofSelect is {size}, the limit is {MAX_SELECT_SIZE}")
        bits = int.from_bytes(self.take(size, "pcrSelect"), "little")
        return alg, tuple(index for index in range(8 * size) if bits >> index & 1)
