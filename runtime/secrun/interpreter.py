"""The command line of a Python process of secrun's own that only needs what it names."""

import sys
from collections.abc import Sequence
from pathlib import Path

from secrun.selfdigest import PACKAGES, package_folder


def command(module: str, *, more: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return the command that runs `main` of `module`, which exits with what it returns.

    Without site a third of its start is saved, and no other package can get in between; `more` are
    folders of packages that it needs beside the standard library and secrun itself.
    """
    folders = (package_folder(package) for package in PACKAGES)
    roots = dict.fromkeys(str(folder.parent) for folder in folders if folder is not None)
    paths = [*roots, *map(str, more)]
    code = f"import sys; sys.path[:0] = {paths!r}; from {module} import main; sys.exit(main())"
    return (sys.executable, "-S", "-P", "-c", code)
