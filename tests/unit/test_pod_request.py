"""Requests: what is accepted, what is refused, and in which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import UsageError
from secrun.paths import Layout
from secrun.pod import mounts, request
from secrun.stage1.volume import Volume


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("docker://registry.example:5000/team/Web_App:1.2", "web-app"),
        ("registry.example/app@sha256:" + "a" * 64, "app"),
        ("sha256:" + "0123456789abcdef" * 4, "0123456789ab"),
        ("oci:/var/images/thing:tag", "thing"),
        ("docker-archive:/tmp/x.tar", "x.tar"),
        ("registry.example/" + "n" * 100, "n" * 63),
    ],
)
def test_an_app_is_called_after_its_image(reference, name):
    assert request.default_app_name(reference) == name


@given(st.text(min_size=1))
def test_default_names_are_always_valid_names(reference):
    assert request.app_name(request.default_app_name(reference))


@pytest.mark.parametrize("name", ["", "-a", "a_b", "A", "a/b", "..", "a" * 64, "a\n"])
def test_names_that_do_not_fit_a_unit_or_a_path_are_refused(name):
    with pytest.raises(UsageError, match="cannot be an app's name"):
        request.app_name(name)


@pytest.mark.parametrize(
    ("text", "expected"), [("512m", 512 << 20), ("1G", 1 << 30), ("6291456", 6 << 20), ("8192k", 8 << 20)]
)
def test_memory_sizes(text, expected):
    assert request.memory(text) == expected


@pytest.mark.parametrize("text", ["1m", "-5m", "12x", "", "1.5g", "9" * 30])
def test_memory_that_makes_no_sense_is_refused(text):
    with pytest.raises(UsageError):
        request.memory(text)


@pytest.mark.parametrize(("text", "expected"), [("1.5", 1500), ("0.01", 10), ("2", 2000)])
def test_cpus(text, expected):
    assert request.cpus(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many", "1e9"])
def test_cpus_that_make_no_sense_are_refused(text):
    with pytest.raises(UsageError):
        request.cpus(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("0s", 0),
        ("1.5s", 1.5),
        ("30d", 2_592_000),
        ("1d1s", 86401),
    ],
)
def test_durations(text, seconds):
    assert request.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5x", "-1s", "m5"])
def test_durations_that_make_no_sense_are_refused(text):
    with pytest.raises(UsageError):
        request.duration(text)


def test_a_volume_is_resolved_and_escaped_colons_stay(tmp_path):
    odd = tmp_path / "a:b"
    odd.mkdir()
    link = tmp_path / "link"
    link.symlink_to(odd)
    escaped = str(odd).replace(":", "\\:")
    assert mounts.short(Layout(), f"{escaped}:/data/./x:ro") == Volume(
        source=str(odd), target="/data/x", read_only=True
    )
    assert mounts.short(Layout(), f"{link}:/data").source == str(odd)


@pytest.mark.parametrize(
    ("options", "read_only", "relabel"),
    [("", False, ""), (":z", False, "z"), (":Z", False, "Z"), (":ro,z", True, "z"), (":Z,rw", False, "Z")],
)
def test_a_volume_may_be_labelled_for_one_pod_or_for_all(options, read_only, relabel):
    found = mounts.short(Layout(), f"/:/x{options}")
    assert (found.read_only, found.relabel) == (read_only, relabel)


@pytest.mark.parametrize(
    "text",
    [
        *("tmp", "", "rel/x:/x", "/:rel", "/nonexistent-dir:/x", "/tmp:/x:rx", "/tmp:/x:ro:z"),
        *("/tmp:/x:", "/tmp:/x:z,Z", "/tmp:/x:ro,rw", "/tmp:/x:z,z", "/tmp:/x:ro,"),
    ],
)
def test_bad_volumes_are_refused(text):
    with pytest.raises(UsageError, match="volume"):
        mounts.short(Layout(), text)


def test_environment_order_and_copying(tmp_path):
    path = tmp_path / "env"
    path.write_text("# comment\nA=file\nB=file=x\n\n")
    found = request.environment(["A=flag", "C", "D", "E="], [path], {"C": "caller"})
    assert dict(found) == {"A": "flag", "B": "file=x", "C": "caller", "E": ""}


@pytest.mark.parametrize(
    ("content", "message"), [(b"novalue\n", "line 1"), (b"\xff=1\n", "UTF-8"), (b"=x\n", "line 1")]
)
def test_bad_env_files_name_the_line(tmp_path, content, message):
    path = tmp_path / "env"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        request.environment([], [path], {})


@pytest.mark.parametrize(
    ("text", "number"), [(None, 15), ("", 15), ("SIGQUIT", 3), ("usr1", 10), ("9", 9), ("SIGRTMIN+3", 37)]
)
def test_stop_signals(text, number):
    assert request.stop_signal(text) == number


@pytest.mark.parametrize("text", ["SIGNOPE", "0", "65", "SIG_DFL", "SIGRTMIN+99", "default_int_handler"])
def test_stop_signals_that_do_not_exist_are_refused(text):
    with pytest.raises(UsageError, match="is not a signal"):
        request.stop_signal(text)


@pytest.mark.parametrize("word", ["bad\udcff", "nul\0"])
def test_words_that_json_cannot_hold_are_refused(word):
    with pytest.raises(UsageError):
        request.unicode_text(word, "argument")


def test_labels_are_sorted_and_the_last_of_a_name_counts():
    assert request.marks(["b=1", "a", "b=2=3"], "--label") == ("a=", "b=2=3")


@pytest.mark.parametrize("words", [["=x"], [""], ["a=" + "x" * 20_000]])
def test_labels_that_mean_nothing_or_are_endless_are_refused(words):
    with pytest.raises(UsageError, match="--label"):
        request.marks(words, "--label")


@pytest.mark.parametrize(("text", "value"), [("022", 0o22), ("77", 0o77), ("0777", 0o777), (None, None)])
def test_masks_are_octal(text, value):
    assert request.umask(text) == value


@pytest.mark.parametrize("text", ["", "8", "1000", "-1", "0x7", "02222"])
def test_what_is_no_mask_is_refused(text):
    with pytest.raises(UsageError, match="octal"):
        request.umask(text)
