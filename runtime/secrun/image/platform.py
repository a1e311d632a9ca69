"""Platforms: which member of a multi-platform image this host runs (OCI image-index, `platform`)."""

import os
import re
from collections.abc import Sequence
from typing import Self

from secrun.errors import ImageError, UsageError
from secrun.record import record

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]{0,63}\Z")
# uname -m to GOARCH and variant, as the OCI image-spec lists them.
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "riscv64": ("riscv64", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}
# The variant that an architecture has when none is named (containerd's normalisation).
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@record
class Platform:
    """Operating system, architecture and variant in the words of the OCI specification."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `os/arch[/variant]` from a command line; raises UsageError."""
        words = text.split("/")
        if len(words) not in (2, 3) or not all(_WORD.match(word) for word in words):
            raise UsageError(
                f"malformed platform {text[:80]!r}", hint="write os/arch[/variant], such as linux/arm64/v8"
            )
        architecture = _ALIASES.get(words[1], words[1])
        return cls(os=words[0], architecture=architecture, variant=words[2] if len(words) == 3 else "")

    @property
    def effective_variant(self) -> str:
        """The variant with the architecture's default filled in."""
        return self.variant or _DEFAULT_VARIANT.get(self.architecture, "")

    def __str__(self) -> str:
        return "/".join(word for word in (self.os, self.architecture, self.variant) if word)


def host_platform() -> Platform:
    """Return the platform of this host; raises UsageError if its machine has no OCI name."""
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise UsageError(f"this machine ({machine}) has no known OCI architecture", hint="give --platform")
    architecture, variant = _MACHINES[machine]
    return Platform(os="linux", architecture=architecture, variant=variant)


def _variant_rank(wanted: Platform, offered: Platform) -> int | None:
    """Rank a member of the right architecture, lower is better; None if it cannot run.

    Variants of arm and amd64 count up in features: a host of one variant runs all lower ones.
    """
    want, have = wanted.effective_variant, offered.effective_variant
    if want == have:
        return 0
    if wanted.architecture == "arm64" or not (want[1:].isdecimal() and have[1:].isdecimal()):
        return None
    distance = int(want[1:]) - int(have[1:])
    return distance if distance > 0 else None


def runs(wanted: Platform, offered: Platform) -> bool:
    """Tell whether an image for `offered` is one that was asked for as `wanted`."""
    if (wanted.os, wanted.architecture) != (offered.os, offered.architecture):
        return False
    return _variant_rank(wanted, offered) is not None


def choose(wanted: Platform, offered: Sequence[Platform | None], *, what: str) -> int:
    """Return the position of the best of `offered` for `wanted`; raises ImageError that lists them."""
    ranked: list[tuple[int, int]] = []
    for position, platform in enumerate(offered):
        if platform is None or not runs(wanted, platform):
            continue
        rank = _variant_rank(wanted, platform)
        if rank is not None:
            ranked.append((rank, position))
    if ranked:
        return min(ranked)[1]
    names = sorted({str(platform) for platform in offered if platform is not None})
    raise ImageError(
        f"{what} has nothing for {wanted}; it offers {', '.join(names[:40]) or 'no platform at all'}",
        hint="choose one of these with --platform",
        code="image-platform",
    )
