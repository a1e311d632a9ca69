"""What goes wrong with networks: nothing is half done, nothing stays, and the words say what to do."""

import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import faults, hostnet
from support.hostnet import HostNet, leases
from support.secrun import Secrun, eventually

RELAXED = ("--pull=never", "--insecure-options=image")
PLUGINS = "/usr/lib/cni"


@pytest.fixture(scope="module")
def net() -> Iterator[HostNet]:
    with hostnet.made() as made:
        yield made


@pytest.fixture(scope="module")
def pods(net: HostNet, secrun: Secrun, tmp_path_factory: pytest.TempPathFactory) -> Secrun:
    base = tmp_path_factory.mktemp("network-faults")
    other = Secrun(root=base / "root", run_root=base / "run", network="", options=("--attest=off",))
    layout = secrun.root.parent / "layout"
    image = other("fetch", "--insecure-options=image", f"oci:{layout}:busybox").out.split()[-1]
    return net(dataclasses.replace(other, image=image))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lab:
    """Folders for configurations and plugins of one test."""

    secrun: Secrun
    configs: Path
    plugins: Path
    leases: Path

    def plugin(self, name: str, script: str) -> None:
        path = self.plugins / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def network(self, name: str, *plugins: object, version: str = "1.0.0") -> None:
        document = {"cniVersion": version, "name": name, "plugins": list(plugins)}
        (self.configs / f"{name}.conflist").write_text(json.dumps(document))

    def ipam(self, subnet: str) -> dict[str, object]:
        return {"type": "host-local", "dataDir": str(self.leases), "ranges": [[{"subnet": subnet}]]}

    def bridge(self, subnet: str = "10.77.0.0/24") -> dict[str, object]:
        name = f"test{subnet.split('.')[1]}-{subnet.split('.')[2]}"
        made = {"type": "bridge", "bridge": name, "isGateway": True, "ipMasq": True}
        return {**made, "ipam": self.ipam(subnet)}

    def run(self, *options: str, code: int = 125) -> str:
        words = ("run", "--rm", *options, *RELAXED, self.secrun.image, "--", "true")
        return self.secrun(*words, code=code).err

    def given_out(self, network: str) -> list[str]:
        folder = self.leases / network
        names = os.listdir(folder) if folder.is_dir() else []
        return [name for name in names if name[0].isdigit()]


@pytest.fixture
def lab(net: HostNet, pods: Secrun, tmp_path: Path) -> Iterator[Lab]:
    folders = {name: tmp_path / name for name in ("configs", "plugins", "leases")}
    for folder in folders.values():
        folder.mkdir()
    options = (f"--net-config={folders['configs']}", f"--cni-path={folders['plugins']}:{PLUGINS}")
    secrun = dataclasses.replace(pods, options=(*pods.options, *options))
    yield Lab(secrun=secrun, **folders)
    clean_up(secrun)
    assert secrun.pods() == []
    for name in net.links():
        assert name.startswith("test")
        net.run("ip", "link", "delete", name)
    assert net.rules() == []
    assert leases(pods) == []


def clean_up(secrun: Secrun) -> None:
    secrun("gc", "--grace-period=0s", "--expire-prepared=0s")


PASS_ON = """
input=$(cat)
case $CNI_COMMAND in
ADD) echo "$input" | sed 's/.*"prevResult":\\({.*}\\),"type".*/\\1/';;
esac
"""


def test_a_plugin_that_is_missing_is_named_before_anything_is_made(lab: Lab):
    lab.network("odd", {"type": "no-such-plugin"})
    said = lab.run("--net=odd")
    assert "needs the CNI plugin 'no-such-plugin'" in said
    assert "--net=none" in said
    without = dataclasses.replace(
        lab,
        secrun=dataclasses.replace(lab.secrun, options=(*lab.secrun.options, f"--cni-path={lab.plugins}")),
    )
    assert "needs the CNI plugin 'bridge'" in without.run()


def test_a_plugin_that_prints_garbage_is_refused_and_all_is_taken_back(lab: Lab):
    lab.plugin("garbage", 'cat >/dev/null; [ $CNI_COMMAND = ADD ] && echo "{[" || true')
    lab.network("odd", lab.bridge(), {"type": "garbage"})
    assert "plugin garbage is not valid JSON" in lab.run("--net=odd")
    assert lab.given_out("odd") == []


def test_a_plugin_that_writes_without_end_is_stopped(lab: Lab):
    lab.plugin("flood", "cat >/dev/null; [ $CNI_COMMAND = ADD ] && cat /dev/zero || true")
    lab.network("odd", lab.bridge(), {"type": "flood"})
    assert "wrote more than" in lab.run("--net=odd")
    assert lab.given_out("odd") == []


def test_what_was_added_is_deleted_in_reverse_when_the_chain_fails(lab: Lab, tmp_path: Path):
    calls = tmp_path / "calls"
    log = f'echo "$0 $CNI_COMMAND" >> {calls}'
    lab.plugin("first", f"{log}; {PASS_ON}")
    failing = """cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0
        echo '{"cniVersion":"1.0.0","code":7,"msg":"no","details":"because"}'; exit 1"""
    lab.plugin("second", f"{log}; {failing}")
    lab.network("odd", lab.bridge(), {"type": "first"}, {"type": "second"})
    said = lab.run("--net=odd")
    assert "network odd: ADD by plugin second refuses: no: because" in said
    made = [line.rpartition("/")[2] for line in calls.read_text().splitlines()]
    assert made == ["first ADD", "second ADD", "second DEL", "first DEL"]
    assert lab.given_out("odd") == []
    assert lab.secrun.pods() == []


def test_an_exhausted_range_is_an_error_and_the_pods_on_it_live_on(lab: Lab):
    lab.network("small", lab.bridge("10.77.1.0/30"))
    uuid = lab.secrun.detach("sleep", "1000", options=("--net=small",))
    assert "no IP addresses available" in lab.run("--net=small")
    assert lab.secrun.status(uuid)["state"] == "running"
    lab.secrun.discard(uuid)
    assert lab.given_out("small") == []
    assert lab.run("--net=small", code=0) == ""


def test_an_address_that_a_network_ignores_is_an_error(lab: Lab):
    interface = {"name": "eth0", "sandbox": "inside"}
    answer = {
        "cniVersion": "1.0.0",
        "interfaces": [interface],
        "ips": [{"address": "10.9.9.9/24", "interface": 0}],
    }
    lab.plugin(
        "fixed",
        f"""cat >/dev/null; [ $CNI_COMMAND = ADD ] || exit 0
        ip link add name e0 type veth peer name "$CNI_IFNAME"
        ip link set "$CNI_IFNAME" netns "$CNI_NETNS"
        echo '{json.dumps(answer)}'""",
    )
    lab.network("odd", {"type": "fixed"})
    assert "asked for address 10.9.9.8, got 10.9.9.9" in lab.run("--net=odd:IP=10.9.9.8")


def test_a_changed_network_stops_a_prepared_pod(lab: Lab):
    lab.network("odd", lab.bridge())
    uuid = lab.secrun("prepare", "--net=odd", *RELAXED, lab.secrun.image, "--", "true").out.strip()
    lab.network("odd", lab.bridge("10.78.0.0/24"))
    assert "was changed since the pod was prepared" in lab.secrun("run-prepared", uuid, code=125).err


def test_all_networks_and_their_interfaces(lab: Lab):
    lab.network("a", lab.bridge())
    lab.network("b", lab.bridge("10.79.0.0/24"))
    shown = lab.secrun.run("ls", "/sys/class/net", options=("--net=a:interface=front", "--net=all")).out
    assert set(shown.split()) == {"eth0", "eth1", "front", "lo"}


def test_environment_and_input_of_a_plugin(lab: Lab, tmp_path: Path):
    """What the specification says, and nothing of the caller's."""
    lab.plugin(
        "spy",
        f"env > {tmp_path}/env.$CNI_COMMAND; cat > {tmp_path}/in.$CNI_COMMAND; [ $CNI_COMMAND = ADD ] && "
        f'sed \'s/.*"prevResult":\\({{.*}}\\),"runtimeConfig.*/\\1/\' {tmp_path}/in.ADD || true',
    )
    spy = {"type": "spy", "capabilities": {"portMappings": True, "dns": True}, "own": 1.5}
    lab.network("odd", lab.bridge(), spy, {"type": "portmap", "capabilities": {"portMappings": True}})
    options = ("--net=odd:K=v", "-p", "127.0.0.1:9000-9001:80-81/udp", "--dns=192.0.2.1")
    lab.secrun.run("true", options=options)
    for command in ("ADD", "DEL"):
        lines = (tmp_path / f"env.{command}").read_text().splitlines()
        values = dict(line.split("=", 1) for line in lines)
        assert set(values) - {"PWD", "SHLVL", "_", "OLDPWD"} == {
            *("CNI_ARGS", "CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH"),
            *("LANG", "LC_ALL", "PATH", "TZ"),
        }
        assert values["CNI_ARGS"] == "IgnoreUnknown=1;K=v"
        assert values["CNI_IFNAME"] == "eth0"
        given = json.loads((tmp_path / f"in.{command}").read_text())
        assert "capabilities" not in given
        assert (given["name"], given["cniVersion"], given["own"]) == ("odd", "1.0.0", 1.5)
        assert given["prevResult"]["ips"][0]["address"].endswith("/24")
        assert given["runtimeConfig"]["dns"]["servers"] == ["192.0.2.1"]
        first, second = given["runtimeConfig"]["portMappings"]
        assert (first["hostPort"], second["containerPort"], first["hostIP"]) == (9000, 81, "127.0.0.1")


def test_check_tells_what_is_not_as_it_was_made(lab: Lab, net: HostNet):
    lab.network("odd", lab.bridge())
    uuid = lab.secrun.detach("sleep", "1000", options=("--net=odd",))
    assert lab.secrun("network", "inspect", "--check", "odd").code == 0
    pid = lab.secrun.status(uuid)["pid"]
    known = json.loads((lab.secrun.root / "pods/run" / uuid / "network.json").read_text())
    namespace = f"/proc/{pid}/fd/{known['namespace']['fd']}"
    ip = ["nsenter", f"--net={namespace}", "ip", "address"]
    (address,) = lab.secrun.status(uuid)["networks"][0]["addresses"]
    subprocess.run([*ip, "del", address, "dev", "eth0"], check=True)
    failed = lab.secrun("network", "inspect", "--check", "--format=json", "odd", code=125).out
    assert uuid in json.loads(failed)["failed"]
    subprocess.run([*ip, "add", address, "dev", "eth0"], check=True)
    lab.secrun.discard(uuid)


def test_gc_of_plugins_that_have_it(lab: Lab, tmp_path: Path):
    script = f"""case $CNI_COMMAND in
        VERSION) echo '{{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}}';;
        GC) cat > {tmp_path}/gc;;
        *) {PASS_ON};; esac"""
    lab.plugin("collector", script)
    lab.plugin("bridge11", f"sed 's/1.1.0/1.0.0/' | {PLUGINS}/bridge")
    lab.network("odd", {**lab.bridge(), "type": "bridge11"}, {"type": "collector"}, version="1.1.0")
    uuid = lab.secrun.detach("sleep", "1000", options=("--net=odd",))
    clean_up(lab.secrun)
    given = json.loads((tmp_path / "gc").read_text())
    assert given["cni.dev/valid-attachments"] == [{"containerID": uuid, "ifname": "eth0"}]
    lab.secrun.discard(uuid)


def test_a_network_that_cannot_be_left_is_tried_again(lab: Lab):
    lab.plugin("sticky", f"[ $CNI_COMMAND = DEL ] && [ -e {lab.plugins}/stuck ] && exit 3; {PASS_ON}")
    lab.network("odd", lab.bridge(), {"type": "sticky"})
    (lab.plugins / "stuck").touch()
    said = lab.secrun.run("true", options=("--net=odd",)).err
    assert "still holds a network: network odd: DEL by plugin sticky failed with exit status 3" in said
    (pod,) = lab.secrun.pods()
    assert (pod["state"], pod["exit_code"]) == ("exited", 0)
    assert lab.secrun("gc", "--grace-period=0s", code=125).out.split()[1] == "failed"
    (lab.plugins / "stuck").unlink()
    clean_up(lab.secrun)
    assert lab.secrun.pods() == []


def test_networks_are_listed_and_removed(lab: Lab):
    lab.network("odd", lab.bridge())
    (lab.configs / "broken.conf").write_text("{")
    listed = lab.secrun("network", "list")
    assert "odd" in listed.out
    assert "built-in" in listed.out
    assert "broken.conf" in listed.err
    # Which network a file that cannot be read is for, nobody knows: it might be the one that is meant.
    assert "broken.conf" in lab.run("--net=odd")
    (lab.configs / "broken.conf").unlink()
    uuid = lab.secrun.detach("sleep", "1000", options=("--net=odd",))
    assert uuid in lab.secrun("network", "rm", "odd", code=125).err
    lab.secrun.discard(uuid)
    lab.secrun("network", "rm", "odd")
    assert not (lab.configs / "odd.conflist").exists()


POINTS = (
    "run-folder",
    "network-namespace",
    "network-begun",
    "network-plugin",
    "network-connected",
    "uid-range",
    "images-mounted",
    "before-waiter",
    "network-deleted",
    "exit-written",
)


def with_fault(
    pods: Secrun, tmp_path: Path, point: str, *options: str, extra: tuple[str, ...] = ()
) -> tuple[int, list[str]]:
    passed = tmp_path / "points"
    roots = ["--root", str(pods.root), "--run-root", str(pods.run_root), "--attest=off", *extra]
    words = [*roots, "run", *options, *RELAXED, pods.image, "--", "true"]
    argv = [*pods.prefix, *faults.argv(str(passed), point, words)]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
    return done.returncode, passed.read_text().split()


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_instant_gc_leaves_no_interface_lease_or_rule(
    net: HostNet, pods: Secrun, tmp_path: Path, point: str
):
    code, passed = with_fault(pods, tmp_path, point, "-p", "7000:70")
    assert point in passed
    # Plugins are run, and the pod is finished, by processes beside the one that was called.
    assert code in (0, 125, -signal.SIGKILL)
    clean_up(pods)
    assert pods.pods() == []
    eventually(lambda: net.links() == set(), "the end of every interface")
    assert net.rules() == []
    assert leases(pods) == []


def test_a_namespace_that_vanished_keeps_nobody_from_cleaning_up(net: HostNet, pods: Secrun, tmp_path: Path):
    """Killed after ADD, the kernel has taken the pod's interface; the host's rules are still there."""
    with_fault(pods, tmp_path, "before-waiter", "-p", "7001:70")
    (pod,) = pods.pods()
    assert (pod["state"], bool(net.rules()), bool(leases(pods))) == ("exited", True, True)
    words = ("run", "--rm", "-p", "7001:71", *RELAXED, pods.image, "--", "true")
    assert "secrun gc frees what it held" in pods(*words, code=125).err
    pods("rm", str(pod["uuid"]))
    assert [rule for rule in net.rules() if str(pod["uuid"]) in rule or ":71" in rule] == []
    assert leases(pods) == []
    assert pods(*words).code == 0
    clean_up(pods)


def test_rules_that_a_plugin_finds_by_the_pods_addresses_go_after_a_crash_too(
    net: HostNet, lab: Lab, tmp_path: Path
):
    """`bridge` looks for them on the pod's interface, which went with the pod."""
    lab.network("odd", lab.bridge())
    words = lab.secrun.options[len(lab.secrun.options) - 2 :]
    with_fault(lab.secrun, tmp_path, "before-waiter", "--net=odd", extra=words)
    assert any("MASQUERADE" in rule for rule in net.rules())
    clean_up(lab.secrun)
    assert (net.rules(), lab.given_out("odd")) == ([], [])


def test_many_pods_at_once(net: HostNet, pods: Secrun):
    words = pods.argv("run", "--rm", "-q", *RELAXED, pods.image, "--", "true")
    words.remove("-q")
    running = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(6)]
    assert [(process.communicate()[1], process.returncode) for process in running] == [(b"", 0)] * 6
    clean_up(pods)
    assert (net.rules(), leases(pods), net.links()) == ([], [], set())


def test_a_plugin_that_hangs_is_ended_with_its_children_when_its_time_is_over(lab: Lab):
    mark = "314159"
    lab.plugin("sleepy", f"cat >/dev/null; [ $CNI_COMMAND = ADD ] || exit 0; sleep {mark}")
    lab.network("odd", lab.bridge(), {"type": "sleepy"})
    quick = dataclasses.replace(lab.secrun, options=(*lab.secrun.options, "--net-timeout=2s"))
    said = dataclasses.replace(lab, secrun=quick).run("--net=odd")
    assert "ADD by plugin sleepy" in said
    assert "2 s" in said
    assert not sleeping(mark)
    assert lab.given_out("odd") == []


def test_an_interrupted_start_ends_a_plugin_that_hangs(lab: Lab):
    mark = "271828"
    lab.plugin("sleepy", f"cat >/dev/null; [ $CNI_COMMAND = ADD ] || exit 0; sleep {mark}")
    lab.network("odd", lab.bridge(), {"type": "sleepy"})
    words = lab.secrun.argv("run", "--rm", "--net=odd", *RELAXED, lab.secrun.image, "--", "true")
    with subprocess.Popen(["env", "--default-signal=INT", *words], stderr=subprocess.PIPE) as process:
        eventually(lambda: sleeping(mark), "the plugin")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert not sleeping(mark)
    assert lab.given_out("odd") == []


def test_a_plugin_that_hangs_in_deletion_keeps_nobody_waiting(lab: Lab):
    """The limit that the pod was started with holds at its end too; gc goes on with the usual one."""
    lab.plugin("sleepy", f"[ $CNI_COMMAND = DEL ] && [ -e {lab.plugins}/stuck ] && sleep 1618; {PASS_ON}")
    lab.network("odd", lab.bridge(), {"type": "sleepy"})
    (lab.plugins / "stuck").touch()
    quick = dataclasses.replace(lab.secrun, options=(*lab.secrun.options, "--net-timeout=2s"))
    said = quick.run("true", options=("--net=odd",)).err
    assert "DEL by plugin sleepy" in said
    assert not sleeping("1618")
    assert lab.given_out("odd") == []
    (lab.plugins / "stuck").unlink()


@pytest.mark.parametrize("limit", ["0s", "2h", "soon"])
def test_a_limit_that_is_none(lab: Lab, limit: str):
    words = dataclasses.replace(lab.secrun, options=(*lab.secrun.options, f"--net-timeout={limit}"))
    assert words("run", "--rm", *RELAXED, lab.secrun.image, "--", "true", code=2).err


def sleeping(mark: str) -> bool:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    return f"sleep\0{mark}\0".encode() in lines


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True
