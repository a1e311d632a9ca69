"""Strict JSON in, RFC 8785 canonical JSON out: integers only, ASCII keys, NFC text."""

import json

from secrun_attest.errors import FormatError
from secrun_attest.limits import MAX_INTEGER, MAX_JSON_DEPTH

# Importing `typing` takes 2 ms, and at run time nothing of it is needed; type checkers know this name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, TypeAlias

JsonValue: "TypeAlias" = "str | int | bool | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: "TypeAlias" = dict[str, JsonValue]

# The longest integer that MAX_INTEGER allows, with its sign.
_INTEGER_DIGITS = len(str(-MAX_INTEGER))


def encode(value: JsonValue) -> bytes:
    """Return `value` as RFC 8785 canonical JSON; raises FormatError for what this form cannot hold."""
    _check(value, 1)
    return _plain(value)


def _plain(value: JsonValue) -> bytes:
    # With ASCII keys and integers below 2**53 the standard encoder is canonical.
    try:
        return _ENCODER.encode(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError("text has half of a surrogate pair", code="json-text") from error


def parse(data: bytes, *, what: str, limit: int) -> JsonValue:
    """Parse strict JSON of at most `limit` bytes; raises FormatError naming `what`.

    Refused: duplicate keys, floats, integers beyond 2**53 - 1, text that is not NFC, keys that are not
    ASCII, deep nesting, a byte order mark. Two parsers could disagree about each of them.
    """
    return _decode(data, _STRICT, what, limit)


def parse_object(data: bytes, *, what: str, limit: int) -> JsonObject:
    """Parse as `parse` does what must be one object."""
    return _object(parse(data, what=what, limit=limit), what)


def parse_canonical(data: bytes, *, what: str, limit: int) -> JsonObject:
    """Parse one object that must be RFC 8785 canonical: for each value there is one text, and this is it."""
    value = _object(_decode(data, _LOOSE, what, limit), what)
    # This also finds duplicate keys: only one of them comes back.
    if _plain(value) != data:
        raise FormatError(f"{what} is not canonical JSON", code="json-canonical")
    return value


def _decode(data: bytes, decoder: json.JSONDecoder, what: str, limit: int) -> JsonValue:
    if len(data) > limit:
        raise FormatError(f"{what} has {len(data)} bytes, the limit is {limit}", code="json-size")
    try:
        value: JsonValue = decoder.decode(data.decode("utf-8"))
    except RecursionError as error:
        raise FormatError(f"{what} nests too deep", code="json-depth") from error
    except ValueError as error:
        raise FormatError(f"{what} is not valid JSON: {_short(error)}", code="json") from error
    # ASCII text without an escape can hold neither odd keys nor odd text, and few brackets cannot nest deep.
    if not data.isascii() or b"\\u" in data or data.count(b"{") + data.count(b"[") > MAX_JSON_DEPTH:
        _check(value, 1)
    return value


def _object(value: JsonValue, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise FormatError(f"{what} is a JSON {type(value).__name__}, expected an object", code="json-object")
    return value


def _check(value: JsonValue, depth: int) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, int):  # bool too
        if abs(value) > MAX_INTEGER:
            raise FormatError(f"integer beyond {MAX_INTEGER}", code="json-integer")
    elif isinstance(value, dict | list):
        if depth > MAX_JSON_DEPTH:
            raise FormatError(f"JSON nests deeper than {MAX_JSON_DEPTH}", code="json-depth")
        if isinstance(value, dict):
            _check_keys(value)
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) is not str or not item.isascii():  # most are, and a call costs more than a look
                _check(item, depth + 1)
    elif value is not None:
        raise FormatError(f"a {type(value).__name__} has no place in an event", code="json-type")


def _check_keys(value: JsonObject) -> None:
    for key in value:
        # RFC 8785, 3.2.3 orders keys by UTF-16 units, Python by code points; for ASCII they agree.
        if not key.isascii():
            raise FormatError(f"key {key[:40]!r} is not ASCII", code="json-key")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    from unicodedata import is_normalized

    if not is_normalized("NFC", text):
        raise FormatError(f"text {text[:40]!r} is not in Unicode form NFC", code="json-text")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise FormatError("text has half of a surrogate pair", code="json-text")


def _short(error: ValueError) -> str:
    return str(error)[:160]


def _integer(text: str) -> int:
    if len(text) > _INTEGER_DIGITS or abs(number := int(text)) > MAX_INTEGER:
        raise ValueError(f"integer {text[:20]} is beyond {MAX_INTEGER}")
    return number


def _no_float(text: str) -> "NoReturn":
    raise ValueError(f"{text[:20]} is not an integer")


def _unique(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise ValueError(f"duplicate key {twice[:40]!r}")
    return value


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_no_float, parse_int=_integer, parse_constant=_no_float
)
_LOOSE = json.JSONDecoder(parse_float=_no_float, parse_int=_integer, parse_constant=_no_float)
