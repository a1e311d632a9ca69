"""The one door to libvirt: everything that imports it.

libvirt's embedded driver runs inside the process that opens it and leaves QEMU behind when that process
ends, so it is only ever used by processes that end soon.
"""

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, cast

from secrun.errors import HostError
from secrun_kvm.place import NAME

if TYPE_CHECKING:
    from secrun_kvm.place import Root


class _Connection(Protocol):
    def getDomainCapabilities(  # noqa: N802 - libvirt's names
        self, emulator: str, arch: str, machine: str | None, kind: str
    ) -> str: ...

    def createXML(self, xml: str, flags: int) -> "Domain": ...  # noqa: N802 - libvirt's names


class Domain(Protocol):
    """What is used of a machine of libvirt's."""

    def resume(self) -> int:
        """Let the guest run."""


def _refused(error: Exception) -> NoReturn:
    raise HostError(f"libvirt: {error}", hint="secrun doctor --stage1=kvm", code="host-libvirt") from error


def connect(root: "Root") -> _Connection:
    """Open the embedded driver; raises HostError."""
    # QEMU has to get to its own folders below the root, whatever the umask of whoever runs the pod.
    os.umask(0o022)
    # Where systemd runs, libvirt would have systemd-machined move QEMU out of the pod's control group.
    os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = "disabled:"
    # libvirt prints its version and complaints of no consequence; errors come as exceptions.
    os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
    try:
        import libvirt  # type: ignore[import-untyped]  # it ships no types
    except ImportError as error:
        raise HostError(
            "the Python binding of libvirt is not installed",
            hint="apt install python3-libvirt, or pip install secrun[kvm]",
            code="host-libvirt",
        ) from error
    libvirt.registerErrorHandler(_silent, None)
    libvirt.virEventRegisterDefaultImpl()

    def serve() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=serve, daemon=True).start()
    try:
        return cast("_Connection", libvirt.open(f"qemu:///embed?root={root.path}"))
    except libvirt.libvirtError as error:
        _refused(error)


def _silent(context: object, error: object) -> None:
    """Ignore what is raised as an exception as well."""


def examine(root: "Root", emulator: Path, *, architecture: str, kind: str) -> None:
    """Make libvirt ask `emulator` what it can do and keep the answer below `root`; raises HostError.

    `kind` is libvirt's word for the accelerator: kvm, or qemu for emulation.
    """
    connection = connect(root)
    import libvirt

    try:
        connection.getDomainCapabilities(str(emulator), architecture, None, kind)
    except libvirt.libvirtError as error:
        _refused(error)


def create(connection: _Connection, xml: str) -> Domain:
    """Start a machine whose guest does not run yet; raises HostError."""
    import libvirt

    try:
        return connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
    except libvirt.libvirtError as error:
        _refused(error)


def resume(machine: Domain) -> None:
    """Let the guest run; raises HostError."""
    import libvirt

    try:
        machine.resume()
    except libvirt.libvirtError as error:
        _refused(error)


def pid(root: "Root") -> int:
    """Return the PID of the machine's QEMU."""
    return int((root.path / "run/qemu" / f"{NAME}.pid").read_text())
