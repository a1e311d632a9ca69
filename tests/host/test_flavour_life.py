"""Pods whose apps begin again and are asked how they are, whatever isolates them."""

import json

from support.secrun import Secrun, eventually, open_door, wait_for_door

# Counts its runs in its root, which it keeps.
COUNT = "echo x >> /runs; echo run $(wc -l < /runs); "


def app(pods: Secrun, uuid: str, name: str = "a") -> dict:
    (found,) = (each for each in pods.status(uuid)["apps"] if each["name"] == name)
    return found


def test_an_app_that_will_begin_again_has_not_ended(pods: Secrun):
    """`a` fails twice, `b` ends well, `c` fails for good: the pod ends with `c`."""
    words = (
        *("--name", "a", "--restart=on-failure:5", pods.image, "--", "sh", "-c"),
        COUNT + f"[ $(wc -l < /runs) -ge 3 ] && {open_door(9997)} && exec sleep 100000; exit 4",
        *("---", "--name", "b", pods.image, "--", "true"),
        *("---", "--name", "c", "--restart=on-failure:2", pods.image, "--", "sh", "-c"),
        COUNT + f"[ $(wc -l < /runs) -ge 3 ] && {wait_for_door(9997)}; exit 9",
    )
    uuid = pods("run", "-d", *pods.pod_options, *words).out.strip()
    try:
        assert pods("status", "--wait=120s", uuid).code == 0
        status = pods.status(uuid)
        assert status["exit_code"] == 9
        assert {each["name"]: each["restart"]["count"] for each in status["apps"]} == {
            "a": 2,
            "b": 0,
            "c": 2,
        }
        assert app(pods, uuid, "a")["restart"]["policy"] == "on-failure:5"
        assert app(pods, uuid, "c")["restart"]["last"]["code"] == 9
        assert pods("logs", uuid, "c").out == "run 1\nrun 2\nrun 3\n"
        assert "app-a-restarts=2\n" in pods("status", uuid).out
    finally:
        pods.discard(uuid)


def test_health_is_told_restarts_are_asked_for_and_a_stop_is_the_end(pods: Secrun):
    """One pod for all that takes a while: prepared with a check, always brought back, restarted, stopped."""
    options = (
        "--restart=always",
        "--health-cmd=echo looked at $WHO; [ -e /well ]",
        *("--health-interval=200ms", "--health-timeout=30s", "--health-start-period=1ms"),
    )
    more = ("--health-retries=1", "--health-on-failure=none", "-e", "WHO=me", "--user=app")
    script = "sh", "-c", 'trap "exit 3" TERM; echo started; while :; do sleep 0.1; done'
    given = (*pods.pod_options, "--name", "a", *options, *more, "--tmpfs=/tmp", pods.image, "--", *script)
    uuid = pods("prepare", *given).out.strip()
    pods("run-prepared", "-d", uuid)
    try:
        eventually(
            lambda: (app(pods, uuid)["health"] or {}).get("state") == "unhealthy", "no well, no health"
        )
        pods("enter", "--user=0", uuid, "--", "touch", "/well")
        eventually(lambda: app(pods, uuid)["health"]["state"] == "healthy", "the check finds it")
        check = app(pods, uuid)["health"]["checks"][-1]
        assert (check["code"], check["late"], check["output"]) == (0, False, "looked at me")
        shown = pods("status", uuid).out
        assert "app-a-health=healthy\napp-a-health-output=looked at me\n" in shown
        assert json.loads(pods("inspect", uuid).out)["pods"][0]["apps"][0]["health"]["state"] == "healthy"
        eventually(lambda: "started" in pods("logs", uuid).out, "it is ready to be asked to end")
        assert pods("restart", uuid).out == f"{uuid}\n"
        eventually(lambda: app(pods, uuid)["restart"]["count"] == 1, "it is written down")
        state = app(pods, uuid)["restart"]
        assert (state["last"]["code"], state["waiting"]) == (3, False)
        assert pods.status(uuid)["state"] == "running"
        eventually(lambda: pods("logs", uuid).out.count("started") == 2, "the second run has begun")
        pods("enter", uuid, "--", "sh", "-c", "kill -TERM 1", code=None)
        eventually(lambda: app(pods, uuid)["restart"]["count"] == 2, "its policy brings it back")
        eventually(lambda: pods("logs", uuid).out.count("started") == 3, "it is ready to be asked to end")
        eventually(lambda: app(pods, uuid)["health"]["state"] == "healthy", "the check finds it again")
        pods("stop", uuid)
        assert pods.status(uuid)["exit_code"] == 3
        assert "is exited" in pods("restart", uuid, code=125).err
        rows = [json.loads(line) for line in pods("events", "--format=json", uuid).out.splitlines()]
        told = {row["event"]: row for row in rows if row["event"].startswith("App")}
        assert (told["AppRestart"]["what"], told["AppRestart"]["code"]) == ("2 in all", 3)
        assert told["AppHealth"]["apps"] == ["a"]
    finally:
        pods.discard(uuid)


def test_each_run_is_read_before_it_begins(pods: Secrun):
    uuid = pods(
        "run",
        "-d",
        *pods.pod_options,
        *("--profile=strict", "--restart=on-failure:1", pods.image, "--", "sh", "-c", "exit 5"),
        code=None,
    ).out.strip()
    try:
        pods("status", "--wait=120s", uuid)
        (found,) = pods.status(uuid)["apps"]
        assert (found["exit_code"], found["restart"]["count"]) == (5, 1)
        assert found["enforced"]["verdict"] == "held"
    finally:
        pods.discard(uuid)
