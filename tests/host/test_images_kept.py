"""The store's own commands beside pods: who waits for whom, and what a pod keeps."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from secrun import locks
from secrun.paths import Layout
from support import roots
from support.images import LayoutWriter, busybox_layer
from support.secrun import Secrun, eventually

ANY = "--insecure-options=image"


@pytest.fixture(scope="module")
def own(secrun: Secrun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secrun]:
    """A root of this module's own: what is collected here is nobody else's."""
    with roots.made(secrun, tmp_path_factory.mktemp("kept"), "--attest=off") as root:
        yield root


def made(secrun: Secrun, folder: Path, mark: str) -> str:
    """Store an image of this test's own; return its ID."""
    LayoutWriter(folder / mark).add_image(
        mark, [busybox_layer()], config={"Env": ["PATH=/bin"], "Labels": {"mark": mark}}
    )
    return secrun("fetch", ANY, f"oci:{folder / mark}:{mark}").out.split()[-1]


def listed(secrun: Secrun) -> set[str]:
    return set(secrun("image", "list", "-q").out.split())


@contextmanager
def waiting_for(secrun: Secrun, *words: str, shared: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command while somebody uses images, or collects them; it waits when the block begins."""
    path = Layout(root=secrun.root, run_root=secrun.run_root).locks / "images-use.lock"
    with locks.held(path, shared=shared):
        process = subprocess.Popen(secrun.argv(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        def waits() -> bool:
            assert process.poll() is None
            rows = Path("/proc/locks").read_text().splitlines()
            return any("->" in row and f" {process.pid} " in row for row in rows)

        eventually(waits, "waiting for the lock")
        yield process
    process.communicate(timeout=60)


def test_a_collection_waits_for_a_pod_that_is_being_prepared(own, tmp_path):
    image = made(own, tmp_path, "waits")
    with waiting_for(own, "image", "prune", "--all", shared=True) as process:
        assert image in listed(own)
        uuid = own("prepare", *own.pod_options, image, "--", "/bin/true").out.strip()
    assert process.returncode == 0
    # It asked which images pods have only when its turn came.
    assert image in listed(own)
    own("run-prepared", uuid)
    own("rm", uuid)


def test_a_pod_is_not_prepared_from_an_image_that_is_just_being_removed(own, tmp_path):
    image = made(own, tmp_path, "removed")
    words = ("prepare", *own.pod_options, image, "--", "/bin/true")
    with waiting_for(own, *words, shared=False) as process:
        pass
    assert process.returncode == 0
    own("gc", "--expire-prepared=0s")
    own("image", "rm", image)


def test_the_image_of_a_pod_that_has_ended_stays_and_goes_after_the_pod(own, tmp_path):
    image = made(own, tmp_path, "ended")
    uuid, _ = own.kept(image, "--", "/bin/touch", "/kept")
    own("image", "gc", "--grace-period=0s")
    assert image in listed(own)
    used = json.loads(own("image", "list", "--filter", "used=true", "--format=json").out)["images"]
    assert image in {row["id"] for row in used}
    own("export", uuid, "-o", tmp_path / "ended.tar")
    own("rm", uuid)
    planned = own("image", "gc", "--grace-period=0s", "--dry-run").out
    assert image in planned
    assert image in listed(own)
    own("image", "rm", image)
