"""Restart policies and health checks: what is said, what the image says, and what the agent is told."""

import json
from pathlib import Path

import pytest

from secrun.cli import lifecycle as said
from secrun.cli.options import verbs_of
from secrun.cli.parse import parse_verb
from secrun.digest import Digest
from secrun.errors import ImageError, UsageError
from secrun.image.config import Healthcheck, of_document, to_document
from secrun.jsonio import JsonObject
from secrun.pod import lifecycle, lifestate
from secrun.pod.lifecycle import HealthRequest
from secrun.stage1 import bundle, units
from secrun.stage1.lifecycle import Health, OnUnhealthy
from secrun.stage1.manifest import PodManifest
from secrun.stage1.podfiles import PodFiles
from support import manifests

SECOND = 1_000_000_000


def asked(*words: str) -> HealthRequest:
    (verb,) = verbs_of("run")
    return said.asked(parse_verb("secrun", verb, [*words, "image"]).apps[0])


def decided(request: HealthRequest, image: Healthcheck | None = None) -> Health | None:
    found = lifecycle.health(request, image, "web", lambda words: json.dumps(words).encode())
    return None if found is None else found[0]


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (None, "no"),
        ("no", "no"),
        ("always", "always"),
        ("unless-stopped", "always"),
        ("on-failure", "on-failure"),
        ("on-failure:7", "on-failure:7"),
    ],
)
def test_a_restart_policy_is_spelled_for_the_agent(text, policy):
    assert str(said.restart(text)) == policy


@pytest.mark.parametrize(
    "text",
    ["never", "always:3", "on-failure:", "on-failure:0", "on-failure:-1", "on-failure:9999999", "no:1"],
)
def test_a_restart_policy_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--restart"):
        said.restart(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("curl -f http://localhost/ || exit 1", ("/bin/sh", "-c", "curl -f http://localhost/ || exit 1")),
        ('["CMD", "check", "--now"]', ("check", "--now")),
        ('["CMD-SHELL", "check || exit 1"]', ("/bin/sh", "-c", "check || exit 1")),
        ('["check", "--now"]', ("check", "--now")),
        ("none", ()),
        ('["NONE"]', ()),
    ],
)
def test_a_check_is_a_line_for_the_shell_or_words(text, words):
    assert said.command(text) == words


@pytest.mark.parametrize("text", ["", " ", "[", "[]", '["CMD"]', "[1]", '["CMD-SHELL", "a", "b"]'])
def test_a_check_that_names_no_command_is_refused(text):
    with pytest.raises(UsageError, match="--health-cmd"):
        said.command(text)


def test_what_is_said_wins_over_the_image_which_wins_over_the_defaults():
    image = Healthcheck(
        test=("CMD-SHELL", "look"), interval_ns=5 * SECOND, timeout_ns=0, start_period_ns=SECOND, retries=7
    )
    found = decided(asked("--health-timeout=500ms", "--health-retries=2", "--health-on-failure=kill"), image)
    assert found is not None
    assert found.command == ("/bin/sh", "-c", "look")
    assert (found.interval_ms, found.timeout_ms, found.start_period_ms) == (5000, 500, 1000)
    assert (found.retries, found.on_failure) == (2, OnUnhealthy.KILL)
    assert found.process == Digest.of(json.dumps(found.command).encode())
    plain = decided(asked("--health-cmd=look"))
    assert plain is not None
    assert (plain.interval_ms, plain.timeout_ms, plain.start_period_ms, plain.retries) == (
        30000,
        30000,
        0,
        3,
    )
    assert plain.on_failure is OnUnhealthy.NONE


def test_an_image_may_ask_for_no_check_and_its_user_may_leave_it_out():
    image = Healthcheck(test=("CMD", "look"))
    assert decided(HealthRequest(), image) is not None
    assert decided(asked("--no-healthcheck"), image) is None
    assert decided(asked("--health-cmd=none"), image) is None
    assert decided(HealthRequest(), Healthcheck(test=("NONE",))) is None
    assert decided(HealthRequest()) is None


def test_an_image_cannot_make_the_agent_work_without_pause():
    found = decided(HealthRequest(), Healthcheck(test=("CMD", "look"), interval_ns=1, retries=1 << 62))
    assert found is not None
    assert (found.interval_ms, found.retries) == (100, lifecycle.MAX_RETRIES)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--no-healthcheck", "--health-cmd=a", "--health-retries=1"],
            "--no-healthcheck and --health-cmd, --health-retries",
        ),
        (["--health-cmd=a", "--health-interval=1ms"], "--health-interval 1ms is not between 100ms and 24h"),
        (["--health-cmd=a", "--health-interval=disable"], "nothing else would run the check"),
        (["--health-cmd=a", "--health-timeout=x"], "is not a duration"),
        (["--health-cmd=a", "--health-retries=0"], "--health-retries 0 is not between"),
    ],
)
def test_what_makes_no_sense_is_named(words, text):
    with pytest.raises(UsageError, match=text):
        asked(*words)


def test_details_of_a_check_that_is_not_there_are_an_error():
    with pytest.raises(UsageError, match="--health-interval, --health-on-failure: web has no HEALTHCHECK"):
        decided(asked("--health-interval=1s", "--health-on-failure=stop"))
    with pytest.raises(UsageError, match="names no command") as caught:
        decided(HealthRequest(), Healthcheck(test=("ODD", "x")))
    assert "--no-healthcheck" in caught.value.hint


def test_a_healthcheck_survives_the_way_between_processes():
    plain: JsonObject = {"architecture": "a", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    assert "Healthcheck" not in json.dumps(to_document(of_document(plain, what="x")))
    check = {"Test": ["CMD", "a"], "Interval": 5, "Timeout": 6, "StartPeriod": 7, "Retries": 8}
    config = of_document({**plain, "config": {"Healthcheck": check}}, what="x")
    assert of_document(to_document(config), what="x") == config
    assert config.healthcheck is not None
    assert config.healthcheck == Healthcheck(
        test=("CMD", "a"), interval_ns=5, timeout_ns=6, start_period_ns=7, retries=8
    )
    for broken in ({"Test": "a"}, {"Interval": -1}, {"Retries": "3"}, {"Timeout": 1 << 63}):
        with pytest.raises(ImageError):
            of_document({**plain, "config": {"Healthcheck": broken}}, what="x")


def health() -> Health:
    return Health(
        command=("look", "at it"),
        interval_ms=1500,
        timeout_ms=2000,
        start_period_ms=3000,
        retries=4,
        on_failure=OnUnhealthy.STOP,
        process=Digest.of(b"x"),
    )


def test_the_agent_is_told_and_the_manifest_keeps_it():
    app = manifests.app(restart=said.restart("on-failure:3"), health=health())
    pod = manifests.pod(app)
    assert PodManifest.from_bytes(pod.to_bytes()) == pod
    (line,) = (
        line
        for line in units.render(pod)[units.app_unit(app.name)].splitlines()
        if line.startswith("ExecStart=")
    )
    words = line.replace('"', "").split()
    for pair in (
        ("--restart", "on-failure:3"),
        ("--health-program", "look"),
        ("--health-interval", "1500"),
        ("--health-timeout", "2000"),
        ("--health-start-period", "3000"),
        ("--health-retries", "4"),
        ("--health-on-failure", "stop"),
    ):
        assert words[words.index(pair[0]) + 1] == pair[1]
    plain = units.render(manifests.pod())[units.app_unit("web")]
    assert "--restart" not in plain
    assert "--health" not in plain


def test_a_check_runs_as_the_app_does_but_for_its_terminal():
    process = bundle.Process(
        args=("serve",),
        env=("A=b",),
        cwd="/w",
        uid=7,
        gid=8,
        groups=(9,),
        terminal=True,
        console_size=(24, 80),
    )
    found = bundle.check_process(process, ("look",), {"noNewPrivileges": True}, "salt")
    assert (found["args"], found["env"], found["cwd"]) == (["look"], ["A=b"], "/w")
    assert found["user"] == {"uid": 7, "gid": 8, "additionalGids": [9]}
    assert (found["terminal"], found["noNewPrivileges"]) == (False, True)
    assert "consoleSize" not in found
    assert found[bundle.SALT_ANNOTATION] == "salt"


# --- what an agent wrote


def state(**changes: object) -> bytes:
    check = {"code": 1, "late": False, "output": "a\nb", "started_ns": 1, "ended_ns": 2}
    found = {
        "began_ns": 5,
        "restarts": 2,
        "waiting": True,
        "last": {"code": 137, "signal": 9, "error": "", "finished_ns": 4},
        "health": {"state": "unhealthy", "failures": 3, "checks": [check]},
    }
    return json.dumps({**found, **changes}).encode()


def written(tmp_path: Path, data: bytes) -> lifestate.LifeState | None:
    folder = tmp_path / "rw" / "apps" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").write_bytes(data)
    return lifestate.read(PodFiles(tmp_path), "a")


def test_how_an_app_stands_is_read_bounded_and_made_fit_to_be_shown(tmp_path):
    assert lifestate.read(PodFiles(tmp_path), "a") is None
    found = written(tmp_path, state())
    assert found is not None
    assert found.health is not None
    assert (found.restarts, found.waiting, found.health.state) == (2, True, "unhealthy")
    assert found.health.checks[0].output == "a\nb"
    check = {"code": 1, "late": False, "output": "\x1b[2J\n" + "x" * 5000, "started_ns": 1, "ended_ns": 2}
    shown = written(tmp_path, state(health={"state": "healthy", "failures": 0, "checks": [check] * 9}))
    assert shown is not None
    assert shown.health is not None
    assert len(shown.health.checks) == 5
    for item in shown.health.checks:
        assert item.output.startswith("?[2J\nxxx")
        assert len(item.output) <= 512


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        state(restarts="x"),
        state(health={"state": "odd", "failures": 0, "checks": []}),
        state(more=1),
        b"x" * 100_000,
    ],
)
def test_a_record_that_is_none_is_told_and_breaks_nothing(tmp_path, data):
    found = written(tmp_path, data)
    assert found is not None
    assert found.problem
    assert (found.restarts, found.health) == (0, None)


def test_a_link_in_place_of_a_record_is_not_followed(tmp_path):
    folder = tmp_path / "rw" / "apps" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(state())
    (folder / "state").symlink_to(tmp_path / "secret")
    found = lifestate.read(PodFiles(tmp_path), "a")
    assert found is not None
    assert found.problem
