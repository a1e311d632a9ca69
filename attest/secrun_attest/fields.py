"""Strict reading of JSON: each member has a type, a bound and a name; unknown ones are refused."""

import binascii
import json

from secrun_attest.errors import FormatError
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.limits import MAX_INTEGER

# Importing `typing` takes 2 ms, and at run time nothing of it is needed; type checkers know this name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# Members with this prefix may be ignored; any other that is not known changes the meaning in an unknown way.
OPTIONAL_PREFIX = "x_"
# Names, references and messages: longer ones are an attack on whoever prints them.
MAX_TEXT = 4096
MAX_DIGITS = len(str(-MAX_INTEGER))
DIGEST_PREFIX = "sha256:"


class FieldError(FormatError):
    """A document lacks a member, has an unknown one, or one of the wrong type or size."""

    code = "field"


def _unique(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FieldError("an object has the same key twice")
    return result


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise FieldError(f"the number {text[:20]}... is too large")
    return int(text)


def _no_number(text: str) -> "NoReturn":
    raise FieldError(f"the number {text[:20]} is not an integer")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_no_number, parse_constant=_no_number
)


def parse_json(data: bytes, *, what: str, limit: int) -> JsonValue:
    """Parse JSON of at most `limit` bytes; duplicate keys, floats and deep nesting raise FieldError.

    Values are checked when they are asked for: text, integers and depth have the bounds of their member.
    """
    if len(data) > limit:
        raise FieldError(f"{what} has {len(data)} bytes, the limit is {limit}")
    try:
        value: JsonValue = _DECODER.decode(data.decode("utf-8"))
    except RecursionError as error:
        raise FieldError(f"{what} nests too deep") from error
    except ValueError as error:
        raise FieldError(f"{what} is not strict JSON: {str(error)[:160]}") from error
    return value


class Fields:
    """The members of one JSON object, each of which must be asked for before `done`."""

    __slots__ = ("_left", "what")

    def __init__(self, value: JsonValue, what: str) -> None:
        if not isinstance(value, dict):
            raise FieldError(f"{what} is not a JSON object")
        self._left = dict(value)
        self.what = what

    def take(self, name: str) -> JsonValue:
        """Return a member that must be there, null included."""
        try:
            return self._left.pop(name)
        except KeyError:
            raise FieldError(f"{self.what} has no {name!r}") from None

    def has(self, name: str) -> bool:
        """Tell whether the member is there and not null; a null is taken out."""
        if self._left.get(name) is not None:
            return True
        self._left.pop(name, None)
        return False

    def text(self, name: str, *, limit: int = MAX_TEXT) -> str:
        """Return a string of at most `limit` characters that can be encoded."""
        value = self.take(name)
        # The usual case, without a message.
        if type(value) is str and len(value) <= limit and value.isascii():
            return value
        return as_text(value, f"{self.what}.{name}", limit=limit)

    def integer(self, name: str, *, limit: int = MAX_INTEGER) -> int:
        """Return an integer from 0 to `limit`."""
        value = self.take(name)
        if type(value) is int and 0 <= value <= limit:
            return value
        return as_integer(value, f"{self.what}.{name}", limit=limit)

    def boolean(self, name: str) -> bool:
        """Return true or false."""
        value = self.take(name)
        if not isinstance(value, bool):
            raise FieldError(f"{self.what}.{name} is neither true nor false")
        return value

    def hex(self, name: str, *, sizes: tuple[int, ...] = ()) -> bytes:
        """Return bytes written as lower-case hex, of one of `sizes` if any is given."""
        return as_hex(self.take(name), f"{self.what}.{name}", sizes=sizes)

    def digest(self, name: str) -> bytes:
        """Return the 32 bytes of a digest written as `sha256:` and lower-case hex."""
        return as_digest(self.take(name), name)

    def base64(self, name: str) -> bytes:
        """Return bytes written as canonical base64 with padding."""
        return as_base64(self.take(name), f"{self.what}.{name}")

    def items(self, name: str, *, limit: int) -> list[JsonValue]:
        """Return an array of at most `limit` members."""
        value = self.take(name)
        if type(value) is list and len(value) <= limit:  # the usual case, without a message
            return value
        return as_list(value, f"{self.what}.{name}", limit=limit)

    def object(self, name: str) -> "Fields":
        """Return the members of an object inside."""
        return Fields(self.take(name), f"{self.what}.{name}")

    def mapping(self, name: str, *, limit: int) -> JsonObject:
        """Return an object whose keys are data, not names of members."""
        value = self.take(name)
        if not isinstance(value, dict):
            raise FieldError(f"{self.what}.{name} is not a JSON object")
        if len(value) > limit:
            raise FieldError(f"{self.what}.{name} has {len(value)} members, the limit is {limit}")
        return value

    def done(self) -> None:
        """Refuse what was not asked for, but for members that say they may be ignored."""
        for name in self._left:
            if not name.startswith(OPTIONAL_PREFIX):
                raise FieldError(f"{self.what} has an unknown member {name[:80]!r}")


def as_text(value: JsonValue, what: str, *, limit: int = MAX_TEXT) -> str:
    """Return `value` if it is a string of at most `limit` characters in NFC."""
    if not isinstance(value, str) or len(value) > limit:
        raise FieldError(f"{what} is not a string of at most {limit} characters")
    if not value.isascii() and not _is_text(value):
        raise FieldError(f"{what} is not Unicode text in form NFC")
    return value


def _is_text(value: str) -> bool:
    from unicodedata import is_normalized

    return is_normalized("NFC", value) and not any("\ud800" <= char <= "\udfff" for char in value)


def as_integer(value: JsonValue, what: str, *, limit: int = MAX_INTEGER) -> int:
    """Return `value` if it is an integer from 0 to `limit`."""
    if type(value) is not int or not 0 <= value <= limit:
        raise FieldError(f"{what} is not an integer from 0 to {limit}")
    return value


def as_hex(value: JsonValue, what: str, *, sizes: tuple[int, ...] = ()) -> bytes:
    """Return the bytes of `value` if it is canonical (lower-case) hex of one of `sizes`."""
    try:
        data = bytes.fromhex(value) if isinstance(value, str) else None
    except ValueError:
        data = None
    if data is None or data.hex() != value:
        raise FieldError(f"{what} is not lower-case hex")
    if sizes and len(data) not in sizes:
        raise FieldError(f"{what} has {len(data)} bytes, expected {' or '.join(map(str, sizes))}")
    return data


def as_digest(value: JsonValue, what: str) -> bytes:
    """Return the 32 bytes of a digest written as `sha256:` and lower-case hex."""
    if not isinstance(value, str) or not value.startswith(DIGEST_PREFIX):
        raise FieldError(f"{what} is not a digest that begins with {DIGEST_PREFIX!r}")
    return as_hex(value.removeprefix(DIGEST_PREFIX), what, sizes=(32,))


def as_base64(value: JsonValue, what: str) -> bytes:
    """Return the bytes of `value` if it is canonical base64 with padding."""
    try:
        data = binascii.a2b_base64(value, strict_mode=True) if isinstance(value, str) else None
    except ValueError:
        data = None
    if data is None or to_base64(data) != value:
        raise FieldError(f"{what} is not canonical base64")
    return data


def as_list(value: JsonValue, what: str, *, limit: int) -> list[JsonValue]:
    """Return `value` if it is an array of at most `limit` members."""
    if not isinstance(value, list):
        raise FieldError(f"{what} is not an array")
    if len(value) > limit:
        raise FieldError(f"{what} has {len(value)} members, the limit is {limit}")
    return value


def to_base64(data: bytes) -> str:
    """Return `data` as base64 with padding."""
    return binascii.b2a_base64(data, newline=False).decode()
