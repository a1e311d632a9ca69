"""Unit tests read images in their own process: beside servers in threads nothing can be forked."""

import pytest

from secrun.image import apart


@pytest.fixture(autouse=True)
def _together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "separated", lambda: False)
