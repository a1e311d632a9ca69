"""systemd-analyze accepts the units that secrun ships and makes."""

import subprocess
from pathlib import Path

import pytest

from secrun.cli import quadlet

SHIPPED = Path(quadlet.__file__).parent.parent / "systemd"
CONTAINER = """[Container]
Image=docker://registry.example/web:1
ContainerName=web
Exec=sh -c 'echo "$$HOME" 100%%; exec serve'
Environment=A=1 "B=two words"
PublishPort=8080:80
AddCapability=NET_BIND_SERVICE
NoNewPrivileges=true
StopTimeout=30

[Service]
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
"""


def verified(*units: Path) -> str:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{units[0].parent}:/usr/lib/systemd/system"},
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if str(units[0].parent) in line or "secrun" in line]
    return "\n".join(said) + ("" if done.returncode == 0 else f"\nexit {done.returncode}: {done.stderr}")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program by the name of ours, as systemd-analyze wants it to exist."""
    path = tmp_path / "bin/secrun"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_service_made_of_a_container_file(tmp_path: Path, program: Path):
    unit = tmp_path / "web.service"
    unit.write_text(quadlet.render(quadlet.parse("web.container", CONTAINER), str(program)))
    assert verified(unit) == ""


def test_the_units_that_clean_up_and_close_the_audit_log(tmp_path: Path, program: Path):
    for name in ("secrun-gc.service", "secrun-gc.timer", "secrun-audit.service"):
        text = (SHIPPED / name).read_text().replace("/usr/bin/secrun", str(program))
        (tmp_path / name).write_text(text)
    assert verified(tmp_path / "secrun-gc.timer", tmp_path / "secrun-gc.service") == ""
    assert verified(tmp_path / "secrun-audit.service") == ""


def test_the_generator_is_a_script_that_runs(tmp_path: Path, program: Path):
    program.write_text('#!/bin/sh\necho "$@"\n')
    script = tmp_path / "secrun-generator"
    script.write_text((SHIPPED / script.name).read_text().replace("/usr/bin/secrun", str(program)))
    script.chmod(0o755)
    done = subprocess.run([script, "/a", "/b", "/c"], capture_output=True, text=True, check=True)
    assert done.stdout == "generate --output /a\n"
    assert (SHIPPED / "secrun-generator").stat().st_mode & 0o111
