"""What users of rkt rely on and no other test asks: small things, several of one pod."""

from pathlib import Path

from support.secrun import Secrun


def test_what_an_app_has_that_nobody_named(secrun: Secrun):
    script = "ls -A /etc; echo @; env; echo @; ls /sys; echo @; mknod /tmp/null c 1 3 2>&1 || true"
    files, variables, kernel, node = secrun.run("sh", "-c", script).out.split("@\n")
    assert set(files.split()) == {"group", "hostname", "hosts", "passwd", "resolv.conf"}
    named = dict(line.partition("=")[::2] for line in variables.splitlines())
    assert {"PATH", "HOME", "HOSTNAME", "container"} <= named.keys() <= {
        "PATH", "HOME", "HOSTNAME", "container", "PWD", "SHLVL"
    }  # fmt: skip
    assert named["container"] == "secrun"
    assert {"block", "class", "kernel"} <= set(kernel.split())
    assert "Operation not permitted" in node


def test_a_volume_in_a_read_only_root_can_be_written(secrun: Secrun, tmp_path: Path):
    odd = tmp_path / "a:b,c d"
    odd.mkdir()
    mounted = f"{tmp_path}/a\\:b,c d:/odd"
    script = "touch /x; echo kept > /odd/x"
    said = secrun.run("sh", "-c", script, options=("--read-only", "-v", mounted))
    assert "Read-only file system" in said.err
    assert (odd / "x").read_text() == "kept\n"


def test_debug_tells_each_step(secrun: Secrun):
    said = secrun("--debug", "run", "--rm", *secrun.pod_options, secrun.image, "--", "true").err
    steps = [line.removeprefix("secrun: debug: ") for line in said.splitlines()]
    assert steps.index("prepared") < steps.index("images-mounted") < steps.index("before-waiter")


def test_the_uuid_of_a_start_that_fails_is_saved(secrun: Secrun, tmp_path: Path):
    saved = tmp_path / "uuid"
    words = (*secrun.pod_options, f"--uuid-file-save={saved}", "--user=nobody-knows", secrun.image)
    secrun("run", *words, code=2)
    uuid = saved.read_text().strip()
    secrun("rm", f"--uuid-file={saved}", code=None)
    assert uuid not in secrun("list", "-q").out


def test_stopping_what_has_ended_is_no_error(secrun: Secrun):
    uuid, _ = secrun.kept(secrun.image, "--", "true")
    assert secrun("stop", uuid).out.split() == [uuid]
    assert secrun.status(uuid)["exit_code"] == 0
    secrun("rm", uuid)


def test_several_pods_are_removed_though_one_cannot_be(secrun: Secrun):
    first, second = secrun.prepare("true"), secrun.prepare("true")
    result = secrun("rm", first, "ffffffff", second, code=2)
    assert result.out.split() == [first, second]
    assert "no pod matches 'ffffffff'" in result.err
