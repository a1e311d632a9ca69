"""What every tier shares: no silent skip, the sizes of random tests, a plain environment."""

import os
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent
FUZZ_SCALES = {"unit": 1, "short": 1, "long": 10}

for _name, _examples in {"unit": 30, "short": 200, "long": 2000}.items():
    # No deadline: two busy cores say nothing about the code.
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("secrun")
    group.addoption(
        "--fuzz", choices=sorted(FUZZ_SCALES), default="unit", help="how long the random tests run"
    )
    group.addoption(
        "--artifacts",
        type=Path,
        default=REPOSITORY / ".artifacts",
        help="where a run leaves what a person looks at: pictures of pages (.artifacts, which git ignores)",
    )
    group.addoption(
        "--no-skips", action="store_true", help="a test that is skipped has failed: name what is missing"
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile(config.getoption("--fuzz"))
    # Nobody's registry credentials, proxies or secrun settings reach a test.
    foreign = ("secrun_", "registry_", "containers_", "docker_")
    for name in list(os.environ):
        if name.lower().startswith(foreign) or name.lower().endswith("_proxy"):
            del os.environ[name]


def _unskipped(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome != "skipped" or hasattr(report, "wasxfail") or not config.getoption("--no-skips"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} was skipped, and a skip proves nothing: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _unskipped(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _unskipped(collector.config, report)
    return report


@pytest.fixture(scope="session")
def fuzz_scale(pytestconfig: pytest.Config) -> int:
    """Factor for loops that count their own rounds: 1, or 10 in the long run."""
    return FUZZ_SCALES[pytestconfig.getoption("--fuzz")]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top folder of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def artifacts(pytestconfig: pytest.Config) -> Path:
    """The folder for what a person looks at after a run."""
    found: Path = pytestconfig.getoption("--artifacts").absolute()
    found.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail the test that leaves a thread: sandboxes are forked, so the tests after it would fail instead."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 10
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, f"threads were left behind: {sorted(one.name for one in left)}"
        for one in left:
            one.join(0.1)
