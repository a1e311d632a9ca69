"""The shapes of requests and answers, for openapi.json; the parsers are what decides."""

from typing import Final

from secrun_attest.jcs import JsonObject, JsonValue

TEXT: Final[JsonObject] = {"type": "string"}
NUMBER: Final[JsonObject] = {"type": "integer", "minimum": 0}
FLAG: Final[JsonObject] = {"type": "boolean"}
HEX: Final[JsonObject] = {"type": "string", "pattern": "^([0-9a-f]{2})*$"}
BASE64: Final[JsonObject] = {"type": "string", "contentEncoding": "base64"}
DIGEST: Final[JsonObject] = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
ID: Final[JsonObject] = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$", "maxLength": 200}
STATUS: Final[JsonObject] = {"enum": ["affirming", "warning", "contraindicated"]}
VERDICT: Final[JsonObject] = {"enum": ["affirming", "warning", "contraindicated", "rejected", "none"]}


def _object(optional: tuple[str, ...] = (), /, **members: JsonObject) -> JsonObject:
    properties: JsonObject = dict(members)
    required: list[JsonValue] = [name for name in members if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _list(items: JsonObject) -> JsonObject:
    return {"type": "array", "items": items}


def _map(items: JsonObject) -> JsonObject:
    return {"type": "object", "additionalProperties": items}


def _or_null(schema: JsonObject) -> JsonObject:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}


_ENROLMENT = _object(
    host=ID,
    ek_pub=BASE64,
    ek_chain=_list(BASE64),
    ak_pub=BASE64,
    ak_parent={"enum": ["ek", "endorsement", "platform"]},
)
_CREDENTIAL = _object(
    id=TEXT, host=ID, audience=TEXT, expires=NUMBER, credential_blob=BASE64, encrypted_secret=BASE64
)
_CHALLENGE = _object(
    id=TEXT,
    state={"const": "waiting"},
    host=ID,
    nonce=HEX,
    issued=NUMBER,
    expires=NUMBER,
    audience=TEXT,
    bank=TEXT,
    pcrs=_list(NUMBER),
    runtime_pcr=NUMBER,
    epoch=_or_null(_ref("Epoch")),
    log_from=NUMBER,
    log_base=_or_null(_map(HEX)),
)
_RESULT = _object(
    ("id", "state"),
    id=TEXT,
    state={"const": "complete"},
    host=ID,
    status=STATUS,
    policy=DIGEST,
    appraised=NUMBER,
    epoch=_ref("Epoch"),
    log_count=NUMBER,
    head=HEX,
    modules=_map(_object(status=STATUS, reasons=_list(TEXT))),
    token=TEXT,
)
_SESSION = _object(
    ("problem", "expires"),
    id=TEXT,
    host=ID,
    expires=NUMBER,
    problem=_ref("Problem"),
    state={"enum": ["waiting", "processing", "failed", "expired"]},
)
_APP = _object(name=TEXT, reference=TEXT, manifest=DIGEST, tree=DIGEST, relaxations=_list(TEXT))
_POD = _object(
    pod=TEXT,
    state={"enum": ["prepared", "started", "exited", "removed"]},
    status=STATUS,
    reasons=_list(TEXT),
    entries=NUMBER,
    manifest=DIGEST,
    relaxations=_list(TEXT),
    apps=_list(_APP),
)
_SUMMARY: Final[dict[str, JsonObject]] = dict(  # noqa: C408 - reads like the others
    host=ID,
    software=FLAG,
    enrolled=NUMBER,
    ak_name=HEX,
    verdict=VERDICT,
    seen=_or_null(NUMBER),
    appraised=_or_null(NUMBER),
    epoch=_or_null(_ref("Epoch")),
    log_count=_or_null(NUMBER),
    tpm=_or_null(TEXT),
    reasons=_list(TEXT),
    pod_count=NUMBER,
    failure=_or_null(_object(code=TEXT, step=NUMBER, detail=TEXT, time=NUMBER)),
)
_VALUES = _object(
    v={"const": 1},
    version=NUMBER,
    pcrs=_map(_list(HEX)),
    binaries=_list(DIGEST),
    manifests=_list(DIGEST),
    trees=_list(DIGEST),
    references=_list(TEXT),
)
_PROBLEM = _object(
    type=TEXT,
    title=TEXT,
    status=NUMBER,
    code=TEXT,
    step=_or_null(NUMBER),
    detail=TEXT,
    hint=TEXT,
    retry=FLAG,
)
_ABOUT = _object(
    audience=TEXT,
    bank=TEXT,
    pcrs=_list(NUMBER),
    runtime_pcr=NUMBER,
    policy=DIGEST,
    jwks_uri=TEXT,
    enroll_token=FLAG,
    software_tpm=FLAG,
)
_JWK = _object(kty=TEXT, crv=TEXT, x=TEXT, y=TEXT, use=TEXT, alg=TEXT, kid=TEXT)

SCHEMAS: Final[JsonObject] = {
    "About": _ABOUT,
    "Begin": _object(("have",), host=ID, have=_or_null(_object(epoch=_ref("Epoch"), recnum=NUMBER))),
    "Challenge": _CHALLENGE,
    "Credential": _CREDENTIAL,
    "Enrolled": _object(host=ID, ak_name=HEX, software=FLAG, token=TEXT),
    "Enrolment": _ENROLMENT,
    "Epoch": _object(reset=NUMBER, restart=NUMBER, boot_id=TEXT),
    "Evidence": {"type": "object", "description": "docs/verifier.md, evidence"},
    "Health": _object(status={"const": "ok"}),
    "Host": _object(**_SUMMARY, now=NUMBER, pods=_list(_ref("Pod"))),
    "Hosts": _object(now=NUMBER, hosts=_list(_ref("HostSummary")), next=_or_null(ID)),
    "HostSummary": _object(**_SUMMARY),
    "Jwks": _object(keys=_list(_JWK)),
    "OpenApi": {"type": "object"},
    "Pod": _POD,
    "Policy": {"type": "object", "description": "docs/verifier.md, policy"},
    "Problem": _PROBLEM,
    "Proof": _object(proof=HEX),
    "ReferenceValues": _VALUES,
    "Result": _RESULT,
    "Session": {"anyOf": [_ref("Result"), _SESSION]},
}
