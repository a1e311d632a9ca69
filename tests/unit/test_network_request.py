"""Options about networks: every spelling, and what is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import SecrunError, UsageError
from secrun.network import request
from secrun.network.plan import Connection, Dns, DnsMode, HostEntry, Port, Protocol
from secrun.network.request import NamedPort, NetworkAsked
from secrun.stage1.manifest import Network


def port(host: int, pod: int, protocol: str = "tcp", ip: str = "") -> Port:
    return Port(host_ip=ip, host_port=host, pod_port=pod, protocol=Protocol(protocol))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", (port(8080, 80),)),
        ("8080:80/udp", (port(8080, 80, "udp"),)),
        ("1-3:11-13/sctp", (port(1, 11, "sctp"), port(2, 12, "sctp"), port(3, 13, "sctp"))),
        ("127.0.0.1:8080:80", (port(8080, 80, ip="127.0.0.1"),)),
        ("[::1]:8080:80", (port(8080, 80, ip="::1"),)),
        ("[2001:DB8:0::1]:8080:80", (port(8080, 80, ip="2001:db8::1"),)),
        ("0.0.0.0:8080:80", (port(8080, 80),)),
    ],
)
def test_published_ports(text: str, expected: tuple[Port, ...]):
    assert request.publish(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "80", ":80", "80:", "a:80", "80:b", "0:80", "80:0", "65536:80", "80:65536"),
        *("80:80/icmp", "80:80/", "1-2:3", "2-1:2-1", "::1:80:80", "[::1]80:80", "[:]:80:80"),
        *("1.2.3:80:80", "-1:80", "80:80:80", "८०:80"),
    ],
)
def test_ports_that_have_no_meaning(text: str):
    with pytest.raises(UsageError):
        request.publish(text)


@given(st.text())
def test_no_text_makes_the_parsers_fail_otherwise(text: str):
    for parse in (request.publish, request.named_port, request.network):
        with contextlib.suppress(UsageError):
            parse(text)


@given(
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.sampled_from(["", "127.0.0.1", "2001:db8::1"]),
    st.sampled_from(list(Protocol)),
)
def test_a_port_is_read_as_it_is_written(outer: int, inner: int, ip: str, protocol: Protocol):
    made = port(outer, inner, protocol, ip)
    assert request.publish(str(made)) == (made,)


def test_two_mappings_of_one_port_are_refused():
    request.check_ports((port(80, 1), port(80, 1, "udp"), port(81, 1)))
    request.check_ports((port(80, 1, ip="127.0.0.1"), port(80, 1, ip="127.0.0.2")))
    for other in (port(80, 2), port(80, 2, ip="127.0.0.1")):
        with pytest.raises(UsageError, match="given twice"):
            request.check_ports((port(80, 1), other))
    with pytest.raises(UsageError, match="at most 256"):
        request.check_ports([port(number, number) for number in range(1, 300)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http:8080", NamedPort(name="http", host_ip="", host_port=8080)),
        ("80-tcp:127.0.0.1:8080", NamedPort(name="80-tcp", host_ip="127.0.0.1", host_port=8080)),
        ("80-tcp:[::1]:8080", NamedPort(name="80-tcp", host_ip="::1", host_port=8080)),
    ],
)
def test_ports_by_name(text: str, expected: NamedPort):
    assert request.named_port(text) == expected


def test_networks_by_name():
    assert request.networks(()).networks == (NetworkAsked(name="default"),)
    assert request.networks(("none",)).mode is Network.NONE
    assert request.networks(("host",)).mode is Network.HOST
    assert request.networks(("all",)).every
    asked = request.network("front:IP=10.0.0.9;mac=02:AA:00:00:00:01,interface=web0,K8S=1")
    assert asked == NetworkAsked(
        name="front", ips=("10.0.0.9",), mac="02:aa:00:00:00:01", interface="web0", args=(("K8S", "1"),)
    )


@pytest.mark.parametrize(
    "texts",
    [
        ("none", "default"),
        ("host", "host"),
        ("a", "a"),
        ("a:interface=x", "b:interface=x"),
        ("a:interface=lo",),
        ("a:interface=much-too-long-a-name",),
        ("a:IP=1.2.3",),
        ("a:mac=01:00:00:00:00:01",),
        ("a:X",),
        ("a:X=",),
        ("a/b",),
        ("",),
        tuple(f"n{number}" for number in range(17)),
    ],
)
def test_networks_that_have_no_meaning(texts: tuple[str, ...]):
    with pytest.raises(UsageError):
        request.networks(texts)


def test_name_servers():
    assert request.dns((), (), ()) == Dns()
    assert request.dns(("none",), ("a.example",), ("ndots:1",)) == Dns(
        mode=DnsMode.NONE, search=("a.example",), options=("ndots:1",)
    )
    assert request.dns(("192.0.2.1", "2001:DB8::1"), (), ()).servers == ("192.0.2.1", "2001:db8::1")


@pytest.mark.parametrize(
    ("servers", "search", "options"),
    [
        (("host", "none"), (), ()),
        (("none", "192.0.2.1"), (), ()),
        (("host",), ("a",), ()),
        (("192.0.2.256",), (), ()),
        ((), ("a b",), ()),
        ((), ("a\nnameserver 192.0.2.9",), ()),
        ((), (), ("a\nb",)),
        (tuple(f"192.0.2.{number}" for number in range(9)), (), ()),
    ],
)
def test_name_servers_that_have_no_meaning(servers, search, options):
    with pytest.raises(UsageError):
        request.dns(servers, search, options)


def test_host_names():
    entries, host = request.hosts(("db:192.0.2.1", "six:[::1]"), ("192.0.2.2=a,b", "host"))
    assert host
    assert entries == (
        HostEntry(address="192.0.2.1", names=("db",)),
        HostEntry(address="::1", names=("six",)),
        HostEntry(address="192.0.2.2", names=("a", "b")),
    )


@pytest.mark.parametrize(
    ("podman", "rkt"),
    [(("db",), ()), (("db:",), ()), (("a b:192.0.2.1",), ()), ((), ("192.0.2.1",)), ((), ("192.0.2.1=",))],
)
def test_host_names_that_have_no_meaning(podman, rkt):
    with pytest.raises(SecrunError):
        request.hosts(podman, rkt)


def test_a_connection_is_read_as_it_is_written():
    from secrun.digest import Digest
    from secrun.fields import Fields
    from secrun.network.plan import Attachment

    made = Connection(
        attachments=(
            Attachment(
                network="n", interface="eth0", source="built-in", config=Digest.of(b""), plugins=("p",),
                ips=("192.0.2.1",), mac="02:00:00:00:00:01", args=(("A", "b=c"),),
            ),
        ),
        ports=(port(1, 2, "udp", "::1"),),
        dns=Dns(mode=DnsMode.NONE, servers=("192.0.2.1",)),
        hosts=(HostEntry(address="::1", names=("a", "b")),),
        host_hosts=True,
    )  # fmt: skip
    assert Connection.from_fields(Fields(made.to_json(), "connection")) == made
