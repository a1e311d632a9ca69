"""What is expected of the kernel, and what the waiter wrote about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import StateError
from secrun.pod import readback
from secrun.record import replace
from secrun.stage1.podfiles import PodFiles
from unit.test_stage1_text import DIGEST, app, pod

WRITTEN = b"""app web held 41 1795513051095452779
CapEff 0000000000000000
uid_map 0 65536 65536
app db weaker 42 1795513051095452780
CapEff 00000000000000ff
differs CapEff
differs Seccomp
app gone unread 0 1795513051095452781
"""


def expected(*apps, label="", **changes) -> str:
    manifest = replace(pod(*apps), **changes)
    kernel = readback.host(uid_base=131072, ids=65536, group="/secrun/x/", label=label)
    return readback.expectation(manifest, kernel).decode()


def test_the_expectation_says_what_was_compiled():
    confined = replace(app().security, seccomp_digest=DIGEST)
    lines = expected(app(capabilities=("CAP_KILL", "CAP_CHOWN"), security=confined)).splitlines()
    assert lines[0] == "app web"
    assert {"within CapBnd 0000000000000021", "within CapAmb 0000000000000000"} <= set(lines)
    assert {"at-least NoNewPrivs 1", "at-least Seccomp 2", "equal uid_map 0 131072 65536"} <= set(lines)
    assert "under cgroup /secrun/x/" in lines
    assert "label" not in "".join(lines)
    assert "equal label a:b:c:s0:c1,c2" in expected(app(), label="a:b:c:s0:c1,c2").splitlines()


def test_another_user_holds_ambient_capabilities_and_a_missing_filter_is_one_less():
    def filters(text: str) -> int:
        return int(next(line.split()[2] for line in text.splitlines() if "Seccomp_filters" in line))

    plain = app(uid=5, capabilities=("CAP_KILL",))
    assert "within CapAmb 0000000000000020" in expected(plain)
    filtered = app(security=replace(app().security, seccomp_digest=DIGEST))
    assert filters(expected(filtered)) == filters(expected(plain)) + 1
    loose = app(security=replace(app().security, no_new_privileges=False))
    assert "at-least NoNewPrivs 0" in expected(loose)
    assert expected(app(), strict_read_back=True).startswith("strict\n")


def test_a_guest_has_no_filter_but_the_apps_and_each_app_its_unit():
    filtered = app(security=replace(app().security, seccomp_digest=DIGEST))
    lines = readback.expectation(pod(filtered), readback.guest()).decode().splitlines()
    assert lines[0] == "reported"
    assert {"equal uid_map 0 0 4294967295", "equal cgroup /system.slice/app-web.service"} <= set(lines)
    assert {"at-least Seccomp 2", "at-least Seccomp_filters 1"} <= set(lines)
    bare = readback.expectation(pod(app()), readback.guest()).decode()
    assert "at-least Seccomp 0\n" in bare


def test_what_the_waiter_wrote():
    found = readback.parse(WRITTEN)
    assert (found["web"].verdict, found["web"].pid) == ("held", 41)
    assert found["web"].values == {"CapEff": "0000000000000000", "uid_map": "0 65536 65536"}
    assert found["db"].differences == ("CapEff", "Seccomp")
    assert found["gone"].to_json("host")["pid"] is None


def test_differences_in_words(tmp_path):
    files = PodFiles(tmp_path)
    assert readback.problems(files) == {}
    files.enforced.write_bytes(WRITTEN)
    found = readback.problems(files)
    assert "CapEff is 00000000000000ff, Seccomp is absent" in found["db"]
    assert "before what the kernel enforces could be read" in found["gone"]
    assert [line.split(":")[0] for line in readback.warnings(files)] == ["app db"]
    files.enforced.write_bytes(b"x" * (1 << 20) + b"x")
    with pytest.raises(StateError, match="too large"):
        readback.read(files)


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_damaged(data):
    try:
        readback.parse(data)
    except StateError as error:
        assert "damaged" in error.message  # noqa: PT017 - some bytes are understood


@pytest.mark.parametrize("line", ["x", "app a held 1", "app a good 1 2", "app a held x 2", "CapEff 1"])
def test_a_damaged_line_is_an_error(line):
    with pytest.raises(StateError):
        readback.parse(line.encode())
