"""rkt's filters, the sets of systemd, and which filter lets through more than another."""

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun_policies import isolator, libseccomp
from secrun_policies.capabilities import DEFAULT
from secrun_policies.confine import AppFacts, HostFacts, PodFacts, compile_pod
from secrun_policies.errors import PolicyError
from secrun_policies.outer import NetworkMode
from secrun_policies.profiles import choose, default_profile, load_profile, shipped_path
from secrun_policies.seccomp import Action, Architecture, Comparison, Operator
from secrun_policies.seccomp_compare import EVERYTHING, opened_for, wider
from secrun_policies.seccomp_resolve import FlatRule, SeccompFilter, matches, resolve

KERNEL = (6, 1)
HOST = HostFacts(architecture="x86_64", kernel=KERNEL, last_capability=40, seccomp=True)


def resolved(profile, caps=DEFAULT) -> SeccompFilter:
    return resolve(profile, caps=frozenset(caps), table=Architecture.X86_64, kernel=KERNEL)


def allowed(filter_: SeccompFilter) -> set[str]:
    return {name for rule in filter_.rules if rule.action is Action.ALLOW for name in rule.names}


def parse(text: str):
    return isolator.parse(text, default_profile(), libseccomp.knows)


def test_retain_allows_exactly_what_is_named_and_keeps_conditions():
    filter_ = resolved(parse("mode=retain,errno=ENOTTY,read,write,ioctl,ptrace"))
    assert allowed(filter_) == {"read", "write", "ioctl", "ptrace"}
    assert (filter_.default_action, filter_.default_errno) == (Action.ERRNO, errno.ENOTTY)
    refused = [rule for rule in filter_.rules if rule.action is Action.ERRNO]
    assert {rule.names for rule in refused} == {("ioctl",)}, "TIOCSTI and TIOCLINUX stay refused"


def test_retain_without_an_error_kills():
    assert parse("mode=retain,read").default_action is Action.KILL_PROCESS


def test_remove_takes_away_and_never_opens():
    profile = parse("mode=remove,errno=EACCES,@systemd/clock,mkdir,ptrace")
    filter_, default = resolved(profile), resolved(default_profile())
    assert allowed(default) - allowed(filter_) == {"adjtimex", "clock_adjtime", "mkdir"}
    assert wider(filter_, default) == ()
    verdicts = {
        name: rule.errno for rule in filter_.rules if rule.action is Action.ERRNO for name in rule.names
    }
    assert verdicts["mkdir"] == errno.EACCES


def test_the_words_that_stand_alone():
    assert parse("mode=retain,@appc.io/all") is None
    assert parse("mode=remove,@appc.io/empty") is default_profile()
    for text in ("mode=remove,@appc.io/all", "mode=retain,@appc.io/empty", "mode=retain,@appc.io/all,read"):
        with pytest.raises(PolicyError):
            parse(text)


def test_the_lists_of_rkt_and_docker_are_the_default_profile():
    default = resolved(default_profile(), caps=())
    for family in ("rkt", "docker"):
        kept = resolved(parse(f"mode=retain,errno=EPERM,@{family}/default-whitelist"), caps=())
        assert wider(kept, default) == ()
        assert allowed(kept) == allowed(default)
        same = resolved(parse(f"mode=remove,errno=EPERM,@{family}/default-blacklist"), caps=())
        assert allowed(same) == allowed(default)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mode=keep,read", "expected one mode="),
        ("read", "needs a mode"),
        ("mode=retain", "at least one call"),
        ("mode=retain,errno=ENO,read", "expected one name of an error"),
        ("mode=retain,redd", "unknown call 'redd'"),
        ("mode=retain,@systemd/nothing", "unknown group"),
        ("mode=retain,@other/x", "unknown group"),
        ("mode=retain,a=b", "is not understood"),
        ("mode=retain,,read", "is not understood"),
        ("mode=retain,mode=retain,read", "expected one mode="),
    ],
)
def test_what_is_not_understood_is_an_error(text, said):
    with pytest.raises(PolicyError, match=said):
        parse(text)


@given(
    st.lists(
        st.sampled_from(
            ["mode=retain", "mode=remove", "errno=EPERM", "read", "@systemd/clock", "", "@", "x=y"]
        )
    )
)
def test_any_words_are_a_profile_or_an_error(words):
    try:
        profile = parse(",".join(words))
    except PolicyError as error:
        assert error.code.startswith("policy-seccomp")  # noqa: PT017 - some are profiles
    else:
        assert profile is None or resolved(profile)


def test_every_set_is_known_to_libseccomp():
    for name, calls in isolator.systemd_groups().items():
        assert calls, name
        assert all(libseccomp.knows(call) for call in calls), name


def test_words_for_profiles():
    assert choose("") is choose("default") is default_profile()
    assert choose("unconfined") is None
    assert choose("strict").name == "strict"
    with pytest.raises(PolicyError, match="not known"):
        choose("stirct")
    with pytest.raises(PolicyError, match="cannot read"):
        choose("/nonexistent/x.json")


def test_a_file_with_a_call_that_libseccomp_does_not_know_is_refused(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(
        '{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["fly"],"action":"SCMP_ACT_ALLOW"}]}'
    )
    with pytest.raises(PolicyError, match="unknown syscalls: fly"):
        choose(str(path))


# --- comparing filters


def flat(*rules: FlatRule, default: Action = Action.ERRNO) -> SeccompFilter:
    return SeccompFilter(default, 1 if default is Action.ERRNO else None, Architecture.X86_64, rules)


def allow(name: str, *args: Comparison) -> FlatRule:
    return FlatRule(Action.ALLOW, None, args, (name,))


def lets_through(filter_: SeccompFilter, name: str, arguments: tuple[int, int]) -> bool:
    for rule in filter_.rules:
        if name in rule.names and all(matches(test, arguments[test.argument]) for test in rule.args):
            return rule.action is Action.ALLOW
    return filter_.default_action is Action.ALLOW


MASKS = st.integers(0, 7)
TESTS = st.builds(
    lambda index, mask, value: Comparison(index, Operator.MASKED_EQ, mask, value & mask),
    st.integers(0, 1),
    MASKS,
    MASKS,
)
RULES = st.lists(TESTS, max_size=2, unique_by=lambda test: test.argument).map(
    lambda tests: allow("ioctl", *sorted(tests))
)
FILTERS = st.lists(RULES, max_size=4).map(lambda rules: flat(*rules))


@given(FILTERS, FILTERS)
def test_wider_is_what_trying_every_argument_says(one, other):
    values = tuple(itertools.product(range(8), repeat=2))
    more = any(lets_through(one, "ioctl", v) and not lets_through(other, "ioctl", v) for v in values)
    assert (wider(one, other) != ()) == more
    opened = opened_for(other, one)
    assert wider(one, opened) == ()
    assert wider(other, opened) == ()


UNEQUAL = st.builds(lambda index, value: Comparison(index, Operator.NE, value), st.integers(0, 1), MASKS)


@given(FILTERS, st.lists(TESTS, max_size=1), UNEQUAL)
def test_wider_knows_inequality_on_the_other_side(one, tests, unequal):
    other = flat(allow("ioctl", *(test for test in tests if test.argument != unequal.argument), unequal))
    values = tuple(itertools.product(range(9), repeat=2))
    more = any(lets_through(one, "ioctl", v) and not lets_through(other, "ioctl", v) for v in values)
    assert (wider(one, other) != ()) == more


def test_wider_where_bits_cannot_be_compared_says_yes():
    by_size = allow("ioctl", Comparison(0, Operator.LT, 10))
    assert wider(flat(by_size), flat(allow("ioctl", Comparison(0, Operator.LT, 20)))) == ("ioctl",)
    assert wider(flat(by_size), flat(by_size)) == ()
    assert wider(flat(by_size), flat(allow("ioctl"))) == ()


def test_open_filters():
    everything = flat(default=Action.ALLOW)
    assert wider(everything, flat()) == (EVERYTHING,)
    assert wider(flat(allow("read")), everything) == ()
    refusing = flat(FlatRule(Action.ERRNO, 1, (), ("read",)), default=Action.ALLOW)
    assert wider(flat(allow("read")), refusing) == ("read",)
    assert wider(refusing, everything) == ()
    assert wider(everything, refusing) == (EVERYTHING,)


def test_the_strict_profile_is_narrower_than_the_default_whatever_the_capabilities():
    strict = load_profile(shipped_path("strict"), name="strict")
    libseccomp.validate_with_libseccomp(strict)
    for caps in ((), DEFAULT, ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")):
        narrow, default = resolved(strict, caps), resolved(default_profile(), caps)
        assert wider(narrow, default) == ()
        assert len(allowed(default) - allowed(narrow)) > 30
    assert libseccomp.compile_bpf(resolved(strict))


# --- what follows for a pod


def compiled(*apps: AppFacts):
    return compile_pod(PodFacts(NetworkMode.NONE, apps, default_profile()), HOST)


def test_a_narrower_filter_is_no_relaxation_and_a_wider_one_is():
    strict = compiled(AppFacts("a", choose("strict")))
    assert strict.relaxations == ()
    wide = compiled(AppFacts("a", parse("mode=retain,read,keyctl")))
    assert [(item.kind.value, item.subject) for item in wide.relaxations] == [
        ("seccomp-profile", "mode=retain,read,keyctl")
    ]


def test_the_outer_filter_stays_and_opens_what_an_app_may_do():
    plain, strict = compiled(AppFacts("a", default_profile())), compiled(AppFacts("a", choose("strict")))
    assert strict.outer_filter == plain.outer_filter
    wide = compiled(AppFacts("a", parse("mode=retain,read,keyctl"))).outer_filter
    assert set(wider(wide, plain.outer_filter)) == {"keyctl"}
    assert libseccomp.compile_bpf(wide)
    assert compiled(AppFacts("a", None)).outer_filter is None, "nspawn's own filter stays"
