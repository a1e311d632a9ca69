"""Sockets of the caller's in a pod: socket activation by systemd's own tool, and what is refused."""

import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from support import answer
from support.secrun import Secrun, eventually


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answer")
    folder.chmod(0o755)
    return answer.compiled(folder)


def asked(path: Path) -> str:
    """Connect to a socket and read to the end."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(str(path))
        return client.makefile().read()


@contextmanager
def sockets(folder: Path, *names: str) -> Iterator[list[socket.socket]]:
    """Listen at `names` below a folder."""
    made = []
    try:
        for name in names:
            made.append(socket.socket(socket.AF_UNIX))
            made[-1].bind(str(folder / name))
            made[-1].listen()
        yield made
    finally:
        for item in made:
            item.close()


def started(secrun: Secrun, words: list[str], given: Sequence[socket.socket | TextIO]) -> subprocess.Popen:
    """Start a command that finds what is given as its descriptors from 3 on."""
    high = [fcntl.fcntl(item.fileno(), fcntl.F_DUPFD, 100) for item in given]
    moves = " ".join(f"{3 + index}<&{fd}" for index, fd in enumerate(high))
    try:
        return subprocess.Popen(
            ["bash", "-c", f'exec "$@" {moves}', "bash", *secrun.argv(*words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=high,
        )
    finally:
        for fd in high:
            os.close(fd)


def test_an_app_answers_on_the_sockets_that_a_socket_unit_listens_on(
    secrun: Secrun, program: Path, tmp_path: Path
):
    """The pod has no network at all; what systemd listens on, the app accepts from."""
    saved = tmp_path / "uuid"
    options = (f"--uuid-file-save={saved}", "--rm", f"--volume={program.parent}:/t:ro")
    command = secrun.argv("run", *options, *secrun.pod_options, secrun.image, "--", "/t/answer")
    unit = ["systemd-socket-activate", "-l", str(tmp_path / "a"), "-l", str(tmp_path / "b")]
    server = subprocess.Popen(
        [*unit, "--fdname=web:admin", "-E", f"PATH={os.environ['PATH']}", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually((tmp_path / "b").exists, "the sockets")
        assert asked(tmp_path / "b") == "1 of web:admin\n"
        assert asked(tmp_path / "a") == "0 of web:admin\n"
        assert asked(tmp_path / "b") == "1 of web:admin\n"
        uuid = saved.read_text().strip()
        assert "caller-sockets" in secrun("cat-manifest", uuid).out
        assert secrun("enter", uuid, "--", "sh", "-c", "echo ${LISTEN_FDS-none}").out == "none\n"
    finally:
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=120)
    # LISTEN_PID is the app's own, and nothing else of the host's was open in it.
    assert (server.returncode, out) == (0, "1 1\n"), err


def test_a_prepared_pod_is_started_with_as_many_sockets_as_it_was_prepared_for(
    secrun: Secrun, program: Path, tmp_path: Path
):
    """Its second run has them too: the first one fails before it has accepted anything."""
    options = ("--preserve-fds=2", "--restart=on-failure:1", f"--volume={program.parent}:/t:ro")
    script = "[ -e /again ] || { touch /again; exit 1; }; exec /t/answer"
    uuid = secrun.prepare("sh", "-c", script, options=options)
    with sockets(tmp_path, "a", "b") as given:
        refused = started(secrun, ["run-prepared", "--preserve-fds=1", uuid], given[:1])
        _, err = refused.communicate(timeout=120)
        assert refused.returncode == 125
        assert "was prepared for 2 sockets of its caller's, got 1" in err
        assert secrun.status(uuid)["state"] == "prepared"
        pod = started(secrun, ["run-prepared", "--rm", "--preserve-fds=2", uuid], given)
        assert [asked(tmp_path / name) for name in "ab"] == [
            "0 of unknown:unknown\n",
            "1 of unknown:unknown\n",
        ]
        pod.send_signal(signal.SIGTERM)
        out, err = pod.communicate(timeout=120)
    assert (pod.returncode, out) == (0, "1 1\n"), err


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (["--preserve-fds=1"], "descriptor 3 is not a socket", 2),
        (["--preserve-fds=2"], "descriptor 3 is not a socket", 2),
        (["--preserve-fds=33"], "at most 32 sockets", 2),
    ],
)
def test_what_is_no_socket_is_refused_before_anything_is_made(
    secrun: Secrun, tmp_path: Path, options: list[str], said: str, code: int
):
    before = secrun.pods()
    with (tmp_path / "file").open("w") as file:
        words = ["run", *options, *secrun.pod_options, secrun.image, "--", "true"]
        done = started(secrun, words, [file])
        _, err = done.communicate(timeout=120)
    assert (done.returncode, said in err) == (code, True), err
    assert secrun.pods() == before


def test_sockets_are_for_one_app_that_runs_on_this_kernel_and_is_not_held(secrun: Secrun, tmp_path: Path):
    two = [secrun.image, "--name=a", "--", "true", "---", secrun.image, "--name=b", "--", "true"]
    one = [secrun.image, "--", "true"]
    for options, words, said in (
        ([], two, "for a pod of one app"),
        (["--profile=strict"], one, "read back before it begins"),
        (["--stage1=kvm", "--accel=tcg"], one, "cannot be given to a guest"),
    ):
        done = secrun("prepare", "--preserve-fds=1", *options, *secrun.pod_options, *words, code=None)
        assert done.code in (2, 125)
        assert said in done.err, done
