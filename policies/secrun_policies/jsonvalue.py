"""Strict reading of JSON values: every field is named, typed and bounded before it leaves the edge."""

import json
from typing import TypeAlias

from secrun_policies.errors import PolicyError, near

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]

# Profiles in use (Docker's, Podman's) have about 1,000 names in 20 KB; a larger file is not a profile.
MAX_PROFILE_BYTES = 1 << 20


def canonical(value: JsonValue) -> bytes:
    """Return the one encoding that is digested: sorted keys, no spaces, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _unique(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    result: JsonObject = {}
    for key, value in pairs:
        if key in result:
            raise PolicyError(f"duplicate key {key[:80]!r}", code="policy-json")
        result[key] = value
    return result


def parse(data: bytes, *, what: str) -> JsonObject:
    """Parse one JSON object without duplicate keys; raises PolicyError naming `what`."""
    if len(data) > MAX_PROFILE_BYTES:
        raise PolicyError(
            f"{what} has {len(data)} bytes, the limit is {MAX_PROFILE_BYTES}", code="policy-json"
        )
    try:
        value: JsonValue = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{what} is not valid JSON: {error}", code="policy-json") from error
    except PolicyError as error:
        raise PolicyError(f"{what}: {error.message}", code="policy-json") from error
    return as_object(value, what)


def as_object(value: JsonValue, what: str) -> JsonObject:
    """Return `value` if it is an object; null counts as an empty one, as Go writes it."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PolicyError(f"{what} is a {type(value).__name__}, expected an object", code="policy-json")
    return value


def as_list(value: JsonValue, what: str) -> list[JsonValue]:
    """Return `value` if it is a list; null counts as an empty one, as Go writes it."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise PolicyError(f"{what} is a {type(value).__name__}, expected a list", code="policy-json")
    return value


def as_text(value: JsonValue, what: str) -> str:
    """Return `value` if it is a string."""
    if not isinstance(value, str):
        raise PolicyError(f"{what} is a {type(value).__name__}, expected a string", code="policy-json")
    return value


def as_number(value: JsonValue, what: str, *, low: int, high: int) -> int:
    """Return `value` if it is an integer from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise PolicyError(f"{what} is {value!r}, expected an integer {low}..{high}", code="policy-json")
    return value


def only(value: JsonObject, known: frozenset[str], what: str) -> None:
    """Reject keys that are not understood: a key that is skipped could be the one that protects."""
    for key in value:
        if key not in known:
            raise PolicyError(
                f"{what} has the unknown key {key[:80]!r}", hint=near(key, known), code="policy-json"
            )
