"""From an image's configuration and a request to the process that will run."""

from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.errors import InvokeError, UsageError
from secrun.image.config import ImageConfig
from secrun.image.rootfs import Group, Passwd, RootfsImage
from secrun.pod.process import resolve, resolve_user
from secrun.pod.request import AppRequest
from secrun.record import replace

DIGEST = Digest("sha256", "0" * 64)
ROOTFS = RootfsImage(
    key=DIGEST,
    path=Path("/nowhere"),
    format_version=1,
    data_size=8192,
    file_size=16384,
    tree_digest=DIGEST,
    verity_root="",
    verity_salt="",
    max_id=1000,
    users=(
        Passwd(name="root", uid=0, gid=0, home="/root"),
        Passwd(name="app", uid=1000, gid=1001, home="/srv"),
        Passwd(name="huge", uid=70_000, gid=0, home="/"),
        Passwd(name="12", uid=44, gid=45, home="/twelve"),
    ),
    groups=(
        Group(name="wheel", gid=10, members=("app", "root")),
        Group(name="apps", gid=1001, members=()),
        Group(name="video", gid=44, members=("app",)),
    ),
    diff_ids=(),
)
BARE = replace(ROOTFS, users=(), groups=())


def config(**fields):
    empty = dict.fromkeys(("variant", "created", "user", "working_dir", "stop_signal"), "")
    lists = dict.fromkeys(("entrypoint", "cmd", "env", "volumes", "exposed_ports", "labels", "diff_ids"), ())
    return ImageConfig(**{"architecture": "amd64", "os": "linux", **empty, **lists, **fields})


def process(image=None, **fields):
    request = AppRequest(**{"image": "docker://r/app:1", "args": ("x",), **fields})
    return resolve(request, image or config(), ROOTFS, "host-1")


@pytest.mark.parametrize(
    ("text", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, (10,), "/root"),
        ("root", 0, 0, (10,), "/root"),
        ("app", 1000, 1001, (10, 44), "/srv"),
        ("1000", 1000, 1001, (10, 44), "/srv"),
        ("app:video", 1000, 44, (), "/srv"),
        ("app:7", 1000, 7, (), "/srv"),
        ("app:", 1000, 1001, (10, 44), "/srv"),
        ("5000", 5000, 0, (), "/"),
        ("5000:apps", 5000, 1001, (), "/"),
        # A name of digits is a name first.
        ("12", 44, 45, (), "/twelve"),
    ],
)
def test_users_and_groups_are_those_of_the_image(text, uid, gid, groups, home):
    user = resolve_user(text, ROOTFS, "it")
    assert (user.uid, user.gid, user.groups, user.home) == (uid, gid, groups, home)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ghost", "it: user 'ghost' is not in the image's /etc/passwd"),
        ("app:ghosts", "it: group 'ghosts' is not in the image's /etc/group"),
        ("-1", "user '-1' is not in"),
        ("\u0661", "is not in the image's /etc/passwd"),
        ("65536", "user 65536 is beyond the 65536 ids of a pod"),
        ("0:65536", "group 65536 is beyond"),
        ("huge", "user 70000 is beyond"),
    ],
)
def test_a_user_that_the_image_or_the_pod_does_not_have_is_refused_by_name(text, said):
    with pytest.raises(UsageError) as caught:
        resolve_user(text, ROOTFS, "it")
    assert said in caught.value.message
    assert caught.value.code == "image-user"


def test_an_image_without_passwd_has_a_root_and_nobody_else():
    assert resolve_user("root:root", BARE, "it").uid == 0
    with pytest.raises(UsageError, match="'app' is not in"):
        resolve_user("app", BARE, "it")


def test_the_request_names_the_user_before_the_image_does():
    image = config(user="ghost")
    assert process(image, user="app").uid == 1000
    with pytest.raises(UsageError, match="docker://r/app:1: user 'ghost'"):
        process(image)


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "asked", "args", "found"),
    [
        (("e",), ("c",), None, (), ("e", "c")),
        (("e",), ("c",), None, ("x",), ("e", "x")),
        ((), ("c",), None, (), ("c",)),
        ((), ("c",), None, ("x",), ("x",)),
        # A replaced entry point takes the image's arguments away with it.
        (("e",), ("c",), ("n", "m"), (), ("n", "m")),
        (("e",), ("c",), ("n",), ("x",), ("n", "x")),
        (("e",), ("c",), (), ("x",), ("x",)),
    ],
)
def test_entry_point_and_arguments_combine_as_in_podman(entrypoint, cmd, asked, args, found):
    image = config(entrypoint=entrypoint, cmd=cmd)
    assert process(image, entrypoint=asked, args=args).args == found


@pytest.mark.parametrize(
    ("cmd", "entrypoint"), [((), None), (("",), None), (("c",), ())], ids=["none", "empty", "cleared"]
)
def test_an_app_without_a_program_is_refused(cmd, entrypoint):
    with pytest.raises(InvokeError, match="names no program to run"):
        process(config(cmd=cmd), args=(), entrypoint=entrypoint)


def test_the_environment_comes_from_secrun_then_the_image_then_the_request():
    image = config(env=("PATH=/image", "A=image", "B=image=x"))
    env = dict(word.split("=", 1) for word in process(image, env=(("A", "asked"), ("C", ""))).env)
    assert env["PATH"] == "/image"
    assert (env["A"], env["B"], env["C"]) == ("asked", "image=x", "")
    assert (env["HOME"], env["HOSTNAME"], env["container"]) == ("/root", "host-1", "secrun")
    assert "TERM" not in env
    assert "TERM=xterm" in process(terminal=True).env
    assert "TERM=dumb" in process(config(env=("TERM=dumb",)), terminal=True).env


def test_a_working_directory_is_absolute():
    assert process().cwd == "/"
    assert process(config(working_dir="/image")).cwd == "/image"
    assert process(config(working_dir="/image"), workdir="/asked").cwd == "/asked"
    with pytest.raises(UsageError, match="'srv' is not an absolute path"):
        process(config(working_dir="srv"))


def test_a_group_alone_leaves_the_user_to_the_image():
    found = process(config(user="app:wheel"), user=":video")
    assert (found.uid, found.gid) == (1000, 44)


def test_further_groups_are_added_to_the_users_own():
    found = process(config(user="app"), groups=("apps", "77"))
    assert found.groups == (10, 44, 77, 1001)
    with pytest.raises(UsageError, match="group 'nobody' is not in the image's /etc/group"):
        process(groups=("nobody",))


def test_the_callers_variables_never_override_the_images():
    found = process(
        config(env=("A=image", "B=image")), host_env={"A": "host", "C": "host"}, env=(("B", "asked"),)
    )
    env = dict(word.split("=", 1) for word in found.env)
    assert (env["A"], env["B"], env["C"]) == ("image", "asked", "host")
    assert env["PATH"].startswith("/usr/local/sbin")


def test_variables_of_the_image_can_be_left_out_and_set_again():
    found = process(config(env=("A=image", "B=image")), unset_env=("A", "B", "PATH"), env=(("B", "asked"),))
    env = dict(word.split("=", 1) for word in found.env)
    assert "A" not in env
    assert "PATH" not in env
    assert env["B"] == "asked"


def test_a_mask_is_the_processes():
    assert process(umask=0o27).to_oci({})["user"]["umask"] == 0o27
    assert "umask" not in process().to_oci({})["user"]
