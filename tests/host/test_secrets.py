"""Secrets: an app finds them in memory, and their bytes are nowhere else; whatever isolates the pod."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import faults
from support.secrun import Secrun, eventually

HOST_SECRET = Path("/var/lib/systemd/credential.secret")
SHOW = "cd /run/secrets; busybox sha256sum db key; stat -c '%n %u:%g %a' db key; sleep 100000"
MOUNTED = {"nspawn": "ramfs", "kvm": "tmpfs"}


def _files(folder: Path) -> Iterator[Path]:
    for base, _, names in os.walk(folder):
        yield from (Path(base) / name for name in names)


def _told() -> Iterator[Path]:
    """What every process of the host was told when it began."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        yield from (Path("/proc", pid, name) for name in ("cmdline", "environ"))


def _holders(paths: Iterator[Path], secrets: list[bytes]) -> list[Path]:
    parts = [secret[at : at + 40] for secret in secrets for at in (0, len(secret) - 40)]
    found = []
    for path in paths:
        try:
            data = path.read_bytes() if path.is_file() else b""
        except OSError:
            continue  # its process has ended, or the file has
        found += [path for part in parts if part in data]
    return found


def test_an_app_alone_finds_its_secrets_and_the_host_has_their_bytes_nowhere(pods: Secrun, tmp_path: Path):
    secrets = [os.urandom(20).hex().encode(), os.urandom(200_000).hex().encode()]
    (tmp_path / "db").write_bytes(secrets[0])
    (tmp_path / "api").write_bytes(secrets[1])
    asked = (
        f"--secret={tmp_path}/db",
        "--secret=api,type=mount,target=key,uid=7,gid=8,mode=0400",
        "--secret=api,target=/etc/keys/api",
    )
    web = (*asked, "--name=web", pods.image, "--", "sh", "-c", SHOW)
    other = ("--name=other", pods.image, "--", "sh", "-c", "ls /run/secrets; sleep 100000")
    service = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    uuid = pods("run", "-d", *pods.pod_options, *web, "---", *other, environment=service).out.strip()
    try:
        eventually(lambda: "key 7:8 400" in pods("logs", uuid, "web").out, "the app's view")
        sums = "".join(
            f"{hashlib.sha256(secret).hexdigest()}  {name}\n"
            for secret, name in zip(secrets, ("db", "key"), strict=True)
        )
        assert pods("logs", uuid, "web").out == f"{sums}db 0:0 444\nkey 7:8 400\n"
        eventually(lambda: "No such file" in pods("logs", uuid, "other").err, "the other app's view")
        script = "grep secrets/ /proc/mounts; cat /etc/keys/api; echo x >/run/secrets/db"
        entered = pods("enter", "--app=web", uuid, "--", "sh", "-c", f"busybox {script}", code=1)
        assert "Read-only" in entered.err
        assert entered.out.endswith(secrets[1].decode())
        mounts = [
            line.split() for line in entered.out.splitlines() if line.startswith(("none", "ramfs", "tmpfs"))
        ]
        assert [mount[1] for mount in mounts] == ["/run/secrets/db", "/run/secrets/key"]
        for mount in mounts:
            assert mount[2] == MOUNTED[pods.flavour]
            assert {"ro", "nosuid", "nodev", "noexec"} <= set(mount[3].split(","))
        assert _holders(_files(pods.root), secrets) == []
        assert _holders(_files(pods.run_root), secrets) == []
        assert _holders(_told(), secrets) == []
        said = [pods(verb, uuid).out for verb in ("inspect", "status", "cat-manifest")]
        said.append(pods("attest", "log").out)
        said.append(pods("audit", "export", "--format=jsonl", "--out=-").out)
        assert uuid in said[-1]
        assert not any(secret.decode() in text for secret in secrets for text in said)
        # What is told of them, and measured, is this and no more.
        assert (
            '"kind":"credential","mode":"400","name":"api","source":"api","target":"/run/secrets/key"'
            in said[2]
        )
        # In the pod's own mount namespace a guest's are no longer even in memory: its machine has them.
        place = f"/proc/{pods.status(uuid)['pid']}/root{pods.root}/pods/run/{uuid}/mnt/secrets"
        assert len(os.listdir(place)) == (3 if pods.flavour == "nspawn" else 0)
        assert not (pods.root / "pods/run" / uuid / "mnt/secrets/web-0").exists()
    finally:
        pods.discard(uuid)
    assert _holders(_files(pods.root), secrets) == []


def test_a_prepared_pod_gets_what_its_source_has_when_it_starts(secrun: Secrun, tmp_path: Path):
    source = tmp_path / "generation"
    link = tmp_path / "db"
    link.symlink_to(source)
    uuid = secrun.prepare("cat", "/run/secrets/db", options=(f"--secret={link}",))
    gone = secrun("run-prepared", uuid, code=125)
    assert "secret db of app" in gone.err
    assert str(link) in gone.err
    assert secrun.status(uuid)["state"] == "prepared"
    source.write_bytes(b"first")
    assert secrun("run-prepared", uuid).out == "first"
    secrun("rm", uuid)


@pytest.mark.parametrize("flavour", ["nspawn", "kvm"])
def test_a_start_that_is_killed_with_the_secrets_in_place_leaves_none(
    secrun: Secrun, tmp_path: Path, flavour
):
    (tmp_path / "db").write_bytes(b"a secret of sixteen letters")
    machine = ("--stage1=kvm", "--accel=tcg") if flavour == "kvm" else ()
    roots = ("--root", str(secrun.root), "--run-root", str(secrun.run_root))
    words = (*roots, "run", "--net=none", *machine, *secrun.pod_options, f"--secret={tmp_path}/db")
    argv = faults.argv(str(tmp_path / "points"), "secrets-shown", [*words, secrun.image, "--", "true"])
    killed = subprocess.run(argv, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert _holders(_files(secrun.root), [b"a secret of sixteen letters"]) == []
    assert "mnt/secrets" not in Path("/proc/self/mounts").read_text()
    secrun("gc", "--grace-period=0s", "--expire-prepared=0s")
    assert secrun.pods() == []


@pytest.fixture
def host_key() -> Iterator[None]:
    """The host's key for credentials, gone again if it was made for this test."""
    known = HOST_SECRET.exists()
    yield
    if not known:
        HOST_SECRET.unlink(missing_ok=True)


@pytest.mark.usefixtures("host_key")
def test_a_secret_that_systemd_encrypted_is_decrypted_for_the_app_alone(secrun: Secrun, tmp_path: Path):
    sealed = tmp_path / "db.cred"
    words = ["systemd-creds", "encrypt", "--with-key=host", "--name=db", "-", str(sealed)]
    subprocess.run(words, input=b"hunter2\n\0\xff", check=True, capture_output=True)
    option = f"--secret=db,source={sealed},encrypted"
    shown = secrun.run("busybox", "sha256sum", "/run/secrets/db", options=(option,)).out
    assert shown.split()[0] == hashlib.sha256(b"hunter2\n\0\xff").hexdigest()
    other = secrun.run("true", options=(option.replace("=db,", "=web,"),), code=125)
    assert "secret web of app" in other.err
    assert "cannot be decrypted" in other.err
    assert "--name=web" in other.err


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(bytes(512_001)), "more than 512000 bytes"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda _: None, "No such file"),
    ],
)
def test_a_source_that_is_no_secret_starts_nothing(secrun: Secrun, tmp_path: Path, make, expected):
    make(tmp_path / "db")
    result = secrun.run("true", options=(f"--secret={tmp_path}/db",), code=125)
    assert expected in result.err


def test_a_credential_that_nobody_has_is_named_with_where_it_could_be(secrun: Secrun):
    result = secrun.run("true", options=("--secret=no-such-credential",), code=125)
    assert "there is no credential no-such-credential" in result.err
    assert "/etc/credstore.encrypted/no-such-credential" in result.err
