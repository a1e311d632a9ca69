"""Who may do what: every route with every kind of credentials; hosts; the description of it all."""

import hashlib
import re
import ssl

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from secrun_attest.service.auth import Peer, Role
from secrun_attest.service.schemas import SCHEMAS
from support.attest_bench import POD, usual_host
from support.certificates import Maker
from support.verifier import ADMIN, READER, Client, opened_desk

# The table of docs/verifier-service.md, written again: who gets past the door of each route.
DOOR = {
    ("POST", "/v1/enroll"): "all",
    ("POST", "/v1/enroll/{id}/proof"): "all",
    ("POST", "/v1/sessions"): "host",
    ("POST", "/v1/sessions/{id}"): "host",
    ("GET", "/v1/sessions/{id}"): "host reader admin",
    ("DELETE", "/v1/sessions/{id}"): "host admin",
    ("POST", "/v1/appraise"): "reader admin",
    ("GET", "/v1/hosts"): "reader admin",
    ("GET", "/v1/hosts/{host}"): "host reader admin",
    ("DELETE", "/v1/hosts/{host}"): "admin",
    ("GET", "/v1/hosts/{host}/pods/{pod}"): "host reader admin",
    ("PUT", "/v1/policies/{id}"): "admin",
    ("GET", "/v1/policies/{id}"): "reader admin",
    ("PUT", "/v1/reference-values"): "admin",
    ("GET", "/.well-known/jwks.json"): "all",
    ("GET", "/.well-known/secrun-verifier"): "all",
    ("GET", "/metrics"): "reader admin",
    ("GET", "/healthz"): "all",
    ("GET", "/openapi.json"): "all",
    ("GET", "/"): "all",
}


@pytest.fixture
def desk(tmp_path):
    with opened_desk(tmp_path) as opened:
        yield opened


@pytest.fixture
def client(desk):
    return Client(desk).enrol()


def test_the_table_is_all_there_is(desk):
    assert {(route.method, route.path) for route in desk.service.table} == set(DOOR)


@pytest.mark.parametrize(("method", "path"), DOOR, ids=" ".join)
def test_each_route_lets_in_whom_it_should(desk, client, method, path):
    filled = path.format(id="x", host="nobody", pod=POD)
    tokens = {"anyone": "", "host": client.token, "reader": READER, "admin": ADMIN, "stranger": "s" * 43}
    allowed = set(tokens) - {"stranger"} if DOOR[method, path] == "all" else set(DOOR[method, path].split())
    for who, token in tokens.items():
        answer = desk(method, filled, {} if method in ("POST", "PUT") else b"", token)
        code = answer.json["code"] if answer.headers["content-type"] == "application/problem+json" else ""
        if who in allowed:
            assert code != "E_AUTH", who
            # A host asks about another one here, and is told so by the handler, not by the door.
            assert code != "E_FORBIDDEN" or (who == "host" and "{host}" in path), who
        elif who in ("anyone", "stranger"):
            assert (answer.status, code) == (401, "E_AUTH"), who
            assert answer.headers["www-authenticate"].startswith("Bearer")
        else:
            assert (answer.status, code) == (403, "E_FORBIDDEN"), who


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer " + "x" * 600, "token"])
def test_credentials_that_are_none_are_refused(desk, value):
    answer = desk("GET", "/v1/hosts", headers={"authorization": value})
    assert (answer.status, answer.code) == (401, "E_AUTH")


def test_a_host_sees_itself_only(desk, client):
    other = Client(desk, host=usual_host(name="host-2")).enrol()
    assert other.attest().status == 200
    for path in ("/v1/hosts/host-2", f"/v1/hosts/host-2/pods/{POD}"):
        assert desk("GET", path, token=other.token).status == 200
        assert desk("GET", path, token=client.token).code == "E_FORBIDDEN"
    assert desk("POST", "/v1/sessions", {"host": "host-2"}, client.token).code == "E_FORBIDDEN"
    session = other.challenge()
    where = f"/v1/sessions/{session['id']}"
    assert desk("POST", where, other.evidence(session), client.token).code == "E_FORBIDDEN"
    assert desk("GET", where, token=client.token).code == "E_FORBIDDEN"
    assert desk("DELETE", where, token=client.token).code == "E_FORBIDDEN"
    assert other.answer(session, other.evidence(session)).status == 200  # nobody used up the nonce


def certificate(*names):
    return Peer(digest=hashlib.sha256(repr(names).encode()).digest(), names=names)


def test_a_client_certificate_is_as_good_as_the_hosts_token(desk, client):
    body = {"host": "host-1", "have": None}
    assert desk("POST", "/v1/sessions", body, peer=certificate("host-1")).status == 201
    assert desk("POST", "/v1/sessions", body, peer=certificate("other", "host-1")).status == 201
    assert desk("POST", "/v1/sessions", body, peer=certificate("other")).status == 401
    assert desk("POST", "/v1/sessions", body, peer=certificate()).status == 401
    # Wrong credentials do not fall back to others.
    assert desk("POST", "/v1/sessions", body, "x" * 43, peer=certificate("host-1")).status == 401


def test_an_admins_certificate_is_named_by_its_digest(tmp_path):
    root = Maker().root
    path = tmp_path / "admin.pem"
    path.write_bytes(root.public_bytes(Encoding.PEM))
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(path.read_text())).digest()
    with opened_desk(tmp_path, admin_certs=(path,)) as desk:
        admin, other = Peer(digest=digest, names=()), Peer(digest=bytes(32), names=("admin",))
        assert desk("DELETE", "/v1/hosts/nobody", peer=admin).code == "E_NOT_FOUND"
        assert desk("DELETE", "/v1/hosts/nobody", peer=other).code == "E_AUTH"


def test_only_the_hash_of_a_token_is_stored(desk, client, tmp_path):
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("verifier.db*"))
    assert client.token.encode() not in stored
    assert hashlib.sha256(client.token.encode()).digest() in stored


def test_two_roles_with_one_token_stop_the_start(tmp_path):
    same = tmp_path / "same"
    same.write_text(ADMIN)
    with pytest.raises(Exception, match="same token"), opened_desk(tmp_path, reader_token_file=same):
        pass


@pytest.mark.parametrize("text", ["short", "with a space in the token", ""])
def test_a_token_file_must_hold_a_token(tmp_path, text):
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(Exception, match="no token"), opened_desk(tmp_path, reader_token_file=path):
        pass


def shaped(value, schema, document, where):
    """Hold a JSON value against a schema of openapi.json; additionalProperties and required count."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return shaped(value, document["components"]["schemas"][name], document, f"{where}:{name}")
    if "anyOf" in schema:
        problems = [shaped(value, one, document, where) for one in schema["anyOf"]]
        return [] if [] in problems else [f"{where}: none of {problems}"]
    if "const" in schema or "enum" in schema:
        known = schema.get("enum", [schema.get("const")])
        return [] if value in known else [f"{where}: {value!r} is not one of {known}"]
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    kind = schema["type"]
    if not isinstance(value, kinds[kind]) or (kind == "integer" and isinstance(value, bool)):
        return [f"{where}: {value!r} is no {kind}"]
    if kind == "array":
        return [p for item in value for p in shaped(item, schema["items"], document, f"{where}[]")]
    if kind == "string":
        return (
            []
            if re.search(schema.get("pattern", ""), value)
            else [f"{where}: {value!r} is not as it should"]
        )
    if kind != "object":
        return []
    members, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    found = [f"{where}: lacks {name}" for name in schema.get("required", []) if name not in value]
    for name, item in value.items():
        inner = members.get(name, more)
        if inner is False:
            found.append(f"{where}: has {name}")
        elif isinstance(inner, dict):
            found += shaped(item, inner, document, f"{where}.{name}")
    return found


def test_the_description_is_complete(desk):
    document = desk("GET", "/openapi.json").json
    described = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    assert described == set(DOOR)
    names = [op["operationId"] for item in document["paths"].values() for op in item.values()]
    assert len(set(names)) == len(names)
    used = set(re.findall(r'"#/components/schemas/(\w+)"', desk("GET", "/openapi.json").body.decode()))
    assert used == set(document["components"]["schemas"]) == set(SCHEMAS)


class Recorder:
    """Passes requests on and holds each answer against the description."""

    def __init__(self, desk):
        self.desk = desk
        self.document = desk("GET", "/openapi.json").json
        self.seen = set()
        self.problems = []

    def __call__(self, method, path, body=b"", token="", **more):
        answer = self.desk(method, path, body, token, **more)
        bare = path.partition("?")[0]
        route = next(
            route
            for route in self.document["paths"]
            if re.fullmatch(re.sub(r"{\w+}", "[^/]+", route), bare)
            and method.lower() in self.document["paths"][route]
        )
        described = self.document["paths"][route][method.lower()]
        self.seen.add((method, route, answer.status))
        if str(answer.status) not in described["responses"]:
            self.problems.append(f"{method} {route} answered {answer.status}, which is not described")
            return answer
        content = described["responses"][str(answer.status)].get("content")
        media = answer.headers.get("content-type", "")
        if content is None:
            assert answer.body == b""
        elif media.startswith("text/"):
            assert media in content
        else:
            schema = content[media]["schema"]
            self.problems += shaped(answer.json, schema, self.document, f"{method} {route} {answer.status}")
        return answer


def test_what_is_answered_is_what_is_described(desk):
    ask = Recorder(desk)
    client = Client(ask).enrol()
    challenge = client.challenge()
    session = f"/v1/sessions/{challenge['id']}"
    ask("GET", session, token=READER)
    client.answer(challenge, client.evidence(challenge))
    ask("GET", session, token=client.token)
    client.answer(challenge, client.evidence(challenge))
    ask("DELETE", session, token=client.token)
    ask("GET", session, token=client.token)
    rejected = client.challenge()
    client.answer(rejected, b"{}")
    ask("GET", f"/v1/sessions/{rejected['id']}", token=READER)
    once = f"/v1/appraise?host=host-1&nonce={'ab' * 32}"
    assert ask("POST", once, client.host.evidence(nonce=b"\xab" * 32), READER).status == 200
    ask("GET", "/v1/hosts", token=READER)
    ask("GET", "/v1/hosts/host-1", token=READER)
    ask("GET", f"/v1/hosts/host-1/pods/{POD}", token=READER)
    ask("GET", "/v1/policies/test", token=READER)
    values = {
        "v": 1,
        "version": 1,
        "pcrs": {},
        "binaries": [],
        "manifests": [],
        "trees": [],
        "references": [],
    }
    ask("PUT", "/v1/reference-values", values, ADMIN)
    ask("PUT", "/v1/policies/test", desk("GET", "/v1/policies/test", token=READER).body, ADMIN)
    for path in (
        "/.well-known/jwks.json",
        "/.well-known/secrun-verifier",
        "/metrics",
        "/healthz",
        "/openapi.json",
        "/",
    ):
        ask("GET", path, token=READER)
    ask("DELETE", "/v1/hosts/host-1", token=ADMIN)
    for method, path in DOOR:  # and refusals
        body = {} if method in ("POST", "PUT") else b""
        for token in ("", ADMIN, "x" * 43):
            ask(method, path.format(id="nothing", host="nobody", pod="none"), body, token)
    assert ask.problems == []
    done = {(method, path) for method, path, status in ask.seen if status < 300}
    assert done == set(DOOR)


def test_roles_are_those_of_the_table():
    words = {word for doors in DOOR.values() for word in doors.split()} - {"all"}
    assert words == {Role.HOST, Role.READER, Role.ADMIN}
