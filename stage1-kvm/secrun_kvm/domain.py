"""A machine as libvirt's domain XML; pure (https://libvirt.org/formatdomain.html).

Nothing is left to libvirt's defaults that a guest could notice or use: no USB, no video, no balloon, no
network that was not asked for, every address given.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count

from secrun.record import record
from secrun.stage1.machine import Accelerator
from secrun_kvm.place import NAME
from secrun_kvm.spec import Architecture, Disk, Model, Nic, Share, VmSpec

LINK_NAME = "dev.secrun.link"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"

# QEMU keeps what it has translated in a buffer of this size; its default is a gigabyte per machine. With 128
# an app starts 3 % sooner, and the host has 40 MB less.
TB_CACHE_MIB = 48

# What an emulated processor had better not promise: string instructions that copy and clear fast a byte at a
# time, for QEMU takes them by their word. Without these the kernel and libraries use eight bytes at a time.
SLOW = ("erms", "fsrm")

_MACHINES = {Model.Q35: "q35", Model.MICROVM: "microvm", Model.VIRT: "virt"}
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"}


def _escape(text: object) -> str:
    return "".join(_ESCAPES.get(char, char) for char in str(text))


def element(name: str, attributes: Mapping[str, object] | None = None, *content: str) -> str:
    """Return one XML element; `content` is XML already."""
    words = "".join(f" {key}='{_escape(value)}'" for key, value in (attributes or {}).items())
    if not content:
        return f"<{name}{words}/>"
    return f"<{name}{words}>{''.join(content)}</{name}>"


def _text(name: str, text: object) -> str:
    return element(name, None, _escape(text))


@record
class _Slots:
    """Hands out the places of virtio devices, in order."""

    model: Model
    numbers: Iterator[int]

    def next(self) -> str:
        """Return the address of the next device.

        On a PCI machine eight functions share one place on the root bus: no bridges, which cost a guest
        time to find. microvm gets PCI by `_overrides`, of which libvirt knows nothing.
        """
        if self.model is Model.MICROVM:
            return element("address", {"type": "virtio-mmio"})
        slot, function = divmod(next(self.numbers), 8)
        place: dict[str, object] = {"type": "pci", "bus": "0x00", "slot": f"0x{slot + 2:02x}"}
        place["function"] = f"0x{function}"
        if function == 0:
            place["multifunction"] = "on"
        return element("address", place)


def disk_name(index: int) -> str:
    """Return what libvirt calls the n-th virtio disk: vda to vdz, vdaa and on; pure."""
    letters = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return f"vd{letters}"


def _disk(disk: Disk, index: int, slots: _Slots) -> str:
    driver = {"name": "qemu", "type": "raw"}
    if not disk.read_only:
        # A full host is the guest's I/O error, not the end of the machine's time.
        driver |= {"error_policy": "report", "discard": "unmap"}
    parts = [
        element("driver", driver),
        element("source", {"file": disk.path}),
        element("target", {"dev": disk_name(index), "bus": "virtio"}),
        _text("serial", disk.serial),
    ]
    if disk.read_only:
        parts.append(element("readonly"))
    return element("disk", {"type": "file", "device": "disk"}, *parts, slots.next())


def _share(share: Share, slots: _Slots) -> str:
    return element(
        "filesystem",
        {"type": "mount"},
        element("driver", {"type": "virtiofs"}),
        # Its daemon is started beside libvirt, which would give it more rights than it needs.
        element("source", {"socket": share.socket}),
        element("target", {"dir": share.tag}),
        slots.next(),
    )


def _nic(nic: Nic, slots: _Slots) -> str:
    parts = [
        element("mac", {"address": nic.mac}),
        element("target", {"dev": nic.tap}),
        element("model", {"type": "virtio"}),
        # By QEMU itself, in its sandbox: vhost would put the guest's rings into the host's kernel.
        element("driver", {"name": "qemu"}),
        element("mtu", {"size": nic.mtu}),
    ]
    if slots.model is not Model.MICROVM:
        # Nothing boots from it.
        parts.append(element("rom", {"enabled": "no"}))
    return element("interface", {"type": "ethernet"}, *parts, slots.next())


def _link(spec: VmSpec, slots: _Slots) -> Iterable[str]:
    """Return the one virtio-serial port, and the console that only QEMU's own devices write to."""
    yield element("controller", {"type": "virtio-serial", "index": 0, "ports": 2}, slots.next())
    yield element(
        "channel",
        {"type": "unix"},
        element("source", {"mode": "connect", "path": spec.link}),
        element("target", {"type": "virtio", "name": LINK_NAME}),
        element("address", {"type": "virtio-serial", "controller": 0, "bus": 0, "port": 1}),
    )
    target = {"port": 0}
    yield element(
        "serial",
        {"type": "unix"},
        element("source", {"mode": "connect", "path": spec.console}),
        element("target", target),
    )


def _devices(spec: VmSpec) -> str:
    slots = _Slots(model=spec.model, numbers=count())
    parts = [_text("emulator", spec.emulator)]
    # What libvirt would add by itself.
    parts.append(element("controller", {"type": "usb", "model": "none"}))
    parts.append(element("memballoon", {"model": "none"}))
    parts += [_disk(disk, index, slots) for index, disk in enumerate(spec.disks)]
    parts += [_share(share, slots) for share in spec.shares]
    parts += [_nic(nic, slots) for nic in spec.nics]
    parts += _link(spec, slots)
    parts.append(
        element(
            "rng",
            {"model": "virtio"},
            element("backend", {"model": "random"}, "/dev/urandom"),
            slots.next(),
        )
    )
    return element("devices", None, *parts)


def _is_x86(spec: VmSpec) -> bool:
    return spec.architecture is Architecture.X86_64


def _disabled(features: Iterable[str]) -> list[str]:
    return [element("feature", {"policy": "disable", "name": name}) for name in features]


def _cpu(spec: VmSpec) -> str:
    if spec.accelerator is Accelerator.TCG:
        return element("cpu", {"mode": "maximum"}, *(_disabled(SLOW) if _is_x86(spec) else ()))
    # No machines inside the machine: what nested virtualisation opens in the host's kernel stays shut.
    closed = _disabled(("vmx", "svm")) if _is_x86(spec) else []
    return element("cpu", {"mode": "host-passthrough", "check": "none", "migratable": "on"}, *closed)


def _features(spec: VmSpec) -> str:
    parts = [element("acpi")]
    if _is_x86(spec):
        parts.append(element("apic"))
    else:
        parts.append(element("gic", {"version": "max" if spec.accelerator is Accelerator.TCG else "host"}))
    if spec.accelerator is Accelerator.TCG:
        parts.append(element("tcg", None, element("tb-cache", {"unit": "MiB"}, str(TB_CACHE_MIB))))
    return element("features", None, *parts)


def _identity(spec: VmSpec) -> str:
    """Return whose rights QEMU has; `relabel=no`: shared images keep the owner they have."""
    identity = _text("label", f"+{spec.uid}:+{spec.gid}")
    return element("seclabel", {"type": "static", "model": "dac", "relabel": "no"}, identity)


def _overrides(spec: VmSpec) -> list[str]:
    """Return what libvirt has no words for.

    - QEMU ends by itself with its guest: libvirt, which would end it otherwise, does not stay.
    - Asking QEMU for every feature of the CPU takes four fifths of a start's time on the host; libvirt
      does so only where it believes in `cpu-unavailable-features`.
    - A microvm has PCI only by QEMU's own words.
    - A software TPM that was started beside libvirt: it takes one only after running swtpm's own tools.
    """
    arguments = ["-action", "reboot=shutdown,shutdown=poweroff,panic=exit-failure"]
    if spec.model is Model.MICROVM:
        arguments += ["-machine", "pcie=on,pit=off,pic=off,rtc=on"]
    if spec.tpm is not None:
        arguments += ["-chardev", f"socket,id=chr-tpm,path={spec.tpm}"]
        arguments += ["-tpmdev", "emulator,id=tpm,chardev=chr-tpm", "-device", "tpm-crb,tpmdev=tpm"]
    parts = [
        element("qemu:commandline", None, *(element("qemu:arg", {"value": word}) for word in arguments)),
        element("qemu:capabilities", None, element("qemu:del", {"capability": "cpu-unavailable-features"})),
    ]
    if spec.model is Model.MICROVM:
        drivers = {f"virtio-disk{index}": "virtio-blk-pci" for index in range(len(spec.disks))}
        drivers |= {f"fs{index}": "vhost-user-fs-pci" for index in range(len(spec.shares))}
        drivers |= {"virtio-serial0": "virtio-serial-pci", "rng0": "virtio-rng-pci"}
        devices = [*map(_device, drivers, drivers.values())]
        # Nothing boots from an interface.
        devices += [_device(f"net{n}", "virtio-net-pci", romfile="") for n in range(len(spec.nics))]
        parts.append(element("qemu:override", None, *devices))
    return parts


def _device(alias: str, driver: str, **more: str) -> str:
    properties = [
        element("qemu:property", {"name": name, "type": "string", "value": value})
        for name, value in {"driver": driver, **more}.items()
    ]
    return element("qemu:device", {"alias": alias}, element("qemu:frontend", None, *properties))


def domain_xml(spec: VmSpec) -> str:
    """Return the domain XML of a machine."""
    kind = "kvm" if spec.accelerator is Accelerator.KVM else "qemu"
    memory = [_text("memory", spec.memory_bytes >> 10)]
    if spec.shares:
        source = element("source", {"type": "memfd"})
        memory.append(element("memoryBacking", None, source, element("access", {"mode": "shared"})))
    firmware = [] if spec.firmware is None else [element("loader", {"type": "rom"}, str(spec.firmware))]
    boot = element(
        "os",
        None,
        element("type", {"arch": spec.architecture, "machine": _MACHINES[spec.model]}, "hvm"),
        *firmware,
        _text("kernel", spec.kernel),
        _text("initrd", spec.initrd),
        _text("cmdline", spec.command_line),
    )
    return element(
        "domain",
        {"type": kind, "xmlns:qemu": _QEMU},
        _text("name", NAME),
        _text("uuid", spec.uuid),
        *memory,
        _text("vcpu", spec.vcpus),
        boot,
        _features(spec),
        _cpu(spec),
        element("clock", {"offset": "utc"}),
        *(_text(event, "destroy") for event in ("on_poweroff", "on_reboot", "on_crash")),
        _devices(spec),
        _identity(spec),
        *_overrides(spec),
    )
