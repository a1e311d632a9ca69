"""Attempts to get out of a pod: each fails inside a default one, and works where its guard is taken away.

The attempts are in support/escape/escape.c. A flavour is a row of FLAVOURS: only its options differ.
"""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.images import Entry, LayoutWriter, busybox_layer, directory, symlink, tar_layer
from support.secrun import Secrun

SOURCE = Path(__file__).resolve().parent.parent / "support/escape/escape.c"
FLAVOURS: Mapping[str, tuple[str, ...]] = {"nspawn": (), "kvm": ("--stage1=kvm", "--accel=tcg")}
IN_POD = "/bin/escape"
# Only a pod has something masked to unmount.
NOT_ON_THE_HOST = {"umount-mask"}
# Needs somebody who executes programs of another world: see the test with its name.
APART = {"exe-write"}


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    """The attempts as one static program, and the same with the bit that makes it root's, for every user."""
    with tempfile.TemporaryDirectory(prefix="escape-") as folder:
        path = Path(folder, "escape")
        subprocess.run(["gcc", "-O1", "-static", "-o", path, SOURCE], check=True, capture_output=True)
        shutil.copy(path, path.with_name("escape-suid"))
        path.with_name("escape-suid").chmod(0o4755)
        path.parent.chmod(0o755)
        yield path


@pytest.fixture(scope="module")
def names(program: Path) -> frozenset[str]:
    said = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
    return frozenset(said.split())


@pytest.fixture(scope="module")
def pods(secrun: Secrun, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Secrun:
    """The command line with an image that holds the program."""
    layout = tmp_path_factory.mktemp("image") / "layout"
    data = program.read_bytes()
    layer = tar_layer(
        [
            directory("bin"),
            Entry(name="bin/escape", mode=0o755, data=data),
            Entry(name="bin/escape-suid", mode=0o4755, data=data),
            symlink("out", "../../../../../../.."),
        ]
    )
    config = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}
    LayoutWriter(layout).add_image("escape", [busybox_layer(), layer], config=config)
    image = secrun("fetch", "--insecure-options=image", f"oci:{layout}:escape").out.split()[-1]
    return dataclasses.replace(secrun, image=image)


@dataclass(frozen=True, slots=True, kw_only=True)
class Things:
    """What belongs to the host: none of it may be reached."""

    variables: Mapping[str, str]
    volume: Path

    def options(self) -> tuple[str, ...]:
        """Options that tell an app where to look, and give it the volume."""
        variables = {
            **self.variables,
            "ESCAPE_VOLUME": "/volume",
            "ESCAPE_SELF": IN_POD,
            "ESCAPE_SUID": "/bin/escape-suid",
        }
        words = [f"--env={name}={value}" for name, value in variables.items()]
        return (*words, f"--volume={self.volume}:/volume")


@pytest.fixture
def things(program: Path, tmp_path: Path) -> Iterator[Things]:
    tmp_path.chmod(0o755)
    marker, volume = tmp_path / "marker", tmp_path / "volume"
    marker.write_text("the host's\n")
    volume.mkdir(mode=0o777)
    volume.chmod(0o777)
    os.mknod(volume / "device", 0o20666, os.makedev(1, 5))
    (volume / "device").chmod(0o666)
    name = f"escape-{tmp_path.name}"
    shared = _shared_memory()
    sleeper = subprocess.Popen(["sleep", "1000"])
    with socket.socket(socket.AF_UNIX) as abstract, socket.create_server(("127.0.0.1", 0)) as loopback:
        abstract.bind(f"\0{name}")
        abstract.listen()
        yield Things(
            variables={
                "ESCAPE_FILE": str(marker),
                "ESCAPE_PID": str(sleeper.pid),
                "ESCAPE_ABSTRACT": name,
                "ESCAPE_PORT": str(loopback.getsockname()[1]),
                "ESCAPE_SHM": str(shared),
                "ESCAPE_SELF": str(program),
                "ESCAPE_SUID": str(program.with_name("escape-suid")),
                "ESCAPE_VOLUME": str(volume),
            },
            volume=volume,
        )
    sleeper.kill()
    sleeper.wait()
    _forget(shared)


def _shared_memory() -> int:
    """Make a segment of the host and return its key."""
    for key in range(0x5EC0, 0x5F00):
        done = subprocess.run([sys.executable, "-c", _SHM.format(key=key, flags=0o3666)], check=False)
        if done.returncode == 0:
            return key
    raise AssertionError("no key is free")


_SHM = """
import ctypes, sys
libc = ctypes.CDLL(None)
found = libc.shmget({key}, 4096 if {flags} else 0, {flags})
sys.exit(found < 0 or (not {flags} and libc.shmctl(found, 0, None)))
"""


def _forget(key: int) -> None:
    subprocess.run([sys.executable, "-c", _SHM.format(key=key, flags=0)], check=True)


def outcome(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.splitlines())


def worked(text: str) -> set[str]:
    return {name for name, said in outcome(text).items() if said == "worked"}


def inside(pods: Secrun, things: Things, *tried: str, options: tuple[str, ...] = ()) -> str:
    """What the program says in a pod; secrun is started with descriptors that it must not pass on."""
    with (things.volume / "inherited").open("w") as first, socket.socket() as second:
        argv = pods.argv(
            *("run", "--rm", "--pull=never", "--insecure-options=image", *things.options(), *options),
            *(pods.image, "--", IN_POD, *tried),
        )
        fds = (first.fileno(), second.fileno())
        done = subprocess.run(argv, pass_fds=fds, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize(("flavour", "user"), [("nspawn", "0:0"), ("nspawn", "1000:1000"), ("kvm", "0:0")])
def test_every_attempt_fails_in_a_default_pod(pods: Secrun, things: Things, names, flavour, user):
    text = inside(pods, things, options=(*FLAVOURS[flavour], f"--user={user}"))
    assert set(outcome(text)) == names
    assert worked(text) == set()
    assert len(names) >= 90


def test_every_attempt_works_on_a_bare_host(program: Path, things: Things, names):
    """Without a pod around it, as root: so what failed above failed because of a guard."""
    tried = sorted(names - NOT_ON_THE_HOST - APART)
    with (things.volume / "inherited").open("w") as leaked:
        done = subprocess.run(
            [program, *tried],
            env={**os.environ, **things.variables, "ESCAPE_PRIVATE": "yes"},
            pass_fds=(leaked.fileno(),),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    shutil.rmtree("/tmp/escape", ignore_errors=True)
    assert {name: said for name, said in outcome(done.stdout).items() if said != "worked"} == {}
    assert set(outcome(done.stdout)) == set(tried)


@pytest.mark.parametrize(
    ("options", "opened"),
    [
        (("--net=host",), {"host-abstract", "host-loopback"}),
        (("--security-opt=no-new-privileges=false", "--cap-add=SETUID"), {"setuid-program"}),
        (("--cap-add=NET_RAW",), {"socket-raw", "socket-packet", "socket-packet-high"}),
        (("--cap-add=NET_ADMIN",), {"socket-netfilter", "socket-uevent"}),
        (
            ("--cap-add=SYS_PTRACE",),
            {"ptrace-attach", "ptrace-me", "memory-read", "memory-write", "pidfd-getfd", "kcmp"},
        ),
        (
            ("--cap-add=SYS_ADMIN",),
            {
                *("mount-tmpfs", "mount-bind", "umount-mask", "mount-propagation", "open-tree", "fsopen"),
                *("unshare-user", "unshare-mount", "unshare-net", "unshare-pid", "clone-user", "clone-net"),
                *("clone-user-high", "setns", "sethostname"),
            },
        ),
        (("--security-opt=unmask=ALL",), {"proc-interrupts", "sys-module"}),
        (("--security-opt=seccomp=unconfined",), {"personality", "vmsplice"}),
        (("--seccomp=mode=retain,@systemd/default-whitelist,@systemd/keyring",), {"key-session"}),
    ],
)
def test_an_attempt_works_in_a_pod_with_the_relaxation_that_names_it(
    pods: Secrun, things: Things, options, opened
):
    text = inside(pods, things, *sorted(opened), options=(*options, "--env=ESCAPE_PRIVATE=yes"))
    assert worked(text) == opened


def test_exe_write(pods: Secrun, program: Path, things: Things, tmp_path: Path):
    """A program that secrun executes inside an app cannot be written to by the app (CVE-2019-5736)."""
    script = f"{IN_POD} exe-write; sleep 1000"
    options = ("--env=ESCAPE_EXE=secrun-agent", "--cap-add=SYS_PTRACE")
    uuid = pods.detach("sh", "-c", script, options=options)
    terminal = "import pty,sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    try:
        for _ in range(40):
            argv = pods.argv("enter", "-t", uuid, "--", "true")
            subprocess.run(
                [sys.executable, "-c", terminal, *argv], capture_output=True, timeout=60, check=True
            )
            if said := pods("logs", uuid).out:
                break
        # It caught the agent, and what it runs from cannot be written.
        assert said == "exe-write refused EROFS\n"
    finally:
        pods("stop", "--force", uuid)
        pods("status", "--wait", uuid)
        pods("rm", uuid)
    copy = tmp_path / "secrun-agent"
    shutil.copy("/bin/sleep", copy)
    variables = {**os.environ, "ESCAPE_EXE": str(copy)}
    with subprocess.Popen(
        [program, "exe-write"], env=variables, stdout=subprocess.PIPE, text=True
    ) as attempt:
        while attempt.poll() is None:
            # It cannot be executed while somebody writes to it, which is what is waited for.
            with contextlib.suppress(OSError):
                subprocess.run([copy, "0.05"], check=False)
        assert attempt.stdout is not None
        assert attempt.stdout.read() == "exe-write worked\n"


def test_a_link_in_the_image_does_not_lead_a_volume_out(pods: Secrun, tmp_path: Path):
    name = f"escape-{tmp_path.name}"
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "file").write_text("inside\n")
    target = f"/out/{name}"
    result = pods.run("cat", f"/{name}/file", options=(f"--volume={tmp_path}/volume:{target}",))
    assert result.out == "inside\n", "the link leads to the app's own root"
    assert not Path(f"/{name}").exists()
    (tmp_path / "out").symlink_to("../../../../../../..")
    assert (tmp_path / "out" / name).resolve() == Path(f"/{name}"), "followed on the host it leads out"
