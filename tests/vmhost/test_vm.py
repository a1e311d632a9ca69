"""secrun on a Debian 12 of its own: each check of guest.py, as the machine reported it."""

import os
import shutil
from pathlib import Path

import pytest

from support import vm
from vmhost import guest

PROGRAMS = ("debootstrap", "mkfs.ext4", "qemu-system-x86_64", "busybox")


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, dict[str, object]]:
    """Boot the machine once, run every check in it."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    assert not missing, f"missing programs: {' '.join(missing)}; run ci/setup --test"
    assert os.geteuid() == 0, "building the machine needs root"
    folder = tmp_path_factory.mktemp("vm")
    payload = vm.payload(repository, Path(guest.__file__), folder / "payload.tar")
    rows = vm.boot(vm.build(), payload, folder)
    return {str(row["name"]): row for row in rows}


# Debootstrap, once, and the whole run of the machine fall into the first test.
@pytest.mark.timeout(vm.BUILD_SECONDS + vm.DEADLINE_SECONDS)
@pytest.mark.parametrize("name", guest.CHECKS)
def test_on_debian(reports: dict[str, dict[str, object]], name: str):
    row = reports[name]
    print(f"{row['seconds']} s\n{row['said']}")
    assert row["passed"]
