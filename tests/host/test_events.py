"""secrun events: what was measured, told to people and programs."""

import json
import subprocess
from pathlib import Path

from support.secrun import Secrun


def rows(secrun: Secrun, *words: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in secrun("events", "--format=json", *words).out.splitlines()]


def test_the_life_of_a_pod_is_told_in_order(secrun: Secrun):
    uuid, _ = secrun.kept(secrun.image, "--name", "web", "--", "sh", "-c", "exit 3", code=3)
    secrun("rm", uuid)
    told = rows(secrun, uuid)
    assert [row["event"] for row in told] == ["PodPrepare", "PodStart", "PodExit", "PodGC"]
    assert told[0]["apps"] == ["web"]
    assert told[0]["outcome"] == "bypassed"
    assert told[2]["code"] == 3
    lines = secrun("events", uuid).out.splitlines()
    assert "PodPrepare" in lines[0]
    assert f"{uuid[:8]} bypassed apps=web image=oci:" in lines[0]
    assert "code=3" in lines[2]
    assert len(rows(secrun)) > len(told)


def test_what_happens_is_followed(secrun: Secrun):
    uuid = secrun.prepare("true")
    words = secrun.argv("events", "--follow", "--format=json", uuid[:8])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["event"] == "PodPrepare"
        secrun("run-prepared", "--rm", uuid)
        seen = [json.loads(following.stdout.readline())["event"] for _ in range(3)]
        following.kill()
    assert seen == ["PodStart", "PodExit", "PodGC"]


def test_rows_are_chosen_by_their_time(secrun: Secrun):
    secrun.run("true")
    assert rows(secrun, "--until=2020-01-01") == []
    assert len(rows(secrun, "--since=1h")) == len(rows(secrun))
    assert "is no time" in secrun("events", "--since=soon", code=2).err


def test_a_log_that_was_changed_is_an_error_and_no_guess(secrun: Secrun):
    secrun.run("true")
    (log,) = Path(secrun.root, "measure").glob("*.cel")
    before = log.read_bytes()
    lines = before.splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:1], *lines[2:]]))
    try:
        said = secrun("events", code=125)
    finally:
        log.write_bytes(before)
    assert str(log) in said.err


def test_a_root_without_a_log_has_no_events(secrun: Secrun, tmp_path: Path):
    assert secrun("--root", str(tmp_path), "events").out == ""


def test_a_line_that_is_being_written_is_left_out(secrun: Secrun):
    secrun.run("true")
    (log,) = Path(secrun.root, "measure").glob("*.cel")
    whole = rows(secrun)
    with log.open("ab") as stream:
        stream.write(b'{"torn":')
    try:
        assert rows(secrun) == whole
    finally:
        with log.open("r+b") as stream:
            stream.truncate(stream.seek(0, 2) - 8)
