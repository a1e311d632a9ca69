"""Other people's programs, run to their end."""

import os
import subprocess


def tool(*words: str | os.PathLike[str]) -> str:
    """Run another tool; return its output, fail with its words."""
    done = subprocess.run([os.fspath(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout
