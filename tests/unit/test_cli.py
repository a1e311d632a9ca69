"""The command line's own grammar, and that its table, its handlers and its help agree."""

import importlib.util
import json

import pytest

from secrun.cli import main as cli
from secrun.cli.options import VERBS
from secrun.cli.parse import parse_verb, split_apps
from secrun.cli.table import Scope
from secrun.errors import UsageError

VERB = {" ".join(verb.words): verb for verb in VERBS}


def parse(text, *words):
    return parse_verb(f"secrun {text}", VERB[text], words)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb.words))
def test_every_verb_has_a_handler_and_unambiguous_options(verb):
    module, _, function = verb.handler.partition(":")
    assert importlib.util.find_spec(module), module
    assert callable(getattr(importlib.import_module(module), function))
    flags = [flag for option in verb.options for flag in option.flags]
    assert len(flags) == len(set(flags))
    assert verb.summary
    assert all(option.help for option in verb.options)


def test_options_stand_before_or_after_the_image_and_words_after_the_dashes_are_the_apps():
    before = parse("run", "--name", "x", "-d", "IMG", "--", "sh", "-c", "exit 7")
    after = parse("run", "IMG", "-d", "--name", "x", "--", "sh", "-c", "exit 7")
    assert before == after
    assert before.flag("detach")
    assert before.apps[0].trailing == ("sh", "-c", "exit 7")


def test_each_segment_is_an_app_with_its_own_options():
    args = parse(
        "run", "--rm", "A", "--name", "a", "--", "x", "--", "y", "---", "B", "--name", "b", "-e", "K=V"
    )
    first, second = args.apps
    assert (first.required("image"), first.text("name"), first.trailing) == ("A", "a", ("x", "--", "y"))
    assert (second.required("image"), second.text("name"), second.trailing) == ("B", "b", ())
    assert second.many("env") == ("K=V",)


def test_options_of_the_pod_are_not_taken_from_later_apps():
    with pytest.raises(UsageError, match="-d"):
        parse("run", "A", "---", "B", "-d")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--name"],
        ["A", "B"],
        ["A", "--no-such-flag"],
        ["A", "--pids-limit", "many"],
        ["A", "--pull=sometimes"],
        ["A", "---"],
    ],
)
def test_words_that_do_not_parse_are_usage_errors(words):
    with pytest.raises(UsageError):
        parse("run", *words)


def test_segments():
    assert split_apps(["a", "---", "b", "---"]) == [["a"], ["b"], []]


def test_options_of_apps_are_marked_as_such():
    scopes = {option.dest: option.scope for option in VERB["run"].options}
    assert scopes["volume"] is Scope.APP
    assert scopes["detach"] is Scope.VERB


def test_an_unknown_command_gets_a_suggestion(capsys):
    assert cli.main(["lits"]) == 2
    assert "did you mean list?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["image"], ["--root"], ["--rot=/x", "list"], ["image", "nope"]])
def test_incomplete_command_lines_end_with_status_two(words, capsys):
    assert cli.main(words) == 2


def test_the_overview_names_every_public_verb(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in VERBS:
        assert " ".join(verb.words) in out


def test_an_empty_root_lists_nothing(tmp_path, capsys):
    assert cli.main(["--root", str(tmp_path), "list", "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": "secrun.dev/pod-list/v1", "pods": []}


def test_a_uuid_that_matches_nothing_says_so(tmp_path, capsys):
    assert cli.main(["--root", str(tmp_path), "status", "abcd"]) == 2
    assert "no pod matches 'abcd'" in capsys.readouterr().err


def test_errors_of_the_system_name_the_file(tmp_path, capsys):
    (tmp_path / "pods").write_text("not a folder")
    assert cli.main(["--root", str(tmp_path), "list"]) == 125
    assert "pods" in capsys.readouterr().err
