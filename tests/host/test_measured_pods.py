"""What a pod's life leaves in the event log, and what happens when the TPM is not there for it."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import faults
from support.roots import made
from support.secrun import Secrun, eventually
from support.swtpm import Swtpm

RELAXED = ("--pull=never", "--insecure-options=image")


def events(secrun: Secrun, *operations: str) -> list[tuple[str, dict]]:
    """The log as (operation, fields), all of it or only some operations."""
    lines = secrun("attest", "log").out.splitlines()
    words = (line.partition("{") for line in lines)
    found = [(head.split()[-1], json.loads(brace + rest)) for head, brace, rest in words]
    return [(name, fields) for name, fields in found if not operations or name in operations]


def life(secrun: Secrun, uuid: str) -> list[str]:
    return [name for name, fields in events(secrun) if fields.get("pod") == uuid]


@pytest.fixture
def root(secrun: Secrun, tmp_path: Path) -> Iterator[Secrun]:
    """A root with a log and a software TPM of its own, and the busybox image."""
    with made(secrun, tmp_path) as other:
        yield other


@contextmanager
def out_of_reach(tpm: Swtpm) -> Iterator[None]:
    """Take the way to the TPM away, not the TPM: its PCRs stay."""
    path = Path(tpm.tcti.partition("path=")[2])
    path.rename(path.with_name("away"))
    yield
    path.with_name("away").rename(path)


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Swtpm]:
    (tmp_path / "tpm").mkdir()
    made = Swtpm(tmp_path / "tpm")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def pinned(secrun: Secrun, tmp_path: Path, tpm: Swtpm) -> Iterator[Secrun]:
    """A root that is pinned to a TPM which the test can take away."""
    with made(secrun, tmp_path, "--tcti", tpm.tcti) as other:
        yield other


def test_a_pods_life_is_in_the_log_in_order(root: Secrun):
    uuid = root.detach("sleep", "1000")
    assert root("enter", uuid, "--", "echo", "a secret").out == "a secret\n"
    assert root.status(uuid)["measured"]["last"] == "PodStart"
    root("stop", uuid)
    eventually(lambda: root.status(uuid)["state"] == "exited", "the end of the pod")
    assert "measured=PodExit in epoch 1-0-" in root("status", uuid).out
    root("rm", uuid)
    assert life(root, uuid) == ["PodPrepare", "PodStart", "PodExec", "PodExit", "PodGC"]
    assert [name for name, _ in events(root)][:3] == ["LogOpen", "ImageAdmit", "PodPrepare"]
    assert "a secret" not in root("attest", "log").out


def test_an_image_is_admitted_once_and_a_second_pod_refers_to_it(root: Secrun):
    first, second = root.run("echo", "1"), root.run("echo", "2")
    assert (first.out, second.out) == ("1\n", "2\n")
    (admit,) = events(root, "ImageAdmit")
    prepares = events(root, "PodPrepare")
    assert len(prepares) == 2
    for _, fields in prepares:
        (app,) = fields["apps"]
        assert (app["image"], app["tree"]) == (admit[1]["manifest"], admit[1]["tree"])
        assert fields["relaxations"] == ["insecure-options:image"]
        assert fields["stage1"]["tree"].startswith("sha256:")
    assert admit[1]["verdict"]["bypass"] is True


def test_the_manifest_that_is_measured_is_the_one_on_disk(root: Secrun):
    uuid = root.detach("sleep", "1000")
    manifest = root("cat-manifest", uuid).out.rstrip("\n").encode()
    ((_, fields),) = events(root, "PodPrepare")
    assert fields["manifest"] == f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def test_log_open_says_what_measures(root: Secrun):
    root.run("true")
    ((_, opened),) = events(root, "LogOpen")
    identity = json.loads(root("attest", "status", "--format=json").out)
    assert opened["ak"] == identity["ak"]
    assert opened["tpm"]["kind"] == "software"
    assert opened["runtime"]["digest"].startswith("sha256:")
    assert set(opened["baseline"]) == {"sha1", "sha256", "sha384", "sha512"}


def test_a_policy_that_changes_is_loaded_again_and_a_denial_is_measured(root: Secrun, tmp_path: Path):
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    words = ("run", "--rm", "--pull=never", "--policy", policy, root.image, "--", "true")
    root(*words)
    root(*words)
    policy.write_text('{"default": [{"type": "reject"}]}')
    root(*words, code=120)
    names = [name for name, _ in events(root)]
    assert names.count("PolicyLoad") == 1
    assert names[-2:] == ["PolicyLoad", "Denied"]
    ((_, denied),) = events(root, "Denied")
    assert denied["code"] == "denied-image"


def test_a_key_ring_that_changes_is_told(root: Secrun):
    root.run("true")
    key = root.root / "trust/prefix.d/r.example/0123"
    key.parent.mkdir(parents=True)
    key.write_text("a key")
    root.run("true")
    root.run("true")
    names = [name for name, _ in events(root)]
    assert names.count("TrustChange") == 1
    assert names.index("TrustChange") == names.index("PodGC") + 1


def test_secrun_that_changes_is_told_before_it_runs_a_pod(root: Secrun, tmp_path: Path, repository: Path):
    code = tmp_path / "code"
    for package in ("runtime/secrun", "attest/secrun_attest", "stage1-kvm/secrun_kvm", "policies"):
        name = "." if package == "policies" else Path(package).name
        shutil.copytree(repository / package, code / name, dirs_exist_ok=True)
    copy = {"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ("run", "--rm", *RELAXED, root.image, "--", "true")
    root(*words, environment=copy)
    with (code / "secrun/paths.py").open("a") as stream:
        stream.write("# another line\n")
    root(*words, environment=copy)
    root(*words, environment=copy)
    names = [name for name, _ in events(root)]
    assert names.count("RuntimeUpgrade") == 1
    opened, upgraded = (fields["runtime"] for _, fields in events(root, "LogOpen", "RuntimeUpgrade"))
    assert opened["digest"] != upgraded["digest"]


def change(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("mode", ["required", "off"])
def test_a_pod_whose_words_changed_since_it_was_prepared_does_not_start(root: Secrun, mode: str):
    uuid = root("prepare", *RELAXED, root.image, "--", "echo", "decided").out.strip()
    folder = root.root / "pods/prepared" / uuid
    (bundle,) = folder.glob("config/apps/*/config.json")
    whole = bundle.read_bytes()
    bundle.write_bytes(whole.replace(b"decided", b"changed"))
    result = root(f"--attest={mode}", "run-prepared", uuid, code=125)
    assert "[state-config]" in result.err
    bundle.write_bytes(whole)
    planted = folder / "config/units/planted.service"
    planted.write_text("[Service]\nExecStart=/bin/true\n")
    assert "was not there" in root(f"--attest={mode}", "run-prepared", uuid, code=125).err
    planted.unlink()
    assert root("run-prepared", uuid).out == "decided\n"


def test_a_manifest_that_changed_since_it_was_measured_does_not_start(root: Secrun):
    uuid = root("prepare", *RELAXED, root.image, "--", "true").out.strip()
    folder = root.root / "pods/prepared" / uuid
    # A relaxation left out: units and bundles are the same, and a verifier would be told another story.
    change(folder / "manifest", b'"relaxations":["insecure-options:image"]', b'"relaxations":[]')
    result = root("run-prepared", uuid, code=125)
    assert "[state-manifest]" in result.err
    assert root.status(uuid)["state"] == "exited"
    assert life(root, uuid) == ["PodPrepare"]


def test_a_prepared_pod_of_an_earlier_epoch_is_prepared_again_in_the_log(root: Secrun):
    uuid = root("prepare", *RELAXED, root.image, "--", "true").out.strip()
    root("attest", "stop")
    root("run-prepared", uuid)
    assert life(root, uuid) == ["PodPrepare", "PodStart", "PodExit"]
    assert [name for name, _ in events(root)][:2] == ["LogOpen", "ImageAdmit"]


def test_a_pod_that_outlives_the_tpms_epoch_is_told_to_the_next_one(root: Secrun):
    uuid = root.detach("sleep", "1000")
    assert "--force" in root("attest", "stop", code=125).err
    root("attest", "stop", "--force")
    root.run("true")
    root("stop", uuid)
    eventually(lambda: root.status(uuid)["state"] == "exited", "the end of the pod")
    told = [fields for _, fields in events(root, "Unmeasured")]
    assert [(item["what"], item["subject"]) for item in told] == [("PodStart", uuid), ("PodExit", uuid)]
    assert {item["option"] for item in told} == {"tpm-restarted"}
    assert [name for name, _ in events(root)][:2] == ["LogOpen", "Unmeasured"]
    root("rm", uuid)


def test_files_that_a_power_cut_emptied_stop_no_pod_and_lose_no_end(root: Secrun):
    uuid = root.detach("sleep", "1000")
    (root.root / "measure/seen.json").write_bytes(b"")
    (root.root / "pods/run" / uuid / "measured").write_bytes(b"")
    root("enter", uuid, "--", "true")
    root.run("true")
    (root.root / "pods/run" / uuid / "measured").write_bytes(b"")
    root("stop", uuid)
    eventually(lambda: root.status(uuid)["state"] == "exited", "the end of the pod")
    root("gc", "--grace-period=0s")
    assert life(root, uuid) == ["PodPrepare", "PodStart", "PodExec", "PodExit", "PodGC"]
    assert root.pods() == []


def test_a_pod_of_another_epoch_whose_marker_is_empty_is_removed_without_a_word(root: Secrun):
    uuid = root.detach("sleep", "1000")
    (root.root / "pods/run" / uuid / "measured").write_bytes(b"")
    root("attest", "stop", "--force")
    root("stop", uuid)
    eventually(lambda: root.status(uuid)["state"] == "exited", "the end of the pod")
    root("gc", "--grace-period=0s")
    assert root.pods() == []
    assert [name for name, _ in events(root)] == ["LogOpen"]


def test_a_software_tpm_can_be_chosen_and_is_then_pinned(root: Secrun, tpm: Swtpm):
    root("--tcti=software", "attest", "init")
    root("--tcti=software", "attest", "init")
    said = root("--tcti", tpm.tcti, "attest", "init", code=125).err
    assert "pinned to TPM 'software'" in said


def test_a_tpm_is_not_pinned_anew_under_an_open_log(root: Secrun):
    root.run("true")
    assert "this boot's log has begun" in root("attest", "init", "--pcr=8", "--force", code=125).err
    root("attest", "stop")
    root("attest", "init", "--pcr=8", "--force")
    root.run("true")


def test_without_its_tpm_no_pod_starts_and_the_words_are_clear(pinned: Secrun, tpm: Swtpm):
    pinned.run("true")
    tpm.stop()
    result = pinned.run("echo", "never", code=125)
    assert result.out == ""
    assert "is not prepared, since it cannot be measured" in result.err
    assert tpm.tcti in result.err
    assert pinned.pods() == []


def test_a_pod_that_is_prepared_does_not_start_without_its_tpm(pinned: Secrun, tpm: Swtpm):
    uuid = pinned("prepare", *RELAXED, pinned.image, "--", "echo", "never").out.strip()
    tpm.stop()
    result = pinned("run-prepared", uuid, code=125)
    assert "is not started, since it cannot be measured" in result.err
    assert pinned.status(uuid)["state"] == "exited"


def test_an_end_without_tpm_is_measured_by_gc_when_it_is_back(pinned: Secrun, tpm: Swtpm):
    uuid = pinned.detach("sleep", "1000")
    with out_of_reach(tpm):
        pinned("stop", uuid)
        eventually(lambda: pinned.status(uuid)["state"] == "exited", "the end of the pod")
        result = pinned("gc", "--grace-period=0s", code=125)
        assert "failed" in result.out
        assert "is not measured" in result.out
        assert pinned.status(uuid)["state"] == "exited"
    pinned("gc", "--grace-period=0s")
    assert pinned.pods() == []
    assert life(pinned, uuid) == ["PodPrepare", "PodStart", "PodExit", "PodGC"]


def test_a_pod_with_rm_stays_until_its_end_is_measured(pinned: Secrun, tpm: Swtpm):
    uuid = pinned.detach("sleep", "1000", options=("--rm",))
    with out_of_reach(tpm):
        pinned("stop", uuid)
        eventually(lambda: pinned.status(uuid)["state"] == "exited", "the end of the pod")
    pinned("gc", "--grace-period=0s")
    assert life(pinned, uuid)[-2:] == ["PodExit", "PodGC"]


def test_gc_with_attest_off_lets_an_unmeasured_end_go_and_tells_the_log_later(pinned: Secrun, tpm: Swtpm):
    uuid = pinned.detach("sleep", "1000")
    with out_of_reach(tpm):
        pinned("stop", uuid)
        eventually(lambda: pinned.status(uuid)["state"] == "exited", "the end of the pod")
        pinned("--attest=off", "gc", "--grace-period=0s")
        assert pinned.pods() == []
    pinned.run("true")
    told = [fields for _, fields in events(pinned, "Unmeasured")]
    assert {"PodExit", "PodGC"} == {item["what"] for item in told}
    assert {item["subject"] for item in told} == {uuid}


def test_preferred_goes_on_with_a_warning_that_is_measured_later(pinned: Secrun, tpm: Swtpm, tmp_path: Path):
    pinned.run("true")
    saved = tmp_path / "uuid"
    with out_of_reach(tpm):
        words = ("run", *RELAXED, f"--uuid-file-save={saved}", pinned.image, "--", "echo", "ran")
        result = pinned("--attest=preferred", *words)
        assert result.out == "ran\n"
        assert "going on unmeasured" in result.err
    pinned.run("true")
    (told,) = events(pinned, "Unmeasured")
    assert told[1]["subject"] == saved.read_text().strip()
    assert told[1]["option"] == "attest=preferred"


def test_off_asks_no_tpm_and_is_itself_measured_by_the_next_start(root: Secrun):
    result = root("--attest=off", "run", *RELAXED, root.image, "--", "echo", "ran")
    assert result.out == "ran\n"
    assert not (root.root / "tpm").exists()
    root.run("true")
    (told,) = events(root, "Unmeasured")
    assert told[1]["option"] == "attest=off"
    assert told[1]["what"] == "PodStart"
    root.run("true")
    assert len(events(root, "Unmeasured")) == 1


def test_entering_a_pod_that_ran_unmeasured_is_told(root: Secrun):
    uuid = root("--attest=off", "run", "-d", *RELAXED, root.image, "--", "sleep", "1000").out.strip()
    assert root.status(uuid)["measured"] is None
    assert "measured=no" in root("status", uuid).out
    root("enter", uuid, "--", "true")
    told = [fields for _, fields in events(root, "Unmeasured")]
    assert [(item["what"], item["subject"]) for item in told] == [("PodStart", uuid), ("PodExec", uuid)]


def test_a_foreign_extend_stops_every_further_pod(root: Secrun):
    root.run("true")
    tcti = f"swtpm:path={root.run_root}/tpm/sock"
    subprocess.run(["tpm2_pcrextend", "-T", tcti, f"15:sha256={'ab' * 32}"], check=True)
    result = root.run("true", code=125)
    assert "log-broken" in result.err
    root("attest", "stop")
    root.run("true")


def test_a_log_that_is_changed_or_deleted_is_noticed(root: Secrun):
    root.run("true")
    (log,) = (root.root / "measure").glob("*.cel")
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b'"recnum":1}', b'"recnum":7}'))
    assert root("attest", "log", code=125).out == ""
    for left in (root.root / "measure").glob("*.head"):
        left.unlink()
    log.unlink()
    assert "log-baseline" in root.run("true", code=125).err


@pytest.mark.parametrize(
    "instant",
    ["measuring-{}:torn", "measuring-{}:logged", "measuring-{}:extended", "measured-{}:head written"],
)
@pytest.mark.parametrize("operation", ["PodPrepare", "PodStart", "PodExit"])
def test_killed_inside_an_append_the_log_tells_one_life_and_the_pcr_agrees(
    root: Secrun, tmp_path: Path, operation: str, instant: str
):
    root.run("true")
    saved, passed = tmp_path / "uuid", tmp_path / "points"
    words = (f"--uuid-file-save={saved}", *RELAXED, root.image, "--", "true")
    roots = ("--root", str(root.root), "--run-root", str(root.run_root))
    argv = faults.argv(str(passed), instant.format(operation), [*roots, "run", "--net=none", *words])
    done = subprocess.run(argv, check=False, capture_output=True, timeout=120)
    # Who finishes a pod is run again when it is killed; the second time the log may already hold the end.
    assert done.returncode in ((-9, 0) if operation == "PodExit" else (-9,))
    uuid = saved.read_text().strip()
    root("gc", "--grace-period=0s", "--expire-prepared=0s")
    assert root.pods() == []
    told = life(root, uuid)
    whole = ["PodPrepare", "PodStart", "PodExit", "PodGC"]
    assert [name for name in whole if name in told] == told
    assert ("PodStart" in told) == ("PodExit" in told)
    assert ("PodExit" in told) or operation != "PodExit"
    root.run("true")


def test_the_settings_of_a_file_are_in_force(root: Secrun, tmp_path: Path):
    file = tmp_path / "secrun.toml"
    file.write_text('[attest]\nmode = "off"\n')
    assert root("--config", file, "run", "--rm", *RELAXED, root.image, "--", "echo", "ran").out == "ran\n"
    assert not (root.root / "tpm").exists()


def test_a_root_is_pinned_to_its_tpm_and_pcr(pinned: Secrun, tmp_path: Path):
    pinned("attest", "init", "--host", "web-1")
    shown = json.loads(pinned("attest", "init", "--host", "web-1", "--format=json").out)
    assert (shown["host"], shown["pcr"]) == ("web-1", 15)
    for words, said in ((("--host", "web-2"), "host 'web-1'"), (("--pcr", "8"), "PCR 15")):
        assert said in pinned("attest", "init", *words, code=125).err
    assert json.loads(pinned("attest", "init", "--pcr=8", "--force", "--format=json").out)["pcr"] == 8
    pinned.run("true")
    assert {name for name, _ in events(pinned)} >= {"LogOpen", "PodStart"}
