"""From a filter to one that asks, and from what was asked to a profile."""

import json

from hypothesis import given
from hypothesis import strategies as st

from secrun_policies import recorder
from secrun_policies.capabilities import DEFAULT
from secrun_policies.oci import seccomp_section
from secrun_policies.profiles import default_profile
from secrun_policies.seccomp import Action, Architecture, parse_profile
from secrun_policies.seccomp_compare import wider
from secrun_policies.seccomp_resolve import resolve

NAMES = sorted({name for rule in default_profile().rules for name in rule.names})


def resolved(profile, caps=DEFAULT):
    return resolve(profile, caps=frozenset(caps), table=Architecture.X86_64, kernel=(6, 1))


def test_a_filter_that_asks_refuses_the_same_and_lets_nothing_by_unasked():
    before = seccomp_section(resolved(default_profile()))
    after = recorder.asking(before, "/host/s")
    assert after["listenerPath"] == "/host/s"
    assert "listenerPath" not in before
    actions = {rule["action"] for rule in after["syscalls"]}
    assert actions == {recorder.NOTIFY, Action.ERRNO.value}
    back = json.loads(json.dumps(after).replace(recorder.NOTIFY, Action.ALLOW.value))
    assert back["syscalls"] == before["syscalls"]


@given(st.sets(st.sampled_from(NAMES)), st.sampled_from([(), tuple(DEFAULT), ("CAP_SYS_ADMIN",)]))
def test_a_tight_profile_allows_what_was_used_and_never_more_than_its_base(used, caps):
    profile = recorder.tight(default_profile(), used)
    filter_, base = resolved(profile, caps), resolved(default_profile(), caps)
    assert wider(filter_, base) == ()
    allowed = {name for rule in filter_.rules if rule.action is Action.ALLOW for name in rule.names}
    basic = {name for rule in base.rules if rule.action is Action.ALLOW for name in rule.names}
    assert allowed == (used | set(recorder.UNSEEN)) & basic


@given(st.sets(st.sampled_from(NAMES)))
def test_what_is_written_reads_back_as_the_same_filter(used):
    profile = recorder.tight(default_profile(), used)
    data = recorder.to_file(profile, "a comment")
    again = parse_profile(data, name=profile.name)
    for caps in ((), ("CAP_SYS_ADMIN", "CAP_NET_ADMIN")):
        one, two = resolved(profile, caps), resolved(again, caps)
        assert wider(one, two) == wider(two, one) == ()
        assert (one.default_action, one.default_errno) == (two.default_action, two.default_errno)
    assert recorder.to_file(again, "a comment") == data
