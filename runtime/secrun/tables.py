"""Typed reading of TOML tables: every key is named, unknown ones are errors."""

from collections.abc import Callable, Mapping
from typing import Self

from secrun.errors import SecrunError


class Taker:
    """Takes typed values out of a table; `fail` makes the error of a text that says where and why."""

    def __init__(self, table: Mapping[str, object], where: str, fail: Callable[[str], SecrunError]) -> None:
        self._rest = dict(table)
        self.where = where
        self._fail = fail

    def error(self, why: str) -> SecrunError:
        """Return the error for this table."""
        return self._fail(f"{self.where}: {why}")

    def has(self, key: str) -> bool:
        """Tell whether a key is left."""
        return key in self._rest

    def text(self, key: str, default: str | None = None) -> str:
        """Take a string; without a default it must be there and not be empty."""
        value = self._rest.pop(key, default)
        if not isinstance(value, str) or (not value and default is None):
            raise self.error(f"{key} must be a string")
        return value

    def flag(self, key: str) -> bool:
        """Take true or false; absent is false."""
        value = self._rest.pop(key, False)
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Take a string or a list of strings; absent is empty."""
        value = self._rest.pop(key, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list):
            raise self.error(f"{key} must be a list of strings")
        found = tuple(item for item in values if isinstance(item, str) and item)
        if len(found) != len(values):
            raise self.error(f"{key} must be a list of strings")
        return found

    def words(self, key: str) -> dict[str, str]:
        """Take a table of strings; absent is empty."""
        value = self._rest.pop(key, {})
        if not isinstance(value, Mapping):
            raise self.error(f"{key} must be a table")
        found = {str(name): item for name, item in value.items() if isinstance(item, str)}
        if len(found) != len(value):
            raise self.error(f"{key} must hold strings")
        return found

    def tables(self, key: str, *, limit: int) -> list[Self]:
        """Take a list of at most `limit` tables; absent is empty."""
        value = self._rest.pop(key, [])
        if not isinstance(value, list) or len(value) > limit:
            raise self.error(f"{key} must be at most {limit} tables")
        found = [item for item in value if isinstance(item, Mapping)]
        if len(found) != len(value):
            raise self.error(f"{key} must be tables: [[{key}]]")
        return [type(self)(item, f"{self.where}, {key} {n + 1}", self._fail) for n, item in enumerate(found)]

    def end(self) -> None:
        """Raise the error if keys are left that nobody asked for."""
        if self._rest:
            raise self.error(f"unknown key {', '.join(repr(str(key)[:60]) for key in sorted(self._rest))}")
