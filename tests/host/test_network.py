"""Pods on networks, with the real plugins, in a namespace that plays the host."""

import dataclasses
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.network import state
from support import hostnet, roots
from support.hostnet import HostNet, leases
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


def clean_up(secrun: Secrun) -> None:
    running = [str(pod["uuid"]) for pod in secrun.pods() if pod["state"] == "running"]
    if running:
        secrun("stop", "--force", *running)
        for uuid in running:
            secrun("status", "--wait", uuid)
    secrun("gc", "--grace-period=0s", "--expire-prepared=0s")


def addresses(secrun: Secrun, uuid: str) -> list[str]:
    """Return a pod's addresses without their prefix lengths."""
    shown = secrun.status(uuid)["networks"]
    return [text.split("/")[0] for item in shown for text in item["addresses"]]


def served(net: HostNet, url: str) -> None:
    eventually(lambda: net.fetch(url) == "here\n", f"a page at {url}")


def test_two_pods_reach_each_other_and_the_host_by_default(net: HostNet, pods: Secrun):
    first = pods.detach(*PAGE)
    four, six = addresses(pods, first)
    served(net, f"http://{four}/")
    served(net, f"http://[{six}]/")
    fetch = f"wget -q -O - http://{four}/; wget -q -O - 'http://[{six}]/'"
    assert pods.run("sh", "-c", fetch).out == "here\nhere\n"
    gateway = four.rpartition(".")[0] + ".1"
    with listening(net, gateway) as port:
        assert pods.run("busybox", "nc", gateway, str(port)).out == "from the host\n"


@dataclasses.dataclass
class Listening:
    """A server of the host that says one line to whoever connects."""

    net: HostNet
    address: str

    def __enter__(self) -> int:
        code = (
            "import socket,sys\n"
            "kind=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
            "s=socket.create_server((sys.argv[1],0),family=kind)\n"
            "print(s.getsockname()[1], flush=True)\n"
            "c,_=s.accept(); c.sendall(b'from the host\\n')\n"
        )
        words = [*self.net.prefix, "/usr/bin/python3", "-c", code, self.address]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE)
        return int(self.process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def listening(net: HostNet, address: str) -> Listening:
    return Listening(net, address)


def test_a_published_port_answers_on_loopback_and_on_the_bridge(net: HostNet, pods: Secrun):
    uuid = pods.detach(*PAGE, options=("-p", "8080:80"))
    four, six = addresses(pods, uuid)
    for host in ("127.0.0.1", four.rpartition(".")[0] + ".1", f"[{six.rpartition(':')[0]}:1]"):
        served(net, f"http://{host}:8080/")


def test_a_port_of_one_address_is_not_open_on_the_others(net: HostNet, pods: Secrun):
    uuid = pods.detach(*PAGE, options=("-p", "127.0.0.1:8081:80"))
    served(net, "http://127.0.0.1:8081/")
    four, _ = addresses(pods, uuid)
    assert net.fetch(f"http://{four.rpartition('.')[0]}.1:8081/") == ""


def test_an_image_names_a_port(net: HostNet, pods: Secrun):
    refused = pods("run", "--port=80-tcp:8082", *RELAXED, pods.image, "--", "true", code=2)
    assert "no image of the pod has a port of this name" in refused.err


def test_without_a_network_there_is_only_the_loopback(pods: Secrun):
    assert pods.run("ls", "/sys/class/net", options=("--net=none",)).out == "lo\n"
    assert pods.run("ls", "/sys/class/net").out.split() == ["eth0", "lo"]


def test_an_address_can_be_used_again_as_soon_as_its_pod_has_exited(pods: Secrun):
    first = pods.detach("true")
    pods("status", "--wait", first)
    assert leases(pods) == []
    four, _ = addresses(pods, first)
    second = pods.run("busybox", "ip", "address", options=(f"--net=default:IP={four}",)).out
    assert f"inet {four}/" in second
    assert pods.status(first)["state"] == "exited"
    assert four in pods("list").out


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


def test_a_mac_address_of_the_callers_choice(pods: Secrun):
    shown = pods.run("busybox", "ip", "link", options=("--net=default:mac=02:00:00:12:34:56",)).out
    assert "02:00:00:12:34:56" in shown


def test_what_a_pod_may_do_to_its_network(pods: Secrun):
    """It may use it, low ports included, and change nothing of it."""
    change = "busybox ip address add 10.1.1.1/24 dev eth0 2>/dev/null && echo changed"
    script = f"{change}; timeout 1 busybox nc -l -p 1 -s 0.0.0.0; id -u"
    assert pods.run("sh", "-c", script).out == "0\n"
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


def test_names_of_the_pod(pods: Secrun):
    options = ("--dns=192.0.2.1", "--dns-search=example.org", "--dns-opt=ndots:3", "--hostname=web")
    options += ("--add-host=db:192.0.2.7", "--hosts-entry=192.0.2.8=a,b")
    said = pods.run("sh", "-c", "cat /etc/resolv.conf /etc/hosts /etc/hostname", options=options).out
    assert said.startswith("nameserver 192.0.2.1\nsearch example.org\noptions ndots:3\n192.0.2.7 db\n")
    assert "\n192.0.2.8 a b\n" in said
    assert said.endswith(" web\nweb\n")
    own = pods.run("ls", "/etc", options=("--dns=none",)).out
    assert "hosts" in own
    assert "resolv.conf" not in own


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


MIRROR = r"""
#include <arpa/inet.h>
#include <sys/socket.h>
int main(void) {
    struct sockaddr_in6 own = {.sin6_family = AF_INET6, .sin6_port = htons(53)}, peer;
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    char text[100];
    bind(fd, (struct sockaddr *)&own, sizeof own);
    for (;;) {
        socklen_t size = sizeof peer;
        ssize_t count = recvfrom(fd, text, sizeof text, 0, (struct sockaddr *)&peer, &size);
        sendto(fd, text, count, 0, (struct sockaddr *)&peer, size);
    }
}
"""


def compiled(folder: Path, source: str) -> None:
    """Make the program `made` for pods, which have no libraries."""
    (folder / "made.c").write_text(source)
    subprocess.run(["gcc", "-static", "-o", folder / "made", folder / "made.c"], check=True)


def test_echo_requests_need_no_capability(pods: Secrun, tmp_path: Path):
    compiled(tmp_path, ECHO)
    uuid = pods.detach("sleep", "1000", options=("-v", f"{tmp_path}:/t:ro"))
    gateway = addresses(pods, uuid)[0].rpartition(".")[0] + ".1"
    for user in ("0", "1000"):
        said = pods("enter", "--user", user, uuid, "--", "/t/made", gateway).out
        assert said == "no raw socket\nanswered\n"


SAY = """
import socket, sys
host, port, kind = sys.argv[1], int(sys.argv[2]), getattr(socket, sys.argv[3])
found = socket.getaddrinfo(host, port, type=kind)[0]
with socket.socket(found[0], kind) as client:
    client.settimeout(5)
    client.connect(found[4])
    client.send(b"asked\\n")
    sys.stdout.write(client.recv(100).decode())
"""


def say(net: HostNet, host: str, port: int, kind: str) -> str:
    return net.run("/usr/bin/python3", "-c", SAY, host, str(port), kind, check=False)


def test_ranges_udp_and_addresses_of_both_families(net: HostNet, pods: Secrun, tmp_path: Path):
    compiled(tmp_path, MIRROR)
    tcp = " ".join(f"busybox nc -ll -p {port} -e echo at {port} &" for port in (81, 82))
    options = ("-v", f"{tmp_path}:/t:ro", "-p", "5353:53/udp", "-p", "8181-8182:81-82")
    uuid = pods.detach("sh", "-c", f"{tcp} exec /t/made", options=options)
    four, six = addresses(pods, uuid)
    for host in ("127.0.0.1", four.rpartition(".")[0] + ".1", six.rpartition(":")[0] + ":1"):
        for port in (81, 82):
            eventually(lambda h=host, p=port: say(net, h, 8100 + p, "SOCK_STREAM") == f"at {p}\n", "a port")
        eventually(lambda h=host: say(net, h, 5353, "SOCK_DGRAM") == "asked\n", "a datagram's answer")


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
