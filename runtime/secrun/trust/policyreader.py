"""Typed reading of a policy file's objects: what is not understood rejects the file."""

from secrun.errors import UsageError
from secrun.jsonio import JsonObject, JsonValue


def policy_error(message: str) -> UsageError:
    """Return the error for a policy file that cannot be used."""
    return UsageError(
        f"trust policy {message}",
        hint="the whole file is refused, as containers-policy.json(5) demands; correct it",
        code="usage-policy",
    )


class Reader:
    """Takes fields out of one object; what is left at the end is unknown and an error."""

    def __init__(self, source: JsonObject, where: str) -> None:
        self._rest = dict(source)
        self.where = where

    def error(self, why: str) -> UsageError:
        """Return the error for this object."""
        return policy_error(f"{self.where}: {why}")

    def text(self, key: str) -> str:
        """Take a string that is not empty."""
        value = self._rest.pop(key, None)
        if not isinstance(value, str) or not value:
            raise self.error(f"{key!r} must be a string that is not empty")
        return value

    def optional_text(self, key: str) -> str:
        """Take a string; empty if it is absent."""
        return self.text(key) if key in self._rest else ""

    def has(self, key: str) -> bool:
        """Tell whether a field is left."""
        return key in self._rest

    def pop(self, key: str) -> JsonValue:
        """Take a field as it is."""
        return self._rest.pop(key, None)

    def object(self, key: str) -> "Reader":
        """Take an object."""
        value = self._rest.pop(key, None)
        if not isinstance(value, dict):
            raise self.error(f"{key!r} must be an object")
        return Reader(value, f"{self.where}, {key}")

    def texts(self, key: str) -> tuple[str, ...]:
        """Take a list of strings that is not empty."""
        value = self._rest.pop(key, None)
        if not isinstance(value, list) or not value:
            raise self.error(f"{key!r} must be a list that is not empty")
        words = tuple(item for item in value if isinstance(item, str) and item)
        if len(words) != len(value):
            raise self.error(f"{key!r} must hold strings")
        return words

    def decoded(self, key: str, word: str) -> bytes:
        """Decode base64 that was taken from `key`."""
        import base64
        import binascii

        try:
            return base64.b64decode(word, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.error(f"{key!r} is not base64") from error

    def end(self) -> None:
        """Raise UsageError if fields are left that nobody asked for."""
        if self._rest:
            unknown = ", ".join(repr(key[:60]) for key in sorted(self._rest))
            raise self.error(f"unknown field {unknown}")
