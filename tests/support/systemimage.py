"""An image with its own init: systemd as the distribution packs it, with a journal and one service."""

import os
from pathlib import Path

from secrun import launch
from secrun.digest import Digest
from secrun.stage1 import elf
from support.images import Entry, LayoutWriter, busybox_layer, directory, symlink, tar_layer

# Of the package: what PID 1 and the journal need; no bus, so no logind, networkd or others that ask for one.
PROGRAMS = (
    *("/lib/systemd/systemd", "/lib/systemd/systemd-journald", "/lib/systemd/systemd-shutdown"),
    *("/bin/systemctl", "/bin/journalctl", "/bin/systemd-tmpfiles", "/usr/bin/systemd-cat"),
)
UNITS = Path("/lib/systemd/system")
MASKED = (
    *("getty.target", "systemd-logind.service", "systemd-user-sessions.service", "remote-fs.target"),
    *("systemd-update-utmp.service", "systemd-random-seed.service", "systemd-sysusers.service"),
    *("systemd-firstboot.service", "systemd-machine-id-commit.service", "systemd-boot-system-token.service"),
)
SERVICE = """
[Unit]
Description=a service of the image

[Service]
ExecStart=/bin/sh -c 'echo from the service; exec sleep 100000'
User=app
ExecStop=/bin/sh -c 'echo stopped in order >/kept/stopped'
MemoryAccounting=yes

[Install]
WantedBy=demo.target
"""
TARGET = """
[Unit]
Requires=basic.target
After=basic.target
Wants=hello.service
AllowIsolate=yes
"""
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1000:\nsystemd-journal:x:101:\nutmp:x:43:\n"


def _below_usr(path: str) -> str:
    name = path.lstrip("/")
    return name if name.startswith("usr/") else f"usr/{name}"


def _units() -> list[Entry]:
    """The package's units with their links; those that need what the image has not are masked."""
    listed = launch.run(["dpkg", "-L", "systemd"]).stdout.decode().splitlines()
    found = []
    for path in sorted({os.path.realpath(Path(line).parent) + "/" + Path(line).name for line in listed}):
        place = Path(path)
        if "/lib/systemd/system/" not in path or place.name in MASKED:
            continue
        if place.is_symlink():
            found.append(symlink(_below_usr(path), os.readlink(place)))
        elif place.is_file():
            found.append(Entry(name=_below_usr(path), data=place.read_bytes()))
    return found


def _layer() -> bytes:
    programs = [Path(path) for path in PROGRAMS]
    files = {_below_usr(str(path)): Path(os.path.realpath(path)) for path in programs}
    files |= {_below_usr(str(path)): Path(os.path.realpath(path)) for path in elf.closure(programs)}
    etc = {"etc/passwd": PASSWD, "etc/group": GROUP, "etc/os-release": "ID=demo\n", "etc/machine-id": ""}
    etc |= {"etc/systemd/system/hello.service": SERVICE, "etc/systemd/system/demo.target": TARGET}
    links = {
        "sbin/init": "/usr/lib/systemd/systemd",
        "etc/systemd/system/default.target": "demo.target",
        **{f"etc/systemd/system/{name}": "/dev/null" for name in MASKED},
    }
    folders = ("run", "var", "var/log", "kept", "sbin", "lib", "lib64", "usr")
    links["var/run"] = "../run"
    names = [name for name in ("lib", "lib64") if Path("/", name).is_symlink()]
    links |= {name: f"usr/{name}" for name in names}
    return tar_layer(
        [
            *(directory(name) for name in folders if name not in names),
            *(symlink(name, target) for name, target in links.items()),
            *(Entry(name=name, data=text.encode()) for name, text in etc.items()),
            *(Entry(name=name, mode=0o755, data=path.read_bytes()) for name, path in sorted(files.items())),
            *_units(),
        ]
    )


def system_image(path: Path, tag: str = "system") -> Digest:
    """Make the layout `path` with an image whose command is its init; return its manifest digest."""
    config = {"Cmd": ["/sbin/init"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "WorkingDir": "/"}
    return LayoutWriter(path).add_image(tag, [busybox_layer(), _layer()], config=config, compression="none")
