"""Volumes: by name, in every spelling, and bound to the place that was named."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.secrun import Secrun

RELAXED = ("--pull=never", "--insecure-options=image")


@pytest.fixture
def named(secrun: Secrun) -> Iterator[str]:
    secrun("volume", "create", "data")
    yield "data"
    secrun("gc", "--grace-period=0s")
    secrun("volume", "rm", "data", code=None)


def test_what_a_pod_writes_to_a_named_volume_the_next_one_reads(secrun: Secrun, named: str):
    secrun.run("sh", "-c", "echo kept > /v/file; chown 5:6 /v/file", options=("-v", "data:/v"))
    shown = secrun.run("sh", "-c", "cat /v/file; stat -c %u:%g /v/file", options=("-v", "data:/v:ro"))
    assert shown.out == "kept\n5:6\n"
    refused = secrun.run("touch", "/v/other", options=("-v", "data:/v:ro"), code=1)
    assert "Read-only" in refused.err
    assert (secrun.root / "volumes/data/data/file").stat().st_uid == 5


def test_a_named_volume_is_listed_and_kept_while_a_pod_may_use_it(secrun: Secrun, named: str):
    uuid = secrun("prepare", "-v", "data:/v", *RELAXED, secrun.image, "--", "true").out.strip()
    assert "data" in secrun("volume", "list").out
    shown = json.loads(secrun("volume", "inspect", "--format=json", "data").out)
    assert (shown["schema"], shown["name"], shown["pods"]) == ("secrun.dev/volume/v1", "data", [uuid])
    assert uuid in secrun("volume", "rm", "data", code=125).err
    secrun("rm", uuid)
    secrun("volume", "rm", "data")
    assert json.loads(secrun("volume", "list", "--format=json").out)["volumes"] == []


def test_names_of_volumes(secrun: Secrun, named: str):
    assert "exists" in secrun("volume", "create", "data", code=125).err
    for name in ("../x", "a/b", ".hidden", "x" * 200):
        assert "cannot be a volume's name" in secrun("volume", "create", name, code=2).err
    said = secrun.run("true", options=("-v", "absent:/v"), code=2).err
    assert "secrun volume create absent" in said


@pytest.mark.parametrize(
    "options",
    [
        ("--mount", "type=bind,source={0},target=/v,readonly"),
        ("--mount", "type=bind,src={0},dst=/v,ro=true"),
        ("-v", "{0}:/v:ro"),
        ("--volume", "web,kind=host,source={0},readOnly=true", "--mount", "volume=web,target=/v"),
    ],
)
def test_every_spelling_of_a_folder_of_the_host(secrun: Secrun, tmp_path: Path, options: tuple[str, ...]):
    (tmp_path / "file").write_text("seen\n")
    words = tuple(word.format(tmp_path) for word in options)
    assert secrun.run("cat", "/v/file", options=words).out == "seen\n"
    assert secrun.run("touch", "/v/other", options=words, code=1).out == ""


def test_a_folder_in_memory_in_words(secrun: Secrun):
    option = ("--mount", "type=tmpfs,target=/m,tmpfs-size=1m,tmpfs-mode=700")
    shown = secrun.run("sh", "-c", "grep ' /m ' /proc/mounts; stat -c %a /m", options=option).out
    assert "size=1024k" in shown
    assert shown.endswith("700\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mount", "type=moon,target=/v"), "type 'moon' is none of"),
        (("--mount", "type=bind,source=/etc"), "it has no target"),
        (("--mount", "type=bind,source=etc,target=/v"), "is not an absolute path"),
        (("--mount", "type=tmpfs,target=/v,source=/etc"), "'source' is not known for type tmpfs"),
        (("--mount", "type=bind,source=/etc,target=/v,target=/w"), "given twice"),
        (("--mount", "type=bind,source=/etc,target=/v,readonly=maybe"), "neither true nor false"),
        (("--mount", "volume=x,target=/v"), "there is no --volume x"),
        (("--volume", "x,kind=empty", "--mount", "volume=x,target=/v"), "only kind=host is possible"),
        (("-v", "/no/such/place:/v"), "does not exist on this host"),
        (("-v", "/etc:/v/../../x"), "without .."),
    ],
)
def test_what_has_no_meaning_is_an_error(secrun: Secrun, options: tuple[str, ...], said: str):
    assert said in secrun.run("true", options=options, code=2).err


def test_a_dangling_link_is_no_source(secrun: Secrun, tmp_path: Path):
    (tmp_path / "link").symlink_to("nowhere")
    assert "does not exist" in secrun.run("true", options=("-v", f"{tmp_path}/link:/v"), code=2).err


def test_a_source_that_became_a_link_is_refused(secrun: Secrun, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "secret").mkdir()
    words = ("prepare", "-v", f"{tmp_path}/a:/v", *RELAXED, secrun.image, "--", "ls", "/v")
    uuid = secrun(*words).out.strip()
    (tmp_path / "a").rmdir()
    (tmp_path / "a").symlink_to("secret")
    assert "'a' is a symbolic link now" in secrun("run-prepared", uuid, code=125).err
    secrun("rm", uuid)


def test_a_source_that_is_swapped_while_the_pod_runs_stays_what_it_was(secrun: Secrun, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("first\n")
    uuid = secrun.detach("sleep", "1000", options=("-v", f"{tmp_path}/a:/v"))
    (tmp_path / "a").rename(tmp_path / "moved")
    (tmp_path / "a").symlink_to("/etc")
    assert secrun("enter", uuid, "--", "cat", "/v/file").out == "first\n"
    secrun.discard(uuid)


def test_a_pod_that_removes_itself_leaves_its_volumes_alone(secrun: Secrun, tmp_path: Path):
    (tmp_path / "ü").mkdir()
    (tmp_path / "ü/file").write_text("precious\n")
    secrun.run("true", options=("-v", f"{tmp_path}/ü:/v"))
    assert (tmp_path / "ü/file").read_text() == "precious\n"


def test_read_only_holds_for_what_is_mounted_below(secrun: Secrun, tmp_path: Path):
    below = tmp_path / "v/below"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        script = "touch /v/below/file 2>/dev/null && echo written; grep -c ' /v/below ' /proc/mounts"
        assert secrun.run("sh", "-c", script, options=("-v", f"{tmp_path}/v:/v:ro")).out == "1\n"
        secrun.run("touch", "/v/below/file", options=("-v", f"{tmp_path}/v:/v"))
    finally:
        subprocess.run(["umount", below], check=True)


def test_a_file_system_that_cannot_map_owners_is_named(secrun: Secrun):
    said = secrun.run("true", options=("-v", "/sys/kernel:/v"), code=125).err
    assert "volume /v of app" in said
    assert "/sys/kernel: owners cannot be mapped there" in said
