"""Another machine, as far as one host can show it: an ordinary user, a root of its own, no TPM."""

import os
import stat
import subprocess
from pathlib import Path

from support.secrun import Result, Secrun

NOBODY = 65534


def open_up(path: Path) -> None:
    """Let an ordinary user read what a test of root's has written."""
    for folder in [path, *path.parents]:
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith(("pytest-", "popen-", "test_")):
            folder.chmod(0o755)
    for item in path.rglob("*"):
        if not item.is_socket() and not item.is_symlink():
            item.chmod(item.stat().st_mode | stat.S_IROTH | (stat.S_IXOTH if item.is_dir() else 0))


class OrdinaryUser:
    """Runs secrun as that user, with its root in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
        self.folder = folder
        self._secrun = Secrun(root=folder / "root", run_root=folder / "run")

    def __call__(self, *words: str | os.PathLike[str], code: int = 0) -> Result:
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        argv = [*user, *self._secrun.argv(*words)]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, cwd="/", env={"HOME": "/nonexistent"}
        )
        result = Result(code=done.returncode, out=done.stdout, err=done.stderr)
        assert result.code == code, (words, result)
        return result
