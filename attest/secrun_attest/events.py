"""Events read by the thousand: those of a pod's life in their usual form, without writing each again.

What is canonical has one text, so the events that secrun writes are a regular language. What matches is
canonical, and has no number that is too large, no text that is not ASCII, no depth; anything else goes the
long way of `record.parse_event_data`, which costs two to four times as much and knows what is wrong.
"""

import json
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import NamedTuple

from secrun_attest.jcs import JsonObject, JsonValue, parse_canonical
from secrun_attest.limits import MAX_EVENT_DATA
from secrun_attest.record import (
    DOMAIN,
    EPOCH_CACHE,
    RESERVED,
    TAG_SIZE,
    VERSION,
    Epoch,
    Event,
    Operation,
    parse_epoch,
    parse_event_data,
    tag_of,
)

_LIFE = {
    operation.value.encode(): operation
    for operation in (Operation.POD_PREPARE, Operation.POD_START, Operation.POD_EXIT, Operation.POD_GC)
}

# Wherever a part could end earlier, the byte that must follow is not there: one pass, whatever is sent.
_NUMBER = rb"(?:0|[1-9][0-9]{0,14})"
_TEXT = rb'"[ !#-\[\]-~]*"'


def _list(item: bytes) -> bytes:
    return rb"\[(?:%b(?:,%b)*)?\]" % (item, item)


def _member(name: bytes, value: bytes) -> bytes:
    return rb'(?:"%b":%b,)?' % (name, value)


_APP = (
    rb"\{"
    + _member(b"bundle", _TEXT)
    + _member(b"code", _NUMBER)
    + _member(b"image", _TEXT)
    + rb'"name":%b(?:,"relaxations":%b)?(?:,"tree":%b)?(?:,"verity_root":%b)?\}'
    % (_TEXT, _list(_TEXT), _TEXT, _TEXT)
)
_STAGE1 = rb'(?:null|\{"digest":%b(?:,"flavour":%b)?,"tree":%b\})' % (_TEXT, _TEXT, _TEXT)
_MACHINE = rb",".join(
    rb'"%b":%b' % (name, value)
    for name, value in (
        (b"accelerator", _TEXT),
        (b"command_line", _TEXT),
        (b"initrd", _TEXT),
        (b"kernel", _TEXT),
        (b"memory_bytes", _NUMBER),
        (b"model", _TEXT),
        (b"pod_blocks", _NUMBER),
        (b"pod_root", _TEXT),
        (b"storage_bytes", _NUMBER),
        (b"vcpus", _NUMBER),
        (b"vtpm", rb"(?:false|true)"),
    )
)
_EPOCH = rb'\{"boot_id":"[0-9a-f-]{36}","reset":%b,"restart":%b\}' % (_NUMBER, _NUMBER)
_BY = rb'\{(?:"login":%b,)?"uid":%b(?:,"unit":%b)?\}' % (_NUMBER, _NUMBER, _TEXT)
_HEAD = re.escape(DOMAIN) + rb" (?P<operation>%b) "
_REST = rb'"seq":(?P<seq>%b),' % _NUMBER
_TAIL = rb'"t":(?P<t>%b),"v":%d\}' % (_NUMBER, VERSION)
_POD = rb'"pod":"(?P<pod>[ !#-\[\]-~]*)",'
_BRIEF = (
    _HEAD % b"PodStart|PodExit|PodGC"
    + rb'\{(?:"account":"(?P<account>[ !#-\[\]-~]*)",)?'
    + rb'(?:"by":(?P<by>%b),)?(?:"code":(?P<code>%b),)?"epoch":(?P<epoch>%b),' % (_BY, _NUMBER, _EPOCH)
    + rb'(?:"network":"(?P<network>[ !#-\[\]-~]*)",)?'
    + _POD
    + rb'(?:"selinux":"(?P<selinux>[ !#-\[\]-~]*)",)?'
    + _REST
    + _TAIL
    + rb"\Z"
)
_FULL = (
    _HEAD % b"PodPrepare|PodExit"
    + rb"(?P<text>\{"
    + _member(b"account", _TEXT)
    + _member(b"apps", _list(_APP))
    + _member(b"code", _NUMBER)
    + _member(b"confinement", _TEXT)
    + rb'"epoch":(?P<epoch>%b),' % _EPOCH
    + _member(b"machine", rb"\{%b\}" % _MACHINE)
    + _member(b"manifest", _TEXT)
    + rb'"pod":%b,' % _TEXT
    + _member(b"policy", _TEXT)
    + _member(b"relaxations", _list(_TEXT))
    + _REST
    + _member(b"stage1", _STAGE1)
    + _TAIL
    + rb")\Z"
)
_DECODER = json.JSONDecoder()
_ALL = {operation.value.encode(): operation for operation in Operation}


@cache
def _patterns() -> "tuple[re.Pattern[bytes], re.Pattern[bytes]]":
    return re.compile(_BRIEF), re.compile(_FULL)


def usual(data: bytes) -> "re.Match[bytes] | None":
    """Match an event of a pod's life in its usual form; what matches is canonical, tag and size included.

    The groups `operation`, `epoch`, `seq` and `t` are bytes. None says nothing of the event.
    """
    if not TAG_SIZE <= len(data) <= MAX_EVENT_DATA or not data.startswith(tag_of(len(data) - TAG_SIZE)):
        return None
    brief, full = _patterns()
    return brief.match(data, TAG_SIZE) or full.match(data, TAG_SIZE)


def parse_event(data: bytes) -> Event:
    """Parse as `record.parse_event_data` does, for whoever reads many: it costs more to begin with."""
    match = usual(data)
    if match is None:
        return parse_event_data(data)
    operation, epoch, seq, t = match.group("operation", "epoch", "seq", "t")
    fields = _brief_fields(match) if match.re is _patterns()[0] else _full_fields(match)
    return Event(operation=_LIFE[operation], seq=int(seq), epoch=epoch_of(epoch), t=int(t), fields=fields)


class Told(NamedTuple):
    """What an event tells, for whoever looks at millions: the fields of `Event` without its checks."""

    operation: Operation
    seq: int
    epoch: Epoch
    t: int
    fields: Mapping[str, JsonValue]


def retold(data: bytes) -> Told:
    """Read an event that was parsed before, the hash of its leaf saying that these are the same bytes.

    Raises FormatError if it is no event all the same.
    """
    try:
        _, operation, text = data[TAG_SIZE:].split(b" ", 2)
        fields: JsonObject = _DECODER.raw_decode(text.decode())[0]
        seq, epoch, t = fields.pop("seq"), fields.pop("epoch"), fields.pop("t")
        if fields.pop("v") == VERSION and type(seq) is int and type(t) is int:
            return Told(_ALL[operation], seq, parse_epoch(epoch), t, fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # the strict parser knows what is wrong
    event = parse_event_data(data)
    return Told(event.operation, event.seq, event.epoch, event.t, event.fields)


def _brief_fields(match: re.Match[bytes]) -> JsonObject:
    pod, code, network, label, by = match.group("pod", "code", "network", "selinux", "by")
    fields: JsonObject = {"pod": pod.decode()}
    if (account := match["account"]) is not None:
        fields["account"] = account.decode()
    if by is not None:
        fields["by"] = dict(_actor(by))
    if code is not None:
        fields["code"] = int(code)
    if network is not None:
        fields["network"] = network.decode()
    if label is not None:
        fields["selinux"] = label.decode()
    return fields


def _full_fields(match: re.Match[bytes]) -> JsonObject:
    fields: JsonObject = _DECODER.raw_decode(match["text"].decode())[0]
    for name in RESERVED:
        del fields[name]
    return fields


@lru_cache(maxsize=EPOCH_CACHE)
def _actor(text: bytes) -> JsonObject:
    found: JsonObject = _DECODER.raw_decode(text.decode())[0]
    return found


@lru_cache(maxsize=EPOCH_CACHE)
def epoch_of(text: bytes) -> Epoch:
    """Parse an epoch as an event holds it."""
    return parse_epoch(parse_canonical(text, what="epoch", limit=MAX_EVENT_DATA))
