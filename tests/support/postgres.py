"""A PostgreSQL cluster of the tests' own: a temporary folder, an unprivileged user, a unix socket."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534
# The tests ask about races and refusals, not about power cuts.
SETTINGS = ("fsync=off", "listen_addresses=", "max_connections=60", "shared_buffers=16MB")


def binaries() -> Path:
    """Find the folder of the newest server; Debian keeps it out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "PostgreSQL is missing; run ci/setup --test"
    return found[-1].parent


@contextmanager
def cluster() -> Iterator[str]:
    """Start a server; give the address of a database in it."""
    folder = Path(tempfile.mkdtemp(prefix="secrun-pg-"))
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    if who:
        os.chown(folder, NOBODY, NOBODY)
    tools = binaries()

    def run(*words: str | Path) -> None:
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder, **who)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"

    data, log = folder / "data", folder / "log"
    run(tools / "initdb", "-D", data, "-U", "verifier", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = " ".join([f"-k {folder}", *(f"-c {setting}" for setting in SETTINGS)])
    run(tools / "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "-t", "60", "start")
    try:
        yield f"postgresql://verifier@/postgres?host={folder}"
    finally:
        run(tools / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)
