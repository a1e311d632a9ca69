"""From an image's configuration and a request to the process that will run; pure."""

from collections.abc import Sequence

from secrun.errors import InvokeError, UsageError
from secrun.image.config import ImageConfig
from secrun.image.rootfs import Group, Passwd, RootfsImage
from secrun.pod import sockets
from secrun.pod.request import AppRequest, unicode_text
from secrun.record import record
from secrun.stage1.bundle import Process
from secrun.stage1.uidrange import SIZE as POD_IDS

# What podman and Docker give to images that say nothing.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@record
class User:
    """Who a process runs as, in numbers of the pod's user namespace."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def _number(text: str, what: str, reference: str) -> int:
    value = int(text)
    if value >= POD_IDS:
        raise UsageError(
            f"{reference}: {what} {value} is beyond the {POD_IDS} ids of a pod", code="image-user"
        )
    return value


def _unknown(what: str, name: str, reference: str) -> UsageError:
    where = "/etc/passwd" if what == "user" else "/etc/group"
    return UsageError(
        f"{reference}: {what} {name[:80]!r} is not in the image's {where}",
        hint="give a number, or a name that the image knows, with --user",
        code="image-user",
    )


def _find_user(name: str, users: Sequence[Passwd], reference: str) -> Passwd:
    for entry in users:
        if entry.name == name:
            return entry
    if name.isdecimal() and name.isascii():
        uid = _number(name, "user", reference)
        by_number = next((entry for entry in users if entry.uid == uid), None)
        return by_number or Passwd(name="", uid=uid, gid=0, home="/")
    if name == "root":
        # An image without /etc/passwd still has its root (rkt does the same).
        return Passwd(name="root", uid=0, gid=0, home="/root")
    raise _unknown("user", name, reference)


def _find_group(name: str, groups: Sequence[Group], reference: str) -> int:
    for entry in groups:
        if entry.name == name:
            return entry.gid
    if name.isdecimal() and name.isascii():
        return _number(name, "group", reference)
    if name == "root":
        return 0
    raise _unknown("group", name, reference)


def resolve_user(text: str, rootfs: RootfsImage, reference: str) -> User:
    """Resolve USER[:GROUP] (image-spec config.md, User); raises UsageError for unknown names.

    Supplementary groups apply only if no group is named, as the specification asks.
    """
    user_text, colon, group_text = text.partition(":")
    user = _find_user(user_text or "root", rootfs.users, reference)
    _number(str(user.uid), "user", reference)
    if colon and group_text:
        gid = _find_group(group_text, rootfs.groups, reference)
        groups: tuple[int, ...] = ()
    else:
        gid = user.gid
        groups = tuple(
            sorted({group.gid for group in rootfs.groups if user.name and user.name in group.members})
        )
    for number in (gid, *groups):
        _number(str(number), "group", reference)
    return User(uid=user.uid, gid=gid, groups=groups, home=user.home or "/")


def _arguments(request: AppRequest, config: ImageConfig) -> tuple[str, ...]:
    if request.entrypoint is not None:
        # A replaced entry point takes the image's default arguments away with it, as in podman.
        args = (*request.entrypoint, *request.args)
    else:
        args = (*config.entrypoint, *(request.args or config.cmd))
    if not args or not args[0]:
        raise InvokeError(
            f"{request.image} names no program to run",
            hint="give one after --, or with --entrypoint",
            code="invoke-no-command",
        )
    return tuple(unicode_text(word, "argument") for word in args)


def _environment(request: AppRequest, config: ImageConfig, hostname: str, home: str) -> dict[str, str]:
    """Merge what secrun, the image and the request say; later ones win."""
    env = {"PATH": DEFAULT_PATH, "HOME": home, "HOSTNAME": hostname, "container": "secrun"}
    if request.terminal:
        env["TERM"] = "xterm"
    for name, value in request.host_env.items():
        env.setdefault(name, value)
    for word in config.env:
        name, _, value = word.partition("=")
        env[name] = value
    for name in request.unset_env:
        env.pop(name, None)
    env.update(request.env)
    env.update(sockets.variables(request.sockets))
    return env


def resolve(request: AppRequest, config: ImageConfig, rootfs: RootfsImage, hostname: str) -> Process:
    """Decide what an app executes; raises UsageError or InvokeError."""
    asked = request.user or config.user
    if asked.startswith(":"):
        # The group alone was named: who the user is, the image says.
        asked = f"{config.user.partition(':')[0]}{asked}"
    user = resolve_user(asked, rootfs, request.image)
    added = {_find_group(name, rootfs.groups, request.image) for name in request.groups}
    env = _environment(request, config, hostname, user.home)
    cwd = request.workdir or config.working_dir or "/"
    if not cwd.startswith("/"):
        raise UsageError(f"{request.image}: working directory {cwd[:80]!r} is not an absolute path")
    return Process(
        args=_arguments(request, config),
        env=tuple(f"{name}={value}" for name, value in sorted(env.items())),
        cwd=unicode_text(cwd, "working directory"),
        uid=user.uid,
        gid=user.gid,
        groups=tuple(sorted({*user.groups, *added})),
        umask=request.umask,
        terminal=request.terminal,
        console_size=request.console_size,
    )
