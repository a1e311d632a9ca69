"""Pods as a user meets them: started, watched, stopped, removed."""

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pytest

from support.secrun import Secrun, eventually

RELAXED = ("--pull=never", "--insecure-options=image")


@contextlib.contextmanager
def killed_in_the_end(argv, **options):
    """Run a process that does not outlive the test, however that ends."""
    with subprocess.Popen(argv, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def expect(terminal, text, seconds=30):
    """Read from a terminal until `text` has come."""
    seen, deadline = b"", time.monotonic() + seconds
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{text!r} did not come within {seconds} s, but {seen!r}"
        seen += os.read(terminal, 4096)


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_apps_exit_code_is_ours(secrun: Secrun, code):
    assert secrun.run("sh", "-c", f"exit {code}", code=code).err == ""


def test_a_signal_becomes_128_and_its_number(secrun: Secrun):
    secrun.run("sh", "-c", "kill -USR1 $$; sleep 5", options=("--stop-timeout=1",), code=None)
    script = "trap - TERM; sh -c 'kill -KILL $$'; exit $?"
    secrun.run("sh", "-c", script, code=137)


def test_output_goes_to_the_stream_it_was_written_to(secrun: Secrun):
    result = secrun.run("sh", "-c", "echo out; echo err >&2; printf 'no newline'")
    assert result.out == "out\nno newline"
    assert result.err == "err\n"


def test_a_hundred_thousand_lines_arrive_whole_and_in_order(secrun: Secrun):
    script = "i=0; while [ $i -lt 100000 ]; do echo line $i; i=$((i+1)); done"
    assert secrun.run("sh", "-c", script).out == "".join(f"line {i}\n" for i in range(100000))


def test_arguments_and_environment_survive_unchanged(secrun: Secrun):
    odd = "a b\"c'd$HOME%h\\n\ttab\nnewline ü €"
    result = secrun.run("sh", "-c", 'printf "%s|%s" "$1" "$X"', "sh", odd, options=("-e", f"X={odd}"))
    assert result.out == f"{odd}|{odd}"


def test_an_exited_pod_tells_its_code_until_it_is_removed(secrun: Secrun):
    secrun(
        "run",
        *RELAXED,
        "--uuid-file-save",
        secrun.root / "uuid",
        secrun.image,
        "--",
        "sh",
        "-c",
        "exit 7",
        code=7,
    )
    uuid = (secrun.root / "uuid").read_text().strip()
    status = secrun.status(uuid[:13])
    assert (status["state"], status["exit_code"]) == ("exited", 7)
    assert status["apps"][0]["exit_code"] == 7
    text = secrun("status", uuid).out
    assert "state=exited" in text
    assert "exit-code=7" in text
    assert uuid[:8] in secrun("list").out
    secrun("rm", uuid)
    assert "no pod matches" in secrun("status", uuid, code=2).err


def test_a_detached_pod_runs_is_listed_entered_logged_and_stopped(secrun: Secrun):
    uuid = secrun.detach("sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done")
    try:
        assert secrun.status(uuid)["state"] == "running"
        eventually(lambda: "up" in secrun("logs", uuid).out, "the first log line")
        assert secrun("enter", uuid, "--", "sh", "-c", "echo inside; exit 9", code=9).out == "inside\n"
        assert "is running" in secrun("rm", uuid, code=125).err
        assert secrun("stop", uuid).out.strip() == uuid
        status = secrun.status(uuid)
        assert (status["state"], status["exit_code"]) == ("exited", 3)
        assert secrun("logs", uuid).out == "up\nbye\n"
        assert secrun("stop", uuid).out.strip() == uuid
    finally:
        secrun.discard(uuid)


def test_stopping_by_force_kills_at_once(secrun: Secrun):
    uuid = secrun.detach("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    secrun("stop", "--force", uuid)
    assert secrun.status(uuid)["exit_code"] == 137
    secrun("rm", uuid)


def test_an_app_that_ignores_sigterm_is_killed_after_its_timeout(secrun: Secrun):
    uuid = secrun.detach(
        "sh", "-c", "trap '' TERM; while :; do sleep 1; done", options=("--stop-timeout=1",)
    )
    secrun("stop", uuid)
    assert secrun.status(uuid)["exit_code"] == 137
    secrun("rm", uuid)


def test_prepare_then_run_prepared(secrun: Secrun):
    uuid = secrun("prepare", *RELAXED, secrun.image, "--", "sh", "-c", "echo ready; exit 4").out.strip()
    assert secrun.status(uuid)["state"] == "prepared"
    manifest = json.loads(secrun("cat-manifest", uuid).out)
    assert manifest["uuid"] == uuid
    assert manifest["apps"][0]["args"][-1] == "echo ready; exit 4"
    assert secrun("run-prepared", uuid[:9], code=4).out == "ready\n"
    assert "expected prepared" in secrun("run-prepared", uuid, code=2).err
    secrun("rm", uuid)


def test_several_apps_share_the_pod_and_the_first_failure_ends_it(secrun: Secrun):
    apps = [
        *("--name", "fails", secrun.image, "--", "sh", "-c", "sleep 0.3; exit 5", "---"),
        *(
            "--name",
            "waits",
            secrun.image,
            "--",
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do sleep 0.1; done",
        ),
    ]
    secrun("run", *RELAXED, "--uuid-file-save", secrun.root / "uuid", *apps, code=5)
    uuid = (secrun.root / "uuid").read_text().strip()
    codes = {app["name"]: app["exit_code"] for app in secrun.status(uuid)["apps"]}
    assert codes == {"fails": 5, "waits": 0}
    secrun("rm", uuid)


def test_a_pod_of_several_apps_ends_well_when_all_have(secrun: Secrun):
    apps = [
        *("--name", "a", secrun.image, "--", "sh", "-c", "echo from a", "---"),
        *("--name", "b", secrun.image, "--", "sh", "-c", "sleep 0.5; echo from b"),
    ]
    result = secrun("run", "--rm", *RELAXED, *apps)
    assert sorted(result.out.splitlines()) == ["from a", "from b"]


def test_apps_of_one_pod_share_network_and_ipc_but_not_files(secrun: Secrun):
    show = "for kind in net ipc uts mnt pid; do readlink /proc/self/ns/$kind; done"
    apps = [
        *("--name", "a", secrun.image, "--", "sh", "-c", f"touch /mine; {show}", "---"),
        *("--name", "b", secrun.image, "--", "sh", "-c", f"sleep 0.3; ls /mine 2>&1; {show}"),
    ]
    secrun("run", *RELAXED, "--uuid-file-save", secrun.root / "uuid", *apps)
    uuid = (secrun.root / "uuid").read_text().strip()
    a = secrun("logs", uuid, "a").out.splitlines()
    missing, *b = secrun("logs", uuid, "b").out.splitlines()
    assert "No such file" in missing
    assert a[:3] == b[:3]
    assert a[3] != b[3]
    assert a[4] != b[4]
    assert "several apps" in secrun("logs", uuid, code=2).err
    secrun("rm", uuid)


def test_standard_input_reaches_the_app_only_when_asked(secrun: Secrun):
    assert secrun.run("cat", options=("-i",), stdin="over the wall\n").out == "over the wall\n"
    assert secrun.run("cat", stdin="not seen").out == ""


def test_a_read_only_root_stays_as_it_is(secrun: Secrun):
    script = "touch /x 2>&1; echo done"
    assert "Read-only file system" in secrun.run("sh", "-c", script, options=("--read-only",)).out
    assert secrun.run("sh", "-c", script).out == "done\n"


def test_what_an_app_writes_is_gone_with_its_pod(secrun: Secrun):
    secrun.run("sh", "-c", "echo x > /bin/sh2; rm /etc/passwd")
    assert "root" in secrun.run("sh", "-c", "ls /bin/sh2 2>/dev/null; cat /etc/passwd").out


def test_user_workdir_hostname_and_entrypoint(secrun: Secrun):
    options = ("--user=app", "--workdir=/etc", "--hostname=box")
    script = "id -u; id -g; pwd; cat /proc/sys/kernel/hostname; echo $HOSTNAME"
    assert secrun.run("sh", "-c", script, options=options).out.split() == [
        "1000",
        "1000",
        "/etc",
        "box",
        "box",
    ]
    assert (
        secrun.run("-c", "echo by entry point", options=("--entrypoint=/bin/sh",)).out == "by entry point\n"
    )
    assert secrun.run("x", options=('--entrypoint=["echo", "two words"]',)).out == "two words x\n"


def test_volumes_map_owners_and_can_be_read_only(secrun: Secrun, tmp_path):
    (tmp_path / "a").write_text("from the host\n")
    os.chown(tmp_path / "a", 1000, 1000)
    script = "cat /data/a; stat -c %u:%g /data/a; echo new > /data/b; echo x > /ro/c 2>&1; true"
    options = ("-v", f"{tmp_path}:/data", "-v", f"{tmp_path}:/ro:ro")
    result = secrun.run("sh", "-c", script, options=options)
    assert result.out.splitlines()[:2] == ["from the host", "1000:1000"]
    assert "Read-only file system" in result.out + result.err
    assert (tmp_path / "b").stat().st_uid == 0
    assert not (tmp_path / "c").exists()


def test_a_pod_without_network_has_loopback_only(secrun: Secrun):
    assert secrun.run("ls", "/sys/class/net").out.split() == ["lo"]
    script = "cat /proc/net/route | wc -l"
    assert secrun.run("sh", "-c", script).out.strip() in ("0", "1")


def test_the_hosts_network_is_given_only_by_name(secrun: Secrun):
    host = os.readlink("/proc/self/ns/net")
    assert secrun.run("readlink", "/proc/self/ns/net").out.strip() != host
    result = secrun.run("readlink", "/proc/self/ns/net", options=("--net=host",))
    assert result.out.strip() == host
    uuid = secrun("prepare", "--net=host", *RELAXED, secrun.image, "--", "true").out.strip()
    assert "network:host" in secrun.status(uuid)["relaxations"]
    secrun("rm", uuid)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["/no/such/program"], 127, ["/no/such/program", "not found"]),
        (["nope"], 127, ["nope", "not found"]),
        (["/etc/passwd"], 126, ["/etc/passwd"]),
        (["/bin"], 126, ["/bin"]),
    ],
)
def test_a_program_that_cannot_run_is_named(secrun: Secrun, command, code, words):
    result = secrun.run(*command, code=code)
    assert all(word in result.err for word in words), result.err


def test_a_terminal_is_a_terminal_with_the_callers_size(secrun: Secrun):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    argv = secrun.argv(
        "run", "--rm", "-i", "-t", *RELAXED, secrun.image, "--", "sh", "-c", "stty size; read x; echo got $x"
    )
    with killed_in_the_end(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        expect(master, b"33 111")
        os.write(master, b"hello\n")
        expect(master, b"got hello")
        assert process.wait(30) == 0
    os.close(master)


def test_a_pod_prepared_away_from_a_terminal_has_one_of_some_size_from_the_start(secrun: Secrun):
    script = "stty size; read x; stty size"
    uuid = secrun("prepare", "-i", "-t", *RELAXED, secrun.image, "--", "sh", "-c", script).out.strip()
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    argv = secrun.argv("run-prepared", "--rm", uuid)
    with killed_in_the_end(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        # What it begins with was decided when it was prepared; the caller's own comes with the caller.
        expect(master, b"\r\n")
        os.write(master, b"\n")
        expect(master, b"33 111")
        assert process.wait(30) == 0
    os.close(master)


def test_entering_with_a_terminal_follows_its_size_and_returns_the_code(secrun: Secrun):
    uuid = secrun.detach("sleep", "1000")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 70, 0, 0))
    script = "stty size; read x; stty size; read y; exit 9"
    argv = secrun.argv("enter", "-i", "-t", uuid, "--", "sh", "-c", script)
    with killed_in_the_end(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        expect(master, b"20 70")
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 21, 71, 0, 0))
        process.send_signal(signal.SIGWINCH)
        os.close(slave)
        os.write(master, b"\n")
        expect(master, b"21 71")
        os.write(master, b"\n")
        assert process.wait(30) == 9
    os.close(master)
    secrun.discard(uuid)


def test_a_terminal_without_a_size_gets_the_usual_one(secrun: Secrun):
    uuid = secrun.detach("sleep", "1000")
    master, slave = pty.openpty()
    argv = secrun.argv("enter", "-t", uuid, "--", "stty", "size")
    with killed_in_the_end(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        expect(master, b"24 80")
        assert process.wait(30) == 0
    os.close(master)
    secrun.discard(uuid)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 6), (signal.SIGINT, 7)])
def test_signals_to_secrun_reach_the_app(secrun: Secrun, number, code):
    script = "trap 'exit 6' TERM; trap 'exit 7' INT; echo up; while :; do sleep 0.1; done"
    argv = secrun.argv("run", "--rm", *RELAXED, secrun.image, "--", "sh", "-c", script)
    with killed_in_the_end(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(30) == code


def test_waiting_for_a_pod_ends_with_it_or_with_the_deadline(secrun: Secrun):
    uuid = secrun.detach("sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; exit 2")
    assert "has not exited within 0.2s" in secrun("status", "--wait=0.2s", uuid, code=125).err
    secrun("enter", uuid, "--", "touch", "/go")
    assert "exit-code=2" in secrun("status", "--wait", uuid).out
    secrun("rm", uuid)


def test_gc_keeps_what_is_young_and_removes_what_is_due(secrun: Secrun):
    secrun("run", *RELAXED, "--uuid-file-save", secrun.root / "uuid", secrun.image, "--", "true")
    uuid = (secrun.root / "uuid").read_text().strip()
    prepared = secrun("prepare", *RELAXED, secrun.image).out.strip()
    running = secrun.detach("sleep", "1000")
    secrun("gc", "--mark-only")
    assert secrun.status(uuid)["state"] == "exited garbage"
    secrun("gc")
    assert {pod["uuid"] for pod in secrun.pods()} >= {uuid, prepared, running}
    secrun("gc", "--grace-period=0s", "--expire-prepared=0s")
    left = {pod["uuid"] for pod in secrun.pods()}
    assert running in left
    assert not left & {uuid, prepared}
    secrun.discard(running)


def test_twenty_pods_started_at_once_all_run_with_ranges_of_their_own(secrun: Secrun):
    argv = secrun.argv("run", "--rm", *RELAXED, secrun.image, "--", "cat", "/proc/self/uid_map")
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(20)]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 20, outputs
    bases = {int(out.split()[1]) for out, _ in outputs}
    assert all(base % 65536 == 0 and base >= 0x80000 for base in bases)


def test_live_pods_never_share_a_uid_range(secrun: Secrun):
    uuids = [secrun.detach("sleep", "1000") for _ in range(5)]
    try:
        assert len({secrun.status(uuid)["uid_base"] for uuid in uuids}) == 5
    finally:
        secrun("stop", "--force", *uuids)
        secrun("rm", *uuids)


def test_the_host_side_of_an_idle_pod_is_a_small_waiter(secrun: Secrun):
    uuid = secrun.detach("sleep", "1000")
    try:
        pid = secrun.status(uuid)["pid"]
        assert os.readlink(f"/proc/{pid}/exe").endswith("secrun-agent")
    finally:
        secrun.discard(uuid)


def test_a_container_has_no_machine_to_speak_of(secrun: Secrun):
    asked = ("--accel=tcg", "--storage=64m", "--vtpm")
    for option in asked:
        told = secrun("run", *RELAXED, option, secrun.image, code=125).err
        assert option.partition("=")[0] in told
        assert "--stage1=kvm" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory=1m", "IMAGE"], "least that works"),
        (["--pids-limit=0", "IMAGE"], "at least 1"),
        (["--name=UPPER", "IMAGE"], "cannot be an app's name"),
        (["--user=nobody-knows", "IMAGE"], "not in the image's /etc/passwd"),
        (["--cap-add=CAP_MAGIC", "IMAGE"], "unknown capability"),
        (["-v", "/no/such/dir:/x", "IMAGE"], "does not exist"),
        (["--stage1=moon", "IMAGE"], "unknown stage1 flavour"),
        (["-d", "-t", "IMAGE"], "foreground"),
        (["IMAGE", "---", "IMAGE"], "two apps are called"),
        (["IMAGE", "stray"], "stray"),
    ],
)
def test_requests_without_meaning_are_refused_before_anything_starts(secrun: Secrun, words, message):
    before = len(secrun.pods())
    filled = [secrun.image if word == "IMAGE" else word for word in words]
    assert message in secrun("run", *RELAXED, *filled, code=2).err
    assert len(secrun.pods()) == before


def test_a_limit_that_this_host_cannot_set_is_refused_by_name(secrun: Secrun):
    from secrun.stage1 import cgroups

    offered = cgroups.host().controllers()
    for option, controller in (("--memory=64m", "memory"), ("--cpus=1", "cpu"), ("--pids-limit=9", "pids")):
        result = secrun.run("true", options=(option,), code=0 if controller in offered else 125)
        assert controller in offered or f"controller '{controller}', which is missing" in result.err
