"""Where seccomp profiles are read from, and what the words for them mean."""

from functools import lru_cache
from pathlib import Path

from secrun_policies.errors import PolicyError
from secrun_policies.jsonvalue import MAX_PROFILE_BYTES
from secrun_policies.seccomp import DEFAULT_PROFILE, STRICT_PROFILE, SeccompProfile, parse_profile

UNCONFINED = "unconfined"


def shipped_path(name: str) -> Path:
    """Return a shipped profile: beside the package in a source tree, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    inside = here / "data" / "seccomp" / f"{name}.json"
    return inside if inside.exists() else here.parent / "seccomp" / f"{name}.json"


def default_profile_path() -> Path:
    """Return the shipped default profile's file."""
    return shipped_path(DEFAULT_PROFILE)


def selinux_module_path() -> Path:
    """Return the shipped SELinux module, from where the profiles are."""
    return default_profile_path().parent.parent / "selinux" / "secrun.cil"


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


@lru_cache(maxsize=8)
def choose(word: str) -> SeccompProfile | None:
    """Return the profile that a request means, None for no filter; raises PolicyError.

    `word` is `default`, `strict`, `unconfined`, the path of a file (with a slash), or rkt's `mode=...`. What
    did not come with secrun is checked against the installed libseccomp before anything starts.
    """
    if word in ("", DEFAULT_PROFILE):
        return default_profile()
    if word == STRICT_PROFILE:
        return load_profile(shipped_path(STRICT_PROFILE), name=STRICT_PROFILE)
    if word == UNCONFINED:
        return None
    from secrun_policies import isolator, libseccomp

    if word.startswith(isolator.MARK):
        profile = isolator.parse(word, default_profile(), libseccomp.knows)
    elif "/" in word:
        profile = load_profile(Path(word))
    else:
        raise PolicyError(
            f"seccomp={word[:80]} is not known",
            hint=f"{DEFAULT_PROFILE}, {STRICT_PROFILE}, {UNCONFINED}, or a file as ./NAME or /PATH",
            code="policy-seccomp",
        )
    if profile is not None:
        libseccomp.validate_with_libseccomp(profile)
    return profile
