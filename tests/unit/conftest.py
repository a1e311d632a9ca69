"""What unit tests share: a root of their own, options that admit an image, a layout that holds one.

They read images in their own process: beside servers in threads nothing can be forked.
"""

from pathlib import Path

import pytest

from secrun.image import apart
from secrun.image.options import FetchOptions
from secrun.paths import Layout
from support.images import LayoutWriter
from support.stored import accepting, one_image


@pytest.fixture(autouse=True)
def _together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "separated", lambda: False)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path / "root", run_root=tmp_path / "run")


@pytest.fixture
def options(tmp_path: Path) -> FetchOptions:
    return accepting(tmp_path)


@pytest.fixture
def writer(tmp_path: Path) -> LayoutWriter:
    return one_image(tmp_path)
