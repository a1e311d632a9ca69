"""The command line's own grammar, and that its table, its handlers and its help agree."""

import argparse
import importlib.util
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.cli import main as cli
from secrun.cli.options import all_verbs
from secrun.cli.parse import HelpAskedError, parse_verb, split_apps
from secrun.cli.table import Kind, Scope
from secrun.errors import UsageError

VERB = {" ".join(verb.words): verb for verb in all_verbs()}


def parse(text, *words):
    return parse_verb(f"secrun {text}", VERB[text], words)


@pytest.mark.parametrize("verb", all_verbs(), ids=lambda verb: " ".join(verb.words))
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


@pytest.mark.parametrize(
    "words",
    [
        ["-it", "A"],
        ["-ti", "A"],
        ["-i", "-t", "A"],
        ["--interactive", "A", "--tty"],
    ],
)
def test_short_flags_may_be_joined(words):
    args = parse("run", *words)
    assert (args.flag("interactive"), args.flag("tty"), args.flag("detach")) == (True, True, False)


@pytest.mark.parametrize("words", [["-n5"], ["-n", "5"], ["-n=5"], ["--tail=5"], ["--tail", "5"], ["-ftn5"]])
def test_a_value_may_be_joined_or_follow(words):
    assert parse("logs", "0a1b", *words).integer("tail") == 5


def test_a_value_keeps_its_equals_signs_and_dashes():
    args = parse("run", "-eA=B=C", "-e", "D=-E", "--env=--F=G", "--stop-timeout", "-1", "A")
    assert args.many("env") == ("A=B=C", "D=-E", "--F=G")
    assert args.integer("stop_timeout") == -1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--name", "--rm", "A"], "--name: expected one argument"),
        (["A", "-e"], "-e/--env/--set-env: expected one argument"),
        (["--rm=yes", "A"], "--rm: it takes no value"),
        (["-dx", "A"], "unrecognized arguments: -x in -dx"),
        (["--nam=x", "A"], "unrecognized arguments: --nam=x"),
        (["--pull=sometimes", "A"], "--pull: invalid choice: 'sometimes' (choose from always, missing, "),
        (["--pids-limit", "many", "A"], "--pids-limit: invalid int value: 'many'"),
        ([], "required: IMAGE"),
        (["A", "B", "C"], "unrecognized arguments: B C"),
    ],
)
def test_an_error_of_usage_names_the_option_and_what_is_wrong(words, said):
    with pytest.raises(UsageError) as caught:
        parse("run", *words)
    assert said in caught.value.message
    assert caught.value.hint == "see secrun run --help"


def test_a_bare_wait_does_not_swallow_the_uuid():
    assert parse("status", "--wait", "0a1b").text("wait") == "forever"
    assert parse("status", "--wait=10s", "0a1b").text("wait") == "10s"
    assert parse("status", "0a1b").text("wait") is None


def test_positionals_take_their_turn_and_nothing_is_an_option_after_the_dashes():
    assert parse("logs", "0a1b").text("app") is None
    assert parse("logs", "0a1b", "-f", "web").text("app") == "web"
    assert parse("rm", "a", "b", "--", "-c").many("uuid") == ("a", "b", "-c")


@pytest.mark.parametrize("words", [["--help"], ["A", "-h"], ["A", "---", "B", "--help"]])
def test_help_is_asked_for_anywhere_before_the_apps_own_words(words):
    with pytest.raises(HelpAskedError):
        parse("run", *words)
    assert parse("run", "A", "--", "--help").apps[0].trailing == ("--help",)


@pytest.mark.parametrize("verb", all_verbs(), ids=lambda verb: " ".join(verb.words))
def test_the_help_of_a_verb_shows_every_option_and_positional(verb, capsys):
    assert cli.main([*verb.words, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: secrun {' '.join(verb.words)} [-h]" in out
    for option in verb.options:
        assert all(flag in out for flag in option.flags), option
    assert all(positional.name.upper() in out for positional in verb.positionals)
    assert not verb.takes_apps or "IMAGE" in out


class Judge(argparse.ArgumentParser):
    """The standard library's parser over the same table: it decides what a command line means."""

    def __init__(self, verb):
        super().__init__(allow_abbrev=False, add_help=False)
        for option in verb.options:
            if option.kind is Kind.FLAG:
                self.add_argument(*option.flags, dest=option.dest, action="store_true")
            elif option.kind is not Kind.OPTIONAL_TEXT:
                self.add_argument(
                    *option.flags,
                    dest=option.dest,
                    action="append" if option.kind is Kind.LIST else "store",
                    default=option.default,
                    choices=option.choices or None,
                    type=int if option.kind is Kind.INTEGER else str,
                )
        for item in verb.positionals:
            self.add_argument(item.name, nargs=None if item.count == "1" else item.count)
        if verb.takes_apps:
            self.add_argument("image")

    def error(self, message):
        raise UsageError(message)


def words_of(verb):
    """Without `--`: argparse forgets it among intermixed words, and refuses it when nothing follows."""
    flags = [
        flag for option in verb.options if option.kind is not Kind.OPTIONAL_TEXT for flag in option.flags
    ]
    bare = {flag for option in verb.options if option.kind is Kind.FLAG for flag in option.flags}
    # argparse takes the value of `-t=missing` for a cluster of flags that begins with `-m`.
    valued = [flag for flag in flags if len(flag) > 2 or flag not in bare]
    joined = [f"{flag}={value}" for flag in valued for value in ("", "5", "json", "missing", "-x", "a=b")]
    short = [flag for flag in flags if len(flag) == 2]
    clusters = [one + two[1:] for one in short for two in short]
    clusters += [flag + value for flag in short for value in ("5", "json", "a=b", "x-y")]
    plain = ["A", "-", "5", "-5", "json", "missing", "none", "K=V", "--unknown", "-Z", "--rm=1"]
    return st.lists(st.sampled_from([*flags, *joined, *clusters, *plain]), max_size=7)


@pytest.mark.parametrize("verb", [VERB[name] for name in ("run", "logs", "stop", "list", "gc", "image rm")])
@given(data=st.data())
def test_a_command_line_means_what_argparse_takes_it_for(verb, data):
    words = data.draw(words_of(verb))
    judge = Judge(verb)
    several = any(item.count != "1" for item in verb.positionals)
    try:
        expected = vars(judge.parse_intermixed_args(words) if several else judge.parse_args(words))
    except UsageError:
        expected = None
    try:
        got = parse_verb("secrun", verb, words).values
    except UsageError:
        got = None
    assert got == expected


@pytest.mark.parametrize("word", ["-t=missing", "--tty=yes", "-i=5"])
def test_a_flag_takes_no_value(word):
    with pytest.raises(UsageError):
        parse_verb("secrun", VERB["run"], [word, "A"])


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
    for verb in all_verbs():
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
