"""Configurations, what plugins read and what they answer: strict, bounded, and in words."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import HostError, NetworkError, SecrunError
from secrun.network import cni, configs, conflist, decide, hostfiles, hostrules, result
from secrun.network.builtin import default_network, subnets
from secrun.network.cni import Command, Runtime
from secrun.network.limits import MAX_CONFIG_BYTES
from secrun.network.plan import Connection, Dns, DnsMode, HostEntry
from secrun.network.request import NetworkAsked, NetworkRequest
from secrun.network.result import Answers
from secrun.paths import Layout

GOOD = {
    "cniVersion": "1.0.0",
    "name": "net",
    "plugins": [
        {"type": "bridge", "ipam": {"type": "host-local"}, "mtu": 1.5, "capabilities": {"mac": True}},
        {"type": "portmap", "capabilities": {"portMappings": True, "ips": False}},
    ],
}
RUNTIME = Runtime(
    container="c",
    interface="eth0",
    folders=("/a", "/b"),
    args="A=b",
    capabilities={"portMappings": [1], "mac": "02:00:00:00:00:01"},
)


def parsed(**changes: object) -> conflist.NetworkConfig:
    return conflist.parse(json.dumps({**GOOD, **changes}).encode(), "/etc/cni/net.d/x.conflist")


def test_a_chain():
    config = parsed()
    assert config.programs == ("bridge", "host-local", "portmap")
    assert (config.capable("portMappings"), config.capable("ips"), config.checks) == (True, False, True)
    assert conflist.parse(config.document, "x").document == config.document


def test_one_plugin_on_its_own():
    config = conflist.parse(b'{"cniVersion":"0.3.1","name":"n","type":"ptp"}', "x.conf")
    assert (config.programs, config.version, config.checks, config.collects) == (
        ("ptp",),
        "0.3.1",
        False,
        False,
    )


def test_the_newest_version_that_both_know():
    assert parsed(cniVersions=["0.4.0", "1.1.0", "2.0.0"]).version == "1.1.0"
    assert parsed(cniVersion="0.4.0", disableCheck="true").checks is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cniVersion": "0.2.0"}, "cniVersion is 0.2.0"),
        ({"cniVersion": 1}, "cniVersion is a int"),
        ({"name": "../up"}, "not a network's name"),
        ({"name": None}, "not a network's name"),
        ({"plugins": []}, "plugins is not a list"),
        ({"plugins": [{"type": "p"}] * 33}, "plugins is not a list of 1 to 32"),
        ({"plugins": [1]}, "a plugin is a int"),
        ({"plugins": [{}]}, "type '' is not"),
        ({"plugins": [{"type": "../../bin/sh"}]}, "is not a plugin's name"),
        ({"plugins": [{"type": "p", "ipam": {"type": "/bin/sh"}}]}, "is not a plugin's name"),
        ({"plugins": [{"type": "p", "capabilities": {"x": 1}}]}, "capabilities.x is not"),
        ({"disableCheck": 3}, "disableCheck is a int"),
    ],
)
def test_configurations_that_are_none(change: dict[str, object], said: str):
    with pytest.raises(NetworkError, match=said) as caught:
        parsed(**change)
    assert "x.conflist" in caught.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"a":1,"a":2}', b"\xff", b"[" * 100000])
def test_files_that_are_none(data: bytes):
    with pytest.raises(NetworkError, match=r"x\.conf"):
        conflist.parse(data, "x.conf")
    with pytest.raises(NetworkError, match="limit"):
        conflist.parse(b" " * (MAX_CONFIG_BYTES + 1), "x.conf")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
WORDS = st.sampled_from(
    ["cniVersion", "name", "plugins", "type", "ipam", "interfaces", "ips", "routes", "dns", "address", "dst",
     "mac", "sandbox", "interface", "gateway", "nameservers", "domain", "search", "options", "code", "msg"]
)  # fmt: skip
DOCUMENTS = st.dictionaries(WORDS, JSON | st.lists(st.dictionaries(WORDS, JSON), max_size=3))


@given(DOCUMENTS)
def test_no_document_makes_the_readers_fail_otherwise(document: dict[str, object]):
    data = json.dumps(document).encode()
    for parse in (conflist.parse, result.parse, result.versions):
        with contextlib.suppress(NetworkError):
            parse(data, "x")
    assert result.failure(data, b"\x1b[31m", "x", "exit status 1").message.isprintable()


@given(st.binary())
def test_no_bytes_make_the_readers_fail_otherwise(data: bytes):
    for parse in (conflist.parse, result.parse):
        with contextlib.suppress(NetworkError):
            parse(data, "x")
    assert result.failure(b"", data, "x", "exit status 1").message.isprintable()


def test_what_a_plugin_reads():
    config = parsed()
    bridge, portmap = (
        json.loads(cni.request(config, plugin, RUNTIME, {"ips": []})) for plugin in config.plugins
    )
    assert bridge == {
        "cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": {"type": "host-local"}, "mtu": 1.5,
        "runtimeConfig": {"mac": "02:00:00:00:00:01"}, "prevResult": {"ips": []},
    }  # fmt: skip
    assert portmap["runtimeConfig"] == {"portMappings": [1]}
    assert "capabilities" not in portmap


def test_the_variables_of_a_call():
    add = cni.environment(Command.ADD, RUNTIME, "/ns")
    own = {name: value for name, value in add.items() if name.startswith("CNI_")}
    assert own == {
        "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/ns", "CNI_IFNAME": "eth0",
        "CNI_ARGS": "A=b", "CNI_PATH": "/a:/b",
    }  # fmt: skip
    assert "CNI_NETNS" not in cni.environment(Command.DEL, RUNTIME, "")
    assert "CNI_CONTAINERID" not in cni.environment(Command.VERSION, RUNTIME, "")


ANSWER = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "br"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/ns"}],
    "ips": [
        {"address": "10.0.0.2/16", "gateway": "10.0.0.1", "interface": 1},
        {"address": "10.9.9.9/24", "interface": 0},
        {"address": "2001:DB8::2/64"},
    ],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["192.0.2.1"], "domain": "a.example"},
}


def test_what_a_plugin_answers():
    found = result.parse(json.dumps(ANSWER).encode(), "x")
    assert [address.cidr for address in found.inside("eth0")] == ["10.0.0.2/16", "2001:db8::2/64"]
    assert found.dns == Answers(servers=("192.0.2.1",), domain="a.example")
    assert found.document == ANSWER
    assert result.parse(b"{}", "x").addresses == ()


@pytest.mark.parametrize(
    "change",
    [
        {"ips": [{"address": "10.0.0.2"}]},
        {"ips": [{"address": "10.0.0.2/33"}]},
        {"ips": [{"address": "10.0.0.2/16", "interface": 9}]},
        {"ips": [{"address": "10.0.0.2/16", "gateway": "moon"}]},
        {"ips": {}, "interfaces": 1},
        {"routes": [{"dst": "x"}]},
        {"dns": {"nameservers": ["evil\nnameserver 192.0.2.1"]}},
        {"dns": {"search": ["a b"]}},
        {"dns": {"options": ["a b"]}},
        {"interfaces": [{"name": "x" * 5000}]},
        {"interfaces": [{}] * 2000},
    ],
)
def test_answers_that_are_refused(change: dict[str, object]):
    with pytest.raises(NetworkError, match="x: "):
        result.parse(json.dumps({**ANSWER, **change}).encode(), "x")


def test_a_plugins_failure_in_words():
    said = json.dumps({"code": 11, "msg": "no \x1b[31mlease\nhere", "details": "later"}).encode()
    error = result.failure(said, b"noise", "network n: ADD by plugin p", "exit status 1")
    assert error.message == "network n: ADD by plugin p refuses: no \\u001b[31mlease; here: later: noise"
    assert "later try" in error.hint
    silent = result.failure(b"", b"", "p", "killed by SIGKILL")
    assert silent.message == "p failed with killed by SIGKILL: it did not say why"


def test_an_earlier_folder_hides_a_later_one(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    for folder, version in ((first, "1.0.0"), (second, "0.4.0")):
        folder.mkdir()
        (folder / "net.conflist").write_text(json.dumps({**GOOD, "cniVersion": version}))
    (second / "z.conflist").write_text(json.dumps({**GOOD, "name": "other"}))
    (second / "README").write_text("{")
    folders = (str(first), str(second), str(tmp_path / "absent"))
    layout = Layout(root=tmp_path, run_root=tmp_path)
    assert configs.find("net", layout, folders).version == "1.0.0"
    assert configs.all_names(folders) == ("default", "net", "other")
    with pytest.raises(NetworkError, match="no network called 'x'") as caught:
        configs.find("x", layout, folders)
    assert "default, net, other" in caught.value.hint
    (first / "a.conf").write_text("{")
    with pytest.raises(NetworkError, match=r"a\.conf"):
        configs.find("net", layout, folders)
    found, problems = configs.survey(layout, folders)
    assert [item.name for item in found] == ["default", "net", "other"]
    assert len(problems) == 1


def test_a_file_takes_the_place_of_the_built_in_network(tmp_path):
    (tmp_path / "d.conf").write_text('{"cniVersion":"1.0.0","name":"default","type":"ptp"}')
    assert configs.find("default", Layout(), (str(tmp_path),)).programs == ("ptp",)


def test_the_built_in_network():
    assert default_network(Layout(), ports=False).programs == ("bridge", "host-local")
    assert default_network(Layout(), ports=True).capable(decide.PORTS)
    assert subnets(Layout()).bridge == "secrun0"
    assert subnets(Layout(run_root=Layout().run_root / "x")) != subnets(Layout())


def decided(tmp_path, request: NetworkRequest, exposed: tuple[str, ...] = ()) -> Connection:
    (tmp_path / "plugins").mkdir(exist_ok=True)
    for name in ("bridge", "host-local", "portmap", "plain"):
        path = tmp_path / "plugins" / name
        path.touch()
        path.chmod(0o755)
    (tmp_path / "plain.conf").write_text('{"cniVersion":"1.0.0","name":"plain","type":"plain"}')
    places = configs.Places(configs=(str(tmp_path),), plugins=(str(tmp_path / "plugins"),))
    return decide.decide(Layout(), request, places, exposed)


def test_images_name_their_ports(tmp_path):
    from secrun.network.request import NamedPort

    named = tuple(
        NamedPort(name=name, host_ip="", host_port=n) for n, name in enumerate(("53-udp", "80", "80/tcp"), 1)
    )
    found = decided(tmp_path, NetworkRequest(named_ports=named), ("53/udp", "80/tcp"))
    assert [str(port) for port in found.ports] == ["1:53/udp", "2:80/tcp", "3:80/tcp"]
    with pytest.raises(SecrunError, match="has a port of this name") as caught:
        decided(
            tmp_path,
            NetworkRequest(named_ports=(NamedPort(name="x", host_ip="", host_port=1),)),
            ("80/tcp",),
        )
    assert "80-tcp" in caught.value.hint


def test_ports_need_a_network_that_forwards_them(tmp_path):
    from secrun.network.request import publish
    from secrun.stage1.manifest import Network

    ports = publish("80:80")
    plain = (NetworkAsked(name="plain"),)
    with pytest.raises(NetworkError, match="cannot forward ports"):
        decided(tmp_path, NetworkRequest(networks=plain, ports=ports))
    both = (*plain, NetworkAsked(name="default"))
    assert decided(tmp_path, NetworkRequest(networks=both, ports=ports)).ports == ports
    with pytest.raises(SecrunError, match="--net=none has no ports"):
        decided(tmp_path, NetworkRequest(mode=Network.NONE, networks=(), ports=ports))


def test_interfaces_are_counted_around_those_that_have_a_name(tmp_path):
    asked = (NetworkAsked(name="plain"), NetworkAsked(name="default", interface="eth0"))
    found = decided(tmp_path, NetworkRequest(networks=asked))
    assert [item.interface for item in found.attachments] == ["eth1", "eth0"]


def test_a_plugin_that_is_missing_is_said_with_what_to_do(tmp_path):
    places = configs.Places(configs=(), plugins=(str(tmp_path),))
    with pytest.raises(HostError, match="CNI plugin 'bridge'") as caught:
        decide.decide(Layout(), NetworkRequest(), places, ())
    assert "--net=none" in caught.value.hint


HOST = hostfiles.parse_resolv_conf("nameserver 192.0.2.53\nsearch host.example\noptions edns0\n")
NETWORK = Answers(servers=("192.0.2.1",), search=("net.example",))


@pytest.mark.parametrize(
    ("dns", "answers", "expected"),
    [
        (Dns(), (), "nameserver 192.0.2.53\nsearch host.example\noptions edns0\n"),
        (Dns(), (NETWORK,), "nameserver 192.0.2.1\nsearch net.example\n"),
        (Dns(), (Answers(), NETWORK), "nameserver 192.0.2.1\nsearch net.example\n"),
        (
            Dns(),
            (Answers(domain="d.example"),),
            "nameserver 192.0.2.53\nsearch host.example\noptions edns0\n",
        ),
        (Dns(servers=("192.0.2.9",)), (NETWORK,), "nameserver 192.0.2.9\nsearch net.example\n"),
        (Dns(search=("a",)), (NETWORK,), "nameserver 192.0.2.1\nsearch a\n"),
        (Dns(mode=DnsMode.NONE, search=("a",)), (NETWORK,), "search a\n"),
        (Dns(mode=DnsMode.HOST), (NETWORK,), HOST.text),
    ],
)
def test_options_beat_networks_and_networks_beat_the_host(dns, answers, expected):
    assert hostfiles.resolv_conf(dns, answers, HOST) == expected


def test_lines_that_are_given_come_first_in_hosts():
    connection = Connection(hosts=(HostEntry(address="192.0.2.1", names=("web",)),))
    text = hostfiles.hosts("web", ("10.0.0.2",), connection, "")
    assert text.splitlines()[0] == "192.0.2.1 web"
    assert text.splitlines()[-1] == "10.0.0.2 web"


def test_the_number_of_the_hosts_rules_is_read_from_the_kernels_answer():
    header = (28).to_bytes(4, "little") + (0x0A0F).to_bytes(2, "little") + bytes(10) + bytes(4)
    answer = header + (8).to_bytes(2, "little") + (1).to_bytes(2, "little") + (77).to_bytes(4, "big")
    assert hostrules.parse_generation(answer) == 77
    assert hostrules.parse_generation(answer[:20]) is None
    assert hostrules.parse_generation(b"\2" * 40) is None
    assert hostrules.parse_generation(header + b"\0\0\1\0" + bytes(4)) is None
