"""Why one signature does not count; caught where signatures are weighed, never an error of its own."""


class SignatureFaultError(Exception):
    """A signature is malformed, is by somebody else or is about something else; the text says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
