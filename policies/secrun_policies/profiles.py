"""Where seccomp profiles are read from: the only file access of this package."""

from functools import lru_cache
from pathlib import Path

from secrun_policies.errors import PolicyError
from secrun_policies.jsonvalue import MAX_PROFILE_BYTES
from secrun_policies.seccomp import DEFAULT_PROFILE, SeccompProfile, parse_profile


def default_profile_path() -> Path:
    """Return the shipped profile: beside the package in a source tree, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    inside = here / "data" / "seccomp" / "default.json"
    return inside if inside.exists() else here.parent / "seccomp" / "default.json"


def load_profile(path: Path, *, name: str = "") -> SeccompProfile:
    """Read a profile from `path`; raises PolicyError if it is missing or not understood."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise PolicyError(
            f"cannot read the seccomp profile {path}: {error.strerror}", code="policy-seccomp"
        ) from error
    return parse_profile(data, name=name or str(path.absolute()))


@lru_cache(maxsize=1)
def default_profile() -> SeccompProfile:
    """Return the shipped default profile, read once per process."""
    return load_profile(default_profile_path(), name=DEFAULT_PROFILE)
