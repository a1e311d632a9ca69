"""What may be asked of a label, and which types a host gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun_policies import labels
from secrun_policies.errors import PolicyError
from secrun_policies.labels import HostContexts, LabelKind, LabelRequest

LXC = """# a comment
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file="system_u:object_r:container_ro_file_t:s0"
"""
CONTAINER = "system_u:system_r:container_t:s0"
CONTAINER_FILE = "system_u:object_r:container_file_t:s0"
OURS = frozenset(
    {*(labels.OWN_PROCESS, labels.OWN_FILE, labels.OWN_RUNTIME, labels.OWN_OPEN, labels.OWN_MACHINE)}
)


def host(*defined: str, lxc: str = LXC) -> HostContexts:
    return HostContexts(lxc=lxc, defined=set(defined).__contains__)


def test_the_hosts_own_types_come_first():
    found = labels.choose(LabelKind.CONTAINER, LabelRequest(), host(CONTAINER, CONTAINER_FILE, *OURS))
    assert found == (CONTAINER, CONTAINER_FILE, labels.OWN_RUNTIME)


@pytest.mark.parametrize("lxc", [LXC, "", 'process = "system_u:system_r:container_t:s0"\n'])
def test_named_types_that_the_policy_does_not_define_are_passed_over(lxc: str):
    found = labels.choose(LabelKind.CONTAINER, LabelRequest(), host(*OURS, lxc=lxc))
    assert found == (labels.OWN_PROCESS, labels.OWN_FILE, labels.OWN_RUNTIME)


def test_a_policy_without_any_type_gives_none():
    assert labels.choose(LabelKind.CONTAINER, LabelRequest(), host()) is None
    assert labels.choose(LabelKind.MACHINE, LabelRequest(), host(CONTAINER, CONTAINER_FILE)) is None


@pytest.mark.parametrize("asked", [LabelRequest(), LabelRequest(disable=True)])
def test_a_machine_has_the_modules_type_and_keeps_it(asked: LabelRequest):
    found = labels.choose(LabelKind.MACHINE, asked, host(CONTAINER, CONTAINER_FILE, *OURS))
    assert found == (labels.OWN_MACHINE, labels.OWN_FILE, labels.OWN_RUNTIME)


def test_a_type_and_a_level_are_taken_over_and_checked():
    asked = labels.merge([labels.parse_option("type:other_t"), labels.parse_option("level:s0:c1,c2")])
    wanted = ("system_u:system_r:other_t:s0:c1,c2", "system_u:object_r:secrun_file_t:s0:c1,c2")
    assert labels.choose(LabelKind.CONTAINER, asked, host(*OURS, *wanted))[:2] == wanted
    with pytest.raises(PolicyError, match="does not define system_u:system_r:other_t:s0:c1,c2"):
        labels.choose(LabelKind.CONTAINER, asked, host(*OURS))


def test_disabling_is_a_type_of_its_own_or_the_callers():
    asked = LabelRequest(disable=True)
    assert labels.choose(LabelKind.CONTAINER, asked, host(*OURS)).process == labels.OWN_OPEN
    assert labels.choose(LabelKind.CONTAINER, asked, host(CONTAINER, CONTAINER_FILE)).process == ""


@pytest.mark.parametrize(
    ("words", "relaxations"),
    [
        ([], ()),
        (["disable"], ("label:disable",)),
        (["type:a_t"], ("label:type:a_t",)),
        (["level:s0:c1,c2", "level:s0:c1,c2"], ("label:level:s0:c1,c2",)),
        (["type:a_t", "level:s0"], ("label:type:a_t", "label:level:s0")),
    ],
)
def test_each_word_is_a_named_relaxation(words: list[str], relaxations: tuple[str, ...]):
    assert labels.merge(map(labels.parse_option, words)).relaxations == relaxations


@pytest.mark.parametrize(
    "word",
    [
        *("", "disable:", "disabled", "type", "type:", "type:a b", "type:a:b", "type:-x", "level:"),
        *("level:c1", "level:s0:c1-c2", "level:s0:c1,", "level:s0:", "user:root", "role:x_r"),
        *("filetype:x_t", "type:x\n"),
    ],
)
def test_what_is_no_label_is_refused(word: str):
    with pytest.raises(PolicyError) as caught:
        labels.parse_option(word)
    assert caught.value.code == "policy-label"


@pytest.mark.parametrize(
    "words", [["type:a_t", "type:b_t"], ["disable", "type:a_t"], ["level:s0", "level:s1"]]
)
def test_a_pod_has_one_label(words: list[str]):
    with pytest.raises(PolicyError):
        labels.merge(map(labels.parse_option, words))


@given(st.text(max_size=60))
def test_any_word_is_parsed_or_refused(word: str):
    try:
        asked = labels.parse_option(word)
    except PolicyError:
        return
    (said,) = asked.relaxations
    assert said == f"label:{word}"


@given(st.text(max_size=300))
def test_any_context_file_is_read(text: str):
    assert all(text.count(name) for name in labels.parse_assignments(text))


@given(st.text(max_size=60), st.sampled_from(["s0", "s0:c1,c2"]))
def test_a_level_goes_into_a_context_and_comes_out_of_it(context: str, level: str):
    try:
        changed = labels.with_level(context, level)
    except PolicyError:
        assert labels.level_of(context) == ""
    else:
        assert labels.level_of(changed) == level
        assert labels.with_level(changed, labels.level_of(context)) == context


def test_a_context_without_a_level_cannot_have_categories():
    with pytest.raises(PolicyError, match="with a level"):
        labels.with_level("system_u:system_r:container_t", "s0:c1,c2")
