"""The files of the event log: one lock; per boot epoch one log, its head, and a mark if it is broken."""

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secrun_attest import celjson, head
from secrun_attest.checkpoint import reached
from secrun_attest.errors import FormatError, LogError
from secrun_attest.history import History
from secrun_attest.limits import MAX_HEAD, MAX_LOG
from secrun_attest.record import Record

LOCK_NAME = "lock"
LOG_SUFFIX = ".cel"
MARK_SUFFIX = ".broken"
HEAD_SUFFIX = ".head"

_NAME = r"(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})\.cel\Z"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1024 * 1024


def log_path(directory: Path, reset: int, restart: int) -> Path:
    """Return where the log of a boot epoch is."""
    return directory / f"{reset}-{restart}{LOG_SUFFIX}"


def earlier_log(directory: Path, reset: int, restart: int) -> Path | None:
    """Return the last log of the same reset with a lower restart count; None if there is none."""
    names = [re.match(_NAME, name) for name in os.listdir(directory)] if directory.exists() else []
    found = [int(match[2]) for match in names if match and int(match[1]) == reset]
    earlier = [number for number in found if number < restart]
    return log_path(directory, reset, max(earlier)) if earlier else None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, the directory made if absent. The lock file stays for ever.

    It is a file of its own, so that reading a log never waits for a TPM and no lock hangs on a deleted log.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = _open(directory / LOCK_NAME, _FLAGS | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def write_mark(log: Path, text: bytes) -> None:
    """Mark the epoch of `log` as broken; the first mark stays."""
    try:
        fd = os.open(log.with_suffix(MARK_SUFFIX), _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    try:
        _write_all(fd, text)
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(log.parent)


def is_marked(log: Path) -> bool:
    """Tell whether the epoch of `log` is marked as broken; an empty mark counts too."""
    return os.path.lexists(log.with_suffix(MARK_SUFFIX))


def sync_directory(directory: Path) -> None:
    """Wait until the names in `directory` are on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_head(log: Path) -> head.Head | None:
    """Return the head of `log`; None if there is none that can be believed."""
    try:
        fd = _open(log.with_suffix(HEAD_SUFFIX), _FLAGS)
    except LogError:
        return None
    try:
        return head.parse(os.read(fd, MAX_HEAD + 1))
    except (FormatError, OSError):
        return None
    finally:
        os.close(fd)


def write_head(log: Path, found: head.Head) -> None:
    """Put the head of `log` in the place of the one before it, at once.

    It is not waited for: after a loss of power the TPM has begun a new epoch. That it cannot be written is
    no error: the record before it is measured, and an older head serves as well, only slower.
    """
    path, new = log.with_suffix(HEAD_SUFFIX), log.with_suffix(f"{HEAD_SUFFIX}.new")
    with suppress(OSError):
        with suppress(FileNotFoundError):
            os.unlink(new)  # a writer died here
        fd = os.open(new, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write_all(fd, head.encode(found))
        finally:
            os.close(fd)
        reached("head written")
        os.rename(new, path)


class LogFile:
    """The open log of an epoch and what it tells.

    `size` is the end of the last record in `history` and `last` its beginning. `kept` holds the records if
    somebody asks for all of them; `fingerprint` is the head's, `resumed` whether reading began there.
    """

    __slots__ = ("fd", "fingerprint", "history", "kept", "last", "path", "pcr", "resumed", "size")

    def __init__(self, path: Path, fd: int, pcr: int) -> None:
        self.path = path
        self.fd = fd
        self.pcr = pcr
        self.size = self.last = 0
        self.history: History | None = None
        self.kept: list[Record] | None = None
        self.fingerprint = ""
        self.resumed = False

    def resume(self) -> bool:
        """Begin at the log's head instead of its beginning; tell whether there is one that fits.

        What the TPM holds must then say whether it was right: `load` what follows, and compare.
        """
        found = read_head(self.path)
        if found is None or not found.fits(os.fstat(self.fd)):
            return False
        try:
            self.history = found.history(os.pread(self.fd, found.size - found.last, found.last), self.pcr)
        except FormatError:
            return False
        self.size, self.last, self.fingerprint = found.size, found.last, found.fingerprint
        self.resumed = True
        return True

    def save_head(self) -> None:
        """Write the head, if there is a record."""
        if self.history is not None:
            place = {"size": self.size, "last": self.last}
            made = head.make_head(self.history, os.fstat(self.fd), **place, fingerprint=self.fingerprint)
            write_head(self.path, made)

    def load(self) -> None:
        """Read the whole records beyond `size`; raises LogError if they cannot follow."""
        data = self._read()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            for record in celjson.parse_lines(whole):
                self._add(record)
        except FormatError as error:
            raise LogError(
                f"{self.path} is damaged: {error.message}",
                hint="what ran since this boot cannot be proved; keep the file and reboot the host",
                code="log-damaged",
            ) from error
        if whole:
            self.last = self.size + whole.rfind(b"\n", 0, -1) + 1
        self.size += len(whole)

    def _add(self, record: Record) -> None:
        if self.kept is not None:
            self.kept.append(record)
        if self.history is None:
            self.history = History(self.pcr, record)
        else:
            self.history.take(record)

    def _read(self) -> bytes:
        end = os.fstat(self.fd).st_size
        if end > MAX_LOG:
            raise LogError(f"{self.path} has {end} bytes, the limit is {MAX_LOG}", code="log-size")
        parts: list[bytes] = []
        at = self.size
        while part := os.pread(self.fd, min(_CHUNK, max(MAX_LOG - at, 0)), at):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def forget(self) -> None:
        """Begin anew, as if nothing had been read."""
        self.size = self.last = 0
        self.history = None
        self.fingerprint = ""
        self.resumed = False

    def cut(self) -> None:
        """Drop what stands behind the last record."""
        if os.fstat(self.fd).st_size > self.size:
            os.ftruncate(self.fd, self.size)
            os.fdatasync(self.fd)

    def put(self, record: Record) -> int:
        """Write `record` and wait until the disk has it; return its bytes.

        Raises LogError and leaves the file as it was. The record is not in `history` before `accept`.
        """
        line = celjson.line(record)
        try:
            # The end of the line is what makes the record whole.
            _write_all(self.fd, line[:-1])
            reached("torn")
            _write_all(self.fd, line[-1:])
            os.fdatasync(self.fd)
            if record.recnum == 0:
                sync_directory(self.path.parent)
        except OSError as error:
            self.cut()
            raise LogError(
                f"cannot write {self.path}: {error.strerror}",
                hint="make room on its file system, then try again",
                code="log-write",
            ) from error
        return len(line)

    def accept(self, record: Record, size: int) -> None:
        """Take a record that was put and extended into the history."""
        self._add(record)
        self.last = self.size
        self.size += size


@contextmanager
def opened(path: Path, pcr: int, *, create: bool = False) -> Iterator[LogFile]:
    """Open a log; raises LogError if it is not a plain file that only its owner, this user, may touch."""
    fd = _open(path, _FLAGS | os.O_APPEND | (os.O_CREAT if create else 0))
    try:
        yield LogFile(path, fd, pcr)
    finally:
        os.close(fd)


def _open(path: Path, flags: int) -> int:
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise LogError(f"cannot open {path}: {error.strerror}", code="log-file") from error
    status = os.fstat(fd)
    plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    if not plain or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(fd)
        raise LogError(
            f"{path} is not a plain file with mode 0600 of user {os.geteuid()}",
            hint="somebody else may have written it: look at it before you repair it",
            code="log-file",
        )
    return fd


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
