"""The one launcher of external commands; nothing else imports subprocess."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from secrun.errors import ExternalError, HostError
from secrun.record import record

# A fixed environment: what a child sees must not depend on who called secrun.
BASE_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
}

# Error texts quote at most this much of a command's own words.
_QUOTED_OUTPUT = 2000


@record
class Completed:
    """What a finished command left behind."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes


def exchange(
    argv: Sequence[str], *, stdin: bytes, environment: Mapping[str, str], timeout: float, limit: int
) -> Completed:
    """Run a program of others: exactly `environment`, a time limit, at most `limit` bytes of stdout.

    Its stderr is kept up to `limit` too, and the rest dropped. `timeout` is in seconds; whoever exceeds it,
    or writes more, is killed with its whole process group. Raises HostError if the program cannot be
    executed, ExternalError for a limit. Costs a tenth of `run`, which loads subprocess.
    """
    from secrun.exchange import Exchange

    with Exchange(tuple(argv), environment) as running:
        return running.finish(stdin, timeout, limit)


def describe_status(returncode: int) -> str:
    """Say in words how a process ended; negative means a signal, as in subprocess."""
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


def load() -> None:
    """Import what starting a program takes, for a process that will not find modules any more."""
    import subprocess  # noqa: F401


def leave_running(
    argv: Sequence[str | os.PathLike[str]],
    *,
    pass_fds: Sequence[int] = (),
    output: int,
    user: int | None = None,
) -> int:
    """Start a command that outlives this process, in a session of its own; return its PID.

    It prints to `output`. `user` is as for `run`. Raises HostError if the program is missing.
    """
    import subprocess

    words = tuple(os.fspath(word) for word in argv)
    try:
        process = subprocess.Popen(  # noqa: S603 - the one door; callers pass lists, never a shell line
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(BASE_ENVIRONMENT),
            pass_fds=pass_fds,
            user=user,
            group=user,
            extra_groups=None if user is None else (),
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise HostError(
            f"{words[0]} is not installed", hint="run secrun doctor", code="host-program"
        ) from error
    return process.pid


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
    user: int | None = None,
    check: bool = True,
    timeout: float | None = None,
) -> Completed:
    """Run a command to its end and capture its output.

    `environment` is added to BASE_ENVIRONMENT; `timeout` is in seconds; `user` is a uid, and the gid of the
    same number, without any other group. Raises HostError if the program is missing, ExternalError if it
    fails (unless `check` is off) or outlives `timeout`.
    """
    import subprocess

    words = tuple(os.fspath(word) for word in argv)
    try:
        done = subprocess.run(  # noqa: S603 - the one door; callers pass lists, never a shell line
            words,
            input=stdin,
            capture_output=True,
            env={**BASE_ENVIRONMENT, **(environment or {})},
            pass_fds=pass_fds,
            cwd=cwd,
            user=user,
            group=user,
            extra_groups=None if user is None else (),
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise HostError(
            f"{words[0]} is not installed", hint="run secrun doctor", code="host-program"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ExternalError(f"{words[0]} did not end within {timeout} s") from error
    result = Completed(argv=words, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)
    if check and result.returncode != 0:
        said = result.stderr.decode("utf-8", "replace").strip()[-_QUOTED_OUTPUT:]
        raise ExternalError(f"{words[0]}: {describe_status(result.returncode)}: {said}")
    return result
