"""One push: a session with a verifier, as often as it takes to get an answer that means something."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from secrun.errors import VerifierError
from secrun.image.retry import delay
from secrun.measure import verifierprotocol as protocol
from secrun.measure.identity import HostIdentity
from secrun.measure.prover import Standing
from secrun.measure.verifierclient import TRANSIENT, Answer, Client
from secrun.measure.verifierfile import Membership
from secrun.measure.verifierprotocol import Problem, Rejection, Then, Verdict
from secrun.printable import printable
from secrun.record import record, replace
from secrun_attest.collect import Challenge
from secrun_attest.endorsement import Endorsement
from secrun_attest.errors import FormatError
from secrun_attest.jcs import JsonObject, encode

# Another push of this host, or a verifier that begins anew: twice in a row is chance, more is not.
MAX_AGAIN = 5
# One try and its repeats, about eight seconds apart from what the verifier itself asks for.
MAX_WAITS = 4

Outcome = Verdict | Rejection


class Host(Protocol):
    """What a push needs of `Prover`."""

    identity: HostIdentity

    def standing(self, *, anyway: bool) -> Standing:
        """Say how long the log is."""

    def evidence(self, challenge: Challenge, standing: Standing) -> bytes:
        """Return evidence."""

    def endorsement(self) -> Endorsement:
        """Return the endorsement key to enrol with."""

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Open a credential."""


class Keeper(Protocol):
    """Where the enrolment is kept."""

    def load(self) -> Membership | None:
        """Return it, None if there is none."""

    def store(self, membership: Membership) -> None:
        """Keep it."""


class RefusedError(Exception):
    """The verifier refused a request; what follows from it is decided in this module."""

    def __init__(self, problem: Problem, retry_after: float | None) -> None:
        super().__init__(problem.code)
        self.problem = problem
        self.retry_after = retry_after


@record
class Tries:
    """How often a push began anew, and why."""

    again: int = 0
    waits: int = 0
    enrolled: bool = False

    def after(self, then: Then) -> "Tries | None":
        """Return the count with one more; None if that is one too many."""
        if then is Then.AGAIN and self.again < MAX_AGAIN:
            return replace(self, again=self.again + 1)
        if then is Then.WAIT and self.waits < MAX_WAITS:
            return replace(self, waits=self.waits + 1)
        if then is Then.ENROL and not self.enrolled:
            return replace(self, enrolled=True)
        return None


class Pusher:
    """Pushes the evidence of one root to one verifier.

    `say` is told what a person may want to know, `wait` sleeps for some seconds or raises to end it all.
    `enroll_token` is sent with the request to enrol, where a verifier wants one; `intermediates` are the
    certificates, in DER, between that of the endorsement key and its maker's root.
    """

    def __init__(
        self,
        client: Client,
        host: Host,
        keeper: Keeper,
        *,
        address: str,
        say: Callable[[str], None],
        wait: Callable[[float], None],
        enroll_token: str = "",
        intermediates: tuple[bytes, ...] = (),
    ) -> None:
        self._client = client
        self._host = host
        self._keeper = keeper
        self._address = address
        self._say = say
        self._wait = wait
        self._enroll_token = enroll_token
        self._intermediates = intermediates

    def push(self) -> Outcome:
        """Return what the verifier makes of the log as it is now.

        Raises VerifierError if no answer means anything, HostError if there is no evidence to send.
        """
        tries, member = Tries(), self._kept()
        while True:
            try:
                if member is None:
                    member = self._enrol()
                return self._session(member)
            except RefusedError as error:
                then, asked = protocol.what_then(error.problem), error.retry_after
                following = tries.after(then)
                if following is None:
                    raise self._refusal(error.problem) from error
                if then is Then.ENROL:
                    member = None
                    words = protocol.words(error.problem)
                    self._say(f"{self._address} does not take our token any more: {words}; enrolling again")
            except VerifierError as error:
                then, asked = Then.WAIT, None
                following = tries.after(then) if error.code in TRANSIENT else None
                if following is None:
                    raise
            tries = following
            if then is Then.WAIT:
                self._wait(delay(tries.waits, asked))

    def _kept(self) -> Membership | None:
        member = self._keeper.load()
        return member if member is not None and member.is_of(self._host.identity) else None

    def _session(self, member: Membership) -> Outcome:
        host = self._host.identity.host
        standing = self._host.standing(anyway=True)
        begin = protocol.session_request(host, standing.epoch, standing.count)
        answer = self._ask("/v1/sessions", encode(begin), member.token)
        with _understood(self._address):
            asked = protocol.parse_challenge(answer.body, host, member.audience)
        evidence = self._host.evidence(self._challenge(asked, standing), standing)
        try:
            answer = self._ask(
                f"/v1/sessions/{asked.id}", evidence, member.token, limit=protocol.MAX_VERDICT
            )
        except RefusedError as error:
            rejection = protocol.rejection(error.problem)
            if rejection is None:
                raise
            return rejection
        with _understood(self._address):
            return protocol.parse_verdict(answer.body, host, asked.id)

    def _challenge(self, asked: protocol.Challenge, standing: Standing) -> Challenge:
        pcr = self._host.identity.pcr
        if asked.runtime_pcr != pcr or pcr not in asked.pcrs:
            raise VerifierError(
                f"the verifier {self._address} judges PCR {asked.runtime_pcr} in a quote of "
                f"{list(asked.pcrs)}; this root is measured into PCR {pcr}",
                hint="change pcr and selection of the verifier's policy, or pin the root anew: attest init",
                code="verifier-pcr",
            )
        return Challenge(
            nonce=asked.nonce,
            audience=asked.audience,
            bank=asked.bank,
            pcrs=asked.pcrs,
            since=asked.since(standing.epoch),
        )

    def _enrol(self) -> Membership:
        identity = self._host.identity
        protocol.check_host(identity.host)
        key = self._host.endorsement()
        wish = protocol.enrol_request(
            identity.host,
            ek_pub=key.public,
            ek_chain=() if key.certificate is None else (key.certificate, *self._intermediates),
            ak_pub=identity.ak_public,
        )
        answer = self._enrol_step("/v1/enroll", wish)
        with _understood(self._address):
            begun = protocol.parse_begun(answer.body, wish)
        secret = self._host.activate(begun.credential_blob, begun.encrypted_secret)
        answer = self._enrol_step(f"/v1/enroll/{begun.id}/proof", protocol.proof_request(begun, secret))
        with _understood(self._address):
            done = protocol.parse_enrolled(answer.body, identity.host, identity.ak_name)
        member = Membership(
            verifier=self._address,
            audience=begun.audience,
            host=identity.host,
            ak_name=identity.ak_name.hex(),
            software=done.software,
            token=done.token,
        )
        self._keeper.store(member)
        kind = "software TPM" if done.software else "TPM that its maker vouches for"
        self._say(f"enrolled with {self._address} as {identity.host}, {kind}, audience {begun.audience}")
        return member

    def _enrol_step(self, path: str, body: JsonObject) -> Answer:
        try:
            return self._ask(path, encode(body), self._enroll_token)
        except RefusedError as error:
            if protocol.what_then(error.problem) is Then.WAIT:
                raise
            problem = error.problem
            hint = problem.hint or (
                "the verifier wants a token: --enroll-token-file" if problem.status in (401, 403) else ""
            )
            raise VerifierError(
                f"the verifier {self._address} does not enrol {self._host.identity.host}: "
                f"{protocol.words(problem)}",
                hint=printable(hint),
                code="verifier-enrol",
            ) from error

    def _ask(self, path: str, body: bytes, token: str, *, limit: int = protocol.MAX_ANSWER) -> Answer:
        answer = self._client.post(path, body, token=token, limit=limit)
        if answer.status not in (200, 201):
            raise RefusedError(protocol.parse_problem(answer.status, answer.body), answer.retry_after)
        return answer

    def _refusal(self, problem: Problem) -> VerifierError:
        return VerifierError(
            f"the verifier {self._address} refuses: {protocol.words(problem)}",
            hint=printable(problem.hint),
            code="verifier-refused",
        )


@contextmanager
def _understood(address: str) -> Iterator[None]:
    """Turn what the parsers refuse into VerifierError."""
    try:
        yield
    except FormatError as error:
        raise VerifierError(
            f"the verifier {address} answers with something that is not its protocol: "
            f"{printable(error.message)}",
            hint="is it a verifier, of this version?",
            code="verifier-answer",
        ) from error
