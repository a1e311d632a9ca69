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
    text = (repository / "requirements.txt").read_text()
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    pins = {re.split(r"[=\s]", block)[0] for block in blocks}
    assert all("==" in block and "--hash=sha256:" in block for block in blocks)
    assert not re.search(r"://|^-", text, re.MULTILINE)
    tables = tomllib.loads((repository / "pyproject.toml").read_text())
    declared = [
        *tables["project"]["dependencies"],
        *tables["project"]["optional-dependencies"]["fast"],
        *tables["dependency-groups"]["dev"],
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
