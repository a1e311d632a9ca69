"""What the confinement compiler raises; the caller decides how to say it and with which exit status."""


class PolicyError(Exception):
    """A request, profile or host from which no confinement can be compiled; `code` is stable."""

    def __init__(self, message: str, *, hint: str = "", code: str = "policy") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


def near(word: str, known: frozenset[str] | tuple[str, ...]) -> str:
    """Return "did you mean A, B?" for the known words closest to `word`, or an empty text."""
    import difflib

    close = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.6)
    return f"did you mean {', '.join(close)}?" if close else ""
