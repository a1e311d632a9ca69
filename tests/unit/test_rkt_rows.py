"""What users of rkt know, row by row: each behaviour names tests that exist, and what differs says why."""

import ast
import functools
import os
import tomllib
from pathlib import Path

import pytest

from secrun.cli.main import main
from secrun.cli.options import all_verbs

TESTS = Path(__file__).resolve().parent.parent
ROWS = tomllib.loads((TESTS / "rkt-behaviour.toml").read_text())["behaviour"]
# rkt's areas that every flavour shares, and how many rows each has at least.
AREAS = {
    "the command and its settings": 20,
    "images": 25,
    "run, prepare": 23,
    "states and inspection": 17,
    "terminals, logs, services": 14,
    "volumes and mounts": 12,
}


@functools.cache
def functions(file: str) -> frozenset[str]:
    """Return the names of the test functions of a module."""
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_behaviour_is_covered_by_tests_that_exist():
    named = [(row["rkt"], *test.split("::")) for row in ROWS for test in row["tests"]]
    assert [one for one in named if one[2] not in functions(one[1])] == []
    assert [row["rkt"] for row in ROWS if not row["tests"]] == []


def test_no_row_is_missing_and_none_is_told_twice():
    assert len({row["rkt"] for row in ROWS}) == len(ROWS)
    for area, count in AREAS.items():
        assert len([row for row in ROWS if row["area"] == area]) >= count, area
    assert {row["area"] for row in ROWS} == set(AREAS)


def test_what_differs_is_told_to_users_of_rkt(repository):
    page = (repository / "docs/from-rkt.md").read_text()
    assert [row["here"] for row in ROWS if "here" in row and row["here"] not in page] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--trust-keys-from-https", "x"], "trusted after its fingerprint was seen"),
        (["run", "--cpuprofile=x", "x"], "there is no --cpuprofile: python3 -X importtime"),
        (["run", "--no-overlay", "x"], "images are mounted, never copied"),
        (["run", "--ipc=parent", "x"], "an IPC namespace is the pod's own"),
        (["run", "--store-only", "x"], "here it is --pull. --pull never"),
        (["run", "--no-store", "x"], "here it is --pull. --pull always"),
        (["run", "--stdin=tty", "x"], "here it is --interactive"),
        (["run", "--mds-register", "x"], "there is no metadata service"),
        (["fly", "run"], "not a command in rkt either"),
        (["app", "sandbox"], "there is no command 'app sandbox': pods are made whole"),
        (["network", "connect", "x"], "networks are part of the measured manifest"),
        (["network", "nonsense"], "secrun network needs one of: list"),
    ],
)
def test_what_is_refused_says_why(capsys, words, said):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_commands_that_change_pods_need_root(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    changing = {"run", "prepare", "run-prepared", "enter", "gc", "rm", "stop"}
    assert changing <= {" ".join(verb.words) for verb in all_verbs() if verb.needs_root}
    for words in (["run", "x"], ["rm", "c0ffee"], ["gc"], ["enter", "c0ffee", "--", "sh"]):
        assert main(["--root", str(tmp_path), *words]) == 125
        assert f"secrun {words[0]} needs root [host-root]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_entering_names_its_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main(["--root", str(tmp_path), "enter", "c0ffee"]) == 2
    assert "no command to run" in capsys.readouterr().err
