"""Rows of what apps did from one run to the next: each change is told once."""

import json
from pathlib import Path

import pytest

from secrun.paths import Layout
from secrun.pod import liferows
from secrun.pod.liferows import LifeRows
from support import manifests

UUID = "0a0a0a0a-1111-4111-8111-111111111111"


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(liferows, "_PAUSE_SECONDS", 0.0)
    return Layout(root=tmp_path / "root", run_root=tmp_path / "run")


def pod(layout: Layout) -> Path:
    folder = layout.root / "pods" / "run" / UUID
    (folder / "rw" / "apps" / "web").mkdir(parents=True)
    (folder / "manifest").write_bytes(manifests.pod().to_bytes())
    return folder


def stands(folder: Path, *, restarts: int, state: str | None = None, output: str = "") -> None:
    check = {"code": 1, "late": False, "output": output, "started_ns": 1, "ended_ns": 7_000_000}
    health = None if state is None else {"state": state, "failures": 0, "checks": [check]}
    last = {"code": 137, "signal": 9, "error": "", "finished_ns": 4}
    record = {
        "began_ns": 5_000_000,
        "restarts": restarts,
        "waiting": False,
        "last": last if restarts else None,
        "health": health,
    }
    (folder / "rw" / "apps" / "web" / "state").write_text(json.dumps(record))


def test_each_change_is_told_once_and_of_exited_pods_what_there_is(layout: Layout):
    folder = pod(layout)
    rows = LifeRows(layout)
    assert list(rows()) == []
    stands(folder, restarts=2, state="unhealthy", output="down\nmore")
    found = list(LifeRows(layout)())
    assert [(row.event, row.what, row.time, row.pod, row.apps) for row in found] == [
        ("AppRestart", "2 in all", 5, UUID, ("web",)),
        ("AppHealth", "unhealthy", 7, UUID, ("web",)),
    ]
    assert (found[0].code, found[1].why) == (137, "down")
    assert list(rows()) == [], "a pod that does not run tells nothing new"


def test_what_is_damaged_is_passed_over(layout: Layout):
    folder = pod(layout)
    (folder / "rw" / "apps" / "web" / "state").write_bytes(b"{")
    assert list(LifeRows(layout)()) == []
    (folder / "manifest").write_bytes(b"{")
    assert list(LifeRows(layout)()) == []
