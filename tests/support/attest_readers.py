"""Quick readers beside the thorough ones, which decide: whatever is sent, they agree to the last word."""

import random
import re

from secrun_attest import evidence
from secrun_attest.errors import FormatError
from secrun_attest.events import parse_event
from secrun_attest.evidence import parse_as_json, parse_evidence
from secrun_attest.record import Operation, event_data, parse_event_data, tag_of
from secrun_attest.sentlog import MARK, Columns
from support.attest_bench import BANKS, IMAGE, MACHINE, POD, POD_DIGEST, ROOT, STAGE1, TREE, Host
from support.hostile_json import damaged_bytes, damaged_member

MARKED = f'"{MARK}"'.encode()
ELSEWHERE = b'"x_other":{"a":{},"records":[{"recnum":0}]},'

# What is wrong, other or merely unusual about JSON in ways that chance would not find soon.
TRICKS = [
    (rb"[a-f]", lambda found: found.upper()),
    (rb"[0-9]", b"\xd9\xa3"),
    (rb"[:,\[{]", lambda found: found + b" "),
    (rb"[:,\[{]", lambda found: found + b"\n"),
    (rb":[0-9]", lambda found: b":0" + found[1:]),
    (rb":[0-9]", lambda found: b":-" + found[1:]),
    (rb":[0-9]+", lambda found: found + b".0"),
    (rb":[0-9]+", b":9007199254740993"),
    (rb":[0-9]+", b":99999999999999999999"),
    (rb":[0-9]+", b":true"),
    (rb'"[a-z]', lambda found: b'"\\u00%x' % found[1]),
    (rb'"[a-z]', lambda found: found[:1] + b"\xc3\xa4" + found[1:]),
    (rb'"[a-z]', lambda found: found[:1] + b"\x7f" + found[1:]),
    (rb'"[a-z]', lambda found: found[:1] + b"\t" + found[1:]),
    (rb'"[a-z]+":', lambda found: found + b"1," + found),
    (rb'"[a-z]+":', lambda found: b'"' + found),
    (rb"sha(1|256|384|512)", b"sha256"),
    (rb"sha(1|256|384|512)", b"sha3"),
    (rb'\{"hashAlg":"[a-z0-9]+","digest":"[0-9a-f]+"\},?', b""),
    (rb'\{"recnum"[^}]+\}.*?\}\},', b""),
    (rb'\{"recnum"[^}]+\}.*?\}\},', lambda found: found * 2),
    (rb'"records":', lambda found: b'"records":' + MARKED + b',"x_records":'),
    (rb'"records":', lambda found: b'"x_records":'),
    (rb'"records":\[', lambda found: ELSEWHERE + found),
    (rb'"v":1', lambda found: ELSEWHERE + found),
    (rb'"v":1', lambda found: b'"x_mark":' + MARKED + b"," + found),
    (rb'"log":\{', lambda found: found + b'"records":' + MARKED + b',"x_log":{'),
    (rb'"format"', lambda found: b'"records":[],' + found),
    (rb'"\}\}\]', lambda found: found + b"]"),
    (rb'"\}\}\]', b'","x_more":0}}]'),
    (rb"^", b"\xef\xbb\xbf"),
    (rb"$", b" "),
    (rb"$", b"\n{}"),
]


def tricked(data: bytes, chance: random.Random) -> bytes:
    """Apply a trick at one of the places where it can be."""
    for _ in range(100):
        pattern, change = chance.choice(TRICKS)
        places = list(re.finditer(pattern, data, re.DOTALL))
        if places:
            break
    place = chance.choice(places)
    new = change(place[0]) if callable(change) else change
    return data[: place.start()] + new + data[place.end() :]


def said(read, data):
    """Return what a reader reads, or what it says is wrong."""
    try:
        return read(data)
    except FormatError as error:
        return type(error), error.code, error.message


class Bundles:
    """Evidence of hosts with this and that bank, honest and damaged."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.good = [_evidence(banks) for banks in (BANKS, BANKS[1:2], (BANKS[3], BANKS[1]))]
        self.quick = self.refused = 0
        for data in self.good:
            assert isinstance(self.agree(data).records, Columns)

    def try_one(self) -> None:
        how = self.random.choice([damaged_bytes, damaged_member, tricked, tricked])
        self.agree(how(self.random.choice(self.good), self.random))

    def agree(self, data: bytes) -> evidence.Evidence:
        found, thorough = said(parse_evidence, data), said(parse_as_json, data)
        assert found == thorough, data
        self.refused += isinstance(found, tuple)
        self.quick += isinstance(getattr(found, "records", None), Columns)
        return found


def _evidence(banks) -> bytes:
    host = Host(banks=banks)
    host.open()
    host.pod()
    return host.evidence()


APP = {"name": "web", "image": IMAGE, "tree": TREE, "relaxations": ["cap-add=NET_RAW", "x"]}
EVENTS = [
    (
        Operation.POD_PREPARE,
        {
            "pod": POD,
            "manifest": POD_DIGEST,
            "stage1": {**STAGE1, "flavour": "nspawn"},
            "relaxations": ["a", "b"],
            "policy": POD_DIGEST,
            "confinement": IMAGE,
            "apps": [APP, {**APP, "name": "db", "bundle": IMAGE, "relaxations": []}],
        },
    ),
    (
        Operation.POD_PREPARE,
        {
            "pod": POD,
            "manifest": POD_DIGEST,
            "stage1": {**STAGE1, "flavour": "kvm"},
            "relaxations": [],
            "machine": MACHINE,
            "apps": [{**APP, "verity_root": ROOT}],
        },
    ),
    (
        Operation.POD_PREPARE,
        {"pod": POD, "manifest": POD_DIGEST, "stage1": None, "relaxations": [], "apps": []},
    ),
    (Operation.POD_START, {"pod": POD}),
    (Operation.POD_START, {"pod": POD, "by": {"uid": 0}}),
    (Operation.POD_START, {"pod": POD, "by": {"login": 1000, "uid": 0, "unit": "session-1.scope"}}),
    (Operation.POD_START, {"pod": POD, "network": f"sha256:{5:064x}"}),
    (Operation.POD_START, {"pod": POD, "selinux": "system_u:system_r:secrun_pod_t:s0:c1,c2"}),
    (Operation.POD_EXIT, {"pod": POD, "code": 0}),
    (Operation.POD_EXIT, {"pod": POD, "code": 137, "apps": [{"name": "web", "code": 137}]}),
    (Operation.POD_EXIT, {"pod": POD, "code": 1, "apps": [{"name": "web", "code": 1}], "account": IMAGE}),
    (Operation.POD_GC, {"pod": POD}),
]


class Events:
    """Events of a pod's life, honest and damaged: most with a tag that fits, or nobody looks further."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        host = Host()
        for operation, fields in EVENTS:
            host.measure(operation, **fields)
        self.good = [record.data for record in host.records]
        self.taken = 0

    def try_one(self) -> None:
        text = self.random.choice(self.good)[8:]
        text = self.random.choice([damaged_bytes, tricked, tricked, _other_operation])(text, self.random)
        tag = tag_of(len(text)) if self.random.random() < 0.95 else self.random.choice(self.good)[:8]
        self.agree(tag + text)

    def agree(self, data: bytes) -> None:
        found = said(parse_event, data)
        assert found == said(parse_event_data, data), data
        if not isinstance(found, tuple):
            assert event_data(found) == data
            self.taken += 1


def _other_operation(text: bytes, chance: random.Random) -> bytes:
    words = text.split(b" ", 2)
    return b" ".join([words[0], chance.choice([*Operation]).value.encode(), words[2]])
