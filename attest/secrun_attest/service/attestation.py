"""Sessions and appraisals: one nonce, one answer, one verdict, one token."""

import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from secrets import token_bytes

from secrun_attest import ear
from secrun_attest.errors import FormatError
from secrun_attest.fields import FieldError, Fields, as_hex
from secrun_attest.jcs import JsonObject, parse_object
from secrun_attest.limits import MAX_COUNT, MAX_RECORDS
from secrun_attest.policy import Policy
from secrun_attest.record import Epoch
from secrun_attest.rejection import Code, RejectedError
from secrun_attest.service.call import Call, Reply, bad_request, check_id, is_own_id, new_id, reply
from secrun_attest.service.keys import Keyring
from secrun_attest.service.metrics import Metrics
from secrun_attest.service.pages import pods_page, summary_page
from secrun_attest.service.policies import Policies
from secrun_attest.service.store import Host, Passed, Store, StoredSession
from secrun_attest.service.trouble import ServiceError, Trouble, problem, to_json
from secrun_attest.verify import Appraisal, Session, State, Verdict, appraise, load_state

# Single use and short: the time between question and quote is what "fresh" means.
SESSION_SECONDS = 60
# A session's answer can be read again for this long after it expired.
KEPT_SECONDS = 60
# Serialised; a loaded state takes some ten times that.
STATE_CACHE = 8 << 20
NONCE_SIZE = 32

# These say something about the session and nothing about the host.
_HARMLESS = {Code.NONCE_UNKNOWN, Code.NONCE_EXPIRED, Code.NONCE_USED, Code.STATE}


class StateCache:
    """Loaded states by their digest; machines are never changed in place, so they may be shared."""

    def __init__(self, limit: int = STATE_CACHE) -> None:
        self._limit = limit
        self._size = 0
        self._lock = threading.Lock()
        self._states: OrderedDict[bytes, tuple[State, int]] = OrderedDict()

    def get(self, digest: bytes) -> State | None:
        """Return a state that was put."""
        with self._lock:
            found = self._states.get(digest)
            if found is None:
                return None
            self._states.move_to_end(digest)
            return found[0]

    def put(self, digest: bytes, state: State, size: int) -> None:
        """Keep a state of `size` bytes; the one used longest ago goes first."""
        with self._lock:
            if digest in self._states or size > self._limit:
                return
            self._states[digest] = (state, size)
            self._size += size
            while self._size > self._limit:
                self._size -= self._states.popitem(last=False)[1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Have:
    """What the host says it has: the epoch of its log and how many records."""

    epoch: Epoch
    recnum: int


class Attestor:
    """The sessions API and the one-shot appraisal."""

    def __init__(
        self,
        store: Store,
        policies: Policies,
        keys: Keyring,
        metrics: Metrics,
        *,
        issuer: tuple[str, str],
        audience: str,
    ) -> None:
        self._store = store
        self._policies = policies
        self._keys = keys
        self._metrics = metrics
        self._issuer = issuer
        self._audience = audience
        self._states = StateCache()

    def begin(self, call: Call) -> Reply:
        """POST /v1/sessions: give out a nonce and say what to send."""
        host_id, have = _parse_begin(call)
        call.principal.must_be(host_id)
        host, policy = self._known(host_id), self._policies.current()
        new = StoredSession(
            id=new_id(),
            host=host_id,
            nonce=token_bytes(NONCE_SIZE),
            issued=call.now,
            expires=call.now + SESSION_SECONDS,
            audience=self._audience,
            state_digest=host.state_digest,
        )
        self._store.add_session(new)
        answer = _challenge(new, policy) | _wanted(self._state(host), have)
        return reply(answer, status=201, location=f"/v1/sessions/{new.id}")

    def _known(self, identifier: str) -> Host:
        host = self._store.host(identifier)
        if host is None:
            raise ServiceError(Trouble.NOT_FOUND, f"host {identifier[:200]!r} is not enrolled")
        return host

    def _state(self, host: Host) -> State | None:
        if host.state_digest is None:
            return None
        state = self._states.get(host.state_digest)
        if state is None:
            data = self._store.state(host.enrolment.host)
            if data is None:
                return None
            state = load_state(data)
            self._states.put(hashlib.sha256(data).digest(), state, len(data))
        return state

    def answer(self, call: Call) -> Reply:
        """POST /v1/sessions/{id}: use up the nonce, appraise, keep the state, answer with a token."""
        policy = self._policies.current()  # without one the nonce is not used up
        session = self._consume(call)
        begin = time.perf_counter()
        try:
            answer = self._appraise(call, session, policy)
        except RejectedError as error:
            self._reject(session, error, call.now)
            self._metrics.appraisal(error.code, time.perf_counter() - begin)
            raise
        self._metrics.appraisal(str(answer["status"]), time.perf_counter() - begin)
        return reply(answer)

    def _consume(self, call: Call) -> StoredSession:
        identifier = call.path["id"]
        known = is_own_id(identifier)
        session = self._store.consume(identifier, call.principal.host, call.now) if known else None
        if session is None:
            old = self._store.session(identifier) if known else None
            if old is None:
                raise RejectedError(Code.NONCE_UNKNOWN, "there is no such session")
            call.principal.must_be(old.host)
            raise RejectedError(Code.NONCE_USED, "the session was answered before")
        return session

    def _appraise(self, call: Call, session: StoredSession, policy: Policy) -> JsonObject:
        host = self._store.host(session.host)
        stale = host is not None and host.state_digest != session.state_digest
        if stale and call.now < session.expires:
            # The records that this session asked for are not those that come next: that is nobody's fault.
            raise RejectedError(Code.STATE, "the host was appraised by another session meanwhile")
        challenge = Session(
            nonce=session.nonce,
            issued=session.issued,
            expires=session.expires,
            audience=session.audience,
            enrolment=None if host is None else host.enrolment,
            state_digest=session.state_digest,
        )
        state = None if host is None else self._state(host)
        verdict = appraise(call.body, challenge, policy, state, call.now)
        answer: JsonObject = {
            "id": session.id,
            "state": "complete",
            **self._result(verdict, challenge, call.now),
        }
        self._keep(session, verdict, answer, call.now)
        return answer

    def _keep(self, session: StoredSession, verdict: Verdict, answer: JsonObject, now: int) -> None:
        data = verdict.state.dump()
        digest = hashlib.sha256(data).digest()
        passed = Passed(
            host=session.host,
            ak_name=verdict.state.ak,
            old_digest=session.state_digest,
            state=data,
            state_digest=digest,
            verdict=verdict.status.value,
            summary=to_json(summary_page(verdict, now)),
            pods=to_json({"pods": pods_page(verdict)}),
            now=now,
        )
        if not self._store.complete(session.id, passed, to_json(answer)):
            raise RejectedError(Code.STATE, "the host was appraised by another session meanwhile")
        self._states.put(digest, replace(verdict.state, stored=digest), len(data))

    def _result(self, verdict: Verdict, challenge: Session, now: int) -> JsonObject:
        """Return the part of an answer that sessions and one-shot appraisals share."""
        signer = self._keys.signer(now)
        developer, build = self._issuer
        issuer = ear.Issuer(developer=developer, build=build, key_id=signer.key_id)
        claims = ear.claims(
            verdict, challenge, issuer, now=now, token_id=new_id(), channel_key=verdict.channel_key
        )
        state, pods = verdict.state, verdict.pods
        return {
            "host": state.host,
            "status": verdict.status.value,
            "policy": f"sha256:{verdict.policy_digest.hex()}",
            "appraised": now,
            "epoch": epoch_json(state.epoch),
            "log_count": state.recnum,
            "head": verdict.head.hex(),
            "modules": {
                "host": _module(verdict.host),
                **{f"pod:{uuid}": _module(appraisal) for uuid, appraisal in pods},
            },
            "token": ear.sign(claims, signer.key, key_id=signer.key_id),
        }

    def _reject(self, session: StoredSession, error: RejectedError, now: int) -> None:
        failure: JsonObject = {"code": error.code, "step": error.step, "detail": error.message, "time": now}
        self._store.fail(
            session.id,
            to_json({"problem": problem(error)}),
            host=session.host,
            failure=None if error.reason in _HARMLESS else to_json(failure),
            now=now,
        )

    def show(self, call: Call) -> Reply:
        """GET /v1/sessions/{id}."""
        session = self._session(call)
        answer: JsonObject = {"id": session.id, "host": session.host, "expires": session.expires}
        if session.outcome == "complete":
            return Reply(body=session.answer)
        if session.outcome:
            found = parse_object(session.answer, what="stored answer", limit=len(session.answer))
            return reply(answer | {"state": session.outcome} | found)
        if session.consumed is not None:
            return reply(answer | {"state": "processing"}, status=202)
        waiting = "waiting" if call.now < session.expires else "expired"
        return reply(answer | {"state": waiting})

    def end(self, call: Call) -> Reply:
        """DELETE /v1/sessions/{id}."""
        self._store.end(self._session(call).id)
        return Reply(status=204)

    def _session(self, call: Call) -> StoredSession:
        identifier = call.path["id"]
        session = self._store.session(identifier) if is_own_id(identifier) else None
        if session is None:
            raise RejectedError(Code.NONCE_UNKNOWN, "there is no such session")
        call.principal.must_be(session.host)
        return session

    def appraise_once(self, call: Call) -> Reply:
        """POST /v1/appraise: a relying party's own nonce; nothing is kept."""
        call.only("host", "nonce", "audience", "policy")
        host = self._known(check_id(call.query.get("host", ""), "the parameter host"))
        wanted = call.query.get("policy", "")
        policy = self._policies.current(check_id(wanted, "the parameter policy") if wanted else "")
        challenge = Session(
            nonce=_nonce(call.query.get("nonce", "")),
            issued=call.now,
            expires=call.now + 1,
            audience=call.query.get("audience", self._audience),
            enrolment=host.enrolment,
        )
        begin = time.perf_counter()
        try:
            verdict = appraise(call.body, challenge, policy, None, call.now)
        except RejectedError as error:
            self._metrics.appraisal(error.code, time.perf_counter() - begin)
            raise
        self._metrics.appraisal(verdict.status.value, time.perf_counter() - begin)
        return reply(self._result(verdict, challenge, call.now))

    def purge(self, now: int) -> None:
        """Forget what expired."""
        self._store.purge(now - KEPT_SECONDS, now)
        self._store.drop_keys(now)


def _module(appraisal: Appraisal) -> JsonObject:
    return {"status": appraisal.status.value, "reasons": [*appraisal.reasons]}


def epoch_json(epoch: Epoch) -> JsonObject:
    """Return an epoch as headers of evidence have it."""
    return {"reset": epoch.reset, "restart": epoch.restart, "boot_id": epoch.boot_id}


def _challenge(session: StoredSession, policy: Policy) -> JsonObject:
    return {
        "id": session.id,
        "state": "waiting",
        "host": session.host,
        "nonce": session.nonce.hex(),
        "issued": session.issued,
        "expires": session.expires,
        "audience": session.audience,
        "bank": policy.bank.value,
        "pcrs": [*policy.selection],
        "runtime_pcr": policy.pcr,
    }


def _wanted(state: State | None, have: _Have | None) -> JsonObject:
    """Say from where the log is wanted; all of it if the host is in another epoch than the state."""
    if state is None or (have is not None and have.epoch != state.epoch):
        return {"epoch": None, "log_from": 0, "log_base": None}
    return {
        "epoch": epoch_json(state.epoch),
        "log_from": state.recnum,
        "log_base": {str(bank): value.hex() for bank, value in state.pcrs},
    }


def _parse_begin(call: Call) -> tuple[str, _Have | None]:
    fields = call.fields("session")
    try:
        host = check_id(fields.text("host", limit=255), "host")
        have = _have(fields.object("have")) if fields.has("have") else None
        fields.done()
    except FormatError as error:
        raise bad_request(error.message) from error
    return host, have


def _have(fields: Fields) -> _Have:
    epoch = fields.object("epoch")
    have = _Have(
        epoch=Epoch(
            reset=epoch.integer("reset", limit=MAX_COUNT),
            restart=epoch.integer("restart", limit=MAX_COUNT),
            boot_id=epoch.text("boot_id", limit=64),
        ),
        recnum=fields.integer("recnum", limit=MAX_RECORDS),
    )
    epoch.done()
    fields.done()
    return have


def _nonce(text: str) -> bytes:
    try:
        return as_hex(text, "the parameter nonce", sizes=(NONCE_SIZE,))
    except FieldError as error:
        raise bad_request(error.message) from error
