"""System containers: what is asked for, what an init gets for it, and what is refused."""

import pytest

from secrun.errors import UsageError
from secrun.pod import policy, system
from secrun.pod.request import AppRequest, Systemd
from secrun.pod.security import SecurityRequest
from secrun.stage1 import bundle
from secrun.stage1.bundle import Extras, Process
from secrun.stage1.manifest import Network
from secrun.stage1.security import Tmpfs
from secrun.stage1.volume import EmptyVolume

ASKED = (Systemd.TRUE, Systemd.ALWAYS)


def app(systemd: Systemd, **security: object) -> AppRequest:
    return AppRequest(image="image", systemd=systemd, security=SecurityRequest(**security))  # type: ignore[arg-type]  # fields by name


def process(program: str, uid: int = 0) -> Process:
    return Process(args=(program,), env=(), cwd="/", uid=uid, gid=0, groups=(), terminal=False)


@pytest.mark.parametrize(
    "program", ["/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init", "/lib/systemd/systemd", "systemd"]
)
def test_known_inits_are_systems(program):
    system.check(app(Systemd.TRUE), process(program))


@pytest.mark.parametrize("program", ["init", "/opt/init", "/bin/sh", "/usr/bin/systemd-run"])
def test_another_program_is_one_only_if_that_is_said(program):
    with pytest.raises(UsageError, match="not known as an init"):
        system.check(app(Systemd.TRUE), process(program))
    system.check(app(Systemd.ALWAYS), process(program))
    system.check(app(Systemd.FALSE), process(program, uid=5))


@pytest.mark.parametrize("asked", ASKED)
def test_only_root_can_be_an_init(asked):
    with pytest.raises(UsageError, match="runs as user 5"):
        system.check(app(asked), process("/sbin/init", uid=5))


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, ("CAP_SETPCAP",)),
        ({"cap_add": ("CHOWN",), "cap_drop": ("KILL",)}, ("CHOWN", "CAP_SETPCAP")),
        ({"cap_add": ("setpcap",)}, ("setpcap",)),
        ({"cap_drop": ("CAP_SETPCAP",)}, ()),
        ({"cap_drop": ("all",)}, ()),
        ({"cap_add": ("all",)}, ("all",)),
        ({"capabilities": ("CAP_CHOWN",)}, ()),
        ({"privileged": True}, ()),
    ],
)
def test_the_capability_is_added_unless_more_was_said(given, added):
    assert system.prepared(app(Systemd.TRUE, **given)).security.cap_add == added
    assert system.prepared(app(Systemd.FALSE, **given)).security.cap_add == given.get("cap_add", ())


def test_folders_in_memory_give_way_to_what_is_mounted_there():
    folders = policy.writable_folders(app(Systemd.TRUE, tmpfs=(Tmpfs(target="/tmp", executable=True),)))
    assert sorted(folder.target for folder in folders) == ["/run", "/run/lock", "/tmp", "/var/log/journal"]
    assert [folder.executable for folder in folders if folder.target == "/tmp"] == [True]
    kept = EmptyVolume(name="journal", target="/var/log/journal")
    with_volume = AppRequest(image="image", systemd=Systemd.TRUE, empty_volumes=(kept,))
    assert "/var/log/journal" not in {folder.target for folder in policy.writable_folders(with_volume)}
    assert policy.writable_folders(app(Systemd.FALSE)) == ()


def test_read_only_folders_and_those_of_an_init_are_each_there_once():
    request = AppRequest(
        image="image",
        systemd=Systemd.TRUE,
        read_only=True,
        security=SecurityRequest(read_only_tmpfs=True),
    )
    targets = [folder.target for folder in policy.writable_folders(request)]
    assert len(set(targets)) == len(targets)
    assert {"/run", "/run/lock", "/tmp", "/var/tmp", "/var/log/journal"} == set(targets)


@pytest.mark.parametrize(
    ("asked", "said", "of_image", "number"),
    [
        (Systemd.TRUE, None, None, 37),
        (Systemd.TRUE, None, "SIGTERM", 15),
        (Systemd.TRUE, "USR1", "SIGTERM", 10),
        (Systemd.FALSE, None, None, 15),
    ],
)
def test_an_init_is_asked_to_halt_unless_another_signal_was_named(asked, said, of_image, number):
    request = AppRequest(image="image", systemd=asked, stop_signal=said)
    assert system.stop_signal(request, of_image) == number


@pytest.mark.parametrize("own", [True, False])
def test_only_a_system_has_a_writable_control_group_and_a_namespace_for_it(own):
    config = bundle.runtime_config(
        app="a",
        salt="",
        process=process("/sbin/init"),
        network=Network.NONE,
        etc=(),
        read_only=False,
        extras=Extras(control_group=own),
        process_confinement={},
        linux_confinement={},
    )
    kinds = [item["type"] for item in config["linux"]["namespaces"]]  # type: ignore[index, union-attr, call-overload]  # made above
    mounts = {item["destination"]: item["options"] for item in config["mounts"]}  # type: ignore[index, union-attr, call-overload]  # made above
    assert ("cgroup" in kinds) is own
    assert mounts.get("/sys/fs/cgroup") == (["rw", "nosuid", "noexec", "nodev"] if own else None)
