"""Both walls at once: an app under crun inside a pod under nspawn, each with its compiled policy."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.paths import Layout
from secrun.stage1.imagebuild import ensure_stage1
from secrun_policies.capabilities import NUMBERS
from secrun_policies.confine import AppFacts, PodConfinement, PodFacts, compile_pod
from secrun_policies.host import read_host
from secrun_policies.libseccomp import compile_bpf
from secrun_policies.oci import to_oci
from secrun_policies.outer import NetworkMode
from secrun_policies.profiles import default_profile
from support.stage1pod import UNITS, Pod, mounted_image

SHOW = "cat /proc/self/status"
CRUN = "/usr/bin/crun --cgroup-manager=disabled --root=/run/crun run --no-new-keyring -b /pod/bundle app"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    top = tmp_path_factory.mktemp("policy-pod")
    return Layout(root=top / "root", run_root=top / "run")


@pytest.fixture
def pod(layout: Layout) -> Iterator[Pod]:
    with mounted_image(ensure_stage1(layout)) as folder:
        result = Pod(folder)
        shutil.copy("/bin/busybox", result.config / "busybox")
        yield result


def compiled(**fields: object) -> PodConfinement:
    app = AppFacts(**{"name": "app", "seccomp": default_profile(), **fields})
    return compile_pod(PodFacts(network=NetworkMode.NONE, apps=(app,)), read_host())


def boot(pod: Pod, policy: PodConfinement, command: str) -> tuple[int, str]:
    unit = UNITS["app.service"].replace("/usr/bin/secrun-agent --version", command)
    pod.write({**UNITS, "app.service": unit})
    assert policy.outer_filter is not None
    done = pod.boot(
        *policy.nspawn_arguments,
        bpf=compile_bpf(policy.outer_filter),
        environment=dict(policy.nspawn_environment),
    )
    out = pod.rw / "out"
    assert out.exists(), done.stderr
    return done.returncode, out.read_text()


def write_bundle(pod: Pod, policy: PodConfinement, script: str) -> None:
    process, linux = to_oci(policy.apps[0])
    rootfs = pod.config / "bundle" / "rootfs"
    for name in ("bin", "proc", "sys", "dev"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin" / "busybox")
    config = {
        "ociVersion": "1.0.2",
        "process": {
            **process,
            "args": ["/bin/busybox", "sh", "-c", script],
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {**linux, "namespaces": [{"type": "mount"}, {"type": "pid"}]},
    }
    (pod.config / "bundle" / "config.json").write_text(json.dumps(config))


def status(text: str) -> dict[str, str]:
    return {line.split(":")[0]: line.partition(":")[2].strip() for line in text.splitlines() if ":" in line}


def names_of(mask: str) -> set[str]:
    return {name for name, number in NUMBERS.items() if int(mask, 16) >> number & 1}


def test_the_outer_wall_is_in_force_for_the_pods_own_processes(pod):
    code, text = boot(pod, compiled(), f"/pod/busybox sh -c '{SHOW}'")
    found = status(text)
    assert code == 0
    assert (found["NoNewPrivs"], found["Seccomp"], found["Seccomp_filters"]) == ("1", "2", "1")
    assert not names_of(found["CapBnd"]) & {"CAP_MKNOD", "CAP_NET_RAW", "CAP_SYS_BOOT", "CAP_SYS_MODULE"}
    assert "CAP_SYS_ADMIN" in names_of(found["CapBnd"])


def test_an_app_has_both_walls(pod):
    policy = compiled()
    write_bundle(pod, policy, f"busybox {SHOW}; busybox mount -t tmpfs none /dev; echo after; exit 7")
    code, text = boot(pod, policy, CRUN)
    found = status(text)
    assert code == 7, text
    assert (
        names_of(found["CapBnd"]) == names_of(found["CapEff"]) == set(policy.apps[0].capabilities.bounding)
    )
    assert found["NoNewPrivs"] == "1"
    assert int(found["Seccomp_filters"]) >= 2
    assert "permission denied" in text.lower() or "not permitted" in text.lower()
    assert "after" in text


def test_granted_capabilities_pass_both_walls(pod):
    policy = compiled(cap_add=("net_raw", "sys_admin"))
    write_bundle(pod, policy, f"busybox {SHOW}; busybox mount -t tmpfs none /dev && echo mounted")
    code, text = boot(pod, policy, CRUN)
    assert code == 0, text
    assert {"CAP_NET_RAW", "CAP_SYS_ADMIN"} <= names_of(status(text)["CapEff"])
    assert "mounted" in text


@pytest.mark.parametrize("content", [b"\x06\0\0\0\0\0\xff\x7f", None])
def test_a_pod_whose_filter_was_changed_does_not_start(secrun, content):
    uuid = secrun(
        "prepare", "--pull=never", "--insecure-options=image", secrun.image, "--", "true"
    ).out.strip()
    (program,) = Path(secrun.root).glob(f"pods/*/{uuid}/filter.bpf")
    if content is None:
        program.unlink()
    else:
        program.write_bytes(content)
    assert "host-filter-changed" in secrun("run-prepared", uuid, code=125).err


def test_the_machinery_of_a_real_pod_is_under_one_filter(secrun):
    uuid = secrun.detach("sleep", "1000")
    try:
        found = [path.read_text() for path in Path("/proc").glob("[0-9]*/status") if _is_pid1(path, uuid)]
    finally:
        secrun.discard(uuid)
    assert len(found) == 1
    assert status(found[0])["Seccomp_filters"] == "1"


def _is_pid1(path: Path, uuid: str) -> bool:
    try:
        words = (path.parent / "cmdline").read_text()
        group = (path.parent / "cgroup").read_text()
    except OSError:
        return False
    return words.startswith("/usr/lib/systemd/systemd\0") and uuid in group
