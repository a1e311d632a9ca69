"""The host tier: it names what is missing before it starts, and says what it left behind at its end."""

import os
import shutil
from pathlib import Path

import pytest

from support.leaks import Footprint, footprint, leaks_since

NEEDED_PROGRAMS = ("systemd-nspawn", "crun", "docker-registry", "skopeo", "umoci", "buildah", "fsck.erofs")

BEFORE = pytest.StashKey[Footprint]()


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _mark(config: pytest.Config) -> str:
    # Everything a test makes lies below the temporary folder of this run, and of no other run beside it.
    return str(config._tmp_path_factory.getbasetemp())


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    if _is_worker(config) or config.option.collectonly:
        return
    missing = [name for name in NEEDED_PROGRAMS if not shutil.which(name)]
    if missing:
        raise pytest.UsageError(f"missing programs: {' '.join(missing)}; run ci/setup --test")
    if os.geteuid() != 0:
        raise pytest.UsageError("the host tier starts pods and needs root")
    config.stash[BEFORE] = footprint(_mark(config))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    before = session.config.stash.get(BEFORE, None)
    if before is None:
        return
    left = leaks_since(before, _mark(session.config))
    if not left:
        return
    # The run as a whole fails: which test it was is for the reader of these lines to find out.
    report = pytest.TestReport(
        nodeid="tests/host",
        location=(str(Path(__file__)), None, "nothing stays behind"),
        keywords={},
        outcome="failed",
        longrepr="the tier left on the host:\n" + "\n".join(left),
        when="teardown",
    )
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.stats.setdefault("error", []).append(report)
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
