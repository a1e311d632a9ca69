"""Typed access to parsed JSON objects: every misfit is an ImageError that names the field."""

import re

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.jsonio import JsonObject, JsonValue

# NUL and lone surrogates: neither fits into a C string in UTF-8.
_UNFIT = re.compile("[\0\ud800-\udfff]")


def _wrong(what: str, key: str, value: JsonValue, expected: str) -> ImageError:
    return ImageError(
        f"{what}: field {key!r} is {type(value).__name__}, expected {expected}", code="image-field"
    )


def checked_text(text: str, what: str, key: str) -> str:
    """Return `text` unless it cannot be a C string or UTF-8; such values only confuse what comes later."""
    if _UNFIT.search(text):
        raise ImageError(f"{what}: field {key!r} has a NUL or a lone surrogate", code="image-field")
    return text


def word(source: JsonObject, key: str, what: str) -> str:
    """Return a string that is fit to be shown: printable and without blanks; missing is empty."""
    value = text(source, key, what)
    if not value.isprintable() or " " in value:
        raise ImageError(f"{what}: field {key!r} is {value[:80]!r}, expected one word", code="image-field")
    return value


def text(source: JsonObject, key: str, what: str, default: str | None = "") -> str:
    """Return a string field; a missing or null field is `default`, or an error if that is None."""
    value = source.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise _wrong(what, key, value, "a string")
    return checked_text(value, what, key)


def integer(source: JsonObject, key: str, what: str, *, limit: int) -> int:
    """Return a field that is a whole number from 0 to `limit`."""
    value = source.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(what, key, value, "an integer")
    if not 0 <= value <= limit:
        raise ImageError(f"{what}: field {key!r} is {value}, the limit is {limit}", code="image-limit")
    return value


def digest(source: JsonObject, key: str, what: str) -> Digest:
    """Return a field that is a content digest."""
    return parse_digest(text(source, key, what, None), what)


def parse_digest(word: str, what: str) -> Digest:
    """Parse a digest; the error names the document."""
    try:
        return Digest.parse(word)
    except ImageError as error:
        raise ImageError(f"{what}: {error.message}", hint=error.hint, code="image-digest-syntax") from error


def mapping(source: JsonObject, key: str, what: str) -> JsonObject:
    """Return an object field; missing or null is an empty object."""
    value = source.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(what, key, value, "an object")
    return value


def objects(source: JsonObject, key: str, what: str, *, limit: int) -> list[JsonObject]:
    """Return a field that is a list of at most `limit` objects; missing or null is an empty list."""
    result: list[JsonObject] = []
    for number, item in enumerate(_items(source, key, what, limit)):
        if not isinstance(item, dict):
            raise _wrong(what, f"{key}[{number}]", item, "an object")
        result.append(item)
    return result


def texts(source: JsonObject, key: str, what: str, *, limit: int) -> tuple[str, ...]:
    """Return a field that is a list of at most `limit` strings; missing or null is an empty tuple."""
    result: list[str] = []
    for number, item in enumerate(_items(source, key, what, limit)):
        if not isinstance(item, str):
            raise _wrong(what, f"{key}[{number}]", item, "a string")
        result.append(checked_text(item, what, key))
    return tuple(result)


def _items(source: JsonObject, key: str, what: str, limit: int) -> list[JsonValue]:
    value = source.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(what, key, value, "a list")
    if len(value) > limit:
        raise ImageError(
            f"{what}: {key!r} has {len(value)} entries, the limit is {limit}", code="image-limit"
        )
    return value
