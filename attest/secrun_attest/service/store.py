"""What the service keeps: hosts and their verifier state, enrolments, sessions, policies, signing keys."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from secrun_attest.service.database import Database, DuplicateError, Row, damaged
from secrun_attest.verify import Enrolment
from secrun_attest.wire import Hierarchy

# Changes with the tables below: another version's database is refused, not guessed at.
SCHEMA_VERSION = "1"

TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS hosts (
  id TEXT PRIMARY KEY, ek_name BLOB NOT NULL UNIQUE, ak_name BLOB NOT NULL, ak_parent BLOB,
  hierarchy BIGINT NOT NULL, software BIGINT NOT NULL, token_hash BLOB NOT NULL UNIQUE,
  enrolled BIGINT NOT NULL, state BLOB, state_digest BLOB,
  seen BIGINT, verdict TEXT NOT NULL, summary BLOB, pods BLOB, failure BLOB);
CREATE TABLE IF NOT EXISTS enrolments (id TEXT PRIMARY KEY, expires BIGINT NOT NULL, pending BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (
  id TEXT PRIMARY KEY, host TEXT NOT NULL, nonce BLOB NOT NULL,
  issued BIGINT NOT NULL, expires BIGINT NOT NULL, audience TEXT NOT NULL,
  state_digest BLOB, consumed BIGINT, outcome TEXT, answer BLOB);
CREATE INDEX IF NOT EXISTS sessions_expire ON sessions (expires);
CREATE TABLE IF NOT EXISTS documents (
  kind TEXT NOT NULL, id TEXT NOT NULL, version BIGINT NOT NULL, digest BLOB NOT NULL, data BLOB NOT NULL,
  PRIMARY KEY (kind, id));
CREATE TABLE IF NOT EXISTS keys (
  id TEXT PRIMARY KEY, public BLOB NOT NULL, private BLOB,
  created BIGINT NOT NULL, good_until BIGINT NOT NULL)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHost:
    """A host that has proved its keys."""

    enrolment: Enrolment
    ek_name: bytes
    token_hash: bytes
    now: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """An enrolled host without what may be large; `summary` and `failure` are JSON that was made here."""

    enrolment: Enrolment
    enrolled: int
    state_digest: bytes | None
    seen: int | None
    verdict: str
    summary: bytes | None
    failure: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSession:
    """A challenge; `outcome` is `complete` or `failed` when there is an `answer`."""

    id: str
    host: str
    nonce: bytes
    issued: int
    expires: int
    audience: str
    state_digest: bytes | None
    consumed: int | None = None
    outcome: str = ""
    answer: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What one appraisal leaves: state and pages about it, to be written if nobody else wrote meanwhile."""

    host: str
    ak_name: bytes
    old_digest: bytes | None
    state: bytes
    state_digest: bytes
    verdict: str
    summary: bytes
    pods: bytes
    now: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A signing key; `private` is None if it is kept in a file."""

    id: str
    public: bytes
    private: bytes | None
    created: int


_HOST = (
    "id, ak_name, ak_parent, hierarchy, software, enrolled, state_digest, seen, verdict, summary, failure"
)
_SESSION = "id, host, nonce, issued, expires, audience, state_digest, consumed, outcome, answer"


class Store:
    """All SQL of the service; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def open(self, boot_id: str) -> None:
        """Make the tables; raises ServiceError if they are of another version.

        A local database may have lost its last commits when the machine crashed, the use of a nonce among
        them: sessions of another boot are dropped.
        """
        with self.database.exclusive():
            self.database.script(TABLES)
            if (version := self._meta("schema", SCHEMA_VERSION)) != SCHEMA_VERSION:
                raise damaged(f"its tables are of version {version}, expected {SCHEMA_VERSION}")
            if not self.database.remote and self._meta("boot", boot_id) != boot_id:
                self.database.run("DELETE FROM sessions")
                self.database.run("DELETE FROM enrolments")
                self.database.run("UPDATE meta SET value = ? WHERE name = 'boot'", boot_id)

    def _meta(self, name: str, default: str) -> str:
        sql = "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
        self.database.run(sql, name, default)
        return self.database.run("SELECT value FROM meta WHERE name = ?", name)[0].text(0)

    def exclusive(self) -> AbstractContextManager[None]:
        """Begin a transaction that runs alone among all instances."""
        return self.database.exclusive()

    def ping(self) -> None:
        """Raise ServiceError if the database does not answer."""
        self.database.run("SELECT 1")

    # Enrolments

    def add_pending(self, identifier: str, pending: bytes, expires: int) -> None:
        """Keep an enrolment until its proof comes."""
        self.database.run("INSERT INTO enrolments VALUES (?, ?, ?)", identifier, expires, pending)

    def take_pending(self, identifier: str) -> tuple[bytes, int] | None:
        """Return what was kept and when it expires, once: there is one attempt at a proof."""
        rows = self.database.run(
            "DELETE FROM enrolments WHERE id = ? RETURNING pending, expires", identifier
        )
        return (rows[0].blob(0), rows[0].integer(1)) if rows else None

    def owners(self, host: str, ek_name: bytes) -> list[tuple[str, bytes]]:
        """Return (host id, EK Name) of the enrolled hosts that have this id or this EK."""
        rows = self.database.run("SELECT id, ek_name FROM hosts WHERE id = ? OR ek_name = ?", host, ek_name)
        return [(row.text(0), row.blob(1)) for row in rows]

    def enrol(self, new: NewHost) -> bool:
        """Enrol a host, or renew it under the same EK; False if id and EK belong to others.

        With another AK the verifier's state starts anew: the log was measured with the old one's Name.
        """
        enrolment = new.enrolment
        sql = """
            INSERT INTO hosts
              (id, ek_name, ak_name, ak_parent, hierarchy, software, token_hash, enrolled, verdict)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'none')
            ON CONFLICT (id) DO UPDATE SET
              state = CASE WHEN hosts.ak_name = excluded.ak_name THEN hosts.state END,
              state_digest = CASE WHEN hosts.ak_name = excluded.ak_name THEN hosts.state_digest END,
              ak_name = excluded.ak_name, ak_parent = excluded.ak_parent, hierarchy = excluded.hierarchy,
              software = excluded.software, token_hash = excluded.token_hash, enrolled = excluded.enrolled
            WHERE hosts.ek_name = excluded.ek_name RETURNING id"""
        try:
            return bool(
                self.database.run(
                    sql,
                    enrolment.host,
                    new.ek_name,
                    enrolment.ak_name,
                    enrolment.parent,
                    int(enrolment.hierarchy),
                    int(enrolment.software),
                    new.token_hash,
                    new.now,
                )
            )
        except DuplicateError:  # the EK is another host's
            return False

    # Hosts

    def host(self, identifier: str) -> Host | None:
        """Return an enrolled host."""
        rows = self.database.run(f"SELECT {_HOST} FROM hosts WHERE id = ?", identifier)  # noqa: S608 - our own words
        return _host(rows[0]) if rows else None

    def hosts(self, after: str, limit: int) -> list[Host]:
        """Return up to `limit` hosts behind `after` in the order of their ids."""
        sql = f"SELECT {_HOST} FROM hosts WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 - our own words
        return [_host(row) for row in self.database.run(sql, after, limit)]

    def host_of_token(self, token_hash: bytes) -> str | None:
        """Return whose token has this hash."""
        rows = self.database.run("SELECT id FROM hosts WHERE token_hash = ?", token_hash)
        return rows[0].text(0) if rows else None

    def verdicts(self) -> list[tuple[str, int]]:
        """Return how many hosts have which verdict."""
        rows = self.database.run("SELECT verdict, count(*) FROM hosts GROUP BY verdict ORDER BY verdict")
        return [(row.text(0), row.integer(1)) for row in rows]

    def forget(self, identifier: str) -> bool:
        """Delete a host and its sessions; False if there is none."""
        with self.database.transaction():
            self.database.run("DELETE FROM sessions WHERE host = ?", identifier)
            return bool(self.database.run("DELETE FROM hosts WHERE id = ? RETURNING id", identifier))

    def state(self, identifier: str) -> bytes | None:
        """Return the verifier's state about a host."""
        rows = self.database.run("SELECT state FROM hosts WHERE id = ?", identifier)
        return rows[0].blob_or_none(0) if rows else None

    def pods(self, identifier: str) -> bytes | None:
        """Return the pods of a host as JSON, as the last appraisal left them."""
        rows = self.database.run("SELECT pods FROM hosts WHERE id = ?", identifier)
        return rows[0].blob_or_none(0) if rows else None

    # Sessions

    def add_session(self, new: StoredSession) -> None:
        """Keep a challenge."""
        self.database.run(
            "INSERT INTO sessions (id, host, nonce, issued, expires, audience, state_digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            new.id,
            new.host,
            new.nonce,
            new.issued,
            new.expires,
            new.audience,
            new.state_digest,
        )

    def session(self, identifier: str) -> StoredSession | None:
        """Return a challenge."""
        rows = self.database.run(f"SELECT {_SESSION} FROM sessions WHERE id = ?", identifier)  # noqa: S608 - our own words
        return _session(rows[0]) if rows else None

    def consume(self, identifier: str, host: str, now: int) -> StoredSession | None:
        """Use up a challenge of `host` in one atomic update; None if there is none or it is used up."""
        sql = f"""UPDATE sessions SET consumed = ? WHERE id = ? AND host = ? AND consumed IS NULL
                  RETURNING {_SESSION}"""  # noqa: S608 - our own words
        rows = self.database.run(sql, now, identifier, host)
        return _session(rows[0]) if rows else None

    def complete(self, session: str, passed: Passed, answer: bytes) -> bool:
        """Write what an appraisal leaves if the state is still the one it began with; False if not."""
        sql = """
            UPDATE hosts SET
              state = ?, state_digest = ?, seen = ?, verdict = ?, summary = ?, pods = ?, failure = NULL
            WHERE id = ? AND ak_name = ? AND state_digest IS NOT DISTINCT FROM ? RETURNING id"""
        with self.database.transaction():
            done = self.database.run(
                sql,
                passed.state,
                passed.state_digest,
                passed.now,
                passed.verdict,
                passed.summary,
                passed.pods,
                passed.host,
                passed.ak_name,
                passed.old_digest,
            )
            if done:
                self._finish(session, "complete", answer)
        return bool(done)

    def fail(self, session: str, answer: bytes, *, host: str, failure: bytes | None, now: int) -> None:
        """Write why evidence was rejected; `failure` is None if that says nothing about the host."""
        with self.database.transaction():
            if failure is not None:
                sql = "UPDATE hosts SET verdict = 'rejected', failure = ?, seen = ? WHERE id = ?"
                self.database.run(sql, failure, now, host)
            self._finish(session, "failed", answer)

    def _finish(self, session: str, outcome: str, answer: bytes) -> None:
        sql = "UPDATE sessions SET outcome = ?, answer = ? WHERE id = ?"
        self.database.run(sql, outcome, answer, session)

    def end(self, identifier: str) -> None:
        """Delete a challenge, answered or not."""
        self.database.run("DELETE FROM sessions WHERE id = ?", identifier)

    def purge(self, sessions_before: int, now: int) -> None:
        """Delete sessions and enrolments that expired, the sessions some time ago."""
        self.database.run("DELETE FROM sessions WHERE expires < ?", sessions_before)
        self.database.run("DELETE FROM enrolments WHERE expires < ?", now)

    # Policies and reference values

    def put_document(self, kind: str, identifier: str, version: int, digest: bytes, data: bytes) -> bool:
        """Keep a document if its version is newer, or it is the same; False if not."""
        sql = """
            INSERT INTO documents (kind, id, version, digest, data) VALUES (?, ?, ?, ?, ?)
            ON CONFLICT (kind, id) DO UPDATE SET
              version = excluded.version, digest = excluded.digest, data = excluded.data
            WHERE documents.version < excluded.version OR documents.digest = excluded.digest
            RETURNING version"""
        return bool(self.database.run(sql, kind, identifier, version, digest, data))

    def document(self, kind: str, identifier: str) -> bytes | None:
        """Return a document."""
        sql = "SELECT data FROM documents WHERE kind = ? AND id = ?"
        rows = self.database.run(sql, kind, identifier)
        return rows[0].blob(0) if rows else None

    def digests(self, *keys: tuple[str, str]) -> tuple[bytes | None, ...]:
        """Return the digests of documents named by (kind, id), None for one that is not there."""
        where = " OR ".join("(kind = ? AND id = ?)" for _ in keys)
        words = [word for key in keys for word in key]
        rows = self.database.run(f"SELECT kind, id, digest FROM documents WHERE {where}", *words)  # noqa: S608 - placeholders
        found = {(row.text(0), row.text(1)): row.blob(2) for row in rows}
        return tuple(found.get(key) for key in keys)

    # Keys

    def keys(self, now: int) -> list[StoredKey]:
        """Return the keys that tokens may still be signed with, the newest first."""
        sql = "SELECT id, public, private, created FROM keys WHERE good_until > ? ORDER BY created DESC, id"
        return [
            StoredKey(
                id=row.text(0), public=row.blob(1), private=row.blob_or_none(2), created=row.integer(3)
            )
            for row in self.database.run(sql, now)
        ]

    def put_key(self, key: StoredKey, good_until: int) -> None:
        """Keep a key, or keep it for longer."""
        sql = """INSERT INTO keys (id, public, private, created, good_until) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT (id) DO UPDATE SET good_until = excluded.good_until"""
        self.database.run(sql, key.id, key.public, key.private, key.created, good_until)

    def drop_keys(self, now: int) -> None:
        """Delete keys whose last token has expired."""
        self.database.run("DELETE FROM keys WHERE good_until <= ?", now)


def _host(row: Row) -> Host:
    return Host(
        enrolment=Enrolment(
            host=row.text(0),
            ak_name=row.blob(1),
            parent=row.blob_or_none(2),
            hierarchy=Hierarchy(row.integer(3)),
            software=row.integer(4) == 1,
        ),
        enrolled=row.integer(5),
        state_digest=row.blob_or_none(6),
        seen=row.integer_or_none(7),
        verdict=row.text(8),
        summary=row.blob_or_none(9),
        failure=row.blob_or_none(10),
    )


def _session(row: Row) -> StoredSession:
    return StoredSession(
        id=row.text(0),
        host=row.text(1),
        nonce=row.blob(2),
        issued=row.integer(3),
        expires=row.integer(4),
        audience=row.text(5),
        state_digest=row.blob_or_none(6),
        consumed=row.integer_or_none(7),
        outcome=row.text_or_none(8) or "",
        answer=row.blob_or_none(9) or b"",
    )
