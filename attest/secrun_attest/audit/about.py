"""What an export is about: which log, from when to when, and its head."""

from secrun_attest import frozen


@frozen.record
class About:
    """The log's origin, the host's name, the tool, the head of the log; times in milliseconds since 1970.

    `since` and `until` are those of the rows; 0 is not known.
    """

    origin: str
    host: str
    tool: str
    size: int
    root: bytes
    made: int
    since: int
    until: int
    framework: str = ""
