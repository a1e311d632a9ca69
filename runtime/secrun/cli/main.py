"""Parse the command line, run the verb, print errors, return the exit status."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run `argv` (without the program's name)."""
    return 2 if not argv else 0
