"""The compiler: what a request becomes, and that everything weaker is named and digested."""

import json

import pytest

from secrun_policies.confine import (
    AppFacts,
    HostFacts,
    PodFacts,
    RelaxationKind,
    Rlimit,
    compile_app,
    compile_pod,
)
from secrun_policies.errors import PolicyError
from secrun_policies.host import read_host
from secrun_policies.libseccomp import compile_bpf
from secrun_policies.oci import to_oci
from secrun_policies.outer import NetworkMode
from secrun_policies.profiles import default_profile
from secrun_policies.seccomp import Action, parse_profile

HOST = HostFacts(architecture="x86_64", kernel=(6, 1), last_capability=40, seccomp=True)


def app(**fields):
    return AppFacts(**{"name": "web", "seccomp": default_profile(), **fields})


def pod(*apps, network=NetworkMode.NONE):
    return PodFacts(network=network, apps=apps)


def compiled(host=HOST, **fields):
    one = app(**fields)
    return compile_app(pod(one), one, host)


def kinds(confinement):
    return [item.kind for item in confinement.relaxations]


def test_the_default_relaxes_nothing():
    result = compiled()
    assert result.relaxations == ()
    assert result.no_new_privileges
    assert result.seccomp is not None
    assert "/proc/kcore" in result.masked_paths
    assert "/proc/sys" in result.readonly_paths


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"cap_add": ("net_raw",)}, RelaxationKind.CAPABILITY),
        ({"cap_add": ("net_bind_service",), "uid": 7}, RelaxationKind.CAPABILITY),
        ({"seccomp": None}, RelaxationKind.SECCOMP_UNCONFINED),
        (
            {"seccomp": parse_profile(b'{"defaultAction": "SCMP_ACT_ALLOW"}', name="/x")},
            RelaxationKind.SECCOMP_PROFILE,
        ),
        ({"unmasked_paths": True}, RelaxationKind.UNMASKED_PATHS),
        ({"new_privileges": True}, RelaxationKind.NEW_PRIVILEGES),
        ({"rlimits": (Rlimit(name="RLIMIT_CORE", soft=0, hard=1),)}, RelaxationKind.CORE_DUMPS),
    ],
)
def test_each_relaxation_has_a_name_and_changes_the_digest(fields, kind):
    result = compiled(**fields)
    assert kinds(result) == [kind]
    assert result.digest != compiled().digest


def test_what_is_stricter_is_no_relaxation():
    result = compiled(cap_drop=("all",), uid=1000, rlimits=(Rlimit(name="RLIMIT_NOFILE", soft=64, hard=64),))
    assert result.relaxations == ()


def test_the_digest_covers_every_section_and_is_stable():
    assert compiled().digest == compiled().digest
    variants = [compiled(), compiled(cap_drop=("kill",)), compiled(uid=5), compiled(name="other")]
    assert len({item.digest for item in variants}) == len(variants)


def test_oci_sections():
    process, linux = to_oci(compiled(uid=33, cap_add=("kill",)))
    assert process == {
        "capabilities": {
            "bounding": ["CAP_KILL"],
            "effective": ["CAP_KILL"],
            "permitted": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        },
        "noNewPrivileges": True,
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
    }
    assert linux["seccomp"]["defaultErrnoRet"] == 38
    assert linux["seccomp"]["architectures"] == ["SCMP_ARCH_X86_64"]
    assert json.loads(json.dumps(linux)) == linux


def test_root_inherits_nothing_across_exec():
    process, _ = to_oci(compiled())
    assert process["capabilities"]["inheritable"] == process["capabilities"]["ambient"] == []


def test_an_unconfined_app_has_no_seccomp_section():
    assert "seccomp" not in to_oci(compiled(seccomp=None))[1]


def test_a_host_without_filters_fails_closed():
    host = HOST._replace(seccomp=False)
    with pytest.raises(PolicyError, match="needs a system call filter"):
        compiled(host)
    assert kinds(compiled(host, seccomp=None)) == [RelaxationKind.SECCOMP_UNCONFINED]


def test_an_unknown_machine_fails_closed():
    with pytest.raises(PolicyError, match="riscv64"):
        compiled(HOST._replace(architecture="riscv64"))


@pytest.mark.parametrize(
    "limits",
    [
        (Rlimit(name="RLIMIT_NOFILES", soft=1, hard=1),),
        (Rlimit(name="RLIMIT_NOFILE", soft=2, hard=1),),
        (Rlimit(name="RLIMIT_NOFILE", soft=-1, hard=1),),
        (Rlimit(name="RLIMIT_NOFILE", soft=1, hard=1), Rlimit(name="RLIMIT_NOFILE", soft=2, hard=2)),
    ],
)
def test_malformed_limits_are_refused(limits):
    with pytest.raises(PolicyError, match="RLIMIT_NOFILE"):
        compiled(rlimits=limits)


def test_apps_need_names_of_their_own():
    with pytest.raises(PolicyError, match="one name"):
        compile_pod(pod(app(), app(uid=1)), HOST)


def test_an_app_of_another_pod_is_refused():
    with pytest.raises(PolicyError, match="not part"):
        compile_app(pod(app()), app(name="other"), HOST)


def option(confinement, name):
    (found,) = [word for word in confinement.nspawn_arguments if word.startswith(f"--{name}=")]
    return found.partition("=")[2].lstrip("~").replace(",", " ").split()


def test_the_pod_loses_what_neither_its_machinery_nor_an_app_needs():
    dropped = option(compile_pod(pod(app()), HOST), "drop-capability")
    assert {"CAP_MKNOD", "CAP_NET_RAW", "CAP_SYS_BOOT", "CAP_DAC_READ_SEARCH"} <= set(dropped)
    assert not {"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_CHOWN"} & set(dropped)


def test_the_outer_wall_leaves_what_an_app_was_granted():
    result = compile_pod(pod(app(), app(name="raw", cap_add=("net_raw", "sys_time"))), HOST)
    assert "CAP_NET_RAW" not in option(result, "drop-capability")
    assert "CAP_SYS_TIME" in option(result, "capability")


def test_a_pod_on_the_hosts_network_gets_no_network_administration():
    result = compile_pod(pod(app(), network=NetworkMode.HOST), HOST)
    assert not any("NET_ADMIN" in word for word in result.nspawn_arguments)


def test_the_outer_filter_stops_what_no_app_may_do():
    assert {"io_uring_setup", "ptrace", "keyctl"} <= set(
        option(compile_pod(pod(app()), HOST), "system-call-filter")
    )
    debugger = app(name="gdb", cap_add=("sys_ptrace",))
    assert "ptrace" not in option(compile_pod(pod(app(), debugger), HOST), "system-call-filter")


def test_an_unconfined_app_takes_the_outer_denials_off():
    result = compile_pod(pod(app(seccomp=None)), HOST)
    assert not any("system-call-filter" in word for word in result.nspawn_arguments)


def test_new_privileges_of_one_app_show_on_the_pod():
    assert "--no-new-privileges=yes" in compile_pod(pod(app()), HOST).nspawn_arguments
    result = compile_pod(pod(app(), app(name="su", new_privileges=True)), HOST)
    assert "--no-new-privileges=yes" not in result.nspawn_arguments
    assert [item.subject for item in result.relaxations] == ["su"]


def test_the_pods_digest_covers_its_apps_and_its_wall():
    digests = {
        compile_pod(item, HOST).digest
        for item in (
            pod(app()),
            pod(app(uid=1)),
            pod(app(), network=NetworkMode.HOST),
            pod(app(), app(name="b")),
        )
    }
    assert len(digests) == 4


def test_this_host_can_be_read():
    host = read_host()
    assert host.last_capability >= 37
    assert host.kernel >= (5, 0)


def test_a_host_that_says_nothing_is_refused(tmp_path):
    with pytest.raises(PolicyError, match="highest capability"):
        read_host(tmp_path)


def test_the_pods_own_filter_lets_the_machinery_work_and_no_more():
    result = compile_pod(pod(app()), HOST)
    assert result.outer_filter is not None
    assert dict(result.nspawn_environment) == {"SYSTEMD_SECCOMP": "0"}
    names = {
        action: {name for rule in result.outer_filter.rules if rule.action is action for name in rule.names}
        for action in Action
    }
    assert {"mount", "umount2", "pivot_root", "clone", "unshare", "setns", "chroot"} <= names[Action.ALLOW]
    refused = {"bpf", "ptrace", "io_uring_setup", "keyctl", "perf_event_open", "userfaultfd", "reboot"}
    assert refused <= names[Action.ERRNO]
    assert not refused & names[Action.ALLOW]
    assert compile_bpf(result.outer_filter)


def test_what_an_app_may_do_passes_the_outer_filter():
    result = compile_pod(pod(app(), app(name="gdb", cap_add=("sys_ptrace", "sys_time"))), HOST)
    inner = {
        name for rule in result.apps[1].seccomp.rules if rule.action is Action.ALLOW for name in rule.names
    }
    outer = {
        name for rule in result.outer_filter.rules if rule.action is Action.ALLOW for name in rule.names
    }
    assert {"ptrace", "clock_settime"} <= inner <= outer


@pytest.mark.parametrize(
    "seccomp", [None, parse_profile(b'{"defaultAction": "SCMP_ACT_ALLOW"}', name="/etc/own.json")]
)
def test_an_app_without_the_default_profile_leaves_the_outer_filter_to_nspawn(seccomp):
    result = compile_pod(pod(app(), app(name="own", seccomp=seccomp)), HOST)
    assert result.outer_filter is None
    assert result.nspawn_environment == ()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((("kernel.panic", "1"),), "is the whole host's"),
        ((("kernel.shmmax", "1"),), "cannot be written in a pod"),
        ((("net.core.somaxconn", "1"), ("net.core.somaxconn", "1")), "given twice"),
        ((("net..x", "1"),), "is not NAME=VALUE"),
        ((("net.x", "a\nb"),), "is not NAME=VALUE"),
    ],
)
def test_only_settings_of_the_pods_network_can_be_had(settings, said):
    with pytest.raises(PolicyError, match=said):
        compiled(sysctls=settings)


def test_settings_are_the_pods_so_its_apps_must_agree():
    def sharing(*values: str, network=NetworkMode.NONE):
        apps = tuple(
            AppFacts(f"a{number}", default_profile(), sysctls=(("net.core.somaxconn", value),))
            for number, value in enumerate(values)
        )
        return compile_pod(PodFacts(network=network, apps=apps), HOST)

    assert sharing("1", "1").apps[0].sysctls == (("net.core.somaxconn", "1"),)
    with pytest.raises(PolicyError, match="for another"):
        sharing("1", "2")
    with pytest.raises(PolicyError, match=r"not the pod.s own"):
        sharing("1", network=NetworkMode.HOST)


def test_paths_are_masked_and_unmasked_by_name():
    plain = compiled()
    opened = compiled(unmask=("/proc/acpi", "/proc/bus"))
    assert set(plain.masked_paths) - set(opened.masked_paths) == {"/proc/acpi"}
    assert set(plain.readonly_paths) - set(opened.readonly_paths) == {"/proc/bus"}
    subjects = {item.subject for item in opened.relaxations}
    assert subjects == {"/proc/acpi", "/proc/bus"}
    assert compiled(unmask=("/proc/*", "/sys/*")).masked_paths == ()
    assert compiled(mask=("/etc/shadow",)).masked_paths[-1] == "/etc/shadow"
    assert compiled(mask=("/etc/shadow",)).relaxations == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unmask": ("/proc/nothing",)}, "nothing of that name"),
        ({"mask": ("relative",)}, "is not an absolute path"),
        ({"mask": ("/a/../b",)}, "is not an absolute path"),
        ({"mask": ("/proc/acpi",), "unmask": ("/proc/acpi",)}, "both masked and unmasked"),
        ({"oom_score_adj": 1001}, "is not between"),
    ],
)
def test_what_has_no_meaning_is_refused(changes, said):
    with pytest.raises(PolicyError, match=said):
        compiled(**changes)


def test_everything_that_opens_an_app_has_a_name_and_changes_the_digest():
    plain = compiled()
    changes = (
        {"sysctls": (("net.core.somaxconn", "1"),)},
        {"devices": ("/dev/fuse",)},
        {"privileged": True},
        {"unmask": ("/proc/acpi",)},
    )
    for change in changes:
        found = compiled(**change)
        assert len(found.relaxations) == 1, change
        assert found.digest != plain.digest
    for change in ({"mask": ("/x",)}, {"oom_score_adj": 5}):
        assert compiled(**change).relaxations == ()
        assert compiled(**change).digest != plain.digest
