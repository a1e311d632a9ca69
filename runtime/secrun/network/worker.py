"""Do something slow in a process beside this one, and hear how it ended.

The process shares this one's descriptors, hence its locks: a pod stays locked until both are done with it.
"""

import os
import signal
from collections.abc import Callable

from secrun.errors import NetworkError, SecrunError

_MAX_WORDS = 65536
_SEPARATOR = "\0"


class Worker:
    """One forked process; a program that has one thread may fork."""

    def __init__(self, work: Callable[[], object]) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reading)
            _do(work, writing)
        os.close(writing)
        self._reading = reading
        self._ended = False
        self._said = b""

    def wait(self) -> bytes:
        """Wait for the end; return what went wrong, in bytes that `join` understands."""
        if not self._ended:
            while chunk := os.read(self._reading, _MAX_WORDS):
                self._said += chunk
            status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._ended = True
            os.close(self._reading)
            if status and not self._said:
                self._said = (
                    f"network\0\0the process that runs the plugins ended with status {status}".encode()
                )
        return self._said

    def stop(self) -> None:
        """End the process, and with it the plugin that it runs."""
        if not self._ended:
            os.kill(self._pid, signal.SIGTERM)
            self.wait()

    def join(self) -> None:
        """Wait for the end; raises NetworkError with the words of whatever went wrong."""
        said = self.wait().decode("utf-8", "replace")
        if said:
            code, hint, message = said.split(_SEPARATOR, 2)
            raise NetworkError(message, hint=hint, code=code)


def _do(work: Callable[[], object], writing: int) -> None:
    """Work and exit: nothing of the parent's may run here, above all nothing that it would undo."""
    status = 1
    try:
        # As from a key: what is open is closed, above all the plugin's process group.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        work()
        status = 0
    except SecrunError as error:
        _say(writing, error.code, error.hint, error.message)
    except OSError as error:
        _say(writing, "network", "", f"{error.filename or 'a network'}: {error.strerror}")
    except KeyboardInterrupt:
        _say(writing, "network", "", "interrupted")
    finally:
        os._exit(status)


def _say(writing: int, *words: str) -> None:
    data = _SEPARATOR.join(words).encode("utf-8", "replace")[:_MAX_WORDS]
    try:
        os.write(writing, data)
    except BrokenPipeError:
        return  # nobody is left to hear it; gc finds the record
