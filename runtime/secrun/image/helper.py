"""A process that works for root where root must not: it talks to registries and takes archives apart.

It is forked, gives up its rights, and then answers requests on a few socket pairs, one thread for each. It
has no file to write to and no socket to pass: all that it finds out crosses as frames.
"""

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from secrun.errors import ImageError, SecrunError
from secrun.image import limits
from secrun.image.frames import MAX_RECORD_BYTES, Channel, ClosedError, Frame, Kind
from secrun.image.reported import error_of, fields_of
from secrun.image.rootfs.sandbox import close_others
from secrun.jsonio import JsonObject
from secrun.record import record
from secrun.syscalls import LinuxSyscalls, Syscalls

WHO = "the process that fetches for root"
_CRASHED = 70
_MAX_TRACE = 4000
# One for each download, one for what is asked meanwhile.
CHANNELS = limits.DOWNLOAD_THREADS + 1
Handler: TypeAlias = Callable[[JsonObject, Channel], JsonObject]


@record
class Work:
    """What a helper does: `prepare` with the caller's rights, before anything foreign is read; then `drop`.

    `handlers` makes what answers requests, by their name, without any rights.
    """

    prepare: Callable[[], None]
    drop: Callable[[Syscalls], None]
    handlers: Callable[[], Mapping[str, Handler]]
    keep_fds: tuple[int, ...] = ()


def _nothing_more(frame: Frame) -> None:
    raise ImageError(f"{WHO} sent what was not asked for: {frame.kind.name}", code="image-worker")


class Helper:
    """The caller's side; `call` may be used by as many threads as there are channels."""

    def __init__(self, pid: int, ends: Sequence[socket.socket]) -> None:
        self._pid = pid
        self._ends = tuple(ends)
        self._free = [Channel(end) for end in ends]
        self._turn = threading.Condition()

    def ready(self) -> None:
        """Wait until the helper has given up its rights; raises what it could not do."""
        self._answer(self._free[0], _nothing_more)

    def call(
        self,
        name: str,
        fields: JsonObject,
        *,
        take: Callable[[Frame], None] = _nothing_more,
        data: bytes | None = None,
        fd: int | None = None,
    ) -> JsonObject:
        """Ask for one thing; `take` is given the frames before the answer; raises what the helper reports.

        `data` or an open file go with the request.
        """
        with self._turn:
            while not self._free:
                self._turn.wait()
            channel = self._free.pop()
        try:
            channel.record({**fields, "do": name})
            if data is not None:
                channel.send(Kind.BYTES, data)
            if fd is not None:
                socket.send_fds(channel.end, [b"F"], [fd])
            return self._answer(channel, take)
        except ClosedError as error:
            raise self._ended() from error
        finally:
            with self._turn:
                self._free.append(channel)
                self._turn.notify()

    def _answer(self, channel: Channel, take: Callable[[Frame], None]) -> JsonObject:
        while True:
            try:
                frame = channel.receive(limits.MAX_FRAME_BYTES)
            except ClosedError as error:
                raise self._ended() from error
            if frame.kind is Kind.RECORD:
                return frame.fields(f"answer of {WHO}")
            if frame.kind is Kind.ERROR:
                raise error_of(frame.fields(f"error of {WHO}"), WHO)
            take(frame)

    def _ended(self) -> ImageError:
        return ImageError(
            f"{WHO} ended without an answer", hint="the source may be hostile", code="image-worker"
        )

    def kill(self) -> None:
        """End the helper: whoever waits for an answer is told at once."""
        try:
            os.kill(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """End the helper and wait for its end."""
        self.kill()
        for end in self._ends:
            end.close()
        os.waitpid(self._pid, 0)


def start(work: Work) -> Helper:
    """Fork a helper; raises HostError if it cannot give up its rights, and what its preparation raises."""
    if threading.active_count() > 1:
        raise RuntimeError("a helper is forked, so it cannot be started beside other threads")
    pairs = [socket.socketpair() for _ in range(CHANNELS)]
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(work, [theirs for _, theirs in pairs], parent)
    for _, theirs in pairs:
        theirs.close()
    helper = Helper(pid, [ours for ours, _ in pairs])
    try:
        helper.ready()
    except BaseException:
        helper.close()
        raise
    return helper


def _child(work: Work, ends: Sequence[socket.socket], parent: int) -> None:
    """Run in the forked process; never returns."""
    status = _CRASHED
    channels = [Channel(end) for end in ends]
    channel = channels[0]
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        close_others([*work.keep_fds, *(end.fileno() for end in ends)])
        try:
            handlers = _readied(work, parent)
        except (SecrunError, OSError) as error:
            channel.record(fields_of(error), Kind.ERROR)
        else:
            channel.record({})
            _serve(handlers, channels)
        status = 0
    except ClosedError:
        status = 0
    finally:
        try:
            if status:
                _report_crash(channel)
        finally:
            os._exit(status)


def _readied(work: Work, parent: int) -> Mapping[str, Handler]:
    calls = LinuxSyscalls()
    work.prepare()
    work.drop(calls)
    # Set last: every change of credentials clears it.
    calls.parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_CRASHED)
    return work.handlers()


def _serve(handlers: Mapping[str, Handler], channels: Sequence[Channel]) -> None:
    others = [threading.Thread(target=_loop, args=(handlers, item), daemon=True) for item in channels[1:]]
    for thread in others:
        thread.start()
    _loop(handlers, channels[0])


def _loop(handlers: Mapping[str, Handler], channel: Channel) -> None:
    """Answer requests until the other side is gone."""
    good = False
    try:
        while True:
            request = channel.receive(MAX_RECORD_BYTES).fields("request")
            name = request.pop("do")
            try:
                answer = handlers[str(name)](request, channel)
            except (SecrunError, OSError, MemoryError) as error:
                channel.record(fields_of(error), Kind.ERROR)
            else:
                channel.record(answer)
    except ClosedError:
        good = True
    finally:
        if not good:
            _report_crash(channel)
            channel.end.close()


def _report_crash(channel: Channel) -> None:
    """Send the traceback of a defect; nothing else can leave this process."""
    text = "".join(traceback.format_exception(sys.exception()))
    channel.record({"family": "crash", "code": "", "message": text[-_MAX_TRACE:], "hint": ""}, Kind.ERROR)
