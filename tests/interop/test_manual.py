"""The manual pages, judged by the programs that show them; and that a wheel brings them along."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from secrun.cli.options import all_verbs

# Pages show a date only if whoever builds them names one.
_UNDATED = "missing date"


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all pages."""
    top = Path(__file__).resolve().parent.parent.parent
    folder = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, top / "ci/man.py", folder], check=True, timeout=120)
    return folder


def shown(page: Path) -> str:
    """Return what man(1) prints of a page, without overstriking."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "MANWIDTH": "160",
        "LC_ALL": "C.UTF-8",
        "MAN_KEEP_FORMATTING": "",
    }
    done = subprocess.run(
        ["man", "--warnings=w", "-l", page],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return re.sub(r".\x08", "", done.stdout)


def test_every_page_is_without_fault_to_groff_and_mandoc(manual):
    pages = sorted(manual.glob("man?/*"))
    lint = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *pages],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert [line for line in lint.stdout.splitlines() if _UNDATED not in line] == []
    groff = subprocess.run(
        ["groff", "-man", "-ww", "-z", "-Kutf8", *pages],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert groff.stderr == ""


def test_every_command_and_every_page_of_the_docs_has_a_manual_page(manual, repository):
    names = {page.name for page in manual.glob("man?/*")}
    assert {f"secrun-{'-'.join(verb.words)}.1" for verb in all_verbs()} < names
    documents = {path.stem for path in (repository / "docs").glob("*.md")}
    stems = {re.sub(r"^secrun[-.]|\.[57]$", "", name) for name in names if not name.endswith(".1")}
    assert documents - stems == {"README", "commands", "benchmarks", "configuration"}
    assert "secrun.toml.5" in names


def test_a_page_of_a_command_shows_its_options_as_they_are_typed(manual):
    said = shown(manual / "man1/secrun-run.1")
    assert "secrun run [OPTION ...] IMAGE [APP OPTION ...] [-- ARGUMENT ...]" in said
    assert "-m BYTES[k|m|g], --memory BYTES[k|m|g]" in said
    assert "OPTIONS OF EACH APP" in said
    assert "secrun run web:1 --name web --- cache:2 --name cache -- --size 64m" in said


def test_a_page_of_the_docs_keeps_code_tables_and_names_of_other_pages(manual):
    said = shown(manual / "man5/secrun.toml.5")
    assert '    mode = "preferred"\n' in said
    assert re.search(r"SECRUN_CONF\n +names one file that is read instead", said)
    assert "secrun-policy-files(5)" in said
    assert "](" not in said
    assert "`" not in said


def test_a_wheel_brings_the_manual(repository, tmp_path):
    words = ("wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    subprocess.run(
        [sys.executable, "-m", "pip", *words, repository],
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        check=True,
        timeout=240,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {re.sub(r"^secrun-[^/]*\.data/data/", "", name) for name in archive.namelist()}
    assert {
        "share/man/man1/secrun.1",
        "share/man/man1/secrun-run.1",
        "share/man/man7/secrun-volumes.7",
    } < names
