"""The compiled confinement, loaded by crun in a user namespace: what the kernel then refuses and allows."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.launch import run
from secrun_policies.capabilities import NUMBERS
from secrun_policies.confine import AppFacts, PodFacts, compile_app
from secrun_policies.host import read_host
from secrun_policies.oci import to_oci
from secrun_policies.outer import NetworkMode
from secrun_policies.paths import MASKED, READ_ONLY
from secrun_policies.profiles import default_profile

BASE = 0x70000000
HIGH = 1 << 40
NAMESPACE_FLAGS = {"user": 0x10000000, "mount": 0x20000, "network": 0x40000000, "pid": 0x20000000}

# Runs inside the container: every call goes past libc, so that nothing but the kernel answers.
PROBE = """
import ctypes, json, os, platform
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {"x86_64": X86, "aarch64": ARM}[platform.machine()]
def call(name, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *(ctypes.c_ulong(a) for a in args))
    if name == "clone" and result == 0:
        os._exit(0)
    return ctypes.get_errno() if result == -1 else 0
def opened(path, flags):
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return error.errno
    return 0
def content(path):
    try:
        return len(os.listdir(path)) if os.path.isdir(path) else len(open(path, "rb").read(16))
    except OSError as error:
        return -error.errno
status = {line.split(":")[0]: line.split(":")[1].strip() for line in open("/proc/self/status")}
print(json.dumps({
    "status": status,
    "calls": [call(*item) for item in CALLS],
    "masked": {path: content(path) for path in MASKED if os.path.lexists(path)},
    "written": {path: opened(path, os.O_WRONLY) for path in WRITTEN if os.path.exists(path)},
    "readonly": {
        path: bool(os.statvfs(path).f_flag & os.ST_RDONLY) for path in READONLY if os.path.exists(path)
    },
}))
"""


def probe(calls: list[tuple[object, ...]]) -> list[str]:
    import seccomp

    names = {str(call[0]) for call in calls}
    tables = {
        word: {name: seccomp.resolve_syscall(seccomp.Arch(table), name) for name in names}
        for word, table in (("X86", "x86_64"), ("ARM", "aarch64"))
    }
    text = PROBE
    written = ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/panic_on_oom"]
    for word, value in {
        **tables, "CALLS": calls, "MASKED": MASKED, "WRITTEN": written, "READONLY": READ_ONLY,
    }.items():  # fmt: skip
        text = text.replace(word, json.dumps(value))
    return ["/usr/bin/python3", "-I", "-c", text]


def config(app: AppFacts, argv: list[str]) -> dict[str, object]:
    process, linux = to_oci(compile_app(PodFacts(network=NetworkMode.NONE, apps=(app,)), app, read_host()))
    mapping = [{"containerID": 0, "hostID": BASE, "size": 65536}]
    plain = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            **process,
            "args": argv,
            "cwd": "/",
            "env": ["PATH=/usr/bin:/usr/sbin", "HOME=/tmp", "LANG=C.UTF-8"],
            "user": {"uid": app.uid, "gid": app.gid},
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": plain},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*plain, "ro"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1777"]},
            {"destination": "/usr", "type": "none", "source": "/usr", "options": ["rbind", "ro"]},
            {"destination": "/etc", "type": "none", "source": "/etc", "options": ["bind", "ro"]},
        ],
        "linux": {
            **linux,
            "namespaces": [{"type": kind} for kind in ("user", "mount", "pid", "ipc", "network")],
            "uidMappings": mapping,
            "gidMappings": mapping,
        },
    }


class Container:
    """Runs one program per bundle and gives back its output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rootfs = folder / "rootfs"
        rootfs.mkdir()
        for name in ("proc", "sys", "dev", "tmp", "usr", "etc"):
            (rootfs / name).mkdir()
        for name in ("bin", "sbin", "lib", "lib64"):
            (rootfs / name).symlink_to(f"usr/{name}")

    def run(self, app: AppFacts, argv: list[str], *, check: bool = True) -> tuple[int, bytes]:
        (self.folder / "config.json").write_text(json.dumps(config(app, argv)))
        # crun refuses hybrid control groups, which some hosts have; a pure hierarchy of its own suits all.
        private = 'mount -t cgroup2 none /sys/fs/cgroup && exec crun "$@"'
        crun = [
            *("--cgroup-manager=disabled", f"--root={self.folder}/state", "run", "--no-new-keyring"),
            *("-b", str(self.folder), f"policy-{os.getpid()}"),
        ]
        done = run(["unshare", "--mount", "sh", "-c", private, "crun", *crun], check=check, timeout=60)
        return done.returncode, done.stdout

    def probe(self, app: AppFacts, calls: list[tuple[object, ...]] = []) -> dict[str, object]:  # noqa: B006 - read
        result: dict[str, object] = json.loads(self.run(app, probe(calls))[1])
        return result


@pytest.fixture
def container() -> Iterator[Container]:
    if os.geteuid() != 0:
        pytest.fail("this tier needs root")
    # pytest's own folders are closed to the mapped users.
    folder = Path(tempfile.mkdtemp(prefix="secrun-policy-", dir="/run"))
    folder.chmod(0o755)
    try:
        yield Container(folder)
    finally:
        shutil.rmtree(folder)


def app(**fields: object) -> AppFacts:
    return AppFacts(**{"name": "probe", "seccomp": default_profile(), **fields})


def names_of(mask: str) -> set[str]:
    bits = int(mask, 16)
    return {name for name, number in NUMBERS.items() if bits >> number & 1}


def test_status_of_root(container):
    status = container.probe(app())["status"]
    granted = set(
        compile_app(
            PodFacts(network=NetworkMode.NONE, apps=(app(),)), app(), read_host()
        ).capabilities.bounding
    )
    assert names_of(status["CapBnd"]) == names_of(status["CapEff"]) == names_of(status["CapPrm"]) == granted
    assert names_of(status["CapInh"]) == names_of(status["CapAmb"]) == set()
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["Seccomp_filters"]) >= 1


def test_status_of_another_user(container):
    status = container.probe(app(uid=1000, gid=1000))["status"]
    assert {status[key] for key in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}


def test_an_added_capability_survives_exec_of_another_user(container):
    status = container.probe(app(uid=1000, gid=1000, cap_add=("net_bind_service",)))["status"]
    assert names_of(status["CapEff"]) == names_of(status["CapBnd"]) == {"CAP_NET_BIND_SERVICE"}


REFUSED = [
    (("unshare", flag), errno.EPERM) for flag in NAMESPACE_FLAGS.values()
] + [
    (("clone", flag | 17, 0, 0, 0, 0), errno.EPERM) for flag in NAMESPACE_FLAGS.values()
] + [
    (("clone3", 0, 0), errno.ENOSYS),
    (("setns", 0, 0), errno.EPERM),
    (("mount", 0, 0, 0, 0, 0), errno.EPERM),
    (("fsopen", 0, 0), errno.EPERM),
    (("keyctl", 0, 0), errno.EPERM),
    (("add_key", 0, 0), errno.EPERM),
    (("request_key", 0, 0), errno.EPERM),
    (("bpf", 0, 0, 0), errno.EPERM),
    (("perf_event_open", 0, 0, 0), errno.EPERM),
    (("userfaultfd", 0), errno.EPERM),
    (("io_uring_setup", 1, 0), errno.EPERM),
    (("ptrace", 16, 0, 0, 0), errno.EPERM),
    (("open_by_handle_at", 0, 0, 0), errno.EPERM),
    (("ioctl", 0, 0x5412, 0), errno.EPERM),
    (("ioctl", 0, 0x5412 | HIGH, 0), errno.EPERM),
    (("ioctl", 0, 0x541C, 0), errno.EPERM),
    (("ioctl", 0, 0x541C | HIGH, 0), errno.EPERM),
    (("socket", 40, 1, 0), errno.EAFNOSUPPORT),
    (("socket", 40 | HIGH, 1, 0), errno.EAFNOSUPPORT),
    (("socket", 38, 5, 0), errno.EAFNOSUPPORT),
    (("socket", 17, 3, 0), errno.EAFNOSUPPORT),
    (("socket", 16, 3, 9), errno.EPROTONOSUPPORT),
    (("socket", 16, 3, 12 | HIGH), errno.EPROTONOSUPPORT),
    (("personality", 0x0400000), errno.ENOSYS),
    (("personality", 0x0040000), errno.ENOSYS),
]  # fmt: skip
ALLOWED = [
    ("socket", 16, 3, 0),
    ("socket", 1, 1, 0),
    ("socket", 2, 1, 0),
    ("socket", 10, 1, 0),
    ("personality", 0xFFFFFFFF),
    ("unshare", 0x200),
    ("getpid",),
]


def test_dangerous_calls_fail_with_the_errno_that_programs_expect(container):
    calls = [call for call, _ in REFUSED]
    answers = container.probe(app(), calls)["calls"]
    assert {str(call): answer for call, answer in zip(calls, answers, strict=True)} == {
        str(call): expected for call, expected in REFUSED
    }


def test_ordinary_calls_work(container):
    assert container.probe(app(), list(ALLOWED))["calls"] == [0] * len(ALLOWED)


def test_the_filter_is_what_refuses(container):
    """Without it the kernel answers otherwise, so the test above is about the filter."""
    answers = container.probe(app(seccomp=None), [call for call, _ in REFUSED])["calls"]
    same = [call[0] for (call, expected), answer in zip(REFUSED, answers, strict=True) if answer == expected]
    # The kernel itself says EPERM to these without the capability.
    assert set(same) <= {
        "mount",
        "fsopen",
        "bpf",
        "open_by_handle_at",
        "userfaultfd",
        "unshare",
        "clone",
        "socket",
        "setns",
    }


def test_masked_paths_hold_nothing(container):
    masked = container.probe(app())["masked"]
    assert {"/proc/kallsyms", "/sys/module", "/sys/firmware"} <= set(masked)
    assert {path: size for path, size in masked.items() if size != 0} == {}


def test_kernel_files_cannot_be_written(container):
    found = container.probe(app())
    assert found["written"]
    assert set(found["written"].values()) <= {errno.EROFS, errno.EACCES}
    assert {path for path, readonly in found["readonly"].items() if not readonly} == set()


def test_unmasked_paths_are_seen_again(container):
    masked = container.probe(app(unmasked_paths=True))["masked"]
    assert masked["/sys/module"] > 0


SETUID = """
import os
os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.execvp("id", ["id", "-u"])
"""
GIT = """
git init -q /tmp/r && cd /tmp/r
git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log --oneline | wc -l
"""
THREADS = """
import concurrent.futures, multiprocessing, subprocess, os, tempfile
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(len, ["x"] * 100)) == 100
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
assert subprocess.run(["true"]).returncode == 0
path = tempfile.mkdtemp()
os.chown(path, 33, 33); os.chmod(path, 0o2775)
assert os.stat(path).st_mode & 0o2000
print("ok")
"""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["python3", "-c", THREADS], b"ok"),
        (["python3", "-c", SETUID], b"65534"),
        (["sh", "-c", GIT], b"1"),
        (["sh", "-c", "cd /tmp && mkdir -p d/e && tar cf a.tar d && tar tf a.tar | wc -l"], b"2"),
        (["apt-get", "--version"], b"apt"),
        (["dpkg", "--version"], b"dpkg"),
        (["sh", "-c", "sleep 0.01 & wait; chroot / true; echo ok"], b"ok"),
        (["perl", "-e", "use Socket; print join('.', unpack('C4', inet_aton('127.0.0.1')))"], b"127.0.0.1"),
    ],
)  # fmt: skip
def test_ordinary_programs_work(container, argv, said):
    assert said in container.run(app(), argv)[1]


def test_setuid_programs_gain_nothing(container):
    code, _ = container.run(app(uid=1000, gid=1000), ["su", "-c", "true"], check=False)
    assert code not in (0, 127)
