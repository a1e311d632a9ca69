"""A request and an answer as the handlers see them: no framework, no socket."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from secrets import token_urlsafe

from secrun_attest.errors import FormatError
from secrun_attest.fields import Fields, parse_json
from secrun_attest.jcs import JsonObject
from secrun_attest.service.auth import Principal
from secrun_attest.service.config import MAX_REQUEST
from secrun_attest.service.trouble import ServiceError, Trouble, to_json

JSON = "application/json"
PROBLEM = "application/problem+json"
# Ids go into paths, pages and logs.
MAX_ID = 200
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
# Our own are random base64url, which may begin with anything of it.
_OWN_ID = re.compile(r"[A-Za-z0-9_-]{22}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request: who asks, the parameters in path and query, the body, and the time (since 1970)."""

    principal: Principal
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    now: int

    def fields(self, what: str) -> Fields:
        """Return the members of a small JSON body; raises ServiceError 422."""
        try:
            return Fields(parse_json(self.body, what=what, limit=MAX_REQUEST), what)
        except FormatError as error:
            raise bad_request(error.message) from error

    def only(self, *names: str) -> None:
        """Raise ServiceError 422 for parameters of the query with other names."""
        if unknown := self.query.keys() - set(names):
            raise bad_request(f"unknown parameters in the query: {', '.join(sorted(unknown))[:200]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer."""

    status: int = 200
    body: bytes = b""
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def reply(value: JsonObject, *, status: int = 200, location: str = "") -> Reply:
    """Return a JSON answer."""
    headers = {"location": location} if location else {}
    return Reply(status=status, body=to_json(value), headers=headers)


def bad_request(message: str) -> ServiceError:
    """Return the error for a request that has no meaning."""
    return ServiceError(Trouble.REQUEST, message, hint="see docs/verifier-service.md or /openapi.json")


def is_id(value: str) -> bool:
    """Tell whether `value` has the form of an id: what has not is in no database, and goes to none."""
    return len(value) <= MAX_ID and _ID.match(value) is not None


def is_own_id(value: str) -> bool:
    """Tell whether `value` has the form of an id that `new_id` made."""
    return _OWN_ID.match(value) is not None


def new_id() -> str:
    """Return an id that nobody can guess."""
    return token_urlsafe(16)


def check_id(value: str, what: str) -> str:
    """Return `value` if it may be an id; raises ServiceError 422."""
    if not is_id(value):
        raise bad_request(
            f"{what} is {value[:80]!r}, expected up to {MAX_ID} letters, digits, '.', '_' and '-'"
        )
    return value
