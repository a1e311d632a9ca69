"""The verbs on trusted keys, as they are typed."""

import json
import os
import subprocess

import pytest

from support import signing
from support.secrun import Secrun


@pytest.fixture
def secrun(tmp_path):
    return Secrun(root=tmp_path / "root", run_root=tmp_path / "run")


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "team.pub"
    path.write_bytes(signing.public_pem(signing.new_key()))
    return path


def asked(secrun, answer, *words):
    """Run a command on a terminal where somebody answers; return its status and what it printed."""
    ours, theirs = os.openpty()
    try:
        process = subprocess.Popen(
            secrun.argv(*words), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        os.write(ours, f"{answer}\n".encode())
        out, err = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    return process.returncode, out, err


def keys(secrun):
    return json.loads(secrun("trust", "list", "--format=json").out)["keys"]


def test_a_key_is_trusted_after_its_fingerprint_was_confirmed(secrun, key):
    words = ("trust", "add", "--prefix", "r.example/team", key)
    status, out, err = asked(secrun, "no", *words)
    assert (status, out) == (1, "")
    assert "Is this the key" in err
    assert keys(secrun) == []
    status, out, err = asked(secrun, "yes", *words)
    assert status == 0
    (found,) = keys(secrun)
    assert found["fingerprint"] in err
    assert out.strip() == found["path"]
    assert found["path"].endswith(f"/trust/prefix.d/r.example/team/{found['fingerprint']}")


def test_a_key_must_be_for_something(secrun, key):
    assert "--root" in secrun("trust", "add", key, code=2).err
    both = ("--prefix", "r.example", "--root", "--skip-fingerprint-review")
    assert "two different" in secrun("trust", "add", *both, key, code=2).err
    secrun("trust", "add", "--root", "--skip-fingerprint-review", key)
    assert [item["prefix"] for item in keys(secrun)] == [""]


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nx", b"\x99\x00"])
def test_what_is_no_public_key_is_not_trusted(secrun, tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    words = ("trust", "add", "--root", "--skip-fingerprint-review", path)
    assert str(path) in secrun(*words, code=2).err
    assert keys(secrun) == []


def test_keys_are_removed_by_their_first_digits(secrun, key):
    for prefix in ("r.example/a", "r.example/b"):
        secrun("trust", "add", "--prefix", prefix, "--skip-fingerprint-review", key)
    digits = keys(secrun)[0]["fingerprint"][:10]
    assert "prefix=r.example/a" in secrun("trust", "show", digits).out
    assert "at least 8" in secrun("trust", "rm", digits[:4], code=2).err
    secrun("trust", "rm", "--prefix", "r.example/a", digits)
    assert [item["prefix"] for item in keys(secrun)] == ["r.example/b"]
    secrun("trust", "rm", digits)
    assert not list(
        (secrun.root / "trust/prefix.d").iterdir() if (secrun.root / "trust/prefix.d").exists() else ()
    )
    assert "no trusted key" in secrun("trust", "rm", digits, code=125).err


def test_show_tells_which_rule_decides(secrun, key, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    words = ("trust", "show", "--format=json", "--policy", policy, "docker://r.example/team/app:1")
    found = json.loads(secrun(*words).out)
    assert (found["policy"], found["scope"], found["requirements"]) == (str(policy), "default", ["reject"])
    secrun("trust", "add", "--prefix", "r.example", "--skip-fingerprint-review", key)
    found = json.loads(secrun(*words).out)
    assert (found["scope"], found["requirements"]) == ("docker:r.example", ["keyRing"])


def test_generating_a_key_overwrites_none(secrun, tmp_path):
    secrun("trust", "generate-key", tmp_path / "k")
    before = (tmp_path / "k.key").read_bytes()
    assert "exists" in secrun("trust", "generate-key", tmp_path / "k", code=125).err
    assert (tmp_path / "k.key").read_bytes() == before
