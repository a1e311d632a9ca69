"""Pods as services, by the files for systemd that secrun ships, where a package puts them."""

import json
import os
import pwd
import shutil
import socket
import stat
from pathlib import Path

from vmhost.kit import IDLE, LAYOUT, STORE, WAIT_SECONDS, check, group, nothing_remains, status, tool

CONTAINER = f"""[Unit]
Description=a pod of a short file

[Container]
Image={LAYOUT}
Pull=never
Network=none
SecrunArgs=--insecure-options=image --uuid-file-save=/run/short-uuid
Exec=sh -c "{IDLE[2].replace("$", "$$")}"

[Service]
TimeoutStartSec={WAIT_SECONDS}

[Install]
WantedBy=multi-user.target
"""


def shown(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit, as systemd has them."""
    said = tool("systemctl", "show", f"--property={','.join(names)}", unit)
    return dict(line.split("=", 1) for line in said.splitlines())


def told(uuid: str) -> list[dict[str, str]]:
    """Read what the journal was told of a pod, by the fields that other engines use too."""
    words = ("journalctl", "SYSLOG_IDENTIFIER=secrun", f"CONTAINER_ID_FULL={uuid}", "--output=json")
    return [json.loads(line) for line in tool(*words).splitlines()]


@check
def the_shipped_files_make_the_user_and_the_folder() -> None:
    tool("systemd-sysusers")
    assert pwd.getpwnam("secrun").pw_shell == "/usr/sbin/nologin"
    tool("systemd-tmpfiles", "--create", "--prefix=/run/secrun")
    made = Path("/run/secrun").stat()
    assert (stat.S_IMODE(made.st_mode), made.st_uid) == (0o700, 0)
    assert os.getxattr("/run/secrun", "security.selinux") == b"system_u:object_r:secrun_run_t:s0\0"


@check
def the_shipped_units_are_enabled_and_gc_runs() -> str:
    units = ("secrun-audit.service", "secrun-gc.timer")
    tool("systemctl", "enable", "--now", *units)
    assert tool("systemctl", "is-active", *units).split() == ["active"] * 2
    wanted = {"ActiveState": "active", "Unit": "secrun-gc.service"}
    assert shown("secrun-gc.timer", *wanted) == wanted
    assert "secrun-gc.service" in tool("systemctl", "list-timers", "--no-pager")
    tool("systemctl", "start", "secrun-gc.service")
    assert shown("secrun-gc.service", "Result", "ExecMainStatus") == {
        "Result": "success",
        "ExecMainStatus": "0",
    }
    return tool("systemctl", "list-timers", "--no-pager", "secrun-gc.timer")


@check
def a_short_file_becomes_a_service_that_is_ready_when_its_app_runs() -> str:
    """The shipped generator makes it; what it starts is the pod's supervisor."""
    path = Path("/etc/secrun/systemd/short.container")
    path.parent.mkdir(parents=True)
    path.write_text(CONTAINER)
    tool("systemctl", "daemon-reload")
    made = shown("short.service", "LoadState", "Type", "SourcePath", "UnitFileState")
    assert (made["LoadState"], made["Type"], made["UnitFileState"]) == ("loaded", "notify", "generated")
    # Active only when every app has started: no wait is needed for what follows.
    tool("systemctl", "start", "short")
    uuid = Path("/run/short-uuid").read_text().strip()
    assert status(uuid)["state"] == "running"
    assert shown("short", "ActiveState", "MainPID") == {
        "ActiveState": "active",
        "MainPID": str(status(uuid)["pid"]),
    }
    assert group(uuid).is_dir()
    said = tool("systemctl", "status", "--no-pager", "short")
    assert "secrun-agent" in said, said
    tool("systemctl", "stop", "short")
    assert shown("short", "Result", "SubState") == {"Result": "success", "SubState": "dead"}
    rows = told(uuid)
    assert [row["SECRUN_EVENT"] for row in rows] == ["PodStart", "PodExit"], rows
    for row in rows:
        assert row["CONTAINER_NAME"] == uuid
        assert row["CONTAINER_ID"] == uuid.replace("-", "")[:12]
        assert uuid in row["MESSAGE"]
    assert rows[-1]["SECRUN_CODE"] == "0"
    assert not (STORE / "pods/run" / uuid).exists()
    path.unlink()
    tool("systemctl", "daemon-reload")
    nothing_remains()
    return said


@check
def a_socket_unit_starts_a_pod_that_answers_on_its_sockets() -> None:
    """What systemd listens on, an app without any network accepts from."""
    program = Path("/srv/program")
    program.mkdir()
    shutil.copy("/opt/secrun-test/programs/answer", program)
    unix = Path("/run/answer.sock")
    path = Path("/etc/secrun/systemd/answer.container")
    path.write_text(f"""[Container]
Image={LAYOUT}
Pull=never
Network=none
Volume={program}:/t:Z
SecrunArgs=--insecure-options=image
Exec=/t/answer

[Service]
TimeoutStartSec={WAIT_SECONDS}
""")
    units = Path("/etc/systemd/system")
    (units / "answer.socket").write_text(f"[Socket]\nListenStream=127.0.0.1:8090\nListenStream={unix}\n")
    tool("systemctl", "daemon-reload")
    tool("systemctl", "start", "answer.socket")
    with socket.create_connection(("127.0.0.1", 8090), timeout=WAIT_SECONDS) as client:
        assert client.makefile().read() == "0 of answer.socket:answer.socket\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_SECONDS)
        client.connect(str(unix))
        assert client.makefile().read() == "1 of answer.socket:answer.socket\n"
    assert shown("answer.service", "ActiveState") == {"ActiveState": "active"}
    tool("systemctl", "stop", "answer.socket", "answer.service")
    for file in (path, units / "answer.socket"):
        file.unlink()
    tool("systemctl", "daemon-reload")
    nothing_remains()
