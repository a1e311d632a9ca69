"""The rules of this repository hold, and their checkers see a breach."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


def run_rules(repository: Path, source: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, repository / "ci/rules.py", source], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("x = 1\n" * 501, "501 lines, the limit is 500"),
        ("def long():\n" + "    x = 1\n" * 80, "long has 81 lines, the limit is 80"),
        ("class A:\n    async def long(self):\n" + "        x = 1\n" * 80, "long has 81 lines"),
    ],
)
def test_rules_name_what_is_too_long(repository, tmp_path, source, word):
    file = tmp_path / "module.py"
    file.write_text(source)
    done = run_rules(repository, file)
    assert done.returncode == 1
    assert word in done.stdout


def test_rules_accept_the_limits_themselves(repository, tmp_path):
    file = tmp_path / "module.py"
    file.write_text("def long():\n" + "    x = 1\n" * 79 + "x = 1\n" * 420)
    assert run_rules(repository, file).returncode == 0


def test_requirements_pin_every_declared_package_by_hash_and_name_no_index(repository):
    pins: set[str] = set()
    for name in ("requirements.txt", "ci/judges.txt"):
        text = (repository / name).read_text()
        blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
        pins |= {re.split(r"[=\s]", block)[0] for block in blocks}
        assert all("==" in block and "--hash=sha256:" in block for block in blocks)
        assert not re.search(r"://|^-", text, re.MULTILINE)
    tables = tomllib.loads((repository / "pyproject.toml").read_text())
    declared = [
        *tables["project"]["dependencies"],
        *tables["project"]["optional-dependencies"]["fast"],
        *tables["project"]["optional-dependencies"]["signatures"],
        *tables["dependency-groups"]["dev"],
        *tables["dependency-groups"]["judges"],
        *tables["build-system"]["requires"],
    ]
    assert {re.split(r"[^a-z0-9-]", name)[0] for name in declared} <= pins


def test_only_the_launcher_imports_subprocess(repository):
    roots = ("runtime/secrun", "stage1-kvm", "policies", "attest")
    importers = set()
    for path in (path for root in roots for path in (repository / root).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if "subprocess" in names:
                importers.add(str(path.relative_to(repository)))
    assert importers == {"runtime/secrun/launch.py"}


def run_pytest(repository: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(repository / "tests/conftest.py", folder)
    (folder / "test_it.py").write_text("import pytest\ndef test_it():\n    pytest.skip('no tea here')\n")
    (folder / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    plain = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        *words,
        folder,
    ]
    return subprocess.run(plain, capture_output=True, text=True, check=False, cwd=folder)


def test_a_skip_is_a_failure_that_names_its_reason(repository, tmp_path):
    done = run_pytest(repository, tmp_path, "--no-skips", "--continue-on-collection-errors")
    assert done.returncode == 1
    assert "no tea here" in done.stdout
    assert "no_such_module" in done.stdout
    assert "skipped in" not in done.stdout


def test_without_the_option_a_skip_stays_a_skip(repository, tmp_path):
    assert "2 skipped" in run_pytest(repository, tmp_path).stdout


def pages(repository: Path) -> list[Path]:
    """Every Markdown page that git knows or would add."""
    listed = ["git", "-C", repository, "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    done = subprocess.run(listed, capture_output=True, text=True, check=True)
    return [repository / name for name in done.stdout.splitlines()]


def test_every_link_of_the_docs_leads_to_a_file(repository):
    dead = [
        f"{page.relative_to(repository)}: {target}"
        for page in pages(repository)
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert dead == []


def test_the_index_of_the_docs_names_every_page(repository):
    linked = set(re.findall(r"\]\(([^)#:\s]+\.md)\)", (repository / "docs/README.md").read_text()))
    docs = repository / "docs"
    assert {str(page.relative_to(docs)) for page in pages(repository) if docs in page.parents} == {
        *linked,
        "README.md",
    }


def test_every_target_of_the_makefile_says_what_it_does(repository):
    text = (repository / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):(.*)$", text, re.MULTILINE)
    assert len(targets) > 5
    assert [name for name, rest in targets if "## " not in rest] == []


def test_ci_runs_the_test_command_of_the_readme(repository):
    command = (repository / ".ci/run").read_text().splitlines()[-1].removeprefix("exec ")
    assert f"    {command} " in (repository / "README.md").read_text()
