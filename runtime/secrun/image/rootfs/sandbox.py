"""Run a function in a forked process that has no rights left but its open descriptors.

The child never executes a program, so no path has to be readable to it; it imports what it needs, then gives
everything up. Forking copies the locks of other threads, so the caller must have none.
"""

import errno
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secrun import syscalls
from secrun.errors import HostError, ImageError, SecrunError
from secrun.image import callfilter
from secrun.image.reported import error_of, fields_of
from secrun.image.rootfs import limits
from secrun.jsonio import JsonObject, canonical, parse_object
from secrun.syscalls import Syscalls

# As root a worker gets a user id of its own, above the ranges that systemd hands out (its UIDS-GIDS page)
# and below 2**31: it owns nothing, and two workers cannot signal each other. A pid has at most 22 bits.
_FIRST_UID = 0x70000000

_NAMESPACES = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
)

_LIMITS = (
    (resource.RLIMIT_AS, limits.WORKER_ADDRESS_SPACE),
    (resource.RLIMIT_FSIZE, limits.WORKER_FILE_BYTES),
    (resource.RLIMIT_NOFILE, limits.WORKER_OPEN_FILES),
    (resource.RLIMIT_NPROC, limits.WORKER_PROCESSES),
    (resource.RLIMIT_CPU, limits.WORKER_CPU_SECONDS),
    (resource.RLIMIT_CORE, 0),
)

_CRASHED = 70
_MAX_TRACE = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Confined:
    """What runs in the child: `prepare` with the caller's rights (imports only), then `body` with none."""

    body: Callable[[], JsonObject]
    prepare: Callable[[], None]
    keep_fds: Sequence[int]
    readable: Sequence[int] = ()
    """Of these, what may be opened once more by way of /proc, or what lies below."""
    users: int | None = None
    """A user namespace to enter, with the right to read all that its users own; None: an empty one."""


def _nothing() -> None:
    pass


def give_up_rights(
    calls: Syscalls,
    program: bytes,
    *,
    opening: Callable[[], None] = _nothing,
    readable: Sequence[int] = (),
    users: int | None = None,
) -> None:
    """Leave this process with its open descriptors and nothing else; raises OSError if a step fails.

    As root: another user, no groups. Always: own user, mount, network, IPC, UTS and cgroup namespaces, no id
    mapping, no capability, no_new_privs, lowered limits, every path denied where Landlock exists, and no
    system call that `program` (callfilter) does not let through. `opening` runs as the other user, who may
    still open what root may read, and nothing more. Files at or below `readable` may be opened for reading.

    For root, `users` is a user namespace to enter instead: as somebody without a number in it, who may read
    what its users own. So owners and attributes are seen as those users see them.
    """
    if os.geteuid() == 0:
        user = _FIRST_UID + os.getpid()
        # CAP_SYS_ADMIN outlives the change of user for one call, so that hosts which keep user namespaces
        # from ordinary users (Debian's kernel.unprivileged_userns_clone) can still have this one.
        calls.keep_capabilities(on=True)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        calls.set_capabilities(1 << syscalls.CAP_SYS_ADMIN | 1 << syscalls.CAP_DAC_READ_SEARCH)
    opening()
    if users is not None:
        calls.setns(users, syscalls.CLONE_NEWUSER)
    calls.unshare(_NAMESPACES if users is None else _NAMESPACES & ~syscalls.CLONE_NEWUSER)
    calls.drop_bounding_set()
    calls.set_capabilities(0 if users is None else 1 << syscalls.CAP_DAC_READ_SEARCH)
    for kind, value in _LIMITS:
        lower_limit(kind, value)
    calls.dumpable(on=False)
    calls.no_new_privs()
    if calls.landlock_abi():
        if readable:
            calls.landlock_read_only(readable)
        else:
            calls.landlock_deny_all()
    calls.filter_calls(program)


def lower_limit(kind: int, value: int) -> None:
    """Set a resource limit to `value` unless it is lower already; never raises a limit."""
    _, hard = resource.getrlimit(kind)
    wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (wanted, wanted))


def close_others(keep: Sequence[int]) -> None:
    """Close every descriptor but `keep`, and make the standard ones lead nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    previous = 2
    for fd in sorted({*keep, os.sysconf("SC_OPEN_MAX")}):
        os.closerange(previous + 1, fd)
        previous = fd


def _answer(what: Confined, calls: Syscalls, parent: int) -> JsonObject:
    try:
        what.prepare()
        program = callfilter.program(network=False, attributes=what.users is not None)
        try:
            give_up_rights(calls, program, readable=what.readable, users=what.users)
        except OSError as error:
            raise impossible(error) from error
        # Set last: every change of credentials clears it.
        calls.parent_death_signal(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_CRASHED)
        return {"result": what.body()}
    except (SecrunError, OSError, MemoryError) as error:
        return {"error": fields_of(error)}


def impossible(error: OSError) -> HostError:
    """Return the error for a host on which a process cannot give up its rights."""
    return HostError(
        f"the sandbox for untrusted image data cannot be made: {error.strerror}",
        hint="user namespaces must be allowed: see user.max_user_namespaces and secrun doctor",
        code="host-sandbox",
    )


def _child(what: Confined, calls: Syscalls, parent: int, answer_fd: int) -> None:
    """Run in the forked process; never returns."""
    status = _CRASHED
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        close_others([*what.keep_fds, answer_fd])
        data = canonical(_answer(what, calls, parent))
        with os.fdopen(answer_fd, "wb") as stream:
            stream.write(data)
        status = 0
    finally:
        if status:
            _report_crash(answer_fd)
        os._exit(status)


def _report_crash(answer_fd: int) -> None:
    """Send the traceback of a defect as the answer; nothing else can leave this process."""
    import traceback

    text = "".join(traceback.format_exception(sys.exception()))
    answer: JsonObject = {
        "error": {"family": "crash", "code": "", "message": text[-_MAX_TRACE:], "hint": ""},
    }
    os.write(answer_fd, canonical(answer))


def _read_answer(fd: int) -> bytes:
    chunks = []
    total = 0
    while chunk := os.read(fd, 1 << 16):
        total += len(chunk)
        if total > limits.MAX_ANSWER_BYTES:
            raise ImageError(
                f"the answer of the rendering process is larger than {limits.MAX_ANSWER_BYTES} bytes",
                code="image-worker",
            )
        chunks.append(chunk)
    return b"".join(chunks)


def _end(pid: int) -> int:
    """End the child and its helpers, if they still run, and return the child's exit code."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        # Not yet the leader of a session, or gone already.
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _parse(data: bytes, exit_code: int) -> JsonObject:
    if not data:
        how = f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit status {exit_code}"
        raise ImageError(
            f"the process that renders the image was ended by {how}",
            hint="the image may be hostile (rendering may take "
            f"{limits.WORKER_CPU_SECONDS} s of processor time), or the host is short of memory",
            code="image-worker",
        )
    answer = parse_object(data, what="answer of the rendering process", limit=limits.MAX_ANSWER_BYTES)
    result = answer.get("result")
    if isinstance(result, dict):
        return result
    error = answer.get("error")
    raise error_of(error if isinstance(error, dict) else {}, "the process that renders the image")


def run_confined(what: Confined, calls: Syscalls) -> JsonObject:
    """Run `what` in a confined child and return its answer, an unchecked JSON object.

    Raises what the body raised of SecrunError and OSError, HostError if the sandbox cannot be made, and
    ImageError if the child dies (the signal is named) or answers nonsense. The child is gone afterwards.
    """
    if threading.active_count() > 1:
        raise RuntimeError("a sandbox is forked, so it cannot be started beside other threads")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(what, calls, parent, writer)
    os.close(writer)
    exit_code: int | None = None
    try:
        data = _read_answer(reader)
        exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(reader)
        if exit_code is None:
            _end(pid)
    return _parse(data, exit_code)


def is_disk_full(error: OSError) -> bool:
    """Tell whether `error` says that a file system or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
