"""The built-in network's way out: one masquerading rule for each family, as long as its bridge is there.

The `bridge` plugin would make and take back a chain of three rules per pod and address by a dozen runs of
iptables(8): half of the time that joining takes.
"""

from secrun import launch
from secrun.errors import ExternalError, HostError, NetworkError
from secrun.network.builtin import Subnets
from secrun.network.configs import plugin_path

_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin")
_SECONDS = 30.0
_OUTPUT = 65536


def _run(program: str, *words: str) -> launch.Completed:
    path = plugin_path(program, _FOLDERS)
    if path is None:
        raise HostError(f"{program} is not installed", hint="install iptables", code="host-program")
    try:
        return launch.exchange(
            [path, "--wait", "--table", "nat", *words],
            stdin=b"",
            environment=launch.BASE_ENVIRONMENT,
            timeout=_SECONDS,
            limit=_OUTPUT,
        )
    except ExternalError as error:
        raise NetworkError(error.message, code="network-rule") from error


def _rules(own: Subnets, *, v6: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Return each family's program and rule: what leaves by another interface gets the host's address."""
    found = [("iptables", own.v4), ("ip6tables", own.v6)] if v6 else [("iptables", own.v4)]
    tail = ("-m", "comment", "--comment", f"secrun {own.bridge}", "-j", "MASQUERADE")
    return [(program, ("POSTROUTING", "-s", net, "!", "-o", own.bridge, *tail)) for program, net in found]


def ensure(own: Subnets, *, v6: bool) -> None:
    """Make the rules that are missing; raises NetworkError or HostError."""
    for program, rule in _rules(own, v6=v6):
        if _run(program, "-C", *rule).returncode == 0:
            continue
        done = _run(program, "-A", *rule)
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise NetworkError(f"network {own.bridge}: {program}: {said}", code="network-rule")


def remove(own: Subnets, *, v6: bool) -> None:
    """Remove the rules; two pods that started at once may have made one twice."""
    for program, rule in _rules(own, v6=v6):
        while _run(program, "-D", *rule).returncode == 0:
            pass
