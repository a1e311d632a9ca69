"""Profiles: what is read, what is refused, and that the filter means what the ordered rules say."""

import errno
import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from secrun_policies.capabilities import DEFAULT, KNOWN
from secrun_policies.errors import PolicyError
from secrun_policies.jsonvalue import MAX_PROFILE_BYTES
from secrun_policies.libseccomp import compile_bpf, validate_with_libseccomp
from secrun_policies.profiles import default_profile, default_profile_path, load_profile
from secrun_policies.seccomp import Action, Architecture, Comparison, parse_profile
from secrun_policies.seccomp_resolve import MAX_PIECES, SeccompFilter, matches, resolve
from support.bpf import run_bpf

X86 = Architecture.X86_64
ALLOW = (Action.ALLOW, None)
TIOCSTI, TIOCLINUX, TCGETS = 0x5412, 0x541C, 0x5401
HIGH = 1 << 40


def profile_of(*rules, **fields):
    record = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": list(rules), **fields}
    return parse_profile(json.dumps(record).encode(), name="test")


def rule(*names, action="SCMP_ACT_ALLOW", **fields):
    return {"names": list(names), "action": action, **fields}


def masked(index, mask, value):
    return {"index": index, "op": "SCMP_CMP_MASKED_EQ", "value": mask, "valueTwo": value}


def resolved(profile, caps=DEFAULT, table=X86, kernel=(6, 1)):
    return resolve(profile, caps=frozenset(caps), table=table, kernel=kernel)


def verdict(filter_: SeccompFilter, name: str, *args: int):
    """Every rule that matches must agree: libseccomp gives no order."""
    values = (*args, 0, 0, 0, 0, 0, 0)
    found = {
        (item.action, item.errno)
        for item in filter_.rules
        if name in item.names and all(matches(test, values[test.argument]) for test in item.args)
    }
    assert len(found) <= 1, f"{name}{args}: {found}"
    return found.pop() if found else (filter_.default_action, filter_.default_errno)


@pytest.fixture(scope="module")
def default():
    return resolved(default_profile())


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("openat", (), 0),
        ("ioctl", (0, TCGETS), 0),
        ("ioctl", (0, TIOCSTI), errno.EPERM),
        ("ioctl", (0, TIOCSTI | HIGH), errno.EPERM),
        ("ioctl", (0, TIOCLINUX), errno.EPERM),
        ("ioctl", (0, TIOCLINUX | (0xFFFFFFFF << 32)), errno.EPERM),
        ("ioctl", (TIOCSTI, TCGETS), 0),
        ("ioctl", (0, 0xFFFFFFFF80045430), 0),
        ("clone", (0x01200011,), 0),
        ("clone", (0x003D0F00,), 0),
        ("clone", (0x10000000 | 17,), errno.EPERM),
        ("clone", (0x20000,), errno.EPERM),
        ("clone", (0x7E020000,), errno.EPERM),
        ("clone3", (), errno.ENOSYS),
        ("unshare", (0x10000000,), errno.EPERM),
        ("unshare", (0x80,), errno.EPERM),
        ("unshare", (0x200,), 0),
        ("setns", (), errno.EPERM),
        ("mount", (), errno.EPERM),
        ("keyctl", (), errno.EPERM),
        ("bpf", (), errno.EPERM),
        ("io_uring_setup", (), errno.EPERM),
        ("ptrace", (), errno.EPERM),
        ("chroot", (), 0),
        ("socket", (1, 1, 0), 0),
        ("socket", (2, 1, 0), 0),
        ("socket", (10, 1, 0), 0),
        ("socket", (16, 3, 0), 0),
        ("socket", (16, 3, 9), errno.EPROTONOSUPPORT),
        ("socket", (16 | HIGH, 3, 12), errno.EPROTONOSUPPORT),
        ("socket", (17, 3, 0), errno.EAFNOSUPPORT),
        ("socket", (40, 1, 0), errno.EAFNOSUPPORT),
        ("socket", (40 | HIGH, 1, 0), errno.EAFNOSUPPORT),
        ("socket", (38, 5, 0), errno.EAFNOSUPPORT),
        ("personality", (0,), 0),
        ("personality", (8,), 0),
        ("personality", (0xFFFFFFFF,), 0),
        ("personality", (0x0040000,), errno.ENOSYS),
        ("personality", (0x0400000,), errno.ENOSYS),
        ("fsmount", (), errno.EPERM),
        ("no_such_call", (), errno.ENOSYS),
    ],
)
def test_the_default_profile(default, name, args, expected):
    assert verdict(default, name, *args) == ((Action.ERRNO, expected) if expected else ALLOW)


@pytest.mark.parametrize(
    ("capability", "name", "args"),
    [
        ("CAP_SYS_ADMIN", "mount", ()),
        ("CAP_SYS_ADMIN", "clone", (0x10000000,)),
        ("CAP_SYS_ADMIN", "unshare", (0x10000000,)),
        ("CAP_SYS_ADMIN", "clone3", ()),
        ("CAP_BPF", "bpf", ()),
        ("CAP_SYS_PTRACE", "ptrace", ()),
        ("CAP_NET_ADMIN", "socket", (16, 3, 12)),
        ("CAP_AUDIT_WRITE", "socket", (16, 3, 9)),
        ("CAP_NET_RAW", "socket", (17, 3, 0)),
        ("CAP_SYS_CHROOT", "chroot", ()),
        ("CAP_SYS_TIME", "clock_settime", ()),
    ],
)
def test_a_capability_opens_its_calls(capability, name, args):
    assert verdict(resolved(default_profile(), DEFAULT | {capability}), name, *args) == ALLOW
    assert verdict(resolved(default_profile(), DEFAULT - {capability}), name, *args) != ALLOW


@pytest.mark.parametrize("name", ["keyctl", "io_uring_setup", "userfaultfd", "add_key", "swapon"])
def test_no_capability_opens_what_is_never_safe(name):
    assert verdict(resolved(default_profile(), KNOWN), name) == (Action.ERRNO, errno.EPERM)


def test_libseccomp_knows_every_name():
    validate_with_libseccomp(default_profile())


def test_libseccomp_refuses_a_misspelt_name():
    with pytest.raises(PolicyError, match="opennat"):
        validate_with_libseccomp(profile_of(rule("opennat", "read")))


def test_each_call_is_named_once_per_entry():
    record = json.loads(default_profile_path().read_bytes())
    for entry in record["syscalls"]:
        assert len(set(entry["names"])) == len(entry["names"]), entry["comment"]


@pytest.mark.parametrize("table", list(Architecture))
@pytest.mark.parametrize("caps", [(), DEFAULT, KNOWN])
def test_libseccomp_compiles_the_default_profile(table, caps):
    assert compile_bpf(resolved(default_profile(), caps, table))


INTERESTING = st.sampled_from(
    [
        0,
        1,
        2,
        4,
        8,
        9,
        10,
        12,
        16,
        17,
        38,
        40,
        TIOCSTI,
        TIOCLINUX,
        TCGETS,
        0x20000,
        0x10000000,
        0x7E020000,
        0xFFFFFFFF,
    ]
)
ARGUMENT = st.one_of(
    INTERESTING,
    st.builds(lambda low, high: low | high << 32, INTERESTING, st.integers(0, 2**32 - 1)),
    st.builds(lambda low, bit: low ^ 1 << bit, INTERESTING, st.integers(0, 63)),
    st.integers(0, 2**64 - 1),
)


@pytest.fixture(scope="module")
def program(default):
    return compile_bpf(default)


@given(
    st.sampled_from(["ioctl", "socket", "clone", "unshare", "personality", "mount", "read", "clone3"]),
    st.lists(ARGUMENT, min_size=6, max_size=6),
)
def test_what_libseccomp_makes_of_it_decides_the_same(default, program, name, args):
    import seccomp

    number = seccomp.resolve_syscall(seccomp.Arch("x86_64"), name)
    action, code = verdict(default, name, *args)
    expected = 0x7FFF0000 if action is Action.ALLOW else 0x00050000 | code
    assert run_bpf(program, number, tuple(args)) == expected


@pytest.mark.parametrize("number", [0x40000000, 0x40000000 | 16])
def test_the_x32_table_stays_closed(program, number):
    assert run_bpf(program, number, (0,) * 6) == 0x00000000


BITS = st.integers(0, 15)


@st.composite
def overlapping(draw):
    result = []
    for _ in range(draw(st.integers(1, 4))):
        args = []
        for index in draw(st.sets(st.integers(0, 2), max_size=2)):
            mask = draw(BITS)
            args.append(masked(index, mask, draw(BITS) & mask))
        action = draw(st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_LOG"]))
        result.append(rule("read", action=action, args=args))
    return result


@given(overlapping(), st.tuples(BITS, BITS, BITS))
def test_the_first_matching_rule_decides(rules, values):
    try:
        profile = profile_of(*rules)
    except PolicyError as error:
        assume(error.code != "policy-seccomp-duplicate")
        raise
    flat = resolved(profile)
    expected = (Action.ERRNO, 38)
    for item in profile.rules:
        if all(matches(test, values[test.argument]) for test in item.args):
            expected = (item.action, item.errno)
            break
    assert verdict(flat, "read", *values) == expected


def test_equal_and_not_equal_need_no_order():
    flat = resolved(
        profile_of(
            rule(
                "socket",
                action="SCMP_ACT_ERRNO",
                errnoRet=22,
                args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": 16}],
            ),
            rule("socket", args=[{"index": 0, "op": "SCMP_CMP_NE", "value": 16}]),
        )
    )
    assert verdict(flat, "socket", 16) == (Action.ERRNO, 22)
    assert verdict(flat, "socket", 2) == ALLOW


def test_an_order_that_cannot_be_expressed_is_refused():
    profile = profile_of(
        rule("socket", action="SCMP_ACT_ERRNO", args=[{"index": 0, "op": "SCMP_CMP_GT", "value": 16}]),
        rule("socket"),
    )
    with pytest.raises(PolicyError, match="socket") as caught:
        resolved(profile)
    assert caught.value.code == "policy-seccomp-order"


def test_a_profile_that_would_explode_is_refused():
    rules = [
        rule(
            "read", action="SCMP_ACT_ERRNO", args=[masked(index, 0xFFFFFFFF, 5) for index in range(n, n + 3)]
        )
        for n in range(3)
    ]
    with pytest.raises(PolicyError, match=str(MAX_PIECES)):
        resolved(profile_of(*rules, rule("read")))


def test_conditions_on_kernel_and_architecture():
    profile = profile_of(
        rule("ptrace", includes={"minKernel": "4.8"}),
        rule("arch_prctl", includes={"arches": ["amd64", "x32"]}),
        rule("sync_file_range2", excludes={"arches": ["amd64"]}),
        rule("bpf", excludes={"caps": ["CAP_KILL"]}),
    )
    assert verdict(resolved(profile), "ptrace") == verdict(resolved(profile), "arch_prctl") == ALLOW
    assert verdict(resolved(profile, kernel=(4, 7)), "ptrace") != ALLOW
    assert verdict(resolved(profile, table=Architecture.AARCH64), "arch_prctl") != ALLOW
    assert verdict(resolved(profile), "sync_file_range2") != ALLOW
    assert verdict(resolved(profile, table=Architecture.AARCH64), "sync_file_range2") == ALLOW
    assert verdict(resolved(profile), "bpf") != ALLOW
    assert verdict(resolved(profile, caps=()), "bpf") == ALLOW


def test_a_profile_for_other_machines_is_refused():
    profile = profile_of(
        archMap=[{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}]
    )
    with pytest.raises(PolicyError, match="X86_64"):
        resolved(profile)


READ = rule("read")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "expected an object"),
        ("{", "not valid JSON"),
        ("\xff", "default"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultAction": "SCMP_ACT_ALLOW"}', "duplicate key"),
        ("[" * 100_000, "not valid JSON"),
        (json.dumps({}), "defaultAction"),
        (json.dumps({"defaultAction": "SCMP_ACT_ALOW"}), "SCMP_ACT_ALOW"),
        (json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), "no meaning"),
        (json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}), "0..4095"),
        (json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "flags": []}), "unknown key 'flags'"),
        (
            json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "archMap": [{"architecture": "SCMP_ARCH_Z80"}]}),
            "Z80",
        ),
    ],
)
def test_malformed_profiles_are_refused(text, said):
    with pytest.raises(PolicyError) as caught:
        parse_profile(text.encode("latin-1"), name="default")
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([rule()], "names no syscall"),
        ([rule("Read")], "'Read'"),
        ([rule("read", action="SCMP_ACT_NOTIFY")], "SCMP_ACT_NOTIFY"),
        ([rule("read", errnoRet=1)], "no meaning"),
        ([rule("read", comments="x")], "unknown key 'comments'"),
        ([rule("read", args=[{"index": 6, "op": "SCMP_CMP_EQ", "value": 0}])], "0..5"),
        ([rule("read", args=[{"index": 0, "op": "SCMP_CMP_EQUAL", "value": 0}])], "SCMP_CMP_EQUAL"),
        ([rule("read", args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": -1}])], "expected an integer"),
        ([rule("read", args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": True}])], "expected an integer"),
        ([rule("read", args=[masked(0, 1, 1), masked(0, 2, 2)])], "tests one argument twice"),
        ([rule("read", includes={"caps": ["CAP_ROOT"]})], "CAP_ROOT"),
        ([rule("read", includes={"arches": ["z80"]})], "z80"),
        ([rule("read", includes={"minKernel": "new"})], "minKernel"),
        ([READ, rule("write", "read", action="SCMP_ACT_ERRNO")], "two rules decide read"),
        ([rule(f"call{n}") for n in range(600)], "600 rules"),
        ([rule(*(f"call{n}" for n in range(1100)))], "more than 1024"),
    ],
)
def test_malformed_rules_are_refused(rules, said):
    with pytest.raises(PolicyError) as caught:
        profile_of(*rules)
    assert said in caught.value.message


def test_a_mask_that_never_matches_is_refused():
    with pytest.raises(PolicyError, match="never matches"):
        resolved(profile_of(rule("read", action="SCMP_ACT_ERRNO", args=[masked(0, 1, 2)]), READ))


def test_a_huge_file_is_refused(tmp_path: Path):
    (tmp_path / "p.json").write_bytes(b" " * (MAX_PROFILE_BYTES + 1))
    with pytest.raises(PolicyError, match="limit"):
        load_profile(tmp_path / "p.json")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(PolicyError, match=r"absent\.json: No such file"):
        load_profile(tmp_path / "absent.json")


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_policy_error(data):
    with pytest.raises(PolicyError):
        parse_profile(data, name="x")


def test_comparisons_evaluate_as_the_kernel_does():
    from secrun_policies.seccomp import Operator

    for op, value, expected in (
        (Operator.LT, 4, True), (Operator.LT, 5, False), (Operator.LE, 5, True), (Operator.GE, 5, True),
        (Operator.GT, 5, False), (Operator.GT, 6, True), (Operator.NE, 5, False), (Operator.EQ, 5, True),
    ):  # fmt: skip
        assert matches(Comparison(argument=0, op=op, value=5), value) is expected
