"""A guest's interfaces, of what the plugins answered."""

import json
from pathlib import Path

import pytest

from secrun.errors import HostError
from secrun.network import conflist, result
from secrun.network.cni import Runtime
from secrun.network.namespace import Identity, Link
from secrun.network.state import Joined, NetworkState
from secrun.paths import Layout
from secrun.stage1.contract import PodOnDisk
from secrun_kvm import nics
from secrun_kvm.place import Root
from secrun_kvm.spec import Nic
from support.manifests import pod

MAC = "02:00:00:00:00:01"
ANSWER = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/proc/1/ns/net"}],
    "ips": [
        {"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 1},
        {"address": "192.0.2.8/24", "gateway": "192.0.2.2", "interface": 1},
        {"address": "fd00::7/64", "interface": 1},
        {"address": "198.51.100.1/24", "interface": 0},
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "192.0.2.9"}, {"dst": "::/0"}],
}


class Connected:
    """The namespace, its plugins done."""

    def __init__(self, *links: Link, answer: object = ANSWER) -> None:
        self._links = links
        self._answer = result.parse(json.dumps(answer).encode(), "a plugin")

    def state(self) -> NetworkState:
        config = conflist.parse(b'{"cniVersion":"1.0.0","name":"net","type":"bridge"}', "x.conf")
        joined = tuple(
            Joined(
                config=config,
                runtime=Runtime(container="c", interface=link.name, folders=(), args="", capabilities={}),
                result=self._answer,
                link=link,
            )
            for link in self._links
        )
        identity = Identity(boot="b", device=1, inode=2, fd=3)
        return NetworkState(
            container="c", folders=(), plugin_seconds=60.0, namespace=identity, joined=joined
        )


def joined(network: Connected | None) -> tuple[nics.Joined, ...]:
    layout = Layout(root=Path("/r"), run_root=Path("/run"))
    return nics.joined(PodOnDisk(layout=layout, path=Path("/r/p"), manifest=pod(), network=network))


def test_the_guest_is_told_what_the_plugins_answered_of_its_own_side():
    (found,) = joined(Connected(Link(name="eth0", mac=MAC, mtu=1400)))
    assert found.nic == Nic(tap="secrun-tap0", mac=MAC, mtu=1400)
    assert nics.table([found]).splitlines() == [
        "secrun-network 1",
        f"link eth0 {MAC} 1400",
        "address 192.0.2.7/24",
        "address 192.0.2.8/24",
        "address fd00::7/64",
        # Through the gateway of the first address, where the route has none of its own.
        "route 0.0.0.0/0 192.0.2.1",
        "route 10.0.0.0/8 192.0.2.9",
        "route ::/0 -",
    ]


def test_each_network_is_an_interface_with_programs_of_its_own(tmp_path):
    other = "02:00:00:00:00:02"
    found = joined(Connected(Link(name="eth0", mac=MAC, mtu=1500), Link(name="b", mac=other, mtu=1500)))
    assert [item.nic.tap for item in found] == ["secrun-tap0", "secrun-tap1"]
    root = Root(tmp_path)
    nics.write(root, found)
    assert root.network.read_text() == nics.table(found)
    assert root.outgoing(0).read_bytes() != root.outgoing(1).read_bytes()
    assert root.incoming(0).read_bytes() != root.incoming(1).read_bytes()


def test_without_a_network_there_is_no_interface():
    assert joined(None) == ()
    assert nics.table(()) == "secrun-network 1\n"


@pytest.mark.parametrize("mac", ["00:00:00:00:00:00", "01:00:5e:00:00:01"])
def test_an_interface_that_is_not_of_ethernet_is_an_error(mac):
    with pytest.raises(HostError, match="without a hardware address"):
        joined(Connected(Link(name="eth0", mac=mac, mtu=1500)))
