"""The agent as a build: its own tests, its size, and that it needs nothing at run time."""

from pathlib import Path

import pytest

from host.agent_kit import AGENT_SOURCE, built_agent, cargo, target_folder
from secrun import launch
from secrun.errors import ExternalError

# Debian ships these; nothing else may come in.
DEBIAN_CRATES = {"secrun-agent", "libc"}
MAX_PROGRAM_BYTES = 1_750_000


def test_crate_tests_pass() -> None:
    cargo("test", target=target_folder())


@pytest.mark.parametrize("name", ["secrun-agent", "secrun-stage0"])
def test_programs_are_static_and_small(name: str) -> None:
    program = built_agent().with_name(name)
    headers = launch.run(["readelf", "--program-headers", "--dynamic", program]).stdout
    assert b"INTERP" not in headers
    assert b"NEEDED" not in headers
    assert program.stat().st_size < MAX_PROGRAM_BYTES


def test_program_says_its_version() -> None:
    said = launch.run([built_agent(), "--version"]).stdout
    assert said.startswith(b"secrun-agent ")
    assert said.endswith(b" protocol 3\n")


def test_stage0_does_nothing_outside_a_guest() -> None:
    with pytest.raises(ExternalError, match="init of a guest"):
        launch.run([built_agent().with_name("secrun-stage0")])


def test_only_crates_of_debian() -> None:
    lock = Path(AGENT_SOURCE / "Cargo.lock").read_text()
    names = {line.split('"')[1] for line in lock.splitlines() if line.startswith("name = ")}
    assert names == DEBIAN_CRATES


def test_unsafe_code_is_in_one_module() -> None:
    for file in (AGENT_SOURCE / "src").rglob("*.rs"):
        unsafe = [line for line in file.read_text().splitlines() if "unsafe" in line and "//" not in line]
        assert "sys" in (file.stem, file.parent.name) or not [line for line in unsafe if "#!" not in line], (
            file
        )
