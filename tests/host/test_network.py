"""Pods on networks, with the real plugins, in a namespace that plays the host."""

import dataclasses
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.network import state
from support import hostnet, roots
from support.hostnet import HostNet, addresses, clean_up, leases, listening, served
from support.secrun import Result, Secrun, eventually

RELAXED = ("--pull=never", "--insecure-options=image")
PAGE = ("sh", "-c", "mkdir /www && echo here > /www/index.html && exec httpd -f -p 80 -h /www")


@pytest.fixture(scope="module")
def net() -> Iterator[HostNet]:
    with hostnet.made() as made:
        yield made


@pytest.fixture(scope="module")
def pods(net: HostNet, secrun: Secrun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secrun]:
    """A root of its own, whose pods join the default network unless they name another."""
    base = tmp_path_factory.mktemp("network")
    other = Secrun(root=base / "root", run_root=base / "run", network="", options=("--attest=off",))
    layout = secrun.root.parent / "layout"
    image = other("fetch", "--insecure-options=image", f"oci:{layout}:busybox").out.split()[-1]
    yield net(dataclasses.replace(other, image=image))
    clean_up(other)


@pytest.fixture(autouse=True)
def _clean(net: HostNet, pods: Secrun) -> Iterator[None]:
    yield
    clean_up(pods)
    assert pods.pods() == []
    assert net.links() == set()
    assert net.rules() == []
    assert leases(pods) == []


def test_a_port_of_one_address_is_not_open_on_the_others(net: HostNet, pods: Secrun):
    uuid = pods.detach(*PAGE, options=("-p", "127.0.0.1:8081:80"))
    served(net, "http://127.0.0.1:8081/")
    four, _ = addresses(pods, uuid)
    assert net.fetch(f"http://{four.rpartition('.')[0]}.1:8081/") == ""


def test_an_image_names_a_port(net: HostNet, pods: Secrun):
    refused = pods("run", "--port=80-tcp:8082", *RELAXED, pods.image, "--", "true", code=2)
    assert "no image of the pod has a port of this name" in refused.err


def test_an_address_in_use_is_refused_and_nothing_stays(net: HostNet, pods: Secrun):
    first = pods.detach("sleep", "1000")
    four, _ = addresses(pods, first)
    before = leases(pods), net.rules(), net.links()
    words = ("run", "--rm", f"--net=default:IP={four}", *RELAXED, pods.image, "--", "true")
    refused = pods(*words, code=125)
    assert f"{four}" in refused.err
    assert "not available" in refused.err
    assert (leases(pods), net.rules(), net.links()) == before
    assert [pod["uuid"] for pod in pods.pods()] == [first]


def test_what_a_pod_may_do_to_its_network(net: HostNet, pods: Secrun):
    """It may use it, low ports included, and change nothing of it; the operator may set it up."""
    change = "busybox ip address add 10.1.1.1/24 dev eth0 2>/dev/null && echo changed"
    script = f"{change}; timeout 1 busybox nc -l -p 1 -s 0.0.0.0; id -u"
    assert pods.run("sh", "-c", script).out == "0\n"
    setting = "--sysctl=net.ipv4.conf.eth0.accept_local=1"
    script = "cat /proc/sys/net/ipv4/conf/eth0/accept_local /proc/sys/net/ipv4/conf/all/accept_local"
    assert pods.run("sh", "-c", script).out == "0\n0\n"
    assert pods.run("sh", "-c", script, options=(setting,)).out == "1\n0\n"
    for name in ("net.core.rmem_max", "net.ipv4.no_such_thing", "net.netfilter.nf_conntrack_max"):
        known = net.run("sysctl", "-n", name, check=False)
        said = pods("run", "--rm", f"--sysctl={name}=5", *RELAXED, pods.image, "--", "true", code=125).err
        assert f"sysctl {name}=5" in said
        assert net.run("sysctl", "-n", name, check=False) == known
    refused = pods("run", "--cap-add=net_admin", *RELAXED, pods.image, "--", "true", code=2)
    assert "cannot be had in this pod's network" in refused.err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--net=nowhere", "there is no network called 'nowhere'"),
        ("--net=default:IP=10.62.0", "not an IP address"),
        ("-p=80", "expected [HOSTIP:]HOST:POD"),
        ("-p=0:80", "not a port from 1 to 65535"),
        ("-p=[::1]:80:80", "Linux never routes from ::1"),
        ("--dns=moon", "neither an IP address nor host or none"),
    ],
)
def test_what_has_no_meaning_is_an_error(pods: Secrun, option: str, said: str):
    words = ("run", "--rm", option, *RELAXED, pods.image, "--", "true")
    refused = pods(*words, code=None)
    assert refused.code in (2, 125)
    assert said in refused.err
    assert pods.pods() == []


def taken(pods: Secrun, *options: str) -> Result:
    return pods("run", "--rm", *options, *RELAXED, pods.image, "--", "true", code=125)


def test_a_taken_port_is_an_error_before_anything_starts(net: HostNet, pods: Secrun):
    first = pods.detach("sleep", "1000", options=("-p", "8083:80"))
    assert f"pod {first} has it" in taken(pods, "-p", "8083:81").err
    assert f"pod {first} has it" in taken(pods, "-p", "127.0.0.1:8083:81").err
    assert pods.run("true", options=("-p", "8083:81/udp")).code == 0
    assert [pod["uuid"] for pod in pods.pods()] == [first]


def test_a_port_of_another_program_is_an_error(net: HostNet, pods: Secrun):
    with listening(net, "127.0.0.1") as port:
        assert "another program of this host has it" in taken(pods, "-p", f"127.0.0.1:{port}:80").err
        assert "another program of this host has it" in taken(pods, "-p", f"{port}:80").err


def test_a_protocol_that_the_kernel_lacks_is_named_before_anything_starts(net: HostNet, pods: Secrun):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        assert "this host's kernel has no sctp" in taken(pods, "-p", "3868:3868/sctp").err
        assert pods.pods() == []
    else:
        uuid = pods.detach(
            "sleep",
            "1000",
            options=(
                "-p",
                "3868:3868/sctp",
            ),
        )
        assert any("-p sctp" in rule and "--dport 3868" in rule for rule in net.rules())
        assert f"pod {uuid} has it" in taken(pods, "-p", "3868:1/sctp").err


def test_what_was_decided_is_in_the_manifest_and_the_result_in_the_status(pods: Secrun):
    uuid = pods.detach("true", options=("-p", "127.0.0.1:8084:80/udp", "--dns=192.0.2.1"))
    manifest = json.loads(pods("cat-manifest", uuid).out)
    (network,) = manifest["connection"]["networks"]
    assert network["network"] == "default"
    assert network["plugins"] == ["bridge", "host-local", "portmap"]
    (port,) = manifest["connection"]["ports"]
    assert port == {"host_ip": "127.0.0.1", "host_port": 8084, "pod_port": 80, "protocol": "udp"}
    pods("status", "--wait", uuid)
    (shown,) = pods.status(uuid)["networks"]
    assert (shown["network"], shown["interface"]) == ("default", "eth0")
    assert socket.inet_aton(shown["addresses"][0].split("/")[0])
    assert "networks=default:eth0=" in pods("status", uuid).out


def test_the_hosts_own_files_on_demand(pods: Secrun):
    options = ("--dns=host", "--hosts-entry=host")
    said = pods.run("sh", "-c", "cat /etc/resolv.conf /etc/hosts", options=options).out
    assert Path("/etc/resolv.conf").read_text() in said
    assert said.endswith(Path("/etc/hosts").read_text())


def test_what_the_networks_answered_is_measured_when_the_pod_starts(
    net: HostNet, secrun: Secrun, tmp_path: Path
):
    with roots.made(secrun, tmp_path) as own:
        measured = dataclasses.replace(own, prefix=net.prefix, network="")
        uuid = measured.detach("true")
        measured("status", "--wait", uuid)
        known = state.read(measured.root / "pods/run" / uuid)
        assert known is not None
        (started,) = [line for line in measured("attest", "log").out.splitlines() if " PodStart " in line]
        assert f'"network":"{known.digest}"' in started.replace(" ", "")
        clean_up(measured)


def test_a_port_of_an_ipv6_address_is_open_there_alone(net: HostNet, pods: Secrun):
    uuid = pods.detach("sleep", "1000")
    six = addresses(pods, uuid)[1].rpartition(":")[0] + ":1"
    # The kernel looks for a second owner of the address before it is the bridge's own.
    eventually(lambda: net.run("ip", "-6", "address", "show", "tentative") == "", "the bridge's address")
    served_by = pods.detach(*PAGE, options=("-p", f"[{six}]:8085:80"))
    served(net, f"http://[{six}]:8085/")
    gateway = addresses(pods, served_by)[0].rpartition(".")[0] + ".1"
    assert net.fetch(f"http://{gateway}:8085/") == ""


def rules_of_network(net: HostNet) -> list[str]:
    listed = [line for tool in ("iptables-save", "ip6tables-save") for line in net.run(tool).splitlines()]
    return [line for line in listed if "secrun-" in line and line.startswith("-A")]


def test_rules_that_somebody_took_away_are_made_again(net: HostNet, pods: Secrun):
    for _ in range(3):  # from the third on, nothing is looked at that nobody changed
        pods.run("true")
    known = rules_of_network(net)
    assert len(known) == 6
    for tool in ("iptables", "ip6tables"):
        net.run(tool, "-t", "nat", "-F", "POSTROUTING")
        net.run(tool, "-F", "FORWARD")
    for _ in range(2):
        pods.run("true")
        assert rules_of_network(net) == known


@pytest.fixture
def outside(net: HostNet) -> Iterator[HostNet]:
    """A neighbour of the host, which knows nothing of the addresses of pods; the host forwards nothing."""
    with hostnet.made() as far:
        net.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "far", "netns", str(far.pid))
        for side, name, number in ((net, "uplink", 1), (far, "far", 2)):
            side.run("ip", "address", "add", f"192.0.2.{number}/24", "dev", name)
            side.run("ip", "address", "add", f"2001:db8::{number}/64", "dev", name, "nodad")
            side.run("ip", "link", "set", name, "up")
        for tool in ("iptables", "ip6tables"):
            net.run(tool, "-P", "FORWARD", "DROP")
        try:
            yield far
        finally:
            for tool in ("iptables", "ip6tables"):
                net.run(tool, "-P", "FORWARD", "ACCEPT")
            net.run("ip", "link", "delete", "uplink")


def test_a_host_that_forwards_nothing_lets_pods_out_and_callers_of_a_port_in(
    net: HostNet, outside: HostNet, pods: Secrun
):
    uuid = pods.detach(*PAGE, options=("-p", "8086:80"))
    for host in ("192.0.2.1", "[2001:db8::1]"):
        served(outside, f"http://{host}:8086/")
    four, six = addresses(pods, uuid)
    outside.run("ip", "route", "add", f"{four}/32", "via", "192.0.2.1")
    outside.run("ip", "route", "add", f"{six}/128", "via", "2001:db8::1")
    assert outside.fetch(f"http://{four}/") + outside.fetch(f"http://[{six}]/") == ""
    for far in ("192.0.2.2", "2001:db8::2"):
        with listening(outside, far) as port:
            assert pods.run("busybox", "nc", far, str(port)).out == "from the host\n"
