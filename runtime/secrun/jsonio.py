"""JSON at the edge: canonical bytes out, bounded and strict parsing in."""

import json
from typing import TypeAlias

from secrun.errors import ImageError

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]


def canonical(value: JsonValue) -> bytes:
    """Return `value` as RFC 8785 canonical JSON; floats are not allowed, keys must be ASCII.

    Within these bounds the standard encoder is canonical; a property test holds it against rfc8785.
    """
    _check_canonical(value)
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def _check_canonical(value: JsonValue) -> None:
    if isinstance(value, float):
        raise TypeError("canonical JSON of secrun holds no floats")
    if isinstance(value, dict):
        for key, item in value.items():
            # UTF-16 order (RFC 8785, 3.2.3) and code point order agree below the surrogates.
            if not key.isascii() and any(ord(char) >= 0xD800 for char in key):
                raise ValueError(f"key {key!r} has characters beyond U+D7FF")
            _check_canonical(item)
    elif isinstance(value, list):
        for item in value:
            _check_canonical(item)


def _unique(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"duplicate key {twice[:80]!r}")


# json.loads would make one for every document.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def parse_object(data: bytes, *, what: str, limit: int) -> JsonObject:
    """Parse `data` as one JSON object of at most `limit` bytes; raises ImageError naming `what`.

    Duplicate keys and deep nesting are errors: two parsers may disagree about them.
    """
    if len(data) > limit:
        raise ImageError(f"{what} has {len(data)} bytes, the limit is {limit}", code="image-json-size")
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except RecursionError as error:
        raise ImageError(f"{what} nests too deep", code="image-json-depth") from error
    except ValueError as error:
        raise ImageError(f"{what} is not valid JSON: {error}", code="image-json") from error
    if not isinstance(value, dict):
        raise ImageError(f"{what} is a JSON {type(value).__name__}, expected an object", code="image-json")
    return value
