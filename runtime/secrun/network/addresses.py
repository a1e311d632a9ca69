"""Addresses and names as text, checked and in one spelling; `ipaddress` would cost 6 ms of every start."""

import re
from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

_LABEL = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_BITS = {AF_INET: 32, AF_INET6: 128}


def address(text: str) -> str | None:
    """Return an IPv4 or IPv6 address in its usual spelling; None if `text` is none."""
    family = AF_INET6 if ":" in text else AF_INET
    try:
        return inet_ntop(family, inet_pton(family, text))
    except (OSError, ValueError):
        return None


def is_v6(text: str) -> bool:
    """Tell whether a checked address, or one with its prefix, is IPv6."""
    return ":" in text


def with_prefix(text: str) -> str | None:
    """Return `ADDRESS/BITS` in its usual spelling; None if `text` is none."""
    found, slash, bits = text.partition("/")
    plain = address(found)
    if plain is None or not slash or not (bits.isascii() and bits.isdecimal() and len(bits) <= 3):
        return None
    limit = _BITS[AF_INET6 if is_v6(plain) else AF_INET]
    return f"{plain}/{int(bits)}" if int(bits) <= limit else None


def mac(text: str) -> str | None:
    """Return a unicast Ethernet address in lower case; None if `text` is none."""
    lower = text.lower().replace("-", ":")
    if not _MAC.match(lower) or int(lower[:2], 16) & 1 or lower == "00:00:00:00:00:00":
        return None
    return lower


def is_domain(text: str) -> bool:
    """Tell whether `text` can be a host's or a domain's name."""
    return _DOMAIN.match(text) is not None
