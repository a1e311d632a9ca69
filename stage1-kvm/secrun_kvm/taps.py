"""The host's side of a machine's interfaces: taps that QEMU holds, joined with what the plugins made.

libvirt makes each tap in the starter's own empty namespace, in which QEMU stays. Then the tap is given to
the pod's namespace, and what comes into it and may pass leaves by the plugins' interface, and the other way
round (tc-bpf(8), tc-mirred(8)). A tap goes with the process that holds it.
"""

import errno
from collections.abc import Sequence
from pathlib import Path

from secrun.errors import HostError
from secrun.syscalls import CLONE_NEWNET, LinuxSyscalls
from secrun_kvm.netlink import Netlink
from secrun_kvm.place import Root, tap_name

_NEEDED = "CONFIG_TUN, CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF and CONFIG_NET_ACT_MIRRED"
_TAKEN = "its plugins direct the frames of this interface already: use --stage1=nspawn for this network"
# Of this thread's own namespace.
_SETTINGS = Path("/proc/sys/net/ipv6/conf")


def connect(root: Root, namespace: int, interfaces: Sequence[str]) -> None:
    """Join the n-th tap of this namespace with the n-th of `interfaces` in `namespace`, which this enters.

    Raises HostError naming the interface.
    """
    try:
        with Netlink() as here:
            for index in range(len(interfaces)):
                here.move(tap_name(index), namespace)
        LinuxSyscalls().setns(namespace, CLONE_NEWNET)
        with Netlink() as there:
            for index, interface in enumerate(interfaces):
                tap = tap_name(index)
                _quiet(tap)
                there.redirect(tap, interface, root.outgoing(index).read_bytes())
                there.redirect(interface, tap, root.incoming(index).read_bytes())
                there.set_up(tap)
    except OSError as error:
        raise HostError(
            f"a machine's interface cannot be connected: {error.filename or 'netlink'}: {error.strerror}",
            hint=_TAKEN if error.errno == errno.EEXIST else f"the host's kernel needs {_NEEDED}",
            code="host-tap",
        ) from error


def _quiet(tap: str) -> None:
    """Keep the namespace's own IPv6 from speaking to the guest."""
    setting = _SETTINGS / tap / "disable_ipv6"
    # A host without IPv6 has nothing to keep quiet.
    if setting.exists():
        setting.write_text("1")
