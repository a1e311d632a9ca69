"""A second copy of what is measured, in the host's journal: fields that other container engines use too.

It proves nothing and nobody waits for it: where no journal listens, there is none. Protocol: systemd's own,
JOURNAL_NATIVE_PROTOCOL.md: one datagram of fields.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from secrun_attest.jcs import JsonValue
from secrun_attest.record import Operation

SOCKET = Path("/run/systemd/journal/socket")
# systemd's catalogue wants an id for each kind of message; these are secrun's own.
MESSAGE_IDS = {
    Operation.POD_START: "5d6d3a1d8a9a4bd0a4a1f6d34f0c7b11",
    Operation.POD_EXIT: "0f5a86b6b1f74fd8b6d4c4a3c9f2de22",
    Operation.POD_EXEC: "b7c1f7f5e6a34a3f9d0e54b1b6a8cc33",
    Operation.DENIED: "e2a94c0f1c8e4c7fb1a6f1d0a7e5bb44",
    Operation.UNMEASURED: "9c3b7e21d6f54d1e8f7a2b6c5d4eaa55",
}
_NOTICE, _WARNING = "5", "4"
_SHORT = 12
_WARNED = (Operation.DENIED, Operation.UNMEASURED)


def fields_of(operation: Operation, fields: Mapping[str, JsonValue]) -> dict[str, str]:
    """Return the journal's fields for an event; empty for one that it is not told. Pure."""
    message_id = MESSAGE_IDS.get(operation)
    if message_id is None:
        return {}
    pod, code = fields.get("pod"), fields.get("code")
    said = [
        word for name in ("what", "subject", "option", "why") if isinstance(word := fields.get(name), str)
    ]
    uuid = pod if isinstance(pod, str) else ""
    exit_code = f"code {code}" if isinstance(code, int) else ""
    found = {
        "MESSAGE": " ".join(filter(None, (operation.value, uuid, exit_code, *said))),
        "MESSAGE_ID": message_id,
        "PRIORITY": _WARNING if operation in _WARNED else _NOTICE,
        "SYSLOG_IDENTIFIER": "secrun",
        "SECRUN_EVENT": operation.value,
    }
    if uuid:
        found |= {
            "CONTAINER_ID": uuid.replace("-", "")[:_SHORT],
            "CONTAINER_ID_FULL": uuid,
            "CONTAINER_NAME": uuid,
        }
    if exit_code:
        found["SECRUN_CODE"] = str(code)
    return found


def encode(fields: Mapping[str, str]) -> bytes:
    """Return fields as one datagram: a value with a line feed has its length before it."""
    parts: list[bytes] = []
    for name, value in fields.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(b"%b\n%b%b\n" % (name.encode(), len(data).to_bytes(8, "little"), data))
        else:
            parts.append(b"%b=%b\n" % (name.encode(), data))
    return b"".join(parts)


def tell(operation: Operation, fields: Mapping[str, JsonValue], place: Path = SOCKET) -> None:
    """Tell the journal of an event, if there is a journal and it takes it."""
    found = fields_of(operation, fields)
    # Unlike pathlib, os.path says no where it may not look: a host's policy can keep us from the journal.
    if not found or not os.path.exists(place):
        return
    import _socket  # a third of what the module around it costs to load

    sender = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        sender.setblocking(False)
        sender.sendto(encode(found), str(place))
    except OSError:
        return  # full, or gone meanwhile: the log is what counts
    finally:
        sender.close()
