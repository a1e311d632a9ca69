"""What the tests against other programs share: software TPMs, and a host that has one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.attested import AttestedHost
from support.swtpm import Swtpm, manufacture, running


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[Swtpm]:
    """A software TPM with all banks, running."""
    with running(manufacture(tmp_path / "swtpm")) as tpm:
        yield tpm


@pytest.fixture
def attested(tmp_path: Path, swtpm: Swtpm) -> AttestedHost:
    """A host that measures into it."""
    return AttestedHost(tmp_path, swtpm)
