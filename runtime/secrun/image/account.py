"""The system user that fetches for root."""

from secrun.errors import HostError
from secrun.record import record

NAME = "secrun"


@record
class Account:
    """A user and its own group, both as numbers."""

    uid: int
    gid: int


def fetching() -> Account:
    """Return the user that talks to registries when root asks; raises HostError if there is none."""
    import pwd

    try:
        found = pwd.getpwnam(NAME)
    except KeyError as error:
        raise HostError(
            f"there is no user {NAME}, and root does not talk to registries itself",
            hint="systemd-sysusers with secrun's sysusers.d file, or useradd --system --user-group "
            f"--no-create-home --shell /usr/sbin/nologin {NAME}",
            code="host-user",
        ) from error
    if not found.pw_uid or not found.pw_gid:
        raise HostError(f"the user {NAME} has the ids of root", hint="correct it", code="host-user")
    return Account(uid=found.pw_uid, gid=found.pw_gid)
