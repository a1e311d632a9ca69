"""Content digests as a type, never as bare strings."""

import re
from typing import Self

from secrun.errors import ImageError
from secrun.record import ordered

# OCI image-spec 1.1, descriptor.md: secrun accepts sha256 and sha512, the two registered algorithms.
_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")


@ordered
class Digest:
    """An OCI content digest such as `sha256:<64 lower-case hex digits>`."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `algorithm:hex`; raises ImageError for unknown algorithms and malformed hex."""
        algorithm, _, hexdigits = text.partition(":")
        if len(hexdigits) != _HEX_LENGTH.get(algorithm, -1) or not _HEX.match(hexdigits):
            raise ImageError(
                f"malformed digest {text[:160]!r}",
                hint="expected sha256:<64 hex digits> or sha512:<128 hex digits>",
                code="image-digest-syntax",
            )
        return cls(algorithm, hexdigits)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the sha256 digest of `data`."""
        import hashlib  # 3 ms for OpenSSL: who only compares digests does without

        return cls("sha256", hashlib.sha256(data).hexdigest())

    def of_same_kind(self, data: bytes) -> Self:
        """Return the digest of `data` by this digest's algorithm."""
        import hashlib

        return type(self)(self.algorithm, hashlib.new(self.algorithm, data).hexdigest())

    def check(self, data: bytes, what: str) -> None:
        """Raise ImageError naming `what` unless `data` has this digest."""
        if (actual := self.of_same_kind(data)) != self:
            raise ImageError(f"{what} has digest {actual}, expected {self}", code="image-digest")

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
