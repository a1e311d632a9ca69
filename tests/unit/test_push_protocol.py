"""What a host makes of a verifier's answers: parsed or refused, and what follows from a refusal."""

import json

import pytest

from secrun.errors import StateError, UsageError, VerifierError
from secrun.measure import verifierprotocol as protocol
from secrun.measure.push import MAX_AGAIN, MAX_WAITS, Pusher, Tries
from secrun.measure.verifieraddress import parse_address
from secrun.measure.verifierprotocol import Rejection, Then
from secrun.record import replace
from secrun_attest.enrolproof import proof_of, transcript
from secrun_attest.errors import FormatError
from secrun_attest.record import Bank
from support.pushing import (
    ADDRESS,
    AK,
    AUDIENCE,
    EPOCH,
    IDENTITY,
    SECRET,
    TOKEN,
    FakeHost,
    FakeKeeper,
    FakeVerifier,
    begun,
    challenge,
    enrolled,
    member,
    problem,
    verdict,
)


def raw(document):
    return json.dumps(document).encode()


class Desk:
    """A pusher that is enrolled, and what came of it."""

    def __init__(self, verifier=None, *, kept=True, **changes):
        self.verifier = verifier or FakeVerifier()
        self.host = FakeHost(**changes)
        self.keeper = FakeKeeper(member() if kept else None)
        self.said, self.waits = [], []
        self.pusher = Pusher(
            self.verifier,
            self.host,
            self.keeper,
            address=ADDRESS,
            say=self.said.append,
            wait=self.waits.append,
            enroll_token="enroll-token-of-the-tests",
        )

    def push(self):
        return self.pusher.push()


def failing(*errors):
    return [VerifierError("no", code=code) for code in errors]


# Addresses.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://V.example", "https://v.example"),
        ("https://v.example:443/", "https://v.example"),
        ("https://v.example:8443/a/b/", "https://v.example:8443/a/b"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://localhost:8080", "http://localhost:8080"),
    ],
)
def test_one_verifier_has_one_address(text, said):
    assert parse_address(text).text == said


@pytest.mark.parametrize(
    "text",
    [
        "v.example",
        "ftp://v.example",
        "https://",
        "https://v.example:99999",
        "https://v.example:x",
        "https://me:secret@v.example",
        "https://v.example?x=1",
        "https://v.example#x",
        "https://v.exa mple",
        "https://v.example/\r\nX: y",
        "http://v.example",
        "http://192.0.2.1:8080",
        "http://127.0.0.1.example",
    ],
)
def test_what_is_no_address_or_would_travel_in_the_clear_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert caught.value.code == "usage-verifier"
    assert "secret" not in caught.value.message


# Answers.


def test_a_challenge_is_what_it_says():
    epoch = {"reset": 7, "restart": 2, "boot_id": EPOCH.boot_id}
    asked = protocol.parse_challenge(
        raw(challenge(epoch=epoch, log_from=5, log_base={"sha256": "00" * 32})), "web-1", AUDIENCE
    )
    assert (asked.nonce, asked.bank, asked.pcrs) == (b"\xab" * 32, Bank.SHA256, (0, 7, 15))
    assert asked.since(EPOCH) == 5
    assert asked.since(replace(EPOCH, reset=8)) == 0


def test_a_verifier_that_knows_no_epoch_gets_the_whole_log():
    asked = protocol.parse_challenge(raw(challenge(log_from=5)), "web-1", AUDIENCE)
    assert asked.since(EPOCH) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "../enroll"},
        {"id": "a/b"},
        {"id": ""},
        {"id": 5},
        {"state": "complete"},
        {"host": "web-2"},
        {"nonce": "ab" * 31},
        {"nonce": "AB" * 32},
        {"audience": "another.example"},
        {"bank": "md5"},
        {"pcrs": [0, 24]},
        {"pcrs": list(range(24)) * 2},
        {"pcrs": "15"},
        {"runtime_pcr": True},
        {"epoch": {"reset": 1, "restart": 2}},
        {"epoch": {"reset": 1, "restart": 2, "boot_id": "x"}},
        {"log_from": -1},
        {"log_from": 1.5},
        {"more": 1},
    ],
)
def test_a_challenge_that_is_none_is_refused(changes):
    with pytest.raises(FormatError):
        protocol.parse_challenge(raw(challenge(**changes)), "web-1", AUDIENCE)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b"\xff", b'{"id":"a","id":"b"}', b"[" * 100_000, b" " * (protocol.MAX_ANSWER + 1)],
)
def test_an_answer_that_is_no_json_object_is_refused(data):
    with pytest.raises(FormatError):
        protocol.parse_challenge(data, "web-1", AUDIENCE)


def test_a_verdict_says_what_is_wrong_with_whom():
    modules = {
        "host": {"status": "affirming", "reasons": []},
        "pod:x": {"status": "warning", "reasons": ["a"]},
    }
    said = protocol.parse_verdict(raw(verdict(status="warning", modules=modules)), "web-1", "session-1")
    assert (said.status, said.log_count) == ("warning", 9)
    assert [(item.name, item.status, item.reasons) for item in said.modules] == [
        ("host", "affirming", ()),
        ("pod:x", "warning", ("a",)),
    ]
    assert "a.b.c" not in repr(said)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "rejected"},
        {"status": "AFFIRMING"},
        {"id": "session-2"},
        {"host": "web-2"},
        {"state": "waiting"},
        {"policy": "cd" * 32},
        {"modules": []},
        {"modules": {"host": "affirming"}},
        {"modules": {"host": {"status": "affirming", "reasons": "none"}}},
        {"modules": {"host": {"status": "affirming", "reasons": [], "x": 1}}},
        {"head": "zz"},
        {"appraised": "now"},
        {"surplus": 1},
    ],
)
def test_a_verdict_that_is_none_is_refused(changes):
    with pytest.raises(FormatError):
        protocol.parse_verdict(raw(verdict(**changes)), "web-1", "session-1")


@pytest.mark.parametrize(
    "changes", [{"token": "short"}, {"token": "t" * 43 + "\r\nX: y"}, {"host": "web-2"}, {"ak_name": "00"}]
)
def test_an_enrolment_of_somebody_else_or_without_a_usable_token_is_refused(changes):
    with pytest.raises(FormatError) as caught:
        protocol.parse_enrolled(raw(enrolled(**changes)), "web-1", AK)
    assert "X: y" not in caught.value.message


def test_the_proof_covers_all_that_went_both_ways():
    wish = protocol.enrol_request("web-1", ek_pub=b"ek", ek_chain=(b"der",), ak_pub=b"ak")
    answer = begun()
    made = protocol.proof_request(protocol.parse_begun(raw(answer), wish), SECRET)
    members = {name: value for name, value in answer.items() if name != "expires"} | wish
    assert made == {"proof": proof_of(SECRET, transcript(members)).hex()}


@pytest.mark.parametrize(
    "changes", [{"id": "a/../b"}, {"host": "web-2"}, {"credential_blob": "?"}, {"expires": None}, {"x": 1}]
)
def test_a_credential_that_is_none_is_refused(changes):
    wish = protocol.enrol_request("web-1", ek_pub=b"ek", ek_chain=(), ak_pub=b"ak")
    with pytest.raises(FormatError):
        protocol.parse_begun(raw(begun(**changes)), wish)


# What follows from a refusal.


@pytest.mark.parametrize(
    ("status", "code", "changes", "then"),
    [
        (409, "E_STATE", {"step": 18, "retry": True}, Then.AGAIN),
        (410, "E_NONCE_EXPIRED", {"step": 2}, Then.AGAIN),
        (409, "E_NONCE_USED", {"step": 2}, Then.AGAIN),
        (404, "E_NONCE_UNKNOWN", {"step": 2}, Then.AGAIN),
        (401, "E_AUTH", {}, Then.ENROL),
        (403, "E_FORBIDDEN", {}, Then.ENROL),
        (404, "E_NOT_FOUND", {}, Then.ENROL),
        (429, "E_RATE", {}, Then.WAIT),
        (408, "E_TIMEOUT", {}, Then.WAIT),
        (503, "E_DATABASE", {}, Then.WAIT),
        (503, "E_NO_POLICY", {}, Then.WAIT),
        (422, "E_REPLAY", {"step": 14}, Then.REJECTED),
        (422, "E_POLICY", {"step": 17}, Then.REJECTED),
        (422, "E_REQUEST", {}, Then.FAIL),
        (413, "E_TOO_LARGE", {}, Then.FAIL),
        (405, "E_METHOD", {}, Then.FAIL),
    ],
)
def test_what_follows_from_a_refusal(status, code, changes, then):
    _, document = problem(code, status, **changes)
    assert protocol.what_then(protocol.parse_problem(status, raw(document))) is then


@pytest.mark.parametrize(
    ("status", "then"), [(502, Then.WAIT), (404, Then.FAIL), (418, Then.FAIL), (401, Then.FAIL)]
)
def test_a_refusal_that_no_verifier_wrote_has_its_status_only(status, then):
    said = protocol.parse_problem(status, b"<html>no</html>")
    assert protocol.what_then(said) is then
    assert str(status) in protocol.words(said)


def test_words_of_a_verifier_cannot_command_a_terminal():
    _, document = problem("E_X", 422, detail="red \x1b[31m")
    assert "\x1b" not in protocol.words(protocol.parse_problem(422, raw(document)))


def test_each_kind_of_beginning_anew_has_its_bound():
    for then, limit in ((Then.AGAIN, MAX_AGAIN), (Then.WAIT, MAX_WAITS), (Then.ENROL, 1)):
        tries = Tries()
        for _ in range(limit):
            tries = tries.after(then)
        assert tries.after(then) is None
    assert Tries().after(Then.FAIL) is None


# A push.


def test_a_push_asks_answers_and_returns_the_verdict():
    desk = Desk()
    assert desk.push().status == "affirming"
    (begin, evidence) = desk.verifier.seen
    assert begin[0] == "/v1/sessions"
    assert json.loads(begin[1]) == {
        "host": "web-1",
        "have": {"epoch": {"reset": 7, "restart": 2, "boot_id": EPOCH.boot_id}, "recnum": 9},
    }
    assert evidence == ("/v1/sessions/session-1", b"evidence", TOKEN)
    (asked,) = desk.host.asked
    assert (asked.nonce, asked.audience, asked.pcrs, asked.since) == (b"\xab" * 32, AUDIENCE, (0, 7, 15), 0)
    assert (desk.said, desk.waits) == ([], [])


def test_a_stranger_enrols_first_and_keeps_what_it_got():
    desk = Desk(kept=False)
    assert desk.push().status == "affirming"
    assert desk.verifier.paths[:2] == ["/v1/enroll", "/v1/enroll/enrolment-1/proof"]
    assert [token for _, _, token in desk.verifier.seen[:2]] == ["enroll-token-of-the-tests"] * 2
    assert desk.keeper.kept == member()
    assert TOKEN not in "".join(desk.said)
    desk.push()
    assert desk.verifier.paths.count("/v1/enroll") == 1


@pytest.mark.parametrize("changes", [{"host": "web-0"}, {"ak_name": "00"}])
def test_another_name_or_key_is_another_host(changes):
    desk = Desk()
    desk.keeper.kept = member(**changes)
    desk.push()
    assert desk.verifier.paths[0] == "/v1/enroll"


def test_a_verifier_that_forgot_the_host_gets_it_again_once():
    desk = Desk(FakeVerifier(sessions=[problem("E_AUTH", 401), (201, challenge())]))
    assert desk.push().status == "affirming"
    assert desk.verifier.paths.count("/v1/enroll") == 1
    assert "does not take our token any more" in desk.said[0]
    desk = Desk(FakeVerifier(sessions=[problem("E_AUTH", 401)]))
    with pytest.raises(VerifierError, match="E_AUTH") as caught:
        desk.push()
    assert caught.value.code == "verifier-refused"
    assert desk.verifier.paths.count("/v1/enroll") == 1


def test_another_session_that_was_quicker_is_no_reason_to_wait():
    busy = problem("E_STATE", 409, step=18, retry=True)
    desk = Desk(FakeVerifier(evidence=[busy, busy, (200, verdict())]))
    assert desk.push().status == "affirming"
    assert desk.verifier.paths.count("/v1/sessions") == 3
    assert desk.waits == []
    with pytest.raises(VerifierError):
        Desk(FakeVerifier(evidence=[busy])).push()


def test_a_nonce_that_expired_is_asked_for_anew():
    desk = Desk(FakeVerifier(evidence=[problem("E_NONCE_EXPIRED", 410, step=2), (200, verdict())]))
    assert desk.push().status == "affirming"
    assert desk.verifier.paths.count("/v1/sessions") == 2


def test_who_is_asked_to_wait_waits_as_long():
    desk = Desk(FakeVerifier(sessions=[problem("E_RATE", 429), (201, challenge())], retry_after=7.0))
    assert desk.push().status == "affirming"
    assert desk.waits == [7.0]
    desk = Desk(FakeVerifier(sessions=[problem("E_BUSY", 503)], retry_after=1e9))
    with pytest.raises(VerifierError):
        desk.push()
    assert len(desk.waits) == MAX_WAITS
    assert max(desk.waits) <= 120


def test_a_verifier_that_is_away_is_tried_again_and_again_but_not_for_ever():
    desk = Desk(FakeVerifier(sessions=[*failing("verifier-away", "verifier-cut"), (201, challenge())]))
    assert desk.push().status == "affirming"
    assert len(desk.waits) == 2
    desk = Desk(FakeVerifier(sessions=failing("verifier-timeout")))
    with pytest.raises(VerifierError):
        desk.push()
    assert len(desk.waits) == MAX_WAITS
    assert desk.waits == sorted(desk.waits)


@pytest.mark.parametrize("code", ["verifier-tls", "verifier-redirect", "verifier-answer"])
def test_what_does_not_pass_is_not_repeated(code):
    desk = Desk(FakeVerifier(sessions=failing(code)))
    with pytest.raises(VerifierError) as caught:
        desk.push()
    assert (caught.value.code, desk.waits) == (code, [])


def test_an_enrolment_that_has_to_wait_is_not_given_up():
    verifier = FakeVerifier(sessions=[problem("E_AUTH", 401), (201, challenge())])
    verifier.enroll = [problem("E_RATE", 429), (201, begun())]
    desk = Desk(verifier)
    assert desk.push().status == "affirming"
    assert desk.verifier.paths.count("/v1/enroll") == 2


def test_a_rejection_is_an_outcome_and_says_by_which_check():
    desk = Desk(FakeVerifier(evidence=[problem("E_REPLAY", 422, step=14)]))
    assert desk.push() == Rejection(code="E_REPLAY", step=14, detail="about E_REPLAY")


@pytest.mark.parametrize(
    ("code", "status"), [("E_EK_UNTRUSTED", 403), ("E_EK_CONFLICT", 409), ("E_AUTH", 401)]
)
def test_who_is_not_enrolled_is_told_why(code, status):
    desk = Desk(FakeVerifier(enroll=[problem(code, status)]), kept=False)
    with pytest.raises(VerifierError, match=code) as caught:
        desk.push()
    assert caught.value.code == "verifier-enrol"
    assert desk.keeper.kept is None


def test_a_verifier_that_asks_for_anothers_name_gets_no_quote():
    desk = Desk(FakeVerifier(sessions=[(201, challenge(audience="bank.example"))]))
    with pytest.raises(VerifierError, match=r"bank\.example"):
        desk.push()
    assert desk.host.asked == []


@pytest.mark.parametrize("changes", [{"runtime_pcr": 8}, {"pcrs": [0, 7]}])
def test_a_verifier_of_another_pcr_gets_no_quote(changes):
    desk = Desk(FakeVerifier(sessions=[(201, challenge(**changes))]))
    with pytest.raises(VerifierError) as caught:
        desk.push()
    assert (caught.value.code, desk.host.asked) == ("verifier-pcr", [])


@pytest.mark.parametrize("data", [b"<html>", b"{}", b"\x1b[31m", b"[" * 60_000])
def test_nonsense_is_told_as_such(data):
    desk = Desk(FakeVerifier(sessions=[(201, data)]))
    with pytest.raises(VerifierError) as caught:
        desk.push()
    assert caught.value.code == "verifier-answer"
    assert "\x1b" not in caught.value.message


def test_a_name_that_verifiers_do_not_take_is_told_before_anything_is_sent():
    desk = Desk(kept=False, identity=replace(IDENTITY, host="web 1/é"))
    with pytest.raises(StateError) as caught:
        desk.push()
    assert (caught.value.code, desk.verifier.seen) == ("state-attest-host", [])
