"""WWW-Authenticate: RFC 9110, 11.6.1, as registries send it."""

import re
from collections.abc import Mapping

from secrun.record import record

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's word for a name, no secret
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?:,|\Z)')
_SCHEME = re.compile(rf"\s*,?\s*({_TOKEN})(?:\s+|\Z)")


@record
class Challenge:
    """One way to authenticate; scheme and parameter names are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse(header: str) -> tuple[Challenge, ...]:
    """Parse a header's challenges in order; what is malformed ends the list."""
    result: list[Challenge] = []
    position = 0
    while position < len(header):
        scheme = _SCHEME.match(header, position)
        if not scheme:
            break
        position = scheme.end()
        parameters: dict[str, str] = {}
        while match := _PARAMETER.match(header, position):
            quoted = match[2]
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else match[3]
            parameters.setdefault(match[1].lower(), value)
            position = match.end()
        result.append(Challenge(scheme=scheme[1].lower(), parameters=parameters))
    return tuple(result)
