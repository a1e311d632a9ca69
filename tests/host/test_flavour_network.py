"""What a user meets of a pod's networks, whatever isolates it: real plugins, a namespace as the host.

A guest takes seconds to boot: three pods of each flavour tell everything.
"""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.network import state
from secrun.stage1 import cgroups
from support import faults, hostnet
from support.hostnet import HostNet, addresses, clean_up, compiled, leases, listening, say, served
from support.secrun import Secrun, eventually

RELAXED = ("--pull=never", "--insecure-options=image")
MAC = "02:00:00:12:34:56"
LINES = 300_000
NAMES = (
    *("--dns=192.0.2.1", "--dns-search=example.org", "--dns-opt=ndots:3", "--hostname=web"),
    *("--add-host=db:192.0.2.7", "--hosts-entry=192.0.2.8=a,b"),
)
# Sends an echo request without any right to, and says whether it was answered.
ECHO = r"""
#include <arpa/inet.h>
#include <netinet/ip_icmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct icmphdr ask = {.type = ICMP_ECHO}, answer;
    struct timeval wait = {5, 0};
    int raw = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    sendto(fd, &ask, sizeof ask, 0, (struct sockaddr *)&to, sizeof to);
    puts(raw >= 0 ? "raw" : "no raw socket");
    puts(recv(fd, &answer, sizeof answer, 0) > 0 && answer.type == ICMP_ECHOREPLY ? "answered" : "silent");
}
"""


@pytest.fixture(scope="module")
def net() -> Iterator[HostNet]:
    with hostnet.made() as made:
        yield made


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    folder.chmod(0o755)
    compiled(folder, ECHO, "echo")
    compiled(folder, hostnet.MIRROR, "mirror")
    return folder


@pytest.fixture(scope="module")
def root(net: HostNet, secrun: Secrun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secrun]:
    """A root of its own, with a second network `lab` beside the default one."""
    base = tmp_path_factory.mktemp("flavour-network")
    (base / "net.d").mkdir()
    ipam = {"type": "host-local", "dataDir": str(base / "leases"), "ranges": [[{"subnet": "10.77.0.0/24"}]]}
    bridge = {"type": "bridge", "bridge": "testlab", "isGateway": True, "mtu": 1400}
    bridge["ipam"] = {**ipam, "routes": [{"dst": "10.99.0.0/16"}]}
    document = {"cniVersion": "1.0.0", "name": "lab", "plugins": [bridge]}
    (base / "net.d/lab.conflist").write_text(json.dumps(document))
    options = ("--attest=off", f"--net-config={base}/net.d")
    other = Secrun(root=base / "root", run_root=base / "run", network="", options=options)
    layout = secrun.root.parent / "layout"
    image = other("fetch", "--insecure-options=image", f"oci:{layout}:busybox").out.split()[-1]
    made = net(dataclasses.replace(other, image=image))
    yield made
    clean_up(made)
    assert made.pods() == []
    net.run("ip", "link", "delete", "testlab", check=False)
    assert (net.links(), net.rules(), leases(made)) == (set(), [], [])


@pytest.fixture(scope="module")
def machines(root: Secrun) -> Secrun:
    root("stage1", "build", "kvm")
    return dataclasses.replace(root, flavour="kvm", pod_options=(*RELAXED, "--stage1=kvm", "--accel=tcg"))


@pytest.fixture(scope="module", params=["nspawn", "kvm"])
def pods(request: pytest.FixtureRequest, root: Secrun) -> Secrun:
    made: Secrun = root if request.param == "nspawn" else request.getfixturevalue("machines")
    return made


@pytest.fixture(scope="module")
def server(pods: Secrun, programs: Path) -> Iterator[str]:
    """A pod that serves pages and mirrors datagrams at low ports, as a user without rights; published."""
    script = (
        "/t/mirror & mkdir /dev/shm/www; cd /dev/shm/www; echo here > index.html; "
        f"busybox seq {LINES} > lines; exec httpd -f -p 80"
    )
    options = ("--user=app", "-v", f"{programs}:/t:ro", "-p", "8080:80", "-p", "5353:53/udp")
    uuid = pods.detach("sh", "-c", script, options=options)
    yield uuid
    clean_up(pods)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What a second pod saw, and its address."""

    said: dict[str, str]
    uuid: str
    address: str


@pytest.fixture(scope="module")
def seen(net: HostNet, pods: Secrun, server: str, programs: Path) -> Seen:
    four, six = addresses(pods, server)
    gateway = four.rpartition(".")[0] + ".1"
    own = four.rpartition(".")[0] + ".77"
    with listening(net, gateway) as port:
        parts = {
            "pages": f"wget -q -O - http://{four}/; wget -q -O - 'http://[{six}]/'",
            "lines": f"wget -q -O - http://{four}/lines | busybox md5sum",
            "host": f"busybox nc {gateway} {port}",
            "echo": f"/t/echo {gateway}",
            "link": "busybox ip link show eth0",
            "address": "busybox ip address",
            "names": "cat /etc/resolv.conf /etc/hosts /etc/hostname",
            "interfaces": "ls /sys/class/net",
            "change": "busybox ip address add 10.1.1.1/24 dev eth0 2>/dev/null || echo refused",
        }
        script = "\n".join(f"echo @@{name}\n{part}" for name, part in parts.items())
        options = (f"--net=default:IP={own},mac={MAC}", *NAMES, "-v", f"{programs}:/t:ro")
        uuid, result = pods.kept(*options, pods.image, "--", "sh", "-c", script)
    found = re.split(r"^@@(\w+)\n", result.out, flags=re.MULTILINE)
    return Seen(said=dict(zip(found[1::2], found[2::2], strict=True)), uuid=uuid, address=own)


def test_a_published_port_answers_on_loopback_and_on_the_bridge(net: HostNet, pods: Secrun, server: str):
    four, six = addresses(pods, server)
    served(net, f"http://{four}/")
    served(net, f"http://[{six}]/")
    hosts = ("127.0.0.1", four.rpartition(".")[0] + ".1", six.rpartition(":")[0] + ":1")
    for host in hosts:
        served(net, f"http://[{host}]:8080/" if ":" in host else f"http://{host}:8080/")
        eventually(lambda h=host: say(net, h, 5353, "SOCK_DGRAM") == "asked\n", "a datagram's answer")
    lines = "".join(f"{number}\n" for number in range(1, LINES + 1))
    assert net.fetch("http://127.0.0.1:8080/lines") == lines


def test_two_pods_reach_each_other_and_the_host_by_default(seen: Seen):
    lines = "".join(f"{number}\n" for number in range(1, LINES + 1))
    assert seen.said["pages"] == "here\nhere\n"
    assert seen.said["lines"].split()[0] == hashlib.md5(lines.encode()).hexdigest()
    assert seen.said["host"] == "from the host\n"


def test_the_interface_is_as_the_network_has_it(pods: Secrun, seen: Seen):
    assert set(seen.said["interfaces"].split()) == {"eth0", "lo"}
    assert f"link/ether {MAC}" in seen.said["link"]
    assert " mtu 1500 " in seen.said["link"]
    assert f"inet {seen.address}/24 brd " in seen.said["address"]
    assert "inet 127.0.0.1/8" in seen.said["address"]
    (shown,) = pods.status(seen.uuid)["networks"]
    assert (shown["mac"], shown["mtu"], shown["addresses"][0]) == (MAC, 1500, f"{seen.address}/24")


def test_the_names_of_a_pod(seen: Seen):
    said = seen.said["names"]
    assert said.startswith("nameserver 192.0.2.1\nsearch example.org\noptions ndots:3\n192.0.2.7 db\n")
    assert "\n192.0.2.8 a b\n" in said
    assert f"\n{seen.address} web\n" in said
    assert said.endswith(" web\nweb\n")


def test_a_pod_uses_its_network_and_changes_nothing_of_it(seen: Seen):
    """Echo requests need no right, and neither do low ports: see the server."""
    assert seen.said["echo"] == "no raw socket\nanswered\n"
    assert seen.said["change"] == "refused\n"


def test_several_networks_and_an_address_that_was_another_pods_before(pods: Secrun, seen: Seen):
    assert pods.status(seen.uuid)["state"] == "exited"
    assert seen.address in pods("list").out
    options = (f"--net=default:IP={seen.address},interface=eth1", "--net=lab:interface=eth0")
    said = pods.run("sh", "-c", "busybox ip address; busybox ip route", options=options).out
    front, back = (said.partition(f": {name}")[2].partition("scope global")[0] for name in ("eth0", "eth1"))
    assert (" mtu 1400 " in front, " mtu 1500 " in back) == (True, True)
    assert ("inet 10.77.0." in front, f"inet {seen.address}/" in back) == (True, True)
    gateway = seen.address.rpartition(".")[0] + ".1"
    assert re.search(rf"^default via {re.escape(gateway)} dev eth1", said, re.MULTILINE)
    assert re.search(r"^10\.99\.0\.0/16 via 10\.77\.0\.1 dev eth0", said, re.MULTILINE)


def test_a_guest_may_be_given_power_over_the_network_of_its_own_kernel(
    net: HostNet, root: Secrun, machines: Secrun
):
    """What leaves it is still what has its addresses: the host sees to that."""
    uuid = root.detach("true")
    subnet = addresses(root, uuid)[0].rpartition(".")[0]
    with listening(net, f"{subnet}.1") as port:
        script = (
            f"busybox ip address add {subnet}.200/24 dev eth0 && busybox ip -4 -o address show eth0 | wc -l"
            "; cat /proc/sys/net/ipv4/conf/all/accept_local"
            f"; busybox timeout 3 busybox nc -s {subnet}.200 {subnet}.1 {port}"
            f"; busybox nc {subnet}.1 {port}"
        )
        options = ("--cap-add=net_admin", "--sysctl=net.ipv4.conf.all.accept_local=1")
        said = machines.run("sh", "-c", script, options=options).out
    # Who used another address was not heard, and did not take the one line that there is.
    assert said == "2\n1\nfrom the host\n"


def emulator(uuid: str) -> int:
    """The process of a pod's machine."""
    group = cgroups.host().pod(uuid)
    pids = [pid for base, _, _ in os.walk(group) for pid in Path(base, "cgroup.procs").read_text().split()]
    (found,) = [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")]
    return int(found)


def interfaces(*target: str) -> set[str]:
    """Name the interfaces of a namespace."""
    said = subprocess.run(
        ["nsenter", *target, "ip", "-o", "link"], capture_output=True, text=True, check=True
    )
    return {line.split(": ")[1].split("@")[0] for line in said.stdout.splitlines()}


def test_the_emulator_has_no_network_and_a_killed_one_leaves_nothing_of_it(net: HostNet, machines: Secrun):
    uuid = machines.detach("sleep", "1000", options=("-p", "8090:80"))
    pid = emulator(uuid)
    assert interfaces(f"--target={pid}", "--net") == {"lo"}
    waiter = machines.status(uuid)["pid"]
    held = [path for path in Path(f"/proc/{waiter}/fd").iterdir() if os.readlink(path).startswith("net:[")]
    assert interfaces(f"--net={held[0]}") == {"lo", "eth0", "secrun-tap0"}
    os.kill(pid, signal.SIGKILL)
    machines("status", "--wait", uuid, code=None)
    assert not set(addresses(machines, uuid)) & set(leases(machines))
    clean_up(machines)
    eventually(lambda: not any(name.startswith("veth") for name in net.links()), "the end of the interface")
    assert "secrun-tap0" not in os.listdir("/sys/class/net")
    assert net.rules() == []


# Leaves the interface with a queue of its own, as a plugin that shapes traffic may.
BUSY = """#!/bin/sh
input=$(cat)
case $CNI_COMMAND in
ADD)
  nsenter --net="$CNI_NETNS" tc qdisc add dev "$CNI_IFNAME" ingress
  echo "$input" | sed 's/.*"prevResult":\\({.*}\\),"type".*/\\1/';;
esac
"""


def test_an_interface_that_cannot_be_connected_is_named(net: HostNet, machines: Secrun, tmp_path: Path):
    (tmp_path / "busy").write_text(BUSY)
    (tmp_path / "busy").chmod(0o755)
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "l"), "ranges": [[{"subnet": "10.78.0.0/24"}]]}
    plugins = [{"type": "bridge", "bridge": "testbusy", "ipam": ipam}, {"type": "busy"}]
    document = {"cniVersion": "1.0.0", "name": "busy", "plugins": plugins}
    (tmp_path / "busy.conflist").write_text(json.dumps(document))
    options = ("--attest=off", f"--net-config={tmp_path}", f"--cni-path={tmp_path}:/usr/lib/cni")
    lab = dataclasses.replace(machines, options=options)
    err = lab.run("true", options=("--net=busy",), code=125).err
    assert "a machine's interface cannot be connected: eth0: File exists" in err
    assert "use --stage1=nspawn for this network" in err
    net.run("ip", "link", "delete", "testbusy")


@pytest.mark.parametrize("point", ["machine-written", "before-waiter"])
def test_killed_while_a_machine_is_made_gc_leaves_no_interface_lease_or_rule(
    net: HostNet, machines: Secrun, tmp_path: Path, point: str
):
    roots = ("--root", str(machines.root), "--run-root", str(machines.run_root), *machines.options)
    words = [*roots, "run", *machines.pod_options, "-p", "7000:70", machines.image, "--", "true"]
    argv = [*machines.prefix, *faults.argv(str(tmp_path / "points"), point, words)]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert leases(machines) != []
    clean_up(machines)
    eventually(lambda: not any(name.startswith("veth") for name in net.links()), "the end of the interface")
    assert (net.rules(), leases(machines)) == ([], [])


def test_what_the_networks_answered_is_measured_before_a_guest_starts(machines: Secrun, tmp_path: Path):
    measured = dataclasses.replace(machines, options=machines.options[1:])
    roots = ("--root", str(machines.root), "--run-root", str(machines.run_root), *measured.options)
    words = [*roots, "run", *machines.pod_options, machines.image, "--", "true"]
    argv = [*machines.prefix, *faults.argv(str(tmp_path / "points"), "before-waiter", words)]
    subprocess.run(argv, capture_output=True, timeout=120, check=False)
    try:
        (pod,) = machines.pods()
        (folder,) = (machines.root / "pods").glob(f"*/{pod['uuid']}")
        known = state.read(folder)
        assert known is not None
        (started,) = [line for line in measured("attest", "log").out.splitlines() if " PodStart " in line]
        assert f'"network":"{known.digest}"' in started.replace(" ", "")
        table = (folder / "lv/network").read_text()
        assert all(f"\naddress {address}\n" in table for address in known.joined[0].addresses)
    finally:
        measured("gc", "--grace-period=0s", "--expire-prepared=0s")
        measured("attest", "stop", "--force")
