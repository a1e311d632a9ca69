"""Every command and every flag that podman itself names is in the table for its users."""

import re
import subprocess

import pytest

from secrun.cli import foreign_flags, foreign_podman
from secrun.cli.options import all_verbs

# Of its commands, those that only group others.
GROUPS = {
    *(
        "artifact",
        "container",
        "farm",
        "generate",
        "image",
        "kube",
        "machine",
        "manifest",
        "network",
        "play",
    ),
    *("pod", "secret", "system", "volume"),
}
# Of flags of other commands, those that are not there yet.
LATER = {
    "exec": {"--preserve-fds"},
    "rmi": {"--all", "-a"},
}
COMMANDS = {row.theirs for row in foreign_podman.COMMANDS}
# What is said of all commands of a group, or of the plain form, is said once.
SHORT = {
    "image": {
        "build",
        "diff",
        "exists",
        "history",
        "import",
        "mount",
        "pull",
        "save",
        "load",
        "search",
        "tag",
    }
    | {"tree", "unmount", "untag", "prune"},
    "volume": {"exists", "mount", "unmount", "reload", "prune"},
    "network": {"exists", "prune"},
    "pod": {"exists", "kill", "pause", "unpause", "prune", "restart", "start"},
    "system": {"service"},
    "secret": {"inspect", "exists"},
    "generate": set[str](),
}


def helped(*words: str) -> str:
    return subprocess.run(["podman", *words, "--help"], capture_output=True, text=True, check=True).stdout


def listed(text: str) -> list[str]:
    block = re.search(r"Available Commands:\n(.*?)\n\n", text, re.DOTALL)
    assert block is not None
    return [line.split()[0] for line in block[1].splitlines()]


def test_every_command_has_a_row():
    assert sorted(set(listed(helped())) - GROUPS - COMMANDS - {"help"}) == []


@pytest.mark.parametrize("group", SHORT)
def test_every_command_of_a_group_has_a_row(group: str):
    missing = {word for word in listed(helped(group)) if f"{group} {word}" not in COMMANDS}
    assert sorted(missing - SHORT[group]) == []


def flags_of(command: str) -> set[str]:
    flags = set(re.findall(r"^ +(?:-\w, )?(--[a-z0-9-]+)", helped(command), re.MULTILINE))
    return flags | set(re.findall(r"^ +(-\w), --", helped(command), re.MULTILINE))


@pytest.mark.parametrize(("ours", "theirs"), foreign_flags.COMMANDS.items())
def test_every_flag_of_another_command_is_there_or_has_a_row(ours: str, theirs: str):
    (verb,) = (verb for verb in all_verbs() if " ".join(verb.words) == ours)
    known = {flag for option in verb.options for flag in option.flags} | {"--help"}
    rows = [row.theirs.partition(" ") for row in foreign_flags.FLAGS]
    known |= {flag for command, _, flags in rows if command == theirs for flag in flags.split(", ")}
    assert flags_of(theirs) - known == LATER.get(theirs, set())


def test_every_flag_of_run_has_a_row():
    flags = flags_of("run")
    known = {word for row in foreign_podman.RUN for word in row.theirs.split(", ")}
    assert sorted(flags - known) == []
