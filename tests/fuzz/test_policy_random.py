"""Random profiles and programs: what libseccomp makes of the ordered rules, and what damaged files do."""

import json
import os
from contextlib import suppress
from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st

from secrun.errors import HostError
from secrun.stage1.elf import read_elf
from secrun_policies.capabilities import KNOWN
from secrun_policies.errors import PolicyError
from secrun_policies.libseccomp import compile_bpf
from secrun_policies.profiles import default_profile_path
from secrun_policies.seccomp import Action, Architecture, parse_profile
from secrun_policies.seccomp_resolve import matches, resolve
from support.bpf import run_bpf

VERDICTS = {Action.ALLOW: 0x7FFF0000, Action.LOG: 0x7FFC0000, Action.TRAP: 0x00030000}
WORDS = st.one_of(st.integers(0, 7), st.sampled_from([0x5412, 0xFFFFFFFF, 1 << 32, 1 << 63]))


@st.composite
def argument(draw, index):
    if draw(st.booleans()):
        return {"index": index, "op": "SCMP_CMP_EQ", "value": draw(WORDS)}
    mask = draw(st.one_of(WORDS, st.just(0xFFFFFFFF)))
    return {"index": index, "op": "SCMP_CMP_MASKED_EQ", "value": mask, "valueTwo": draw(WORDS) & mask}


@st.composite
def rules(draw):
    result = []
    for _ in range(draw(st.integers(1, 4))):
        action = draw(st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_LOG", "SCMP_ACT_TRAP"]))
        indexes = sorted(draw(st.sets(st.sampled_from([0, 1, 5]), max_size=2)))
        entry = {"names": ["read"], "action": action, "args": [draw(argument(index)) for index in indexes]}
        if action == "SCMP_ACT_ERRNO":
            entry["errnoRet"] = draw(st.sampled_from([1, 22, 38]))
        result.append(entry)
    return result


@given(rules(), st.lists(st.lists(WORDS, min_size=6, max_size=6), min_size=1, max_size=8))
def test_libseccomp_decides_as_the_first_matching_rule_says(entries, calls):
    record = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 95, "syscalls": entries}
    try:
        profile = parse_profile(json.dumps(record).encode(), name="random")
        filter_ = resolve(profile, caps=frozenset(), table=Architecture.X86_64, kernel=(6, 1))
    except PolicyError as error:
        assume(error.code not in ("policy-seccomp-duplicate", "policy-seccomp-order"))
        raise
    program = compile_bpf(filter_)
    for values in calls:
        expected = 0x00050000 | 95
        for rule in profile.rules:
            if all(matches(test, values[test.argument]) for test in rule.args):
                expected = VERDICTS.get(rule.action, 0x00050000 | (rule.errno or 1))
                break
        assert run_bpf(program, 0, tuple(values)) == expected, values


@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.binary(max_size=8)), min_size=1, max_size=6),
    st.sets(st.sampled_from(KNOWN)),
)
def test_a_damaged_profile_is_refused_or_compiles(edits, caps):
    data = bytearray(default_profile_path().read_bytes())
    for offset, piece in edits:
        data[offset : offset + len(piece)] = piece
    with suppress(PolicyError):
        profile = parse_profile(bytes(data), name="damaged")
        compile_bpf(resolve(profile, caps=frozenset(caps), table=Architecture.X86_64, kernel=(6, 1)))


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_damaged_program_is_refused_or_read(edits):
    data = bytearray(Path("/usr/bin/sleep").read_bytes())
    for offset, value in edits:
        data[offset] = value
    path = Path(f"/dev/shm/secrun-elf-{os.getpid()}")
    path.write_bytes(data)
    try:
        with suppress(HostError):
            read_elf(path)
    finally:
        path.unlink()


def test_every_capability_alone_resolves_and_compiles():
    profile = parse_profile(default_profile_path().read_bytes(), name="default")
    for table in Architecture:
        for name in KNOWN:
            assert compile_bpf(resolve(profile, caps=frozenset({name}), table=table, kernel=(6, 1)))
