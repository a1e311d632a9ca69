"""Two databases behind one small door: plain SQL with `?` in, rows out; SQLite or PostgreSQL."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from secrun_attest.service.trouble import ServiceError, Trouble

if TYPE_CHECKING:
    import psycopg

Value: TypeAlias = str | int | bytes | None

# Another process may hold SQLite's only write lock; its transactions here take well under a millisecond.
BUSY_SECONDS = 5
# A server that answers later than this is as good as gone.
CONNECT_SECONDS = 5
STATEMENT_MS = 10_000
# Any number, but the same in every instance: who makes the tables or a key does so alone.
_LOCK = 0x7365637275


class DuplicateError(Exception):
    """A row with this key is there already."""


class Row:
    """One row; each value is asked for with the type that its column has."""

    __slots__ = ("_values",)

    def __init__(self, values: Sequence[Value]) -> None:
        self._values = values

    def text(self, index: int) -> str:
        """Return a text."""
        return cast("str", self._get(index, str))

    def integer(self, index: int) -> int:
        """Return an integer."""
        return cast("int", self._get(index, int))

    def blob(self, index: int) -> bytes:
        """Return bytes."""
        return cast("bytes", self._get(index, bytes))

    def blob_or_none(self, index: int) -> bytes | None:
        """Return bytes, or None for NULL."""
        return None if self._values[index] is None else self.blob(index)

    def text_or_none(self, index: int) -> str | None:
        """Return a text, or None for NULL."""
        return None if self._values[index] is None else self.text(index)

    def integer_or_none(self, index: int) -> int | None:
        """Return an integer, or None for NULL."""
        return None if self._values[index] is None else self.integer(index)

    def _get(self, index: int, kind: type) -> Value:
        value = self._values[index]
        if not isinstance(value, kind):
            raise damaged(f"column {index} holds a {type(value).__name__}, expected {kind.__name__}")
        return value


def damaged(message: str) -> ServiceError:
    """Return the error that says the database holds what this program did not write."""
    text = f"the database holds what this version did not write: {message}"
    hint = "another version may have; if it is one host's, an admin may DELETE it, and it enrols again"
    return ServiceError(Trouble.DATABASE, text, hint=hint, retry_after=60)


class Database(Protocol):
    """A database; `remote` says that a statement waits for a network."""

    remote: bool

    def run(self, sql: str, *values: Value) -> list[Row]:
        """Run one statement; raises DuplicateError for a key that is taken, ServiceError 503 if it fails."""

    def script(self, sql: str) -> None:
        """Run statements that make tables; BLOB stands for the type that holds bytes."""

    def transaction(self) -> AbstractContextManager[None]:
        """Do all that is run inside at once or not at all; `exclusive` lets in one at a time."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Begin a transaction that no other exclusive one runs beside, in any process."""

    def close(self) -> None:
        """Close the connections of all threads."""


def open_database(where: str) -> Database:
    """Open a path (SQLite) or a postgresql:// address; raises ServiceError if it cannot."""
    if where.startswith(("postgresql://", "postgres://")):
        return PostgresDatabase(where)
    return SqliteDatabase(Path(where))


class SqliteDatabase:
    """One file, written ahead (WAL); a connection per thread."""

    remote = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        # Keys and hashes of tokens are in it: nobody else's business.
        path.touch(mode=0o600, exist_ok=True)
        self.run("PRAGMA user_version")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode=WAL")
            # Safe against a crash of this program. A crash of the machine may take back the last commits:
            # Store.open drops the sessions of an earlier boot for that reason.
            connection.execute("PRAGMA synchronous=NORMAL")
            self._local.connection = connection
            with self._lock:
                self._all.append(connection)
        return connection

    def run(self, sql: str, *values: Value) -> list[Row]:
        """Run one statement."""
        try:
            return [Row(row) for row in self._connection().execute(sql, values)]
        except sqlite3.IntegrityError as error:
            raise DuplicateError from error
        except sqlite3.Error as error:
            raise _failed(f"{self._path}: {error}") from error

    def script(self, sql: str) -> None:
        """Run statements one by one: executescript would commit what is open."""
        for statement in sql.split(";"):
            self.run(statement)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write in one go; SQLite has one writer at a time, so this is exclusive too."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.run("ROLLBACK")
            raise
        self.run("COMMIT")

    exclusive = transaction

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()
        self._local = threading.local()


class PostgresDatabase:
    """A server; a connection per thread, made anew after it failed."""

    remote = True

    def __init__(self, address: str) -> None:
        self._address = address
        self._local = threading.local()
        self._all: list[psycopg.Connection[tuple[Value, ...]]] = []
        self._lock = threading.Lock()
        self.run("SELECT 1")

    def _connection(self) -> "psycopg.Connection[tuple[Value, ...]]":
        connection: psycopg.Connection[tuple[Value, ...]] | None = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            connection = self._connect()
            self._local.connection = connection
            with self._lock:
                self._all = [item for item in self._all if not item.closed]
                self._all.append(connection)
        return connection

    def _connect(self) -> "psycopg.Connection[tuple[Value, ...]]":
        try:
            import psycopg
        except ImportError as error:
            hint = "install secrun with the extra postgresql"
            raise ServiceError(Trouble.DATABASE, f"no driver for PostgreSQL: {error}", hint=hint) from error
        try:
            return psycopg.connect(
                self._address,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                options=f"-c statement_timeout={STATEMENT_MS}",
            )
        except psycopg.Error as error:
            # The address may hold a password, psycopg's message does not.
            raise _failed(f"PostgreSQL: {error}") from error

    def run(self, sql: str, *values: Value) -> list[Row]:
        """Run one statement."""
        connection = self._connection()
        import psycopg

        try:
            cursor = connection.execute(_percent(sql).encode(), values)
            return [Row(row) for row in cursor] if cursor.description else []
        except psycopg.errors.UniqueViolation as error:
            raise DuplicateError from error
        except psycopg.Error as error:
            raise _failed(f"PostgreSQL: {error}") from error

    def script(self, sql: str) -> None:
        """Run statements that make tables."""
        for statement in filter(str.strip, sql.replace("BLOB", "BYTEA").split(";")):
            self.run(statement)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all at once or nothing."""
        import psycopg

        try:
            with self._connection().transaction():
                yield
        except psycopg.Error as error:  # of COMMIT itself
            raise _failed(f"PostgreSQL: {error}") from error

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Begin a transaction under a lock of the whole database that its end releases."""
        with self.transaction():
            self.run("SELECT pg_advisory_xact_lock(?)", _LOCK)
            yield

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()


@lru_cache(maxsize=256)
def _percent(sql: str) -> str:
    """Return `sql` with psycopg's placeholders; none of our statements has another ? or %."""
    return sql.replace("?", "%s")


def _failed(message: str) -> ServiceError:
    return ServiceError(Trouble.DATABASE, message[:400], hint="see the database's own log", retry_after=1)
