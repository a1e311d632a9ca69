"""Start-up is a feature: what a command may load is a list, and growing it is a decision."""

import subprocess
import sys

import pytest

# What `secrun --version` may load, and what any command may before its own work begins.
VERSION = {"secrun", "secrun.__main__"}
SHARED = {
    "secrun.checkpoint",
    "secrun.cli",
    "secrun.cli.guard",
    "secrun.cli.main",
    "secrun.cli.options",
    "secrun.cli.options_serve",
    "secrun.cli.table",
    "secrun.errors",
    "secrun.paths",
    "secrun.record",
}
STANDARD = set(
    """
    _collections _functools _operator _sre _typing collections collections.abc contextlib copyreg enum errno
    fnmatch functools importlib importlib._bootstrap importlib._bootstrap_external importlib.machinery
    ipaddress itertools keyword ntpath operator pathlib re re._casefix re._compiler re._constants re._parser
    reprlib types typing typing.io typing.re urllib urllib.parse warnings _weakrefset weakref
    """.split()  # noqa: SIM905 - forty quoted names would hide the list
)
# What no command may load before it does work that needs it.
HEAVY = {
    "ssl",
    "urllib3",
    "http.client",
    "asyncio",
    "zstandard",
    "isal",
    "subprocess",
    "tarfile",
    "hypothesis",
}

PROBE = """
import sys
before = set(sys.modules)
sys.argv = ["secrun", *sys.argv[1:]]
from secrun.__main__ import main
try:
    main()
finally:
    print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""


def loaded_by(*words: str) -> set[str]:
    """Return the modules that one secrun command loads, in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=False, timeout=60
    )
    return set(done.stderr.splitlines()[-1].split())


def test_version_loads_only_what_is_allowed():
    assert loaded_by("--version") - VERSION == set()


def test_the_overview_loads_no_parser_and_no_dataclasses():
    assert loaded_by("--help") - VERSION - SHARED - STANDARD == set()


@pytest.mark.parametrize("words", [("--help",), ("run", "--help"), ("list", "--help"), ("no-such-command",)])
def test_words_about_commands_load_nothing_heavy(words):
    assert loaded_by(*words) & HEAVY == set()
