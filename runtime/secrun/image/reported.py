"""Errors on their way from a process without rights to the one that asked it: bounded, printable words."""

import os
import re

from secrun.errors import (
    DeniedError,
    ExternalError,
    HostError,
    ImageError,
    RegistryError,
    SecrunError,
    StateError,
    UsageError,
)
from secrun.jsonio import JsonObject

_FAMILIES: dict[str, type[SecrunError]] = {
    "denied": DeniedError,
    "external": ExternalError,
    "host": HostError,
    "image": ImageError,
    "registry": RegistryError,
    "state": StateError,
    "usage": UsageError,
}
_CODE = re.compile(r"[a-z0-9]{1,20}(?:-[a-z0-9]{1,20}){0,4}\Z")
# A refusal quotes five reasons; a traceback has some thirty lines.
_MAX_WORDS = 8000


def fields_of(error: SecrunError | OSError | MemoryError) -> JsonObject:
    """Turn an error into the fields of an answer."""
    if isinstance(error, SecrunError):
        family = next((name for name, kind in _FAMILIES.items() if isinstance(error, kind)), "image")
        return {"family": family, "code": error.code, "message": error.message, "hint": error.hint}
    if isinstance(error, OSError):
        return {"family": "os", "code": "", "message": str(error), "hint": "", "errno": error.errno or 0}
    return {
        "family": "image",
        "code": "image-limit",
        "message": "reading the image needs more memory than such a process may have",
        "hint": "",
    }


def error_of(answer: JsonObject, who: str) -> SecrunError | OSError:
    """Return the error that the fields tell; whoever broke into the process may have written them."""
    message, hint, code = (shown(answer.get(key)) for key in ("message", "hint", "code"))
    family, number = answer.get("family"), answer.get("errno")
    if family == "os" and isinstance(number, int) and 0 < number < 4096:
        return OSError(number, os.strerror(number))
    kind = _FAMILIES.get(family) if isinstance(family, str) else None
    if kind is None or not message:
        return ImageError(f"{who} failed:\n{message}", code="image-worker")
    return kind(message, hint=hint, code=code if _CODE.match(code) else "")


def shown(value: object) -> str:
    """Return words that may reach a terminal."""
    text = value if isinstance(value, str) else ""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text[:_MAX_WORDS])
