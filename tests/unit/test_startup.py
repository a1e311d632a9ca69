"""Start-up is a feature: what a command may load is a list, and growing it is a decision."""

import subprocess
import sys
from pathlib import Path

import pytest

from secrun.cli.finish import interpreter

TOP = Path(__file__).resolve().parent.parent.parent

# What `secrun --version` may load, and what any command may before its own work begins.
VERSION = {"gc", "secrun", "secrun.__main__"}
SHARED = {
    "secrun.checkpoint",
    "secrun.cli",
    "secrun.cli.guard",
    "secrun.cli.main",
    "secrun.cli.options",
    "secrun.cli.options_common",
    "secrun.cli.options_net",
    "secrun.cli.options_volume",
    "secrun.cli.table",
    "secrun.config",
    "secrun.errors",
    "secrun.paths",
    "secrun.record",
    "secrun_attest",
    "secrun_attest.frozen",
}
STANDARD = set(
    """
    _collections _functools _operator _sre _typing collections collections.abc contextlib copyreg enum errno
    fnmatch functools importlib importlib._bootstrap importlib._bootstrap_external importlib.machinery
    ipaddress itertools keyword ntpath operator pathlib re re._casefix re._compiler re._constants re._parser
    reprlib types typing typing.io typing.re urllib urllib.parse warnings _weakrefset weakref
    """.split()  # noqa: SIM905 - forty quoted names would hide the list
)
# What no command may load before it does work that needs it.
HEAVY = {
    "ssl",
    "urllib3",
    "http.client",
    "asyncio",
    "zstandard",
    "isal",
    "subprocess",
    "tarfile",
    "hypothesis",
}
# What costs more than all of secrun's own modules together, and what every start of a pod can do without.
DEAR = {"argparse", "dataclasses", "importlib.metadata", "inspect", "shutil", "threading"}

PROBE = """
import sys
before = set(sys.modules)
sys.argv = ["secrun", *sys.argv[1:]]
from secrun.__main__ import main
try:
    main()
finally:
    print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""


def loaded_by(*words: str) -> set[str]:
    """Return the modules that one secrun command loads, in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=False, timeout=60
    )
    return set(done.stderr.splitlines()[-1].split())


def test_version_loads_only_what_is_allowed():
    assert loaded_by("--version") - VERSION == set()


def test_the_overview_loads_no_parser_and_no_dataclasses():
    tables = {
        f"secrun.cli.options_{name}"
        for name in (
            "attest",
            "audit",
            "host",
            "image",
            "life",
            "list",
            "look",
            "policy",
            "security",
            "serve",
            "trust",
            "verifier",
        )
    }  # the overview names every verb
    assert loaded_by("--help") - VERSION - SHARED - STANDARD - tables == set()


@pytest.mark.parametrize("words", [("--help",), ("run", "--help"), ("list", "--help"), ("no-such-command",)])
def test_words_about_commands_load_nothing_heavy(words):
    assert loaded_by(*words) & HEAVY == set()


# What the path from a start to its records in the log and the TPM may load beyond MEASURING_BEFORE.
MEASURING_BEFORE = "os, re, enum, json, fcntl, struct, hashlib, pathlib, contextlib"
MEASURING = {
    "secrun_attest",
    *(f"secrun_attest.{name}" for name in (
        "celjson", "checkpoint", "directtpm", "errors", "fields", "frozen", "head", "history", "jcs",
        "limits", "logfile", "logstore", "reader", "record", "replay", "tpm", "tpmcommands",
    )),
    "_socket",
    "binascii",
    "collections.abc",
}  # fmt: skip
MEASURE = """
import {before}, sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
from secrun_attest.directtpm import DirectTpm
from secrun_attest.errors import TpmTransportError
from secrun_attest.logfile import EventLog
from secrun_attest.record import Bank, Operation
from secrun_attest.replay import extend_all, zeros
from secrun_attest.tpm import TpmClock

class Tpm:
    values = zeros(Bank)
    def clock(self):
        return TpmClock(reset=1, restart=0, safe=True, clock=1)
    def read_pcr(self, pcr):
        return self.values
    def extend(self, pcr, digests):
        self.values = extend_all(self.values, digests)

tpm = Tpm()
for _ in range(2):
    log = EventLog(pathlib.Path(sys.argv[2]), tpm, 15, opening={{}})
    log.append(Operation.POD_START, {{"pod": "p"}})
    try:
        DirectTpm("swtpm:path=/nowhere").clock()
    except TpmTransportError:
        print(*sorted(set(sys.modules) - before))
"""


def test_measuring_loads_little_and_needs_no_site_packages(tmp_path):
    script = MEASURE.format(before=MEASURING_BEFORE)
    words = [sys.executable, "-S", "-c", script, TOP / "attest", tmp_path / "measure"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert "secrun_attest.logfile" in done.stdout
    assert set(done.stdout.split()) - MEASURING == set()


def test_a_table_of_pods_loads_neither_images_nor_digests_nor_sockets(tmp_path):
    loaded = loaded_by("--root", str(tmp_path), "list")
    assert loaded & (HEAVY | DEAR | {"_hashlib", "socket", "secrun_policies.confine"}) == set()
    assert not any(name.startswith(("secrun.image", "secrun.trust")) for name in loaded)


def test_a_start_of_a_pod_loads_nothing_dear():
    modules = (
        "secrun.cli.pods",
        "secrun.stage1.nspawnlaunch",
        "secrun.stage1.units",
        "secrun_policies.confine",
    )
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True, timeout=60)
    assert set(done.stdout.decode().split()) & (HEAVY | DEAR) == set()


def test_the_last_act_of_a_pod_finds_its_modules_without_site(tmp_path):
    uuid = "0a1b2c3d-0000-4000-8000-000000000000"
    flags = ("keep", "tell", "no-timing", "--stage1-status=0")
    words = [*interpreter(), str(tmp_path), str(tmp_path), uuid, "0", *flags]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.returncode == 125
    assert f"{tmp_path}/pods/run/{uuid}: No such file or directory [host-os]" in done.stderr
