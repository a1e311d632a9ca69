"""The host tier: it names what is missing before it starts, and says what it left behind at its end."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.agent_host import Host, Terminal, hosted, opened_terminal
from host.agent_kit import Stage
from host.agent_vm_kit import Guest, Vm, hosted_vm
from support.images import busybox_image
from support.leaks import Footprint, footprint, leaks_since
from support.secrun import Secrun
from support.softwaretpm import end_software_tpms

NEEDED_PROGRAMS = (
    "systemd-nspawn",
    "crun",
    "docker-registry",
    "skopeo",
    "umoci",
    "buildah",
    "podman",
    "fsck.erofs",
    "veritysetup",
    "openssl",
    "chromium",
)

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
    end_software_tpms(_mark(session.config))
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


@pytest.fixture(scope="session")
def secrun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secrun]:
    """A root of this run's own that holds one busybox image."""
    base = tmp_path_factory.mktemp("secrun")
    busybox_image(base / "layout", "busybox")
    command = Secrun(root=base / "root", run_root=base / "run")
    fetched = command("fetch", "--insecure-options=image", f"oci:{base / 'layout'}:busybox")
    yield dataclasses.replace(command, image=fetched.out.split()[-1])
    command("gc", "--grace-period=0s", "--expire-prepared=0s")
    command("attest", "stop", "--force")


@pytest.fixture(scope="session")
def guests(secrun: Secrun) -> Secrun:
    """The same root, with pods in virtual machines that are emulated."""
    secrun("stage1", "build", "kvm")
    options = (*secrun.pod_options, "--stage1=kvm", "--accel=tcg")
    return dataclasses.replace(secrun, flavour="kvm", pod_options=options)


@pytest.fixture(scope="session", params=["nspawn", "kvm"])
def pods(request: pytest.FixtureRequest) -> Secrun:
    """What a user meets is the same, whatever isolates a pod."""
    made: Secrun = request.getfixturevalue("secrun" if request.param == "nspawn" else "guests")
    return made


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with hosted(tmp_path) as made:
        yield made


@pytest.fixture
def vm() -> Iterator[Vm]:
    with hosted_vm() as made:
        yield made


@pytest.fixture
def guest(vm: Vm) -> Guest:
    return Guest(vm)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with opened_terminal() as made:
        yield made


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage")
    made.listen()
    yield made
    made.close()
