"""Typed reading of secrun's own JSON files: every field is named, unknown ones are errors."""

from typing import NoReturn, Self

from secrun.errors import StateError
from secrun.jsonio import JsonObject, JsonValue, parse_object


class Fields:
    """One JSON object being read; each value is taken once and by its type."""

    def __init__(self, value: JsonValue, what: str) -> None:
        if not isinstance(value, dict):
            raise self._bad(what, f"is a {type(value).__name__}, expected an object")
        self._left: JsonObject = dict(value)
        self._what = what

    @classmethod
    def document(cls, data: bytes, *, what: str, limit: int, schema: str) -> Self:
        """Return the members of a file of `schema`; raises ImageError or StateError if it is another."""
        fields = cls(parse_object(data, what=what, limit=limit), what)
        if (got := fields.text("schema")) != schema:
            fields.unexpected("schema", got, schema)
        return fields

    @staticmethod
    def _bad(what: str, problem: str) -> StateError:
        return StateError(
            f"{what} {problem}",
            hint="it was not written by this version of secrun; remove the pod or image it belongs to",
            code="state-corrupt",
        )

    def _take(self, name: str) -> JsonValue:
        if name not in self._left:
            raise self._bad(self._what, f"has no field {name!r}")
        return self._left.pop(name)

    def _wrong(self, name: str, value: JsonValue, expected: str) -> StateError:
        return self._bad(f"{self._what}.{name}", f"is a {type(value).__name__}, expected {expected}")

    def has(self, name: str) -> bool:
        """Tell whether a field is there to be taken."""
        return name in self._left

    def text(self, name: str) -> str:
        """Take a string."""
        value = self._take(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def integer(self, name: str) -> int:
        """Take an integer."""
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, value, "an integer")
        return value

    def optional_integer(self, name: str) -> int | None:
        """Take an integer or null."""
        if self._left.get(name, 0) is None:
            self._left.pop(name)
            return None
        return self.integer(name)

    def flag(self, name: str) -> bool:
        """Take a boolean."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "a boolean")
        return value

    def _array(self, name: str) -> list[JsonValue]:
        value = self._take(name)
        if not isinstance(value, list):
            raise self._wrong(name, value, "an array")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Take an array of strings."""
        result: list[str] = []
        for value in self._array(name):
            if not isinstance(value, str):
                raise self._wrong(name, value, "strings")
            result.append(value)
        return tuple(result)

    def integers(self, name: str) -> tuple[int, ...]:
        """Take an array of integers."""
        result: list[int] = []
        for value in self._array(name):
            if not isinstance(value, int) or isinstance(value, bool):
                raise self._wrong(name, value, "integers")
            result.append(value)
        return tuple(result)

    def text_lists(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Take an array of arrays of strings."""
        result: list[tuple[str, ...]] = []
        for value in self._array(name):
            words = [word for word in value if isinstance(word, str)] if isinstance(value, list) else None
            if words is None or not isinstance(value, list) or len(words) != len(value):
                raise self._wrong(name, value, "arrays of strings")
            result.append(tuple(words))
        return tuple(result)

    def object(self, name: str) -> Self:
        """Take an object."""
        return type(self)(self._take(name), f"{self._what}.{name}")

    def optional_object(self, name: str) -> Self | None:
        """Take an object or null."""
        if self._left.get(name, 0) is None:
            self._left.pop(name)
            return None
        return self.object(name)

    def objects(self, name: str) -> tuple[Self, ...]:
        """Take an array of objects."""
        return tuple(
            type(self)(value, f"{self._what}.{name}[{index}]")
            for index, value in enumerate(self._array(name))
        )

    def names(self) -> tuple[str, ...]:
        """Return the members that are left, for objects whose names are data."""
        return tuple(self._left)

    def unexpected(self, name: str, got: str, expected: str) -> NoReturn:
        """Raise StateError for a value of the right type that has no meaning."""
        raise self._bad(f"{self._what}.{name}", f"is {got[:80]!r}, expected {expected}")

    def end(self) -> None:
        """Raise StateError if fields are left that nobody asked for."""
        if self._left:
            raise self._bad(self._what, f"has unknown fields: {', '.join(sorted(self._left))}")
