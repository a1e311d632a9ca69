"""Volumes: by name, in every spelling, and bound to the place that was named."""

import dataclasses
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import lab
from support.secrun import Secrun

RELAXED = ("--pull=never", "--insecure-options=image")


@pytest.fixture
def named(secrun: Secrun) -> Iterator[str]:
    secrun("volume", "create", "data")
    yield "data"
    secrun("gc", "--grace-period=0s")
    secrun("volume", "rm", "data", code=None)


def test_what_a_pod_writes_to_a_named_volume_the_next_one_reads(secrun: Secrun, named: str):
    secrun.run("sh", "-c", "echo kept > /v/file; chown 5:6 /v/file", options=("-v", "data:/v"))
    shown = secrun.run("sh", "-c", "cat /v/file; stat -c %u:%g /v/file", options=("-v", "data:/v:ro"))
    assert shown.out == "kept\n5:6\n"
    refused = secrun.run("touch", "/v/other", options=("-v", "data:/v:ro"), code=1)
    assert "Read-only" in refused.err
    assert (secrun.root / "volumes/data/data/file").stat().st_uid == 5


def test_a_named_volume_is_listed_and_kept_while_a_pod_may_use_it(secrun: Secrun, named: str):
    uuid = secrun("prepare", "-v", "data:/v", *RELAXED, secrun.image, "--", "true").out.strip()
    assert "data" in secrun("volume", "list").out
    shown = json.loads(secrun("volume", "inspect", "--format=json", "data").out)
    assert (shown["schema"], shown["name"], shown["pods"]) == ("secrun.dev/volume/v1", "data", [uuid])
    assert uuid in secrun("volume", "rm", "data", code=125).err
    secrun("rm", uuid)
    secrun("volume", "rm", "data")
    assert json.loads(secrun("volume", "list", "--format=json").out)["volumes"] == []


def test_names_of_volumes(secrun: Secrun, named: str):
    assert "exists" in secrun("volume", "create", "data", code=125).err
    for name in ("../x", "a/b", ".hidden", "x" * 200):
        assert "cannot be a volume's name" in secrun("volume", "create", name, code=2).err
    said = secrun.run("true", options=("-v", "absent:/v"), code=2).err
    assert "secrun volume create absent" in said


@pytest.mark.parametrize(
    "options",
    [
        ("--mount", "type=bind,source={0},target=/v,readonly"),
        ("--mount", "type=bind,src={0},dst=/v,ro=true"),
        ("-v", "{0}:/v:ro"),
        ("--volume", "web,kind=host,source={0},readOnly=true", "--mount", "volume=web,target=/v"),
    ],
)
def test_every_spelling_of_a_folder_of_the_host(secrun: Secrun, tmp_path: Path, options: tuple[str, ...]):
    (tmp_path / "file").write_text("seen\n")
    words = tuple(word.format(tmp_path) for word in options)
    assert secrun.run("cat", "/v/file", options=words).out == "seen\n"
    assert secrun.run("touch", "/v/other", options=words, code=1).out == ""


def test_a_folder_in_memory_in_words(secrun: Secrun):
    option = ("--mount", "type=tmpfs,target=/m,tmpfs-size=1m,tmpfs-mode=700")
    shown = secrun.run("sh", "-c", "grep ' /m ' /proc/mounts; stat -c %a /m", options=option).out
    assert "size=1024k" in shown
    assert shown.endswith("700\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mount", "type=moon,target=/v"), "type 'moon' is none of"),
        (("--mount", "type=bind,source=/etc"), "it has no target"),
        (("--mount", "type=bind,source=etc,target=/v"), "is not an absolute path"),
        (("--mount", "type=tmpfs,target=/v,source=/etc"), "'source' is not known for type tmpfs"),
        (("--mount", "type=bind,source=/etc,target=/v,target=/w"), "given twice"),
        (("--mount", "type=bind,source=/etc,target=/v,readonly=maybe"), "neither true nor false"),
        (("--mount", "type=image,source=x,target=/v"), "secrun image export"),
        (("--mount", "type=glob,source=/etc/*,target=/v"), "each source is named"),
        (("--mount", "volume=x,target=/v"), "there is no --volume x"),
        (("--volume", "x,kind=moon", "--mount", "volume=x,target=/v"), "neither host nor empty"),
        (("--volume", "x,kind=empty,source=/etc"), "source is not possible"),
        (("--volume", "x,kind=empty,mode=rwx"), "mode 'rwx' is not one of chmod(1)"),
        (("--volume", "x,kind=empty,uid=65536"), "an owner is not a number from 0 to 65535"),
        (("--volume", "x,kind=empty", "-v", "x,kind=empty"), "the name is given twice"),
        (("-v", "/etc:/v:rslave"), "'rslave' is not possible"),
        (
            ("--mount", "type=bind,source=/etc,target=/v,bind-propagation=rshared"),
            "'rshared' is not possible",
        ),
        (("-v", "/etc:/v:U"), "'U' is not possible"),
        (("-v", "/etc:/v:copy"), "only volumes of secrun are filled"),
        (("-v", "/etc:/v:ro,rw"), "two things of one kind"),
        (("-v", "/dev/null:/v"), "/dev/null is a device"),
        (("-v", "/no/such/place:/v"), "does not exist on this host"),
        (("-v", "/etc:/v/../../x"), "without .."),
    ],
)
def test_what_has_no_meaning_is_an_error(secrun: Secrun, options: tuple[str, ...], said: str):
    assert said in secrun.run("true", options=options, code=2).err


def test_a_dangling_link_is_no_source(secrun: Secrun, tmp_path: Path):
    (tmp_path / "link").symlink_to("nowhere")
    assert "does not exist" in secrun.run("true", options=("-v", f"{tmp_path}/link:/v"), code=2).err


def test_a_source_that_became_a_link_is_refused(secrun: Secrun, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "secret").mkdir()
    words = ("prepare", "-v", f"{tmp_path}/a:/v", *RELAXED, secrun.image, "--", "ls", "/v")
    uuid = secrun(*words).out.strip()
    (tmp_path / "a").rmdir()
    (tmp_path / "a").symlink_to("secret")
    assert "'a' is a symbolic link now" in secrun("run-prepared", uuid, code=125).err
    secrun("rm", uuid)


def test_a_source_that_is_swapped_while_the_pod_runs_stays_what_it_was(secrun: Secrun, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("first\n")
    uuid = secrun.detach("sleep", "1000", options=("-v", f"{tmp_path}/a:/v"))
    (tmp_path / "a").rename(tmp_path / "moved")
    (tmp_path / "a").symlink_to("/etc")
    assert secrun("enter", uuid, "--", "cat", "/v/file").out == "first\n"
    secrun.discard(uuid)


def test_a_pod_that_removes_itself_leaves_its_volumes_alone(secrun: Secrun, tmp_path: Path):
    (tmp_path / "ü").mkdir()
    (tmp_path / "ü/file").write_text("precious\n")
    secrun.run("true", options=("-v", f"{tmp_path}/ü:/v"))
    assert (tmp_path / "ü/file").read_text() == "precious\n"


def test_read_only_holds_for_what_is_mounted_below(secrun: Secrun, tmp_path: Path):
    below = tmp_path / "v/below"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        script = "touch /v/below/file 2>/dev/null && echo written; grep -c ' /v/below ' /proc/mounts"
        assert secrun.run("sh", "-c", script, options=("-v", f"{tmp_path}/v:/v:ro")).out == "1\n"
        secrun.run("touch", "/v/below/file", options=("-v", f"{tmp_path}/v:/v"))
    finally:
        subprocess.run(["umount", below], check=True)


def test_a_file_system_that_cannot_map_owners_is_named(secrun: Secrun):
    said = secrun.run("true", options=("-v", "/sys/kernel:/v"), code=125).err
    assert "volume /v of app" in said
    assert "/sys/kernel: owners cannot be mapped there" in said


# --- volumes of the pod's own


def test_an_empty_volume_is_shared_by_the_apps_that_name_it_and_goes_with_the_pod(secrun: Secrun):
    declared = ("--volume", "shared,kind=empty,mode=2750,uid=7,gid=8")
    mounted = ("--mount", "volume=shared,target=/here")
    say = (
        "until [ -e /here/said ]; do sleep 0.1; done; cat /here/said; stat -c '%a %u:%g %n' /here /here/said"
    )
    uuid, result = secrun.kept(
        *(
            "--name=writer",
            *declared,
            *mounted,
            secrun.image,
            "--",
            "sh",
            "-c",
            "echo well >/here/said",
            "---",
        ),
        *("--name=reader", "--mount", "volume=shared,target=/here,readOnly=true", secrun.image),
        *("--", "sh", "-c", f"{say}; touch /here/more"),
        code=1,
    )
    assert result.out == "well\n2750 7:8 /here\n644 0:8 /here/said\n"
    assert "Read-only file system" in result.err
    assert [path.name for path in secrun.root.glob(f"pods/*/{uuid}/rw/volumes/*")] == ["shared"]
    secrun("rm", uuid)
    assert list(secrun.root.glob(f"pods/*/{uuid}")) == []


def test_a_volume_without_a_name_is_the_apps_alone_and_gets_what_the_image_has_there(secrun: Secrun):
    script = (
        "ls /bin | wc -l; readlink /bin/ls; stat -c '%a %u %g %Y' /bin /bin/busybox /tmp; touch /bin/x"
        "; ls /new"
    )
    plain = secrun.run("sh", "-c", script.replace("ls /new", "true")).out
    options = ("-v", "/bin", "--mount", "type=volume,target=/tmp,noexec", "-v", "/new")
    shown = secrun.run(
        "sh", "-c", f"{script}; grep -c ' /bin \\| /tmp .*noexec' /proc/mounts", options=options
    ).out
    assert shown == f"{plain}2\n"
    apart = secrun.run(
        "ls", "/bin", options=("--mount", "type=volume,target=/e,mode=700,uid=5,gid=6", "-v", "/bin")
    )
    assert "busybox" in apart.out
    own = ("--mount", "type=volume,target=/e,mode=1777,uid=5,gid=6")
    assert secrun.run("stat", "-c", "%a %u:%g", "/e", options=own).out == "1777 5:6\n"


def test_a_new_named_volume_gets_what_the_image_has_there_once(secrun: Secrun, named: str):
    secrun.run("sh", "-c", "rm /bin/false; touch /bin/own", options=("-v", "data:/bin"))
    shown = secrun.run("sh", "-c", "ls /bin/false /bin/own", options=("-v", "data:/bin"), code=1)
    assert shown.out == "/bin/own\n"
    assert (secrun.root / "volumes/data/data/ls").is_symlink()


@pytest.mark.parametrize("options", [("-v", "data:/bin2/../etc"), ("-v", "data:/etc:nocopy,ro")])
def test_a_volume_that_is_not_to_be_filled_stays_empty(secrun: Secrun, named: str, options: tuple[str, ...]):
    secrun.run("true", options=options, code=None)
    assert list((secrun.root / "volumes/data/data").iterdir()) == []


def test_a_named_volume_belongs_to_whom_it_was_made_for(secrun: Secrun):
    secrun("volume", "create", "--uid=1000", "--gid=1001", "--mode=2770", "owned")
    options = ("-v", "owned:/var", "--user=1000:1001")
    said = secrun.run("sh", "-c", "touch /var/x; stat -c '%a %u:%g' /var /var/x", options=options).out
    assert said == "2770 1000:1001\n644 1000:1001\n"
    secrun("volume", "rm", "owned")
    for option in ("--uid=-1", "--gid=65536", "--mode=9", "--mode=u+x"):
        assert option.split("=")[0] in secrun("volume", "create", option, "owned", code=2).err


def test_volumes_that_no_pod_may_use_are_pruned(secrun: Secrun):
    for name in ("used", "unused"):
        secrun("volume", "create", name)
    uuid = secrun("prepare", "-v", "used:/v", *RELAXED, secrun.image, "--", "true").out.strip()
    assert secrun("volume", "prune").out == "unused\n"
    secrun("rm", uuid)
    assert secrun("volume", "prune").out == "used\n"


# --- images and programs that mean no good


@pytest.fixture(scope="module")
def hostile(secrun: Secrun, tmp_path_factory: pytest.TempPathFactory) -> Secrun:
    """An image in which every name that a volume may be asked for leads elsewhere."""
    folder = tmp_path_factory.mktemp("hostile")
    links = {
        "absolute": "/etc",
        "up": "../../../../../../../../var/target",
        "chain": "home/../../../../absolute",
        "dangling": "/nowhere/at/all",
        "loop": "loop",
        "procs": "/proc",
        "self": "/proc/self/root/var",
        "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
    }
    with tarfile.open(folder / "links.tar", "w") as archive:
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
        for name, kind, linked in (
            ("full", tarfile.DIRTYPE, ""),
            ("full/out", tarfile.SYMTYPE, "/etc/shadow"),
            ("full/further", tarfile.DIRTYPE, ""),
            ("full/further/out", tarfile.SYMTYPE, "../../../../../../../etc"),
            ("full/suid", tarfile.REGTYPE, ""),
            ("odd", tarfile.DIRTYPE, ""),
            ("odd/fifo", tarfile.FIFOTYPE, ""),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.uid, entry.mode = kind, linked, 9, 0o4755
            archive.addfile(entry)
    layers = [lab.busybox_tar(folder / "busybox.tar"), folder / "links.tar"]
    lab.write_image(folder / "layout", "hostile", layers, lab.Recipe(environment=("PATH=/bin",)))
    fetched = secrun("fetch", "--insecure-options=image", f"oci:{folder / 'layout'}:hostile")
    return dataclasses.replace(secrun, image=fetched.out.split()[-1])


@pytest.mark.parametrize(
    ("target", "inside"),
    [
        ("/absolute/deep/er", "/etc/deep/er"),
        ("/up", "/var/target"),
        ("/chain/x", "/etc/x"),
        ("/dangling/x", "/nowhere/at/all/x"),
        ("/missing/folders", "/missing/folders"),
    ],
)
def test_a_target_is_looked_up_inside_the_image_whatever_its_links_say(
    hostile: Secrun, tmp_path: Path, target: str, inside: str
):
    (tmp_path / "file").write_text("seen\n")
    before = {place: set(os.listdir(place)) for place in ("/", "/etc", "/var")}
    assert hostile.run("cat", f"{inside}/file", options=("-v", f"{tmp_path}:{target}")).out == "seen\n"
    assert {place: set(os.listdir(place)) for place in before} == before


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/loop/x", "Too many levels of symbolic links"),
        # A volume there would let the app's tools see what somebody else wrote.
        ("/procs", "a link of the image leads to /proc"),
        ("/self", "a link of the image leads to /proc/self/root/var"),
        ("/chain/../../procs/sys", "without .."),
        ("/proc/sys", "would hide what the app needs"),
        ("/sys/kernel", "would hide what the app needs"),
        ("/bin/busybox/x", "Not a directory"),
    ],
)
def test_a_target_that_leads_nowhere_or_to_the_kernels_files_is_refused(
    hostile: Secrun, tmp_path: Path, target: str, said: str
):
    refused = hostile.run("true", options=("-v", f"{tmp_path}:{target}"), code=None)
    assert (refused.code in (2, 125), said in refused.err) == (True, True), refused


def test_a_name_server_file_that_is_a_link_to_nowhere_is_the_pods_all_the_same(hostile: Secrun):
    """Images of systems with systemd-resolved have one."""
    shown = hostile.run("cat", "/etc/resolv.conf", options=("--dns=192.0.2.1",)).out
    assert shown == "nameserver 192.0.2.1\n"


def test_copying_follows_no_link_of_the_image_and_keeps_owners_and_modes(hostile: Secrun, named: str):
    said = hostile.run("sh", "-c", "stat -c '%a %u %N' /full /full/*", options=("-v", "data:/full")).out
    assert said.splitlines() == [
        "4755 9 /full",
        "4755 9 /full/further",
        "777 9 '/full/out' -> '/etc/shadow'",
        "4755 9 /full/suid",
    ]
    copied = hostile.root / "volumes/data/data"
    assert os.readlink(copied / "further/out") == "../../../../../../../etc"


@pytest.mark.parametrize(
    ("target", "said"), [("/odd", "no file, folder or link"), ("/full/suid", "not a folder there")]
)
def test_what_cannot_be_copied_stops_the_app_and_is_named(
    hostile: Secrun, named: str, target: str, said: str
):
    result = hostile.run("true", options=("-v", f"data:{target}"), code=125)
    assert said in result.err
    assert "nocopy" in result.err


# --- what the host and the pod mount below a volume


def test_what_the_host_mounts_below_a_volume_later_is_not_in_the_pod_and_is_not_kept_busy(
    secrun: Secrun, tmp_path: Path
):
    (tmp_path / "v/late").mkdir(parents=True)
    uuid = secrun.detach("sleep", "1000", options=("-v", f"{tmp_path}/v:/v"))
    try:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "v/late"], check=True)
        (tmp_path / "v/late/file").touch()
        assert secrun("enter", uuid, "--", "ls", "/v/late").out == ""
        subprocess.run(["umount", tmp_path / "v/late"], check=True)
    finally:
        secrun.discard(uuid)


def test_programs_of_a_volume_can_be_kept_from_running(secrun: Secrun, tmp_path: Path):
    (tmp_path / "program").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "program").chmod(0o755)
    assert secrun.run("/v/program", options=("-v", f"{tmp_path}:/v")).out == "ran\n"
    assert secrun.run("/v/program", options=("-v", f"{tmp_path}:/v:noexec"), code=None).out == ""
