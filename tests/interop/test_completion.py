"""The completion scripts, judged by the shells they are for."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from secrun.cli import completion
from secrun.cli.main import main
from secrun.cli.options import GLOBAL, all_verbs
from support.terminals import at_a_terminal, expect

SECONDS = 60
# What is typed, a word that must be offered, and one that must not.
CASES = (
    ("secrun im", "image", "list"),
    ("secrun image ", "inspect", "attest"),
    ("secrun attest policy ", "sign", "status"),
    ("secrun run --st", "--stop-timeout", "--hostname"),
    ("secrun run --pull ", "newer", "--pull"),
    ("secrun --root /somewhere run --pull ", "newer", "image"),
    ("secrun --attest re", "required", "preferred"),
    ("secrun status ", "c0ffee00", "image"),
    ("secrun run ", "example.test/web", "c0ffee00"),
)


@pytest.fixture
def shell_path(tmp_path: Path) -> str:
    """Return a PATH with a secrun that knows one pod and one image."""
    program = tmp_path / "bin/secrun"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '"list --quiet") echo c0ffee00-0000-4000-8000-000000000000 ;;\n'
        '"image list --no-legend") echo "0123456789ab  example.test/web:1  linux/amd64" ;;\n'
        "esac\n"
    )
    program.chmod(0o755)
    return f"{program.parent}:/usr/bin:/bin"


def script(tmp_path: Path, shell: str) -> Path:
    """Write the script as `secrun completion SHELL` prints it."""
    path = tmp_path / f"secrun.{shell}"
    path.write_text({"bash": completion.bash, "zsh": completion.zsh, "fish": completion.fish}[shell]())
    return path


def bash_offers(tmp_path: Path, path: str, typed: str) -> str:
    # compopt works only while a person completes.
    code = (
        f"source {script(tmp_path, 'bash')}; compopt() {{ :; }}\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _secrun; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    words = [*typed.split(), *([""] if typed.endswith(" ") else [])]
    return told(["bash", "--norc", "-c", code, "bash", *words], tmp_path, path)


def fish_offers(tmp_path: Path, path: str, typed: str) -> str:
    code = f"source {script(tmp_path, 'fish')}; complete -C '{typed}'"
    return told(["fish", "--no-config", "-c", code], tmp_path, path)


def zsh_offers(tmp_path: Path, path: str, typed: str) -> str:
    """Type at a real zsh: it completes only for a person."""
    script(tmp_path, "zsh")
    (tmp_path / ".zshrc").write_text(
        "PS1='ready''> '; LISTMAX=0; autoload -U compinit; compinit -D -u\n"
        "source ~/secrun.zsh; bindkey '^X' list-choices\n"
    )
    environment = ["env", "-i", f"PATH={path}", "TERM=dumb", f"HOME={tmp_path}", f"ZDOTDIR={tmp_path}"]
    with at_a_terminal([*environment, "zsh", "-i"], size=(500, 200)) as (terminal, _):
        expect(terminal, b"ready> ")
        os.write(terminal, f"{typed}\x18".encode())
        expect(terminal, typed.encode())
        return expect(terminal, b"ready> ").decode()


def told(words: list[str], tmp_path: Path, path: str) -> str:
    done = subprocess.run(
        words,
        env={"PATH": path, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert not done.stderr
    return done.stdout


OFFERS: dict[str, Callable[[Path, str, str], str]] = {
    "bash": bash_offers,
    "fish": fish_offers,
    "zsh": zsh_offers,
}


@pytest.mark.parametrize("shell", OFFERS)
def test_a_shell_offers_what_may_come_next(tmp_path: Path, shell_path: str, shell: str) -> None:
    for typed, offered, never in CASES:
        found = OFFERS[shell](tmp_path, shell_path, typed).replace(typed, "")
        assert offered in found, typed
        assert never not in found, typed


@pytest.mark.parametrize("shell", OFFERS)
def test_every_command_and_every_option_is_in_the_script(tmp_path: Path, shell: str) -> None:
    path = script(tmp_path, shell)
    told([shell, "-n", str(path)], tmp_path, "/usr/bin:/bin")
    text = path.read_text()
    for verb in all_verbs():
        assert " ".join(verb.words) in text
        for option in (*verb.options, *GLOBAL):
            long = next(flag for flag in option.flags if flag.startswith("--"))
            assert (f"-l {long[2:]}" if shell == "fish" else long) in text


def test_a_shell_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "no completion for the shell 'tcsh'" in capsys.readouterr().err
