"""The keys that detach a terminal, in the words of podman and docker."""

import re

from secrun.errors import UsageError

# The longest sequence that the agent takes (runtime/agent/src/keys.rs).
_MAX_KEYS = 16
_CONTROL = re.compile(r"ctrl-([a-zA-Z@[\\\]^_])\Z")


def _key(word: str, text: str) -> int:
    if match := _CONTROL.match(word):
        # What a terminal sends with Ctrl held: the letter's last five bits (ASCII).
        return ord(match[1].upper()) & 0x1F
    if len(word) == 1 and word.isascii() and word.isprintable():
        return ord(word)
    raise UsageError(
        f"--detach-keys {text[:80]!r}: {word[:20]!r} is no key",
        hint="keys are single characters or ctrl- with one of a-z @ [ \\ ] ^ _, separated by commas",
    )


def parse(text: str) -> bytes:
    """Return what a terminal sends for a sequence of keys, nothing for an empty one; raises UsageError."""
    keys = bytes(_key(word, text) for word in text.split(",")) if text else b""
    if len(keys) > _MAX_KEYS:
        raise UsageError(f"--detach-keys has {len(keys)} keys, the limit is {_MAX_KEYS}")
    return keys


def words(keys: bytes) -> list[str]:
    """Return the agent's option for a sequence; nothing for an empty one."""
    return ["--detach-keys", ",".join(map(str, keys))] if keys else []
