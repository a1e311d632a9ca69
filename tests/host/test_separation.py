"""Root touches neither the network nor an archive: system calls are watched, and the helper is tried out."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from secrun.image import account, serving
from secrun.image.frames import Channel
from secrun.image.helper import Helper, Work, start
from secrun.image.platform import host_platform
from secrun.jsonio import JsonObject
from support import registry
from support.images import Entry, LayoutWriter, busybox_image, busybox_layer, tar_layer
from support.registry import Registry
from support.roots import made
from support.secrun import Secrun
from support.waiting import gone, wait_until
from support.watching import NETWORK, Watched, watch

NOBODY = 65534


class Configured(Secrun):
    """The command line without --root: a settings file names it."""

    def argv(self, *words: str | os.PathLike[str]) -> list[str]:
        found = super().argv(*words)
        place = found.index("--root")
        return [*found[:place], *found[place + 4 :]]


@pytest.fixture
def root(secrun: Secrun, tmp_path: Path) -> Iterator[Secrun]:
    with made(secrun, tmp_path) as other:
        yield other


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Registry]:
    # Not the image that every root of this tier has already.
    layers = [busybox_layer(), tar_layer([Entry(name="etc/own", data=b"own")])]
    config = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "WorkingDir": "/"}
    LayoutWriter(tmp_path / "layout").add_image(
        "busybox", layers, architecture=host_platform().architecture, config=config
    )
    with registry.running_registry(tmp_path / "registry", tls=True) as running:
        running.push(f"oci:{tmp_path}/layout:busybox", "team/app:1")
        yield running


def layer_of(secrun: Secrun, image: str) -> str:
    inspected = json.loads(secrun("image", "inspect", "--format=json", image).out)
    return str(inspected["images"][0]["layers"][-1]["digest"]).partition(":")[2]


def test_root_reads_no_socket_and_no_layer_while_it_runs_an_image_from_a_registry(
    root: Secrun, served: Registry, tmp_path: Path
):
    image = served.reference("team/app:1")
    relaxed = ("--tls-verify=false",)
    root("trust", "generate-key", tmp_path / "team")
    root("trust", "add", "--prefix", served.address, "--skip-fingerprint-review", tmp_path / "team.pub")
    root("sign", *relaxed, "--key", tmp_path / "team.key", image)
    words = ("--net=none", "--pull=always", *relaxed, image, "--", "true")
    prepared = watch(root, tmp_path / "trace-prepare", "prepare", *words)
    # A pod under ptrace does not come to an end: other programs are let go when they begin.
    run = watch(root, tmp_path / "trace-run", "run", "--rm", *words, options=("-b", "execve"))
    seen = Watched([*prepared.calls, *run.calls])
    for one in (prepared, run):
        assert any("connect(" in call and NETWORK.search(call) for call in one.by(root=False))
    network = [call for call in seen.by(root=True) if NETWORK.search(call)]
    assert network == []
    others = [call for call in seen.by(root=False) if NETWORK.search(call)]
    assert any(call.startswith(("read(", "recvfrom(")) and f":{served.port}]" in call for call in others)
    layer = layer_of(root, image)
    reading = re.compile(
        rf"(?:read|readv|pread64|preadv|mmap|splice|sendfile|copy_file_range)\([^,]*{layer}"
    )
    assert [call for call in seen.by(root=True) if reading.match(call)] == []
    assert any(reading.match(call) for call in seen.by(root=False))


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_root_opens_no_archive(root: Secrun, tmp_path: Path, transport: str):
    busybox_image(tmp_path / "layout")
    archive = tmp_path / "image.tar"
    tag = ":team/app:1" if transport == "docker-archive" else ""
    registry.skopeo("copy", f"oci:{tmp_path}/layout:busybox", f"{transport}:{archive}{tag}")
    # Nobody but root may read it, and yet it is not root who does.
    archive.chmod(0o600)
    words = ("fetch", "--insecure-options=image", f"{transport}:{archive}")
    seen = watch(root, tmp_path / "trace", *words)
    opened = re.compile(r'open(?:at2?)?\(.*image\.tar"|\w+\([^,]*/image\.tar>')
    assert [call for call in seen.by(root=True) if opened.match(call)] == []
    assert any(opened.match(call) for call in seen.by(root=False))


def test_signing_and_copying_leave_the_network_to_others_too(root: Secrun, served: Registry, tmp_path: Path):
    image, relaxed = served.reference("team/app:1"), ("--tls-verify=false",)
    root("trust", "generate-key", tmp_path / "team")
    commands = (
        ("sign", *relaxed, "--key", tmp_path / "team.key", image),
        ("image", "copy", *relaxed, image, served.reference("team/copy:1")),
        ("image", "copy", *relaxed, image, f"oci:{tmp_path}/copied:1"),
    )
    for words in commands:
        seen = watch(root, tmp_path / "trace", *words)
        assert [call for call in seen.by(root=True) if NETWORK.search(call)] == []
        assert any(NETWORK.search(call) for call in seen.by(root=False))


# What the helper may do.


def tried(attempts: dict[str, object]) -> dict[str, str]:
    """Run each attempt in a process with the rights of one that talks to registries."""

    def attempt(_request: JsonObject, _channel: Channel) -> JsonObject:
        found: JsonObject = {}
        for name, action in attempts.items():
            try:
                result = action()
            except OSError as error:
                found[name] = os.strerror(error.errno or 0)
            else:
                found[name] = f"done: {result}"
        return found

    user = account.fetching()
    work = Work(
        prepare=lambda: None,
        drop=lambda calls: serving.drop_to(user, calls),
        handlers=lambda: {"try": attempt},
    )
    helper: Helper = start(work)
    try:
        return {name: str(text) for name, text in helper.call("try", {}).items()}
    finally:
        helper.close()


def test_the_fetcher_is_an_ordinary_user_without_capabilities():
    # The facts are taken by the process itself: nothing else may look into it.
    found = tried(
        {
            "uid": os.getresuid,
            "gid": os.getresgid,
            "groups": os.getgroups,
            "status": lambda: Path("/usr/../proc/self/status").read_text(),
        }
    )
    user = account.fetching()
    assert found["uid"] == f"done: {(user.uid,) * 3}"
    assert found["gid"] == f"done: {(user.gid,) * 3}"
    assert found["groups"] == "done: []"
    assert found["status"] == "Permission denied"


def test_the_fetcher_can_do_nothing_but_fetch(tmp_path: Path):
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    readable = tmp_path / "readable"
    readable.write_text("secret")
    readable.chmod(0o666)
    tmp_path.chmod(0o777)
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()
    denied = {
        "file": readable.read_text,
        "write": lambda: readable.write_text("x"),
        "new": (tmp_path / "new").touch,
        "folder": lambda: os.mkdir(tmp_path / "folder"),
        "passwd": Path("/etc/passwd").read_text,
        "store": lambda: os.listdir("/var/lib"),
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "fork": lambda: os.fork() or os._exit(0),
        "kill": lambda: os.kill(os.getppid(), 0),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "root": lambda: os.setresuid(0, 0, 0),
        "listen": lambda: socket.socket().bind(("127.0.0.1", 0)),
    }
    allowed = {
        "resolver": lambda: Path("/etc/hosts").exists() and len(Path("/etc/hosts").read_text()) > 0,
        "connect": lambda: socket.create_connection(address).close(),
    }
    with server:
        found = tried({**denied, **allowed})
    words = ("Permission denied", "Operation not permitted", "Function not implemented")
    assert {name: text for name, text in found.items() if text not in words} == {
        "resolver": "done: True",
        "connect": "done: None",
    }
    assert readable.read_text() == "secret"


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_running_fetcher_has_no_rights_and_ends_with_who_started_it(root: Secrun):
    # It takes connections, and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        image = f"docker://127.0.0.1:{silent.getsockname()[1]}/team/app:1"
        words = root.argv("fetch", "--tls-verify=false", "--insecure-options=image", image)
        asking = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            silent.accept()[0].close()
            (helper,) = children(asking.pid)
            status = Path(f"/proc/{helper}/status").read_text()
        finally:
            asking.kill()
            asking.wait()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    user = account.fetching()
    assert fields["Uid"].split() == [str(user.uid)] * 4
    assert fields["Gid"].split() == [str(user.gid)] * 4
    assert fields["Groups"].strip() == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    wait_until(lambda: gone(str(helper)))


def test_without_landlock_root_fetches_nothing(monkeypatch: pytest.MonkeyPatch):
    from secrun.errors import HostError
    from secrun.syscalls import LinuxSyscalls

    monkeypatch.setattr(LinuxSyscalls, "landlock_abi", lambda self: 0)
    with pytest.raises(HostError) as caught:
        tried({})
    assert caught.value.code == "host-landlock"


# A host on which nobody has set anything.


@pytest.fixture
def fresh(root: Secrun) -> Secrun:
    """The same root on a host without a policy."""
    hidden = " ".join(
        f"mount -t tmpfs tmpfs {folder};"
        for folder in ("/etc/containers", "/usr/share/containers")
        if os.path.isdir(folder)
    )
    prefix = ("unshare", "--mount", "sh", "-c", f'{hidden} exec "$@"', "sh")
    return Secrun(root=root.root, run_root=root.run_root, options=root.options, prefix=prefix)


def test_a_fresh_host_refuses_what_is_unsigned_and_runs_what_is_signed(
    fresh: Secrun, served: Registry, tmp_path: Path
):
    image, relaxed = served.reference("team/app:1"), ("--tls-verify=false",)
    words = ("run", "--rm", "--net=none", *relaxed, image, "--", "echo", "ran")
    refused = fresh(*words, code=120)
    assert "there is no trust policy, and no trusted key covers it" in refused.err
    assert "secrun trust add --prefix" in refused.err
    assert image in refused.err
    fresh("trust", "generate-key", tmp_path / "team")
    fresh("sign", *relaxed, "--key", tmp_path / "team.key", image)
    assert "no trusted key covers it" in fresh(*words, code=120).err
    fresh("trust", "add", "--prefix", served.address, "--skip-fingerprint-review", tmp_path / "team.pub")
    assert fresh(*words).out == "ran\n"


# Members of the group.


@pytest.fixture
def host_of_members(tmp_path: Path) -> Iterator[tuple[Secrun, Secrun]]:
    """Root's command and a member's, of a host whose settings name the root folder."""
    base = Path(tempfile.mkdtemp(prefix="secrun-members-", dir="/var/tmp"))
    base.chmod(0o755)
    settings = base / "config.toml"
    settings.write_text(f'root = "{base}/root"\nrun_root = "{base}/run"\n')
    (base / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    group = str(account.fetching().gid)
    member = (
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        f"--groups={group}",
        "env",
        "HOME=/nonexistent",
    )
    words = ("--config", str(settings), "--attest=off")
    asked = Configured(root=base / "root", run_root=base / "run", options=words)
    yield asked, replace(asked, prefix=member)
    shutil.rmtree(base)


def test_a_member_fetches_without_root_and_spares_root_the_download(
    host_of_members: tuple[Secrun, Secrun], served: Registry, tmp_path: Path
):
    root, member = host_of_members
    image = served.reference("team/app:1")
    policy = root.root.parent / "policy.json"
    words = ("fetch", "--tls-verify=false", "--policy", policy, image)
    refused = member(*words, code=None)
    assert refused.code == 125  # until root has made the folder
    busybox_image(tmp_path / "other")
    root("fetch", "--policy", policy, f"oci:{tmp_path}/other:busybox")
    digest = member(*words).out
    store = root.root / "members" / str(NOBODY)
    assert store.stat().st_uid == NOBODY
    assert image in member("image", "list").out
    assert image not in root("image", "list").out
    before = served.requests("GET", "/blobs/")
    assert root(*words).out == digest
    assert served.requests("GET", "/blobs/") == before


def test_what_a_member_changes_does_not_reach_root(
    host_of_members: tuple[Secrun, Secrun], served: Registry, tmp_path: Path
):
    root, member = host_of_members
    image = served.reference("team/app:1")
    policy = root.root.parent / "policy.json"
    words = ("fetch", "--tls-verify=false", "--policy", policy, image)
    busybox_image(tmp_path / "other")
    root("fetch", "--policy", policy, f"oci:{tmp_path}/other:busybox")
    digest = member(*words).out
    blobs = root.root / "members" / str(NOBODY) / "images/blobs/sha256"
    for path in blobs.iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert root(*words).out == digest
    inside = root.root / "images/blobs/sha256"
    for path in inside.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    # And nothing of root's store is the member's to change.
    for path in (
        inside,
        *inside.iterdir(),
        root.root / "images/index.json",
        root.root / "facts",
        root.root / "members",
    ):
        assert path.stat().st_uid == 0
        assert not path.stat().st_mode & 0o002


def test_a_member_is_refused_like_everybody(
    host_of_members: tuple[Secrun, Secrun], served: Registry, tmp_path: Path
):
    root, member = host_of_members
    policy = root.root.parent / "policy.json"
    busybox_image(tmp_path / "other")
    root("fetch", "--policy", policy, f"oci:{tmp_path}/other:busybox")
    policy.write_text('{"default": [{"type": "reject"}]}')
    words = ("fetch", "--tls-verify=false", "--policy", policy, served.reference("team/app:1"))
    assert "rejects every image" in member(*words, code=120).err
