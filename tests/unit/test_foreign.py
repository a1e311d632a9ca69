"""The tables for users of podman and rkt agree with the option table."""

import pytest

from secrun.cli import foreign_flags, foreign_podman, foreign_rkt
from secrun.cli.foreign import Row, Verdict
from secrun.cli.main import main
from secrun.cli.options import GLOBAL, all_verbs

VERBS = {" ".join(verb.words): verb for verb in all_verbs()}
FLAGS = {flag for verb in VERBS.values() for option in (*verb.options, *GLOBAL) for flag in option.flags}
OTHER = foreign_flags.FLAGS
COMMANDS = (*foreign_podman.COMMANDS, *foreign_rkt.COMMANDS)
RUN = (*foreign_podman.RUN, *foreign_rkt.RUN)
# Words of `ours` that are neither a command nor a flag: the separator, and what stands for itself.
OTHERS = {"---", "--help", "IMAGE"}


def exists(ours: str) -> bool:
    """Tell whether every word of `ours` is a command or a flag of secrun."""
    words = [word for word in ours.split(" ") if word not in OTHERS]
    flags = [word for word in words if word.startswith("-")]
    command = " ".join(word for word in words if not word.startswith("-"))
    known = not command or any(name == command or name.startswith(f"{command} ") for name in VERBS)
    return known and FLAGS.issuperset(flags)


def fits(row: Row) -> bool:
    """Tell whether what a row names is there, and whether it says why where it has to."""
    named = all(map(exists, row.ours.split(", ")))
    nothing = row.verdict in (Verdict.REFUSED, Verdict.LATER, Verdict.BETTER)
    reasoned = row.verdict not in (Verdict.REFUSED, Verdict.RENAMED) or bool(row.why or row.ours)
    return named and (bool(row.ours) or nothing) and reasoned


def test_what_is_named_in_place_of_theirs_exists():
    assert [row for row in (*COMMANDS, *RUN, *OTHER) if not fits(row)] == []


def test_what_is_refused_or_not_there_yet_is_not_there():
    run = {flag for option in VERBS["run"].options for flag in option.flags}
    missing = {word for row in (*COMMANDS, *RUN) if not row.ours for word in row.theirs.split(", ")}
    assert missing
    assert missing & {*VERBS, *run} == set()


def test_flags_of_other_commands_that_are_refused_are_not_there():
    ours = {theirs: VERBS[words] for words, theirs in foreign_flags.COMMANDS.items()}
    for row in OTHER:
        command, _, flags = row.theirs.partition(" ")
        known = {flag for option in ours[command].options for flag in option.flags}
        assert known & set(flags.split(", ")) == set(), row


def test_nothing_is_told_twice():
    for table in (foreign_podman.COMMANDS, foreign_podman.RUN, foreign_rkt.COMMANDS, foreign_rkt.RUN, OTHER):
        names = [row.theirs for row in table]
        assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ps"], "there is no command 'ps': here it is list"),
        (["build"], "images are built elsewhere"),
        (
            ["run", "--rootfs", "/x"],
            "there is no --rootfs: what runs is an image that was signed and measured",
        ),
        (["run", "-P", "x"], "there is no -P: each port is published by name"),
        (["run", "--cpu-quota=5", "x"], "there is no --cpu-quota: here it is --cpus"),
        (["run", "--nonsense", "x"], "unrecognized arguments: --nonsense"),
        (["list", "--size"], "there is no --size: what a pod wrote is counted by stats"),
        (["logs", "-l"], "there is no -l: here it is list --latest --quiet. secrun logs $(secrun list"),
        (["image", "list", "--digests"], "the ID is the digest"),
        (["list", "--format", "{{.ID}}"], "there are no templates"),
        (["run", "--creds=a:b", "x"], "everybody's to read: --authfile"),
        (["run", "--network-alias=a", "x"], "--add-host names others"),
        (["list", "--restart"], "unrecognized arguments: --restart"),
    ],
)
def test_who_types_theirs_is_told_ours(capsys: pytest.CaptureFixture[str], words, said):
    assert main(words) == 2
    assert said in capsys.readouterr().err
