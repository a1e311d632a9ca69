"""Units, bundles and command lines: the pure text that a pod is started from."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import StateError, UsageError
from secrun.record import replace
from secrun.stage1 import bundle, cgroups, nspawnprobe, uidrange, units
from secrun.stage1.imagemount import mounts_files
from secrun.stage1.label import Label
from secrun.stage1.machine import Accelerator, Machine
from secrun.stage1.manifest import Limits, Network, PodManifest
from secrun.stage1.volume import EmptyVolume, Relabel, Volume
from support.manifests import DIGEST, app, pod

MACHINE = Machine(
    accelerator=Accelerator.TCG,
    model="q35",
    vcpus=1,
    memory_bytes=512 << 20,
    storage_bytes=0,
    vtpm=False,
    kernel=DIGEST,
    initrd=DIGEST,
    command_line="quiet",
    pod_root="ab" * 32,
    pod_blocks=7,
)


LABEL = Label(process="u:r:t:s0", file="u:object_r:f:s0", runtime="", level="s0:c1,c2")


@pytest.mark.parametrize("machine", [None, MACHINE])
@pytest.mark.parametrize("label", [None, LABEL])
@pytest.mark.parametrize("relabel", Relabel)
def test_a_manifest_survives_its_own_bytes(machine, label, relabel):
    volumes = (Volume(source="/s", target="/t", read_only=True, relabel=relabel, executable=False),)
    own = (EmptyVolume(name="n", target="/e", mode="2750", uid=5, gid=6, fill=True),)
    manifest = replace(
        pod(app("a", volumes=volumes), app("b", empty_volumes=own)), machine=machine, label=label
    )
    assert PodManifest.from_bytes(manifest.to_bytes()) == manifest


def test_a_manifest_names_the_accelerator_or_is_refused():
    data = replace(pod(), machine=MACHINE).to_bytes()
    with pytest.raises(StateError, match="accelerator is 'xen', expected kvm or tcg"):
        PodManifest.from_bytes(data.replace(b'"accelerator":"tcg"', b'"accelerator":"xen"'))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"flavour":"nspawn"', b'"flavour":7', "flavour is a int"),
        (b'"schema":"secrun.dev/pod/v1"', b'"schema":"v9"', "schema is 'v9'"),
        (b'"hostname":"h"', b'"hostname":"h","x":1', "unknown fields: x"),
        (b'"hostname":"h",', b"", "has no field 'hostname'"),
        (b'"network":"none"', b'"network":"moon"', "expected none, host or cni"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(old, new, message):
    data = pod().to_bytes()
    assert old in data
    with pytest.raises(StateError, match=message):
        PodManifest.from_bytes(data.replace(old, new))


def test_one_app_ends_the_pod_by_itself_and_several_wait_for_each_other():
    alone = units.render(pod())
    assert "SuccessAction=exit-force" in alone["app-web.service"]
    assert set(alone) == {"app-web.service", "pod.target"}
    both = units.render(pod(app("a"), app("b")))
    for name in ("a", "b"):
        text = both[f"app-{name}.service"]
        assert "FailureAction=exit-force" in text
        assert "SuccessAction" not in text
    assert "After=app-a.service app-b.service" in both[units.DONE]
    assert f"Wants=app-a.service app-b.service {units.DONE}" in both["pod.target"]


def test_the_agent_is_told_which_volumes_to_make_and_to_fill():
    own = (EmptyVolume(name="n", target="/e e", mode="2750", uid=5, gid=6, fill=True),)
    named = (
        Volume(source="/a", target="/a", read_only=False),
        Volume(source="/s", target="/t", read_only=False, fill=True),
    )
    text = units.render(pod(app(empty_volumes=own, volumes=named)))["app-web.service"]
    assert '"--empty" "n" "2750" "5" "6" "--place"' in text
    assert '"--place" "/rw/volumes/n" "/e e" "--fill" "/rw/volumes/n" "/e e"' in text
    assert '"--place" "/volumes/web-1" "/t" "--fill" "/volumes/web-1" "/t"' in text
    assert '"--fill" "/volumes/web-0"' not in text


def test_limits_become_unit_directives():
    text = units.render(pod(app(limits=Limits(memory_bytes=1 << 30, cpu_millis=1500, pids=9))))[
        "app-web.service"
    ]
    assert {"MemoryMax=1073741824", "CPUQuota=150%", "TasksMax=10"} <= set(text.splitlines())
    text = units.render(pod(app(limits=Limits(memory_low_bytes=4096, cpus="0-1", memory_nodes="0"))))[
        "app-web.service"
    ]
    assert {"MemoryLow=4096", "AllowedCPUs=0-1", "AllowedMemoryNodes=0"} <= set(text.splitlines())


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=("Cs",))))
def test_no_word_of_an_image_can_leave_its_quotes_or_be_expanded(word):
    quoted = units.quote(word)
    assert "\n" not in quoted
    inner = quoted[1:-1].replace("\\\\", "").replace('\\"', "")
    assert '"' not in inner
    assert inner.replace("%%", "").count("%") == 0
    assert inner.replace("$$", "").count("$") == 0


def test_a_bundle_shares_the_pods_namespaces_and_shows_its_etc():
    process = bundle.Process(
        args=("/bin/true",), env=("PATH=/bin",), cwd="/", uid=5, gid=6, groups=(7,), terminal=False
    )
    config = bundle.runtime_config(
        app="web",
        salt="00",
        process=process,
        network=Network.NONE,
        etc=("hosts", "resolv.conf"),
        read_only=True,
        extras=bundle.Extras(volumes=(Volume(source="/s", target="/t", read_only=True),)),
        process_confinement={"noNewPrivileges": True},
        linux_confinement={"maskedPaths": ["/proc/kcore"]},
    )
    assert config["linux"]["namespaces"] == [{"type": "pid"}, {"type": "mount"}]
    assert config["linux"]["maskedPaths"] == ["/proc/kcore"]
    assert config["process"]["noNewPrivileges"] is True
    assert config["process"]["user"] == {"uid": 5, "gid": 6, "additionalGids": [7]}
    mounts = {item["destination"]: item for item in config["mounts"]}
    assert mounts["/t"]["source"] == "/volumes/web-0"
    assert "ro" in mounts["/t"]["options"]
    assert mounts["/sys"]["type"] == "sysfs"
    assert "ro" in mounts["/etc/hosts"]["options"]
    assert "/etc/hostname" not in mounts


def test_the_confinement_cannot_be_overwritten_by_the_process():
    process = bundle.Process(args=("x",), env=(), cwd="/", uid=0, gid=0, groups=(), terminal=False)
    merged = process.to_oci({"noNewPrivileges": True, "capabilities": {}})
    assert merged["noNewPrivileges"] is True


@pytest.mark.parametrize("target", ["relative", "/", "/proc", "/a/../b", "/dev/"])
def test_volume_targets_that_would_break_the_app_are_refused(target):
    with pytest.raises(UsageError):
        bundle.check_targets(bundle.Extras(volumes=(Volume(source="/s", target=target, read_only=False),)))


def test_one_target_twice_is_refused():
    volume = Volume(source="/s", target="/t", read_only=False)
    with pytest.raises(UsageError, match="two volumes"):
        bundle.check_targets(bundle.Extras(volumes=(volume, volume)))


@given(st.text(), st.lists(st.tuples(st.integers(0, 1 << 31), st.integers(0, 1 << 31)), max_size=3))
def test_uid_ranges_are_aligned_in_bounds_and_avoid_what_is_reserved(seed, reserved):
    for base in list(uidrange.candidates(seed, reserved))[:20]:
        assert base % uidrange.SIZE == 0
        assert uidrange.FIRST <= base <= uidrange.LAST
        assert not any(first < base + uidrange.SIZE and base < end for first, end in reserved)


def test_two_live_ranges_are_never_the_same():
    first = uidrange.acquire("same-seed")
    second = uidrange.acquire("same-seed")
    assert first.base != second.base
    first.guard.close()
    third = uidrange.acquire("same-seed")
    assert third.base == first.base
    second.guard.close()
    third.guard.close()


def test_subordinate_ids_are_read_and_nonsense_is_not(tmp_path):
    path = tmp_path / "subuid"
    path.write_text("alice:100000:65536\n# x\nbroken\nbob:abc:1\n")
    assert uidrange.reserved_ranges([path, tmp_path / "missing"]) == [(100000, 165536)]


def test_cgroup2_is_found_where_systemd_puts_it_first():
    hybrid = "30 20 0:5 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    pure = "31 20 0:6 / /sys/fs/cgroup rw shared:1 - cgroup2 cgroup2 rw\n"
    assert str(cgroups.find_v2(hybrid)) == "/sys/fs/cgroup/unified"
    assert str(cgroups.find_v2(hybrid + pure)) == "/sys/fs/cgroup"
    assert cgroups.find_v2("30 20 0:5 / /x rw - cgroup cgroup rw\n") is None


def test_the_quoting_of_plain_words_is_plain():
    assert shlex.split(units.quote("plain word")) == ["plain word"]


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.1.0-50-cloud-amd64", False),
        ("6.11.9", False),
        ("6.12", True),
        ("6.12.43+deb13-amd64", True),
        ("6.18.5", True),
        ("7.0-rc1", True),
        ("", False),
    ],
)
def test_only_kernels_that_mount_files_are_asked_to(release, expected):
    assert mounts_files(release) is expected


def test_a_file_system_may_be_built_in_or_a_module():
    built_in = "nodev\tsysfs\nnodev\toverlay\n\text4\n"
    aliases = "alias fs-erofs erofs\nalias pci:v00001AF4d* virtio_pci\n"
    assert nspawnprobe.missing_file_systems(built_in, aliases) == []
    assert nspawnprobe.missing_file_systems(built_in, "") == ["erofs"]
    assert nspawnprobe.missing_file_systems("", "alias erofs-tools overlay\n") == ["erofs", "overlay"]
