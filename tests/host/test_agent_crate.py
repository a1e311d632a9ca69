"""The agent as a build: its own tests, its size, and that it needs nothing at run time."""

from pathlib import Path

from host.agent_kit import AGENT_SOURCE, built_agent, cargo, target_folder
from secrun import launch

# Debian ships these; nothing else may come in.
DEBIAN_CRATES = {"secrun-agent", "libc"}
MAX_PROGRAM_BYTES = 1_500_000


def test_crate_tests_pass() -> None:
    cargo("test", target=target_folder())


def test_program_is_static_and_small() -> None:
    program = built_agent()
    headers = launch.run(["readelf", "--program-headers", "--dynamic", program]).stdout
    assert b"INTERP" not in headers
    assert b"NEEDED" not in headers
    assert program.stat().st_size < MAX_PROGRAM_BYTES


def test_program_says_its_version() -> None:
    said = launch.run([built_agent(), "--version"]).stdout
    assert said.startswith(b"secrun-agent ")
    assert said.endswith(b" protocol 1\n")


def test_only_crates_of_debian() -> None:
    lock = Path(AGENT_SOURCE / "Cargo.lock").read_text()
    names = {line.split('"')[1] for line in lock.splitlines() if line.startswith("name = ")}
    assert names == DEBIAN_CRATES


def test_unsafe_code_is_in_one_module() -> None:
    for file in (AGENT_SOURCE / "src").glob("*.rs"):
        unsafe = [line for line in file.read_text().splitlines() if "unsafe" in line and "//" not in line]
        assert file.name == "sys.rs" or not [line for line in unsafe if "#!" not in line], file
