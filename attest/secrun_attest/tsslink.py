"""The way to a TPM through tpm2-pytss: loaded late, silent, and with errors that a user understands."""

import fcntl
import importlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from secrun_attest.errors import TpmError, TpmTransportError

# Bits 16 to 23 of a TSS2 return code name the layer. Only these two say that a TPM, or the kernel's
# resource manager in front of it, has answered: any other may have failed on the way back.
_LAYER = 0x00FF0000
_ANSWERS = frozenset({0x00000000, 0x000B0000, 0x000C0000})

# Format-one codes carry the number of a handle or parameter beside the error (TPM 2.0 part 2, 6.6.2).
_FORMAT_ONE = 0x080
_FORMAT_ONE_ERROR = 0x0BF
_FORMAT_ZERO_ERROR = 0xFFF

# A TPM that failed its self-test refuses everything, but what it was doing when it failed may be half done.
FAILURE = 0x101

# What a TPM answers to everything between power-on and Startup.
_INITIALIZE = 0x100
NOT_STARTED = "tpm-not-started"

_MEANINGS = {
    0x08E: (
        "a password is wrong",
        "secrun uses the hierarchies of the TPM without a password; clear theirs",
    ),
    0x0A2: (
        "a password is wrong",
        "secrun uses the hierarchies of the TPM without a password; clear theirs",
    ),
    0x085: (
        "the hierarchy is not available",
        "enable the TPM's endorsement hierarchy in the firmware's set-up",
    ),
    0x083: (
        "an algorithm is not supported or a bank is not allocated",
        "look at `tpm2_getcap algorithms pcrs`",
    ),
    _INITIALIZE: (
        "it was not started",
        "firmware does this on a real TPM; run `tpm2_startup -c` on a software TPM",
    ),
    0x143: ("it does not know this command", "a TPM of the PC Client profile is needed"),
    0x902: ("it has no room for another object", "flush what others left: `tpm2_flushcontext -t`"),
    0x903: ("it has no room for another session", "flush what others left: `tpm2_flushcontext -l`"),
    0x908: ("it is busy", "try again"),
    0x90A: ("it is testing itself", "try again"),
    0x921: ("it is locked after wrong passwords", "wait, or run `tpm2_dictionarylockout --clear-lockout`"),
    0x922: ("it is busy", "try again"),
}

_FLUSH_CONTEXT = struct.Struct(">HIII")
_ST_NO_SESSIONS = 0x8001
_CC_FLUSH_CONTEXT = 0x165
# The first handles of transient objects and of sessions.
_LOADED = (0x80000000, 0x02000000)
_MOST_HANDLES = 254


def binding() -> ModuleType:
    """Return tpm2_pytss; raises TpmError if it is not installed. It has no types of its own."""
    # The TSS reads this from the environment and prints to stderr otherwise. Who debugs it sets it before.
    os.environ.setdefault("TSS2_LOG", "all+none")
    try:
        return importlib.import_module("tpm2_pytss")
    except ImportError as error:
        raise TpmError(
            f"the library for TPMs cannot be loaded: {error}",
            hint="install secrun with the extra [tpm], and Debian's libtss2 packages that ci/setup lists",
            code="tpm-library",
        ) from error


def meaning(code: int) -> int:
    """Return the error in a TPM's return code without the number of the handle or parameter it is about."""
    return code & (_FORMAT_ONE_ERROR if code & _FORMAT_ONE else _FORMAT_ZERO_ERROR)


def translated(what: str, code: int, text: str) -> TpmError | TpmTransportError:
    """Return the error for a TSS2 return code that `what` ended with."""
    if code & _LAYER not in _ANSWERS:
        return TpmTransportError(
            f"{what}: the way to the TPM failed: {text}",
            hint="look whether the TPM, or swtpm, is still there",
        )
    error = meaning(code)
    if error == FAILURE:
        return TpmTransportError(f"{what}: the TPM has failed its self-test", hint="reboot the host")
    said, hint = _MEANINGS.get(error, (text, ""))
    stopped = NOT_STARTED if error == _INITIALIZE else ""
    return TpmError(f"{what}: the TPM refused: {said} ({code:#x})", hint=hint, code=stopped)


class Link:
    """One open connection; `api` is tpm2_pytss.ESAPI, `lib` the module."""

    def __init__(self, tcti: str) -> None:
        self.lib = binding()
        self._socket = _socket_of(tcti)
        self._lock: int | None = None
        try:
            self.api = self.lib.ESAPI(tcti)
        except self.lib.TSS2_Exception as error:
            raise TpmTransportError(
                f"cannot reach a TPM by {tcti!r}: {error}", hint=_how_to_reach(tcti), code="tpm-open"
            ) from error

    def close(self) -> None:
        """End the connection; what it loaded should be flushed before."""
        self.api.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def reserve(self) -> None:
        """Make room for keys and sessions, to be called before any is loaded.

        A software TPM has no resource manager in front of it: its users share room for three objects and see
        each other's. They take turns by a lock beside the socket, held until `close`, and flush what one
        that was killed has left. Measuring loads nothing and never waits here.
        """
        if self._socket is None or self._lock is not None:
            return
        path = f"{self._socket}.lock"
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise TpmTransportError(
                f"cannot lock {path}: {error.strerror}",
                hint="use the software TPM as the user who runs it",
                code="tpm-open",
            ) from error
        self._flush_left_behind()

    @contextmanager
    def command(self, what: str) -> Iterator[None]:
        """Run commands; raises TpmError or TpmTransportError that begin with `what`."""
        try:
            yield
        except self.lib.TSS2_Exception as error:
            raise translated(what, int(error.rc), str(error)) from error

    def handles(self, first: int) -> tuple[int, ...]:
        """List the TPM's handles in use from `first` on, of the same type."""
        with self.command("list handles"):
            _, found = self.api.get_capability(self.lib.TPM2_CAP.HANDLES, first, _MOST_HANDLES)
        return tuple(int(handle) for handle in found.data.handles)

    def flush(self, handle: int) -> None:
        """Flush an object or session of this connection."""
        with self.command("flush"):
            self.api.flush_context(handle)

    def _flush_left_behind(self) -> None:
        """Flush all objects and sessions. ESAPI knows only its own, so the command is sent as bytes."""
        for first in _LOADED:
            for handle in self.handles(first):
                command = _FLUSH_CONTEXT.pack(
                    _ST_NO_SESSIONS, _FLUSH_CONTEXT.size, _CC_FLUSH_CONTEXT, handle
                )
                with self.command("flush what others left"):
                    self.api.tcti.transmit(command)
                    self.api.tcti.receive()


def _socket_of(tcti: str) -> str | None:
    """Return the socket's path if this is a software TPM on one."""
    name, _, where = tcti.partition(":")
    return where.removeprefix("path=") if name == "swtpm" and where.startswith("path=") else None


def _how_to_reach(tcti: str) -> str:
    name, _, where = tcti.partition(":")
    if name == "device":
        return f"check that {where or 'the device'} exists and that this user may open it"
    if name == "swtpm":
        return "check that swtpm runs and listens there, with its control socket beside it"
    return "the way is named as for tpm2-tools: device:/dev/tpmrm0, swtpm:path=SOCKET, tabrmd"
