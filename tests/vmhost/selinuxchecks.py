"""Labels on a host that enforces: what each pod gets, what they keep it from, and that nothing else suffers.

Whoever gets out of a pod is played by `intruder`: root of this machine, outside all namespaces and with
every right but one, for it carries the pod's label (intruder.cil lets only tests do so).
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from vmhost import kvmchecks
from vmhost.kit import (
    AUDIT,
    IDLE,
    LAYOUT,
    RELAXED,
    STORE,
    after_the_power_cut,
    after_the_shutdown,
    check,
    events,
    eventually,
    group,
    note,
    noted,
    nothing_remains,
    run,
    secrun,
    status,
    tool,
)

ENFORCE = Path("/sys/fs/selinux/enforce")
POD_TYPE = "system_u:system_r:secrun_pod_t"
# Debian's own programs, at boot and without any pod: its policy is older than they are.
DEBIANS_OWN = ("udev_t", "systemd_tmpfiles_t", "getty_t", "local_login_t", "auditd_t", "systemd_logind_t")
# In libvirt, when `secrun` asks QEMU once per host what it can do: PCRE does without compiling its patterns.
COMPILER = r"\{ execmem \} for .* comm=\"python3\" scontext=system_u:system_r:initrc_t:"
SECRET = "this is not yours\n"
OURS, THEIRS, HOSTS = Path("/srv/ours"), Path("/srv/theirs"), Path("/srv/hosts")


def denials() -> list[str]:
    """Return every denial of this boot up to now: a mark is sent, and awaited in the log."""
    mark = f"secrun-{time.monotonic_ns()}"
    tool("auditctl", "-m", mark)
    eventually(lambda: mark in AUDIT.read_text(errors="replace"), "the mark in the audit log")
    lost = re.search(r"^lost (\d+)$", tool("auditctl", "-s"), re.MULTILINE)
    assert lost is not None
    assert lost[1] == "0", "the audit log is not whole"
    begin = time.time() - time.monotonic()
    lines = [line for line in AUDIT.read_text(errors="replace").splitlines() if "avc:  denied" in line]
    return [line for line in lines if (at := re.search(r"audit\((\d+\.\d+)", line)) and float(at[1]) > begin]


def unexpected(found: Iterable[str] | None = None) -> list[str]:
    """Return denials, of this boot unless others are given, that are not of Debian's own making."""
    known = rf"scontext=\w+:\w+:({'|'.join(DEBIANS_OWN)}):|{COMPILER}"
    return [line for line in (denials() if found is None else found) if not re.search(known, line)]


def processes(uuid: str) -> list[int]:
    files = group(uuid).rglob("cgroup.procs")
    return [int(word) for file in files for word in file.read_text().split()]


def inside(uuid: str) -> list[tuple[int, str, str]]:
    """Return PID, name and context of all that runs inside a pod and is still there."""
    found = []
    for pid in processes(uuid):
        try:
            comm, context = (Path(f"/proc/{pid}/{name}").read_text() for name in ("comm", "attr/current"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # the idle app's sleep
        if comm != "systemd-nspawn\n":
            found.append((pid, comm.strip(), context.rstrip("\0\n")))
    return found


def contexts(uuid: str) -> set[str]:
    return {context for _, _, context in inside(uuid)}


def app(uuid: str) -> int:
    """Return the PID of the app of a pod that idles."""
    return min(pid for pid, comm, _ in inside(uuid) if comm == "sh")


def detached(*options: str) -> str:
    uuid = secrun("run", "-d", *RELAXED, *options, LAYOUT, "--", *IDLE).strip()
    eventually(lambda: "up\n" in secrun("logs", uuid), "the first line of the log")
    return uuid


def ended(*uuids: str) -> None:
    secrun("stop", *uuids)
    for uuid in uuids:
        eventually(lambda uuid=uuid: status(uuid)["state"] == "exited", "the end of the pod")
    secrun("rm", *uuids)


def intruder(context: str, *words: str | Path) -> int:
    """Run busybox as root of this machine with the label of a pod; return its exit status."""
    words = ("runcon", context, OURS / "busybox", *words)
    return subprocess.run(words, check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode


def denied_to(context: str, before: int) -> list[str]:
    return [line for line in denials()[before:] if f"scontext={context} " in line]


@check
def what_a_workload_calls_is_recorded_and_it_runs_under_that() -> str:
    path = Path("/srv/profile.json")
    words = (*RELAXED, "-o", path, "--", LAYOUT)
    assert secrun("policy", "record", *words, "sh", "-c", "mkdir /x; exit 3", code=3) == ""
    known = {name for rule in json.loads(path.read_bytes())["syscalls"] for name in rule["names"]}
    assert "mkdir" in known
    assert "chmod" not in known
    held = (f"--security-opt=seccomp={path}",)
    run("sh", "-c", "mkdir /x; exit 3", options=held, code=3)
    run("sh", "-c", "mkdir /x && chmod 700 /x", options=held, code=1)
    return f"{len(known)} calls"


@check
def normal_use_gave_not_one_denial() -> str:
    assert ENFORCE.read_text() == "1"
    left = unexpected()
    assert not left, "\n".join(left)
    return f"{len(denials())} of Debian's own"


@check
def two_pods_of_one_image_have_categories_of_their_own() -> str:
    for folder in (OURS, THEIRS, HOSTS):
        folder.mkdir()
        (folder / "secret").write_text(SECRET)
    hosts = f"--volume={HOSTS}:/hosts"
    pods = [detached(f"--volume={folder}:/data:Z", hosts) for folder in (OURS, THEIRS)]
    found = [contexts(uuid) for uuid in pods]
    (ours,), (theirs,) = found
    assert ours != theirs
    for context, uuid in ((ours, pods[0]), (theirs, pods[1])):
        assert re.fullmatch(POD_TYPE + r":s0:c\d+,c\d+", context)
        assert status(uuid)["label"] == context
        started = [fields for name, fields in events() if (name, fields.get("pod")) == ("PodStart", uuid)]
        assert [fields["selinux"] for fields in started] == [context]
    noted("pods", json.dumps([*pods, ours, theirs]))
    return f"{ours} {theirs}"


@check
def root_with_the_label_of_a_pod_reaches_nothing_but_that_pods() -> str:
    ours, theirs, context, _ = json.loads(note("pods"))
    shutil.copy(f"/proc/{app(ours)}/root/bin/busybox", OURS / "busybox")
    os.setxattr(OURS / "busybox", "security.selinux", os.getxattr(OURS, "security.selinux"))
    own = (OURS / "secret", f"/proc/{app(ours)}/environ", f"/proc/{app(ours)}/root/bin/busybox")
    failed = [path for path in own if intruder(context, "cat", path) != 0]
    assert not failed, failed
    others = (
        THEIRS / "secret",
        f"/proc/{app(theirs)}/root/bin/busybox",
        f"/proc/{app(theirs)}/environ",
        f"/proc/{app(theirs)}/mem",
        STORE / "pods/run" / theirs / "rw/apps/images/log",
        STORE / "pods/run" / theirs / "config/apps/images/config.json",
        STORE / "pods/run" / ours / "manifest",
        next((STORE / "measure").glob("*.cel")),
        next((STORE / "rootfs").glob("*.erofs")),
        HOSTS / "secret",
        "/etc/shadow",
        "/etc/passwd",
        AUDIT,
        "/root/.bashrc",
        "/dev/vda",
        "/dev/tpmrm0",
        "/proc/kcore",
    )
    said = []
    for path in others:
        before = len(denials())
        assert intruder(context, "head", "-c1", path) != 0, f"{path} was read"
        found = denied_to(context, before)
        assert found, f"{path}: no denial in the audit log"
        said.append(f"{path}: {found[-1].partition('avc:')[2][:100]}")
    for words in (
        ("kill", "-9", str(app(theirs))),
        ("sh", "-c", f"echo 1 >{group(theirs)}/cgroup.kill"),
        ("sh", "-c", "echo 0 >/sys/fs/cgroup/cgroup.procs"),
        ("touch", "/etc/intruder"),
        ("touch", THEIRS / "intruder"),
    ):
        before = len(denials())
        assert intruder(context, *words) != 0, words
        assert denied_to(context, before), words
    assert contexts(theirs)
    return "\n".join(said)


@check
def an_emulator_that_was_taken_over_reaches_nothing_but_its_machine() -> str:
    """Played by root of this machine with QEMU's label and a program that QEMU could execute."""
    ours, theirs, *_ = json.loads(note("pods"))
    context = note("machine-label")
    others = (
        kvmchecks.VOLUME / "secret",
        THEIRS / "secret",
        f"/proc/{app(theirs)}/root/bin/busybox",
        f"/proc/{app(theirs)}/mem",
        STORE / "pods/run" / theirs / "config/apps/images/config.json",
        STORE / "pods/run" / ours / "manifest",
        next((STORE / "measure").glob("*.cel")),
        next((STORE / "rootfs").glob("*.erofs")),
        HOSTS / "secret",
        "/etc/shadow",
        "/dev/vda",
        "/dev/tpmrm0",
    )

    def read(path: str | Path) -> subprocess.CompletedProcess[bytes]:
        words = ("runcon", context, "/usr/bin/head", "-c1", path)
        return subprocess.run(words, check=False, capture_output=True, stdin=subprocess.DEVNULL)

    # Refused without a word: what libvirt asks about a TPM looks there too.
    assert read("/etc/passwd").returncode == 1
    said = []
    for path in others:
        before = len(denials())
        done = read(path)
        assert done.returncode == 1, f"{path}: {done}"
        found = denied_to(context, before)
        assert found, f"{path}: no denial in the audit log"
        said.append(f"{path}: {found[-1].partition('avc:')[2][:100]}")
    ended(note("machine"))
    return "\n".join(said)


@check
def what_enter_runs_has_the_label_and_no_more_than_the_app() -> None:
    ours, _, context, _ = json.loads(note("pods"))
    assert secrun("enter", ours, "--", "cat", "/proc/self/attr/current").rstrip("\0\n") == context
    assert secrun("enter", ours, "--", "cat", "/data/secret") == SECRET
    before = len(denials())
    secrun("enter", ours, "--", "cat", "/hosts/secret", code=1)
    assert denied_to(context, before)
    ended(*json.loads(note("pods"))[:2])


@check
def a_prepared_pod_is_labelled_when_it_starts() -> str:
    script = "cat /proc/self/attr/current; echo; cat /data/secret; cat /hosts/secret || echo refused"
    volumes = (f"--volume={OURS}:/data:z", f"--volume={HOSTS}:/hosts")
    uuid = secrun("prepare", *RELAXED, *volumes, LAYOUT, "--", "sh", "-c", script).strip()
    before = len(denials())
    said = secrun("run-prepared", uuid).replace("\0", "")
    (context,) = re.findall(rf"^{POD_TYPE}:s0:c\d+,c\d+$", said, re.MULTILINE)
    assert status(uuid)["label"] == context
    assert SECRET in said
    assert said.endswith("refused\n")
    assert denied_to(context, before)
    secrun("rm", uuid)
    # Shared by all pods, hence of no category.
    assert os.getxattr(OURS, "security.selinux").endswith(b":secrun_file_t:s0\0")
    return context


@check
def a_label_is_disabled_or_chosen_by_name_only() -> str:
    script = "cat /proc/self/attr/current; echo; cat /hosts/secret"
    options = ("--security-opt=label=disable", f"--volume={HOSTS}:/hosts")
    said = run("sh", "-c", script, options=options).replace("\0", "")
    assert said.startswith("system_u:system_r:secrun_open_t:s0\n")
    assert said.endswith(SECRET)
    chosen = run("cat", "/proc/self/attr/current", options=("--security-opt=label=level:s0:c1,c2",))
    assert chosen.rstrip("\0\n") == f"{POD_TYPE}:s0:c1,c2"
    run("true", options=("--security-opt=label=type:no_such_type_t",), code=2)
    run("true", options=("--volume=/etc:/etc-of-host:Z",), code=2)
    assert os.getxattr("/etc", "security.selinux") == b"system_u:object_r:etc_t:s0\0"
    nothing_remains()
    return said


@after_the_power_cut
def a_wrong_label_in_the_store_is_found_and_mended() -> str:
    places = (STORE, Path("/run/secrun"))
    assert tool("restorecon", "-Rnv", *places) == "", "after two boots of pods all is as the policy says"
    image = next((STORE / "rootfs").glob("*.erofs"))
    os.setxattr(image, "security.selinux", b"system_u:object_r:etc_t:s0\0")
    said = tool("restorecon", "-Rv", *places)
    assert [line for line in said.splitlines() if str(image) in line] == said.splitlines()
    assert os.getxattr(image, "security.selinux") == b"system_u:object_r:secrun_var_t:s0\0"
    return said


@after_the_power_cut
def the_module_is_upgraded_by_the_command_that_installs_it() -> str:
    """The machine was made with the module alone; this installation names its own places in it as well."""
    words = ("policy", "install", "selinux", "--format=json")
    before = json.loads(secrun(*words, "--status"))
    assert (before["state"], before["installed"]) == ("other", before["shipped"])
    begin = time.monotonic()
    assert json.loads(secrun(*words))["state"] == "current"
    seconds = time.monotonic() - begin
    assert json.loads(secrun(*words, "--status"))["state"] == "current"
    said = run("cat", "/proc/self/attr/current")
    assert re.fullmatch(POD_TYPE + r":s0:c\d+,c\d+", said.rstrip("\0\n"))
    return f"{seconds:.1f} s"


@after_the_power_cut
def the_second_boot_gave_not_one_denial() -> None:
    left = unexpected()
    assert not left, "\n".join(left)


@after_the_shutdown
def without_the_module_no_pod_starts() -> str:
    words = ("policy", "install", "selinux", "--format=json")
    assert json.loads(secrun(*words, "--remove"))["state"] == "absent"
    done = subprocess.run(
        ("secrun", "run", *RELAXED, LAYOUT, "--", "true"), check=False, capture_output=True, text=True
    )
    assert done.returncode == 125
    assert "has no type for pods [host-selinux]" in done.stderr, done.stderr
    assert "hint: secrun policy install selinux" in done.stderr
    return done.stderr
