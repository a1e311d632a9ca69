"""Start-up is a feature: what a command may load is a list, and growing it is a decision."""

import subprocess
import sys

import pytest

# What `secrun --version` may load: the option table and what dataclasses, enums and paths need.
OWN = {
    "secrun",
    "secrun.__main__",
    "secrun.cli",
    "secrun.cli.main",
    "secrun.cli.options",
    "secrun.cli.table",
}
SHARED = {"secrun.checkpoint", "secrun.errors", "secrun.paths"}
STANDARD = set(
    """
    _ast _collections _functools _opcode _operator _sre _typing _weakrefset ast collections collections.abc
    contextlib copy copyreg dataclasses dis enum errno fnmatch functools importlib importlib._bootstrap
    importlib._bootstrap_external importlib.machinery inspect ipaddress itertools keyword linecache ntpath
    opcode operator pathlib re re._casefix re._compiler re._constants re._parser reprlib token tokenize
    types typing typing.io typing.re urllib urllib.parse warnings weakref
    """.split()  # noqa: SIM905 - sixty quoted names would hide the list
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
    assert loaded_by("--version") - OWN - SHARED - STANDARD == set()


@pytest.mark.parametrize("words", [("--help",), ("run", "--help"), ("list", "--help"), ("no-such-command",)])
def test_words_about_commands_load_nothing_heavy(words):
    assert loaded_by(*words) & HEAVY == set()
