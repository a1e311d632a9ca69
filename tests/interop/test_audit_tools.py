"""compliance-trestle as the judge of the OSCAL that secrun writes; it asks nobody."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from secrun_attest.audit import heads
from secrun_attest.audit.chain import opened
from secrun_attest.audit.export import Form, Span, about_of, pieces, scope_of, told
from secrun_attest.record import Operation
from support.audited import NAME, AuditedHost

READ = """
import pathlib, sys
from trestle.oscal.assessment_results import AssessmentResults
found = AssessmentResults.oscal_read(pathlib.Path(sys.argv[1]))
print(len(found.results[0].observations), len(found.results[0].findings))
"""


def trestle(repository: Path, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """Run Python with the judges, cut off from any network."""
    judges = repository / ".venv/judges"
    assert (judges / "trestle").is_dir(), f"{judges} has no trestle: ci/setup --test"
    return subprocess.run(
        ["unshare", "--net", sys.executable, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(judges)},
    )


@pytest.mark.parametrize("framework", ["", "sp800-53"])
def test_trestle_reads_and_validates_assessment_results(repository: Path, tmp_path: Path, framework: str):
    host = AuditedHost(tmp_path / "host")
    host.pod(signer="")
    host.pod(code=3)
    host.measure((Operation.DENIED, {"what": "image", "subject": "x\ny", "code": "c", "why": "w"}))
    host.close()
    out = io.BytesIO()
    with opened(host.place.folder, host.place.logs) as chain:
        key = heads.signer(host.place.folder, NAME)
        scope = scope_of(chain, key, Span())
        about = about_of(scope, host="host 1", tool="secrun 1", made=host.now, framework=framework)
        for piece in pieces(Form.OSCAL, about, told(chain, scope, host.accounts.get), key):
            out.write(piece)
    (tmp_path / "oscal.json").write_bytes(out.getvalue())
    read = trestle(repository, "-c", READ, tmp_path / "oscal.json", cwd=tmp_path)
    assert read.returncode == 0, read.stderr
    result = json.loads(out.getvalue())["assessment-results"]["results"][0]
    assert read.stdout.split() == [str(len(result["observations"])), str(len(result["findings"]))]
    space = tmp_path / "space"
    space.mkdir()
    for words in (
        ("init", "--local"),
        ("import", "-f", tmp_path / "oscal.json", "-o", "audit"),
        ("validate", "-t", "assessment-results", "-n", "audit"),
    ):
        done = trestle(repository, "-m", "trestle", *words, cwd=space)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "VALID" in done.stdout + done.stderr
    bad = json.loads(out.getvalue())
    del bad["assessment-results"]["results"][0]["reviewed-controls"]
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    assert trestle(repository, "-c", READ, tmp_path / "bad.json", cwd=tmp_path).returncode != 0
