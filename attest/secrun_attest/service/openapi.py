"""The service described for programs: OpenAPI 3.1, made from the table of routes."""

import re
from collections.abc import Sequence

from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.service.auth import Role
from secrun_attest.service.call import JSON, PROBLEM
from secrun_attest.service.metrics import MEDIA_TYPE as METRICS
from secrun_attest.service.routes import Route, Size
from secrun_attest.service.schemas import SCHEMAS
from secrun_attest.service.statuspage import MEDIA_TYPE as HTML

VERSION = "3.1.0"
# Every route may refuse for these; those with a body or credentials for more.
ALWAYS = (422, 429, 503)
WITH_BODY = (408, 413, 415)
WITH_CREDENTIALS = (401, 403)

STATUSES = {
    200: "done",
    201: "made",
    204: "done, nothing to say",
    401: "no credentials, or wrong ones",
    403: "they are for something else, or what was shown is not trusted",
    404: "there is nothing here",
    408: "the body came too slowly",
    409: "it does not agree with what is there, or was done before",
    410: "too late",
    413: "the body is too large",
    415: "the body is not JSON",
    422: "the request has no meaning, or evidence is rejected: see code and step",
    429: "too many requests: see Retry-After",
    503: "not now: see Retry-After",
}
MEDIA = {"Text": METRICS, "Html": HTML}


def document(table: Sequence[Route]) -> JsonObject:
    """Return the OpenAPI document of `table`."""
    paths: JsonObject = {
        path: {route.method.lower(): _operation(route) for route in table if route.path == path}
        for path in dict.fromkeys(route.path for route in table)
    }
    return {
        "openapi": VERSION,
        "info": {
            "title": "secrun verifier",
            "version": "1",
            "description": "Enrols hosts, appraises evidence, issues tokens.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
            },
        },
    }


def _operation(route: Route) -> JsonObject:
    public = Role.ANYONE in route.allowed
    anybody: list[JsonValue] = [{"token": []}, {"certificate": []}]
    operation: JsonObject = {
        "operationId": route.name,
        "summary": route.summary,
        "description": "For anyone." if public else f"For: {', '.join(sorted(route.allowed))}.",
        "security": [] if public else anybody,
        "parameters": _parameters(route),
        "responses": _responses(route, public=public),
    }
    if route.size is not Size.NONE:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(route.request)}}}
    return operation


def _parameters(route: Route) -> list[JsonValue]:
    in_path: list[JsonValue] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    in_query: list[JsonValue] = [
        {
            "name": name,
            "in": "query",
            "required": name in ("host", "nonce"),
            "schema": {"type": "integer" if name == "limit" else "string"},
        }
        for name in route.query
    ]
    return in_path + in_query


def _responses(route: Route, *, public: bool) -> JsonObject:
    statuses = {*ALWAYS, *route.troubles}
    statuses |= set() if route.size is Size.NONE else set(WITH_BODY)
    # Wrong credentials are refused everywhere; what is public and has a body is enrolment: refused too.
    statuses |= {401} if public and route.size is Size.NONE else set(WITH_CREDENTIALS)
    result: JsonObject = {str(route.status): _answer(route)}
    if route.answer == "Session":
        result["202"] = _answer(route)
    for status in sorted(statuses):
        schema: JsonObject = {"schema": _ref("Problem")}
        result[str(status)] = {"description": STATUSES[status], "content": {PROBLEM: schema}}
    return result


def _answer(route: Route) -> JsonObject:
    answer: JsonObject = {"description": STATUSES[route.status]}
    if route.answer:
        schema: JsonObject = {"type": "string"} if route.answer in MEDIA else _ref(route.answer)
        answer["content"] = {MEDIA.get(route.answer, JSON): {"schema": schema}}
    if route.status == 201:
        answer["headers"] = {"Location": {"schema": {"type": "string"}}}
    return answer


def _ref(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}
