"""Pods on networks of CNI plugins, where each plugin, rule and interface meets the host's policy.

The pod that serves goes on until a machine by KVM has reached it (`kvmchecks`).
"""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

from vmhost.kit import LAYOUT, OPEN, check, eventually, note, noted, secrun, status, tool

PORT = 8080
PAGE = "from the pod\n"
NETWORK = Path("/etc/cni/net.d/lab.conflist")
LAB = {
    "cniVersion": "1.0.0",
    "name": "lab",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "testlab",
            "isGateway": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]]},
        }
    ],
}
SERVE = (
    "trap 'exit 0' TERM; mkdir /tmp/www; cd /tmp/www; echo from the pod >index.html; "
    "httpd -p 80; echo up; while :; do sleep 0.2; done"
)


def page(address: str, port: int = 80) -> str:
    """Fetch what a pod serves, as this host."""
    with urllib.request.urlopen(f"http://{address}:{port}/", timeout=30) as answer:
        return answer.read().decode()


def address(uuid: str) -> str:
    """Return the pod's IPv4 address on its network."""
    (found,) = status(uuid)["networks"]
    return found["addresses"][0].partition("/")[0]


@check
def a_pod_on_the_default_network_serves_the_host_and_a_published_port() -> str:
    words = (*OPEN, f"--publish={PORT}:80", LAYOUT, "--", "sh", "-c", SERVE)
    uuid = secrun("run", "-d", *words).strip()
    noted("server", uuid)
    eventually(lambda: secrun("logs", uuid) == "up\n", "the first line of the log")
    gateway = json.loads(tool("ip", "-json", "-4", "address", "show", "secrun0"))[0]["addr_info"][0]["local"]
    assert [page(address(uuid)), page("127.0.0.1", PORT), page(gateway, PORT)] == [PAGE] * 3
    return f"{address(uuid)} {gateway}"


@check
def another_pod_reaches_it_and_is_on_a_network_of_the_hosts_too() -> None:
    """The second network is the administrator's: its plugins keep their notes where they always do."""
    NETWORK.parent.mkdir(parents=True)
    NETWORK.write_text(json.dumps(LAB))
    uuid = note("server")
    script = f"ip -4 -o address show; wget -qO- http://{address(uuid)}/"
    words = (*OPEN, "--net=default", "--net=lab", LAYOUT, "--", "sh", "-c", script)
    *rows, said = secrun("run", "--rm", *words).splitlines(keepends=True)
    assert said == PAGE
    own = [found[1] for row in rows if (found := re.search(r" inet (10\.[\d.]+)/", row))]
    assert [word.startswith("10.77.0.") for word in own] == [False, True], rows
    assert address(uuid) not in own
    NETWORK.unlink()
    leases = [path.name for path in Path("/var/lib/cni/networks/lab").glob("10.*")]
    assert leases == [], "the pod's end gave its address back"
    tool("ip", "link", "delete", "testlab")


def the_server_ends() -> None:
    """Stop the pod that serves, for the last who asks it; port and bridge go with it."""
    uuid = note("server")
    secrun("stop", uuid)
    eventually(lambda: status(uuid)["state"] == "exited", "the end of the pod")
    secrun("rm", uuid)
    secrun("gc", "--grace-period=0s")
    assert "secrun0" not in tool("ip", "-o", "link")
    assert "secrun" not in tool("iptables-save")
    try:
        page("127.0.0.1", PORT)
    except urllib.error.URLError:
        return
    raise AssertionError("the port still answers")
