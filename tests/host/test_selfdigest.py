"""The digest of secrun's own files: equal for equal installations, another for any other byte."""

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import rfc8785

from secrun import selfdigest
from secrun.selfdigest import PACKAGES

SOURCES = {
    "secrun": "runtime/secrun",
    "secrun_kvm": "stage1-kvm/secrun_kvm",
    "secrun_policies": "policies/secrun_policies",
    "secrun_attest": "attest/secrun_attest",
}


def installed(repository: Path, site: Path, *, mode: int) -> Path:
    """Put secrun where a wheel would, with other times, modes and order than the checkout."""
    for name, source in reversed(SOURCES.items()):
        shutil.copytree(
            repository / source,
            site / name,
            copy_function=shutil.copyfile,
            ignore=lambda *_: {"__pycache__"},
        )
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    moved = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for source, target in moved.items():
        shutil.copytree(repository / source, site / target)
    for path in site.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            os.utime(path, (1, 1))
    return site


def asked(site: Path, function: str = "runtime_digest") -> str:
    """Ask an interpreter that sees nothing but this installation."""
    code = f"import sys; sys.path.insert(0, {str(site)!r}); sys.dont_write_bytecode = True\n"
    code += f"from secrun import selfdigest; print(selfdigest.{function}())"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_wheel_has_the_digest_of_the_checkout_it_was_made_from(repository, tmp_path):
    site = installed(repository, tmp_path / "site", mode=0o640)
    assert asked(site) == str(selfdigest.runtime_digest())


def test_anybody_can_compute_the_digest_as_it_is_documented(repository, tmp_path):
    site = installed(repository, tmp_path / "site", mode=0o644)
    found = {
        str(path.relative_to(site)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in site.rglob("*")
        if path.is_file()
    }
    for name in ("secrun-agent", "secrun-stage0"):
        found[f"agent/{name}"] = found.pop(f"secrun/_agent/{name}")
    listing = [["secrun-runtime", 1], *([name, found[name]] for name in sorted(found))]
    assert asked(site) == f"sha256:{hashlib.sha256(rfc8785.dumps(listing)).hexdigest()}"


PARTS = (
    "secrun/cli/main.py",
    "secrun/py.typed",
    "secrun/_agent/secrun-agent",
    "secrun/_agent/secrun-stage0",
    "secrun_kvm/__init__.py",
    "secrun_policies/data/seccomp/default.json",
    "secrun_policies/data/selinux/secrun.cil",
    "secrun_attest/verify/judge.py",
)


def test_every_part_counts(repository, tmp_path):
    site = installed(repository, tmp_path / "site", mode=0o644)
    seen = {(asked(site), asked(site, "fingerprint"))}
    for count, name in enumerate(PARTS, 1):
        path = site / name
        path.write_bytes(path.read_bytes() + b"\n")
        os.utime(path, (1, 1))
        found = asked(site), asked(site, "fingerprint")
        assert all(found[0] != digest and found[1] != fingerprint for digest, fingerprint in seen), name
        seen.add(found)
        assert len(seen) == count + 1


def test_names_count_and_byte_code_beside_its_source_does_not(repository, tmp_path):
    site = installed(repository, tmp_path / "site", mode=0o644)
    first = asked(site)
    cache = site / "secrun/__pycache__"
    cache.mkdir()
    (cache / "paths.cpython-311.pyc").write_bytes(b"cache")
    assert asked(site) == first
    (site / "secrun/extra.pyc").write_bytes(b"a module without a source")
    second = asked(site)
    assert second != first
    (site / "secrun/extra.pyc").rename(site / "secrun/other.pyc")
    assert asked(site) not in (first, second)


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(repository, tmp_path):
    site = installed(repository, tmp_path / "site", mode=0o644)
    first = asked(site, "fingerprint")
    path = site / "secrun/paths.py"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    os.utime(path, (1, 1))
    assert asked(site, "fingerprint") != first


def test_what_is_no_file_is_an_error(repository, tmp_path):
    site = installed(repository, tmp_path / "site", mode=0o644)
    os.mkfifo(site / "secrun/pipe.py")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        asked(site)
    assert "pipe.py is neither a file nor a folder" in caught.value.stderr


def test_the_fingerprint_is_stable_and_much_cheaper_than_the_digest():
    def cost(function):
        begin = time.process_time()
        function()
        return time.process_time() - begin

    assert selfdigest.fingerprint() == selfdigest.fingerprint()
    print_, digest = (
        statistics.median(cost(function) for _ in range(9))
        for function in (selfdigest.fingerprint, selfdigest.runtime_digest)
    )
    assert print_ < digest / 2


def test_the_packages_are_those_of_the_distribution():
    assert set(PACKAGES) == set(SOURCES)
