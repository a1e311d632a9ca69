"""Where errors end: printed for people, turned into an exit status."""

import os
import sys
from collections.abc import Callable, Sequence

from secrun.errors import HostError, SecrunError

_SIGINT_STATUS = 130


def report(error: SecrunError) -> None:
    """Print an error for people: what, its stable code, and what to do next."""
    sys.stderr.write(f"secrun: {error.message} [{error.code}]\n")
    if error.hint:
        sys.stderr.write(f"  hint: {error.hint}\n")


def each(words: Sequence[str], action: Callable[[str], None]) -> int:
    """Do something to each word; the error of one is reported and keeps no other from its turn."""
    status = 0
    for word in words:
        try:
            action(word)
        except SecrunError as error:
            report(error)
            status = error.exit_code
    return status


def guarded(action: Callable[[], int]) -> int:
    """Run `action` and return its exit status, or that of the error it raised."""
    try:
        return action()
    except SecrunError as error:
        report(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone; a later flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "system call"
        report(HostError(f"{where}: {error.strerror}", code="host-os"))
        return HostError.exit_code
    except KeyboardInterrupt:
        return _SIGINT_STATUS
