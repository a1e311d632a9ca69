"""Text from others, on its way to a terminal or a journal."""


def printable(text: str) -> str:
    """Return `text` without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
