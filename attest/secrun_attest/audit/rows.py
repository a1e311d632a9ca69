"""Rows of the trail as text: JSON lines, and CSV that a spreadsheet does not run."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache

from secrun_attest.audit.trail import Image, Row
from secrun_attest.jcs import JsonObject

COLUMNS = (
    "index", "time", "event", "outcome", "pod", "who", "apps", "images", "signers", "flavour", "relaxations",
    "policy", "label", "network", "command", "code", "what", "why", "epoch", "number", "manifest",
    "confinement", "stage1", "account",
)  # fmt: skip
# What a spreadsheet takes for a formula when a cell begins with it (OWASP, CSV injection).
_FORMULA = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
_MILLISECONDS = 1000
# Rows that are written at once.
_FLUSH = 256


def when(milliseconds: int) -> str:
    """Return a time in UTC as RFC 3339 writes it; years beyond 9999 as the number."""
    try:
        return f"{_second(milliseconds // _MILLISECONDS)}.{milliseconds % _MILLISECONDS:03d}Z"
    except (ValueError, OverflowError, OSError):
        return str(milliseconds)


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


# Made once: json.dumps would make one for each row.
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def json_line(row: JsonObject) -> bytes:
    """Return the JSON form of a row as one line with its end."""
    return _ENCODER.encode(row).encode() + b"\n"


class RowDigest:
    """The digest of the JSON lines of the rows from `since` on, before `until`."""

    def __init__(self, since: int, until: int) -> None:
        self._since, self._until = since, until
        self._digest = hashlib.sha256()

    def add(self, row: Row) -> None:
        """Take a row."""
        if self._since <= row.time < self._until:
            self._digest.update(json_line(row.to_json()))

    def digest(self) -> bytes:
        """Return the digest of what was taken."""
        return self._digest.digest()


def csv_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """Yield a heading and the rows as CSV (RFC 4180); a cell that could be a formula begins with '."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for number, row in enumerate(rows):
        writer.writerow([f"'{cell}" if cell[:1] in _FORMULA else cell for cell in _cells(row)])
        if number % _FLUSH == 0:
            yield _taken(buffer)
    yield _taken(buffer)


def _taken(buffer: io.StringIO) -> bytes:
    data = buffer.getvalue().encode("utf-8", "backslashreplace")
    buffer.seek(0)
    buffer.truncate()
    return data


def image_text(image: Image) -> str:
    """Return an image in one word."""
    return f"{image.reference}@{image.manifest}" if image.reference else image.manifest


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row.leaf), when(row.time), row.event, row.outcome.value, row.pod, row.who, " ".join(row.apps),
        " ".join(map(image_text, row.images)), _signers(row), row.flavour, ", ".join(row.relaxations),
        row.policy, row.label, row.network, row.command, "" if row.code is None else str(row.code), row.what,
        row.why, row.epoch, str(row.number), row.manifest, row.confinement, row.stage1, row.account,
    )  # fmt: skip


def _signers(row: Row) -> str:
    return ", ".join(signer for image in row.images for signer in image.signers)
