"""The stage1 image of this host: what is in it, as the kernel sees it, and that it boots and ends."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.launch import run
from secrun.paths import Layout
from secrun.stage1.imagebuild import ensure_stage1
from secrun.stage1.imagestore import BuiltImage
from support.stage1pod import UNITS, Pod, mounted_image

# What would give somebody who got into stage1 a hold.
UNWANTED = {
    "sh", "bash", "dash", "busybox", "apt", "apt-get", "dpkg", "perl", "python3", "mount", "umount",
    "systemctl", "journalctl", "systemd-journald", "dbus-daemon", "udevadm", "systemd-udevd", "login", "su",
    "sudo", "ip", "nc", "curl", "wget", "awk", "sed", "vi", "cat", "ls", "cp", "mv", "env", "setpriv",
}  # fmt: skip


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    top = tmp_path_factory.mktemp("stage1")
    return Layout(root=top / "root", run_root=top / "run")


@pytest.fixture(scope="module")
def image(layout: Layout) -> BuiltImage:
    return ensure_stage1(layout)


@pytest.fixture
def mounted(image: BuiltImage) -> Iterator[Path]:
    with mounted_image(image) as folder:
        yield folder


def test_there_is_nothing_to_work_with_in_it(layout, image):
    names = {Path(item.path).name for item in image.manifest.files}
    assert names & UNWANTED == set()
    programs = {
        item.path
        for item in image.manifest.files
        if item.kind == "file" and item.mode & 0o111 and ".so" not in item.path
    }
    assert programs == {
        "/usr/bin/crun",
        "/usr/bin/secrun-agent",
        "/usr/lib/systemd/systemd",
        "/usr/lib/systemd/systemd-shutdown",
    }


def test_nothing_in_it_is_privileged_or_writable(layout, image):
    for item in image.manifest.files:
        assert item.kind in ("dir", "file", "link")
        assert item.kind == "link" or item.mode in (0o755, 0o644), item.path


def test_every_file_of_the_host_has_a_package(layout, image):
    found = [item for item in image.manifest.files if item.source]
    assert len(found) > 20
    assert [item.path for item in found if not (item.package and item.version)] == []


def test_the_manifest_is_what_the_kernel_shows(layout, image, mounted):
    kinds = {0o040000: "dir", 0o100000: "file", 0o120000: "link"}
    seen = {}
    for folder, folders, files in os.walk(mounted):
        for name in [".", *folders, *files] if folder == str(mounted) else [*folders, *files]:
            path = Path(folder) / name
            facts = path.lstat()
            kind = kinds[facts.st_mode & 0o170000]
            digest = Digest.of(path.read_bytes()).hex if kind == "file" else ""
            target = os.readlink(path) if kind == "link" else ""
            assert (facts.st_uid, facts.st_gid, facts.st_mtime_ns) == (0, 0, 0)
            inside = "/" + os.path.normpath(path.relative_to(mounted))
            seen[inside.replace("/.", "/", 1) if inside == "/." else inside] = (
                kind,
                facts.st_mode & 0o7777,
                digest,
                target,
            )
    listed = {item.path: (item.kind, item.mode, item.sha256, item.target) for item in image.manifest.files}
    assert seen == listed


def test_fsck_accepts_it(image):
    run(["fsck.erofs", image.path])


def test_finding_it_again_reads_no_input(layout, image):
    heard: list[tuple[str, object]] | None = []

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if heard is not None and event in ("open", "subprocess.Popen", "os.posix_spawn"):
            heard.append((event, arguments[0]))

    sys.addaudithook(hear)
    assert ensure_stage1(layout) == image
    # A hook stays for good; without a list it hears nothing.
    told, heard = heard, None
    assert {event for event, _ in told} == {"open"}
    inputs = {item.source for item in image.manifest.files if item.source}
    assert [name for _, name in told if str(name) in inputs] == []


def test_it_boots_runs_a_unit_and_ends(mounted):
    pod = Pod(mounted)
    pod.write(UNITS)
    done = pod.boot("--no-new-privileges=yes", "--drop-capability=CAP_SYS_BOOT,CAP_MKNOD,CAP_NET_RAW")
    assert done.returncode == 0, done.stderr
    assert (pod.rw / "out").read_text().startswith("secrun-agent ")


def test_the_status_of_a_failed_unit_comes_out(mounted):
    pod = Pod(mounted)
    failing = UNITS["app.service"].replace("--version", "nonsense")
    pod.write({**UNITS, "app.service": failing})
    assert pod.boot().returncode not in (0, 125)


def test_the_pods_own_setting_limits_how_long_its_end_takes(mounted):
    """Without it systemd would wait 90 s for a process that ignores SIGTERM."""
    pod = Pod(mounted)
    shutil.copy("/bin/busybox", pod.config / "busybox")
    stubborn = (
        "[Unit]\nDefaultDependencies=no\n[Service]\n"
        "ExecStart=/pod/busybox sh -c "
        "\"trap '' TERM; echo up >/rw/up; while :; do /pod/busybox sleep 1; done\"\n"
    )
    ending = UNITS["app.service"].replace(
        "ExecStart=", "ExecStart=/pod/busybox sh -c 'until [ -e /rw/up ]; do :; done'\nExecStart="
    )
    target = "[Unit]\nDefaultDependencies=no\nWants=app.service stubborn.service\n"
    units = {"pod.target": target, "app.service": ending, "stubborn.service": stubborn}
    pod.write(units, "DefaultTimeoutStopSec=2s\n")
    begin = time.monotonic()
    pod.boot()
    assert 2 <= time.monotonic() - begin < 80


def test_the_manifest_is_canonical_json(image):
    data = image.manifest_path.read_bytes()
    assert json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode() == data
