"""Stop a running pod by way of its waiter."""

import os
import socket
import time

from secrun.errors import StateError
from secrun.locks import lock_fd, open_dir
from secrun.paths import Layout
from secrun.pod import timing
from secrun.pod.states import Folder, Found, State, find
from secrun.stage1.podfiles import PodFiles

_ORDERLY = b"T"
_KILL = b"K"
_POLL_SECONDS = 0.02
# After the waiter's own deadline the pod is killed and finished; more than this is a stuck kernel.
_MARGIN_SECONDS = 30.0


def _ask_waiter(files: PodFiles, word: bytes) -> bool:
    """Send one word to the waiter; False if it does not listen (yet, or any more)."""
    folder = os.open(files.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(f"/proc/self/fd/{folder}/{files.control_socket.name}")
            connection.sendall(word)
    except (FileNotFoundError, ConnectionRefusedError, BrokenPipeError):
        return False
    finally:
        os.close(folder)
    return True


def wait_unlocked(found: Found, timeout: float | None) -> bool:
    """Wait until nobody holds the pod's lock; seconds, None for ever; False if time ran out."""
    try:
        fd = open_dir(found.path)
    except FileNotFoundError:
        return True
    try:
        if timeout is None:
            return lock_fd(fd, shared=True)
        deadline = time.monotonic() + timeout
        while not lock_fd(fd, shared=True, blocking=False):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True
    finally:
        os.close(fd)


def wait_ready(layout: Layout, text: str, timeout: float | None) -> str:
    """Wait until every app of a pod has started; returns its UUID. Seconds, None for ever.

    Raises StateError if the pod ends before that, or if time runs out.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        found = find(layout, text)
        files = PodFiles(found.path)
        running, begun = found.state, _started(files)
        if begun:
            return found.uuid
        if running in (State.EXITED, State.EXITED_GARBAGE, State.ABORTED_PREPARE):
            raise StateError(
                f"pod {found.uuid} ended before every app had started",
                hint=f"secrun status {found.uuid} says why",
                code="state-not-ready",
            )
        if deadline is not None and time.monotonic() >= deadline:
            raise StateError(f"pod {found.uuid} was not ready within {timeout:g} s", code="state-timeout")
        time.sleep(_POLL_SECONDS)


def _started(files: PodFiles) -> bool:
    """Tell whether every app has begun, by the marks that the waiter leaves."""
    try:
        apps = files.read_manifest().apps
    except StateError as error:
        # It is being prepared, or moves to another folder this instant; damage is not waited for.
        if error.code != "state-no-manifest":
            raise
        return False
    seen = {mark.name for mark in timing.read(files) if mark.side == timing.HOST}
    return all(f"started:{app.name}" in seen for app in apps)


def stop(layout: Layout, text: str, *, force: bool) -> str:
    """Stop a pod and wait until it has exited; returns its UUID.

    A pod that has already exited is fine; one that never ran raises StateError.
    """
    found = find(layout, text)
    if found.folder not in (Folder.RUN, Folder.EXITED_GARBAGE):
        raise StateError(f"pod {found.uuid} is {found.state}, expected running", code="state-not-running")
    files = PodFiles(found.path)
    timeout = _MARGIN_SECONDS
    if found.state is State.RUNNING:
        manifest = files.read_manifest()
        timeout += max(app.stop_timeout_seconds for app in manifest.apps)
        deadline = time.monotonic() + timeout
        # A pod that is just being started listens a little later.
        while not _ask_waiter(files, _KILL if force else _ORDERLY):
            if not found.locked or time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
    if not wait_unlocked(found, timeout):
        raise StateError(f"pod {found.uuid} still runs after {timeout:.0f} s", hint="secrun stop --force")
    return found.uuid
