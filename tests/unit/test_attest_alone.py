"""Who only verifies needs `cryptography` and this library, nothing else of secrun."""

import json
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from secrun_attest.policyfile import sign_policy
from support.attest_bench import AUDIENCE, NONCE, NOW, policy_document, usual_host
from support.audited import AuditedHost
from support.policies import pair, public_pem_of

# What cryptography's own metadata asks for, on CPython.
NEEDED = ("cryptography", "cffi", "pycparser", "_cffi_backend*")

PROGRAM = """
import json, sys
from secrun_attest import dsse, ear
from secrun_attest.oneshot import Question, appraise_once
from secrun_attest.policyfile import open_policy
from secrun_attest.verdictjson import verdict_json
folder, now = sys.argv[1], int(sys.argv[2])
read = lambda name: open(f"{folder}/{name}", "rb").read()
key = dsse.load_public_key(read("key"), what="key")
opened = open_policy(read("policy"), [key], require_signature=True, now=now)
question = Question(nonce=bytes(range(32)), keys=opened.policy.keys, audience=sys.argv[3])
verdict = appraise_once(read("evidence"), question, opened.policy, None, now)
print(json.dumps(verdict_json(verdict, opened.policy, opened.parts)["status"]))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture
def alone(repository, tmp_path):
    """An environment with these packages only; nothing is asked of any index."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    ours = Path(sysconfig.get_path("purelib"))
    for pattern in NEEDED:
        (found,) = ours.glob(pattern)
        copy = shutil.copytree if found.is_dir() else shutil.copy
        copy(found, site / found.name)
    shutil.copytree(repository / "attest/secrun_attest", site / "secrun_attest")
    return tmp_path / "venv/bin/python"


def test_evidence_is_verified_with_cryptography_alone(alone, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ed25519

    assert bytes(range(32)) == NONCE
    host, key = usual_host(), ed25519.Ed25519PrivateKey.generate()
    document = json.dumps(policy_document(keys=[host.ak.name.hex()])).encode()
    (tmp_path / "policy").write_bytes(sign_policy(document, pair(key)[0]))
    (tmp_path / "key").write_bytes(public_pem_of(key))
    (tmp_path / "evidence").write_bytes(host.evidence())
    words = [alone, "-I", "-c", PROGRAM, tmp_path, str(NOW), AUDIENCE]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status, modules = done.stdout.splitlines()
    assert status == '"affirming"'
    assert not {"secrun", "secrun_policies", "urllib3", "tpm2_pytss"} & set(modules.split())


def test_an_audit_bundle_is_verified_with_cryptography_alone(alone, tmp_path):
    audited = AuditedHost(tmp_path / "host")
    audited.pod()
    (tmp_path / "audit.tar").write_bytes(audited.bundle())
    (tmp_path / "key").write_bytes(audited.key.pem())
    words = [alone, "-I", "-m", "secrun_attest.audit", "verify", "--key", tmp_path / "key"]
    done = subprocess.run([*words, tmp_path / "audit.tar"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 records of 1 epochs, 1 pods, 1 quotes" in done.stdout
    assert done.stdout.endswith("\naccepted\n")
    wrong = [*words[:-1], "/dev/null", tmp_path / "audit.tar"]
    assert subprocess.run(wrong, capture_output=True, check=False).returncode == 2
    (tmp_path / "audit.tar").write_bytes(audited.bundle()[:-2000])
    done = subprocess.run([*words, tmp_path / "audit.tar"], capture_output=True, text=True, check=False)
    assert (done.returncode, "REFUSED bundle-truncated" in done.stdout) == (121, True)
