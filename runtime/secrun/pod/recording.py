"""Record which calls a pod's apps really make: answer the kernel's questions, and remember them.

seccomp_unotify(2): the kernel stops each call that the filter would allow, asks, and goes on. What is
refused is refused by the filter itself and never asked about. If this process dies, the calls fail.
"""

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable

from secrun import selinux
from secrun.errors import HostError
from secrun.pod.states import LockedPod
from secrun.stage1 import labels
from secrun.stage1.podfiles import PodFiles

# linux/seccomp.h: struct seccomp_notif is id, pid, flags, seccomp_data (nr, arch, ip, six arguments).
_QUESTION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_RECV = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_SOCKET = "notify.sock"
# The state that the runtime sends beside the descriptor: some hundred bytes.
_MAX_STATE = 64 * 1024
_GONE = (errno.ENOENT, errno.EINTR, errno.EAGAIN)


def listen(pod: LockedPod) -> socket.socket:
    """Listen in the folder of a prepared pod; `place` brings the socket to where the runtime finds it."""
    files = PodFiles(pod.path)
    label = files.read_manifest().label
    with selinux.sockets_as("" if label is None else label.runtime):
        return files.listen(files.path / _SOCKET)


def place(files: PodFiles) -> None:
    """Move the socket into the folder that the pod sees, for the pod's root to connect to."""
    base = int(files.uid_base.read_text())
    os.chown(files.path / _SOCKET, base, base)
    (files.path / _SOCKET).rename(files.seccomp_socket)
    if context := selinux.label_of(files.host):
        # What the pod may connect to has its label, as all that it sees there.
        labels.label_one(files.seccomp_socket, context)


class Recorder:
    """Serves the runtime's connections on `listener` until a process of the caller has ended."""

    def __init__(self, listener: socket.socket, name_of: Callable[[int], str]) -> None:
        self._listener = listener
        self._name_of = name_of
        self._seen: set[int] = set()
        self._filters: set[int] = set()

    def serve(self, child: int) -> int:
        """Answer until `child` has ended; return its wait status (os.waitstatus_to_exitcode)."""
        ended = os.pidfd_open(child)
        poller = select.poll()
        for fd in (self._listener.fileno(), ended):
            poller.register(fd, select.POLLIN)
        try:
            while True:
                for fd, events in poller.poll():
                    if fd == ended:
                        return os.waitpid(child, 0)[1]
                    if fd == self._listener.fileno():
                        self._accept(poller)
                    elif events & select.POLLIN:
                        self._answer(fd)
                    else:
                        # The last process under this filter has gone.
                        poller.unregister(fd)
                        self._filters.discard(fd)
                        os.close(fd)
        finally:
            for fd in (ended, *self._filters):
                os.close(fd)

    def _accept(self, poller: select.poll) -> None:
        connection, _ = self._listener.accept()
        with connection:
            # Who connects is in the pod, and hostile: nothing is waited for long.
            connection.settimeout(5)
            _, fds, _, _ = socket.recv_fds(connection, _MAX_STATE, 1)
        for fd in fds:
            if not _is_notifier(fd):
                os.close(fd)
                continue
            self._filters.add(fd)
            poller.register(fd, select.POLLIN)

    def _answer(self, fd: int) -> None:
        question = bytearray(_QUESTION.size)
        try:
            fcntl.ioctl(fd, _RECV, question)
            identity, _, _, number, *_ = _QUESTION.unpack(question)
            self._seen.add(number)
            fcntl.ioctl(fd, _SEND, bytearray(_ANSWER.pack(identity, 0, 0, _CONTINUE)))
        except OSError as error:
            # The process was killed while it was asked about.
            if error.errno not in _GONE:
                raise

    @property
    def names(self) -> frozenset[str]:
        """The calls that were made."""
        return frozenset(self._name_of(number) for number in self._seen)

    @property
    def was_asked(self) -> bool:
        """Whether the kernel ever asked."""
        return bool(self._seen)


def _is_notifier(fd: int) -> bool:
    """Tell whether a descriptor from the pod is what it should be: it could be anything."""
    return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:seccomp notify"


def name_of(number: int) -> str:
    """Return the name of a call of this machine's own table; raises HostError if libseccomp has none."""
    from secrun_policies.libseccomp import name_of_number

    found = name_of_number(number)
    if found is None:
        raise HostError(
            f"the installed libseccomp does not know the call number {number}",
            hint="a newer one may",
            code="host-seccomp",
        )
    return found
