"""One bounded conversation with a program: bytes in, bytes out, in time (see `launch.exchange`)."""

import os
import select
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Self

from secrun.errors import ExternalError, HostError
from secrun.launch import Completed

_CHUNK = 65536
# Python ignores these, and what is ignored stays so over execve.
_RESET = (signal.SIGPIPE, signal.SIGXFSZ)


class Exchange:
    """A program that runs in a process group of its own until this ends."""

    def __init__(self, argv: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._argv = argv
        self._environment = environment
        self._pid = 0
        self._status: int | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        ours, theirs = self._pipes()
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(theirs)]
        try:
            self._pid = os.posix_spawn(
                self._argv[0],
                self._argv,
                self._environment,
                file_actions=actions,
                setpgroup=0,
                setsigdef=_RESET,
            )
        except OSError as error:
            self._undo.close()
            raise HostError(f"{self._argv[0]}: {error.strerror}", code="host-program") from error
        finally:
            for fd in theirs:
                os.close(fd)
        self._in, self._out, self._err = ours
        return self

    def _pipes(self) -> tuple[list[int], list[int]]:
        """Return our ends and theirs of three pipes, in the order of the descriptors 0, 1, 2."""
        pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        ours = [pairs[0][1], pairs[1][0], pairs[2][0]]
        for fd in ours:
            os.set_blocking(fd, False)
            self._undo.callback(self._close, fd)
        return ours, [pairs[0][0], pairs[1][1], pairs[2][1]]

    @staticmethod
    def _close(fd: int) -> None:
        with suppress(OSError):
            os.close(fd)

    def __exit__(self, *_: object) -> None:
        """End the whole group: what a program leaves behind must not outlive what it was asked for."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        if self._status is None:
            os.waitpid(self._pid, 0)
        self._undo.close()

    def finish(self, stdin: bytes, timeout: float, limit: int) -> Completed:
        """Feed the program, collect what it says, wait for its end."""
        deadline = time.monotonic() + timeout
        out, err = self._talk(stdin, deadline, timeout, limit)
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                break
            self._left(deadline, timeout)
            time.sleep(0.001)
        self._status = status
        return Completed(
            argv=self._argv, returncode=os.waitstatus_to_exitcode(status), stdout=out, stderr=err
        )

    def _left(self, deadline: float, timeout: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ExternalError(f"{self._argv[0]} did not end within {timeout:g} s", code="external-timeout")
        return left

    def _talk(self, stdin: bytes, deadline: float, timeout: float, limit: int) -> tuple[bytes, bytes]:
        """Move bytes both ways until the program has closed its streams."""
        said = {self._out: b"", self._err: b""}
        poll = select.poll()
        for fd in said:
            poll.register(fd, select.POLLIN)
        poll.register(self._in, select.POLLOUT)
        left, reading = memoryview(stdin), len(said)
        while reading:
            for fd, _ in poll.poll(self._left(deadline, timeout) * 1000):
                if fd == self._in:
                    left = self._feed(poll, left)
                    continue
                chunk = os.read(fd, _CHUNK)
                if not chunk:
                    poll.unregister(fd)
                    reading -= 1
                said[fd] = self._keep(fd, said[fd] + chunk, limit)
        return said[self._out], said[self._err]

    def _keep(self, fd: int, data: bytes, limit: int) -> bytes:
        if len(data) > limit and fd == self._out:
            raise ExternalError(f"{self._argv[0]} wrote more than {limit} bytes", code="external-output")
        return data[:limit]

    def _feed(self, poll: "select.poll", left: memoryview) -> memoryview:
        """Write what fits; a program that reads no more has all it wants."""
        try:
            left = left[os.write(self._in, left[:_CHUNK]) :]
        except BrokenPipeError:
            left = left[len(left) :]
        if not left:
            poll.unregister(self._in)
            os.close(self._in)
        return left
