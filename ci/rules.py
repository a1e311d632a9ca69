"""Code rules that no linter of ours knows: how long a module and a function may be.

`python ci/rules.py [FILE...]` prints each breach and exits 1 if there is one; without files it reads every
Python file of the source roots, of ci/ and of tests/.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
ROOTS = ("runtime", "stage1-kvm", "policies", "attest", "ci", "tests")

# A longer module has two subjects in one room; a longer function cannot be read at one glance.
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 80


def python_files() -> list[Path]:
    """List the Python files that the rules hold for, scripts without a suffix included."""
    found = [path for root in ROOTS for path in (TOP / root).rglob("*.py")]
    scripts = [path for path in (TOP / "ci").iterdir() if not path.suffix and path.is_file()]
    return sorted(found + [path for path in scripts if path.read_bytes().startswith(b"#!/usr/bin/python3")])


def breaches(path: Path) -> Iterator[str]:
    """Yield one line of text per broken rule in `path`."""
    source = path.read_text()
    count = source.count("\n")
    if count > MAX_MODULE_LINES:
        yield f"{path}: {count} lines, the limit is {MAX_MODULE_LINES}"
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                where = f"{path}:{node.lineno}: {node.name}"
                yield f"{where} has {length} lines, the limit is {MAX_FUNCTION_LINES}"


def main(arguments: list[str]) -> int:
    """Check the given files, or all."""
    files = [Path(name) for name in arguments] or python_files()
    found = [line for path in files for line in breaches(path)]
    print("\n".join(found) if found else f"code rules: {len(files)} files follow them")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
