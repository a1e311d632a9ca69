"""The verbs of verifiers: what each exit status means, what has to be said, and what is kept."""

import io
import json
import stat
import sys
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from secrun.cli import main as cli
from secrun.selfdigest import runtime_digest
from secrun_attest.policy import Machines, parse_policy
from secrun_attest.policyfile import sign_policy
from secrun_attest.policywrite import dump_policy
from secrun_attest.record import Operation
from support.attest_bench import AUDIENCE, NONCE, POD, Ak, Host, policy_document, raw, sha, usual_host
from support.policies import p256, pair, pem_of, public_pem_of

OTHER_POD = "99999999-2222-4333-8444-555555555555"
ASKED = NONCE.hex()
UNSIGNED = ("--insecure-options=policy",)


class Desk:
    """A verifier's folder: evidence, policy and key lie there as files."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        self.host = usual_host()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.write("evidence", self.host.evidence())
        self.policy(keys=[self.host.ak.name.hex()])

    def write(self, name, data):
        path = self.folder / name
        path.write_bytes(data)
        return str(path)

    def path(self, name):
        return str(self.folder / name)

    def document(self, **changes):
        now = int(time.time())
        return json.dumps(policy_document(not_before=now - 1000, not_after=now + 1000, **changes)).encode()

    def policy(self, **changes):
        return self.write("policy", self.document(**changes))

    def run(self, *words):
        """Return status, output and complaints of one command."""
        code = cli.main(["--root", self.path("root"), "--run-root", self.path("run"), "attest", *words])
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def verify(self, *words, evidence="evidence", nonce=ASKED):
        relaxed = () if any(word.startswith("--policy-key") for word in words) else UNSIGNED
        policies = (
            () if any(word.startswith("--policy=") for word in words) else ("--policy", self.path("policy"))
        )
        where = evidence if evidence == "-" else self.path(evidence)
        return self.run(
            "verify", "--nonce", nonce, "--audience", AUDIENCE, *policies, *relaxed, *words, where
        )

    def verdict(self, *words, **arguments):
        """Return status and the parsed JSON of a verification."""
        code, out, _ = self.verify("--format=json", *words, **arguments)
        return code, json.loads(out)


@pytest.fixture
def desk(tmp_path, capsys):
    return Desk(tmp_path, capsys)


def test_honest_evidence_ends_with_zero_and_says_what_ran(desk):
    code, said = desk.verdict()
    assert (code, said["schema"], said["status"]) == (0, "secrun.dev/verdict/v1", "affirming")
    assert said["pods"][0]["apps"][0]["name"] == "web"
    code, out, err = desk.verify()
    assert (code, err) == (0, "")
    assert f"pod      {POD} affirming, exited, entered 0 times" in out


def test_evidence_may_come_on_standard_input(desk, monkeypatch):
    data = desk.host.evidence()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert desk.verdict(evidence="-")[0] == 0


@pytest.mark.parametrize(
    ("bend", "nonce", "code", "check"),
    [
        (lambda host: host.evidence()[:-1], NONCE, "E_FORMAT", 1),
        (lambda host: host.evidence(), bytes(32), "E_NONCE_UNKNOWN", 2),
        (lambda _: usual_host().evidence(), NONCE, "E_AK_UNKNOWN", 3),
        (lambda host: host.evidence(extra=bytes(32)), NONCE, "E_NONCE_BIND", 8),
        (lambda host: host.evidence(values={15: raw("elsewhere")}), NONCE, "E_REPLAY", 14),
    ],
)
def test_rejected_evidence_ends_with_121_and_names_code_and_check(desk, bend, nonce, code, check):
    desk.write("evidence", bend(desk.host))
    status, said = desk.verdict(nonce=nonce.hex())
    assert (status, said["status"], said["code"], said["check"]) == (121, "rejected", code, check)
    status, out, err = desk.verify(nonce=nonce.hex())
    assert (status, out) == (121, "")
    assert f"rejected by check {check}: " in err
    assert f"[{code}]" in err


def test_evidence_for_somebody_else_is_rejected(desk):
    code, _, err = desk.run(
        "verify", "--nonce", ASKED, "--policy", desk.path("policy"), *UNSIGNED, desk.path("evidence")
    )
    assert (code, "[E_NONCE_BIND]" in err) == (121, True)


def test_a_verdict_against_a_pod_ends_with_121_and_says_which_and_why(desk):
    desk.policy(keys=[desk.host.ak.name.hex()], workload={"manifests": [sha("other")]})
    code, out, err = desk.verify("--accept-warning")
    assert code == 121
    assert f"pod {POD}: contraindicated: app 'web'" in err
    assert "[evidence-contraindicated]" in err
    assert f"pod      {POD} contraindicated" in out


def test_a_warning_is_no_success_unless_it_is_accepted(desk):
    desk.policy(keys=[desk.host.ak.name.hex()], platform={"pcrs": {}})
    code, _, err = desk.verify()
    assert (code, "[evidence-warning]" in err, "the host: warning" in err) == (121, True, True)
    code, _, err = desk.verify("--accept-warning")
    assert (code, "secrun: warning: the host: warning" in err) == (0, True)


@pytest.mark.parametrize("form", ["name", "name file", "public area"])
def test_the_key_may_be_named_on_the_command_line(desk, form):
    desk.policy(keys=None)
    ak = desk.host.ak
    word = {
        "name": ak.name.hex,
        "name file": lambda: desk.write("ak", ak.name.hex().encode() + b"\n"),
        "public area": lambda: desk.write("ak", ak.public),
    }[form]()
    assert desk.verify("--ak", word)[0] == 0
    assert desk.verify("--ak", Ak().name.hex())[0] == 121
    assert desk.verify("--ak", Ak().name.hex(), "--ak", word)[0] == 0


def test_a_key_named_on_the_command_line_does_not_widen_the_policy(desk):
    desk.policy(keys=[Ak().name.hex()])
    code, said = desk.verdict("--ak", desk.host.ak.name.hex())
    assert (code, said["code"]) == (121, "E_POLICY")


def test_a_key_under_a_parent_needs_the_parents_name(desk):
    parent = b"\x00\x0b" + raw("parent")
    desk.write("evidence", desk.host.evidence(signer=desk.host.ak.qualified(parent)))
    assert desk.verdict()[1]["code"] == "E_QN"
    assert desk.verify("--ak-parent", parent.hex())[0] == 0


def test_a_software_tpm_is_what_the_caller_says_too(desk):
    assert desk.verdict("--software-tpm")[1]["code"] == "E_POLICY"
    desk.policy(keys=[desk.host.ak.name.hex()], software_tpm=True)
    code, said = desk.verdict("--software-tpm")
    assert (code, "hardware" in said["host"]["vector"]) == (0, False)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--nonce=00"], "usage-hex"),
        (["--ak=/dev/null"], "usage-ak"),
        (["--ak-parent=xyz"], "usage-hex"),
        (["--insecure-options=image"], "usage-insecure-options"),
        (["--policy-key=/dev/null"], "usage-dsse-key"),
    ],
)
def test_options_that_mean_nothing_are_usage_errors(desk, words, code):
    status, _, err = desk.verify(*words)
    assert (status, f"[{code}]" in err) == (2, True), err


def test_without_a_key_a_nonce_or_a_policy_nothing_is_judged(desk):
    desk.policy(keys=None)
    status, _, err = desk.verify()
    assert (status, "[usage-ak]" in err) == (2, True)
    assert desk.run("verify", "--nonce", ASKED, desk.path("evidence"))[0] == 2
    assert desk.run("verify", "--policy", desk.path("policy"), *UNSIGNED, desk.path("evidence"))[0] == 2


def test_an_unsigned_policy_has_to_be_asked_for(desk):
    words = ("verify", "--nonce", ASKED, "--policy", desk.path("policy"), desk.path("evidence"))
    status, _, err = desk.run(*words)
    assert (status, "[usage-policy-key]" in err) == (2, True)
    key = desk.write("key", public_pem_of(desk.key))
    status, _, err = desk.verify("--policy-key", key)
    assert (status, "[usage-policy-unsigned]" in err) == (2, True)


def test_a_signed_policy_counts_for_its_key_only(desk):
    signer, _ = pair(desk.key)
    desk.write("policy", sign_policy(desk.document(keys=[desk.host.ak.name.hex()]), signer))
    key = desk.write("key", public_pem_of(desk.key))
    code, said = desk.verdict("--policy-key", key)
    assert (code, said["policy"]["parts"][0]["signers"]) == (0, [signer.id])
    other = desk.write("other", public_pem_of(ec.generate_private_key(ec.SECP256R1())))
    status, _, err = desk.verify("--policy-key", other)
    assert (status, "[usage-policy-signature]" in err) == (2, True)


def test_the_state_lets_new_records_be_enough_and_is_the_owners_alone(desk):
    state = desk.path("state")
    assert desk.verify("--state", state)[0] == 0
    assert stat.S_IMODE((desk.folder / "state").stat().st_mode) == 0o600
    desk.host.pod(OTHER_POD)
    desk.write("evidence", desk.host.evidence(begin=5))
    assert desk.verdict()[1]["code"] == "E_BASELINE"
    code, said = desk.verdict("--state", state)
    assert (code, [pod["uuid"] for pod in said["pods"]]) == (0, [POD, OTHER_POD])
    # The same evidence is no news, and a rejection leaves the state as it was.
    before = (desk.folder / "state").read_bytes()
    assert desk.verdict("--state", state)[1]["code"] == "E_EPOCH"
    assert (desk.folder / "state").read_bytes() == before


def test_a_state_is_kept_even_if_the_policy_is_against_the_host(desk):
    desk.policy(keys=[desk.host.ak.name.hex()], workload={"manifests": [sha("other")]})
    assert desk.verify("--state", desk.path("state"))[0] == 121
    assert json.loads((desk.folder / "state").read_bytes())["host"]["recnum"] == 5


def test_a_state_remembers_policies_and_takes_no_older_one(desk):
    state = desk.path("state")
    desk.policy(version=7, keys=[desk.host.ak.name.hex()])
    assert desk.verify("--state", state)[0] == 0
    desk.policy(version=6, keys=[desk.host.ak.name.hex()])
    status, _, err = desk.verify("--state", state)
    assert (status, "[usage-policy-rollback]" in err) == (2, True)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema":"x"}'])
def test_a_damaged_state_is_not_started_over(desk, data):
    desk.write("state", data)
    status, _, err = desk.verify("--state", desk.path("state"))
    assert (status, "[state-verifier]" in err) == (125, True)


def test_a_hosts_words_reach_no_terminal_as_they_are(desk):
    host = Host(name="evil\x1b[2J")
    host.open()
    host.admit()
    host.prepare(pod="\x1b]0;pod")
    desk.policy(keys=[host.ak.name.hex()], workload={"manifests": []})
    desk.write("evidence", host.evidence())
    code, out, err = desk.verify()
    assert code == 121
    assert "\x1b" not in out + err
    assert "evil\\u001b[2J" in out
    host.prepare(pod="\x1b]0;pod")
    desk.write("evidence", host.evidence())
    code, out, err = desk.verify()
    assert (code, "\\u001b]0;pod is prepared twice" in err, "\x1b" in out + err) == (121, True, False)


# Policies.


def prediction(**changes):
    value = {
        "schema": "secrun.dev/prediction/v1",
        "runtime": {"version": "1", "digest": sha("secrun")},
        "stage1": [
            {
                "flavour": "nspawn",
                "digest": sha("stage1"),
                "tree": sha("stage1 tree"),
                "verity_root": "00" * 32,
                "file": sha("file"),
            }
        ],
        "images": [
            {
                "reference": "oci:x",
                "platform": "linux/amd64",
                "manifest": sha("manifest"),
                "config": sha("config"),
                "rootfs": sha("rootfs"),
                "tree": sha("tree"),
                "verity_root": "00" * 32,
            }
        ],
    }
    return json.dumps(value | changes).encode()


def test_a_policy_begins_with_what_was_predicted(desk):
    name = Ak().name
    code, out, err = desk.run(
        *("policy", "init", "--id=shop", "--from", desk.write("p.json", prediction())),
        *("--key", name.hex(), "--pcr=8", "--selection=0-4,8", f"--pcr-value=4={'ab' * 32}"),
        *("--valid=2d", "--forbid-exec", "--software-tpm", "--version=3"),
    )
    assert (code, err) == (0, "")
    policy = parse_policy(out.encode())
    assert (policy.id, policy.version, policy.pcr) == ("shop", 3, 8)
    assert policy.selection == (0, 1, 2, 3, 4, 8)
    assert policy.not_after - policy.not_before == 2 * 86400
    assert abs(policy.not_before - time.time()) < 60
    assert policy.keys == {name}
    assert policy.software_tpm
    assert policy.runtime.binaries == {raw("secrun")}
    assert policy.runtime.stage1 == {raw("stage1 tree")}
    assert policy.workload.images == {(raw("manifest"), raw("tree"), bytes(32))}
    assert policy.runtime.machines == Machines()
    assert policy.workload.forbidden_operations == {"PodExec"}
    assert policy.platform.pcrs == ((4, frozenset({b"\xab" * 32})),)


def test_several_predictions_make_one_policy(desk):
    second = json.loads(prediction(stage1=[], runtime={"version": "1", "digest": None}))
    second["images"][0]["manifest"] = sha("another")
    words = ("--from", desk.write("a", prediction()), "--from", desk.write("b", json.dumps(second).encode()))
    out = desk.run("policy", "init", "--id=x", *words)[1]
    assert {manifest for manifest, *_ in parse_policy(out.encode()).workload.images} == {
        raw("manifest"),
        raw("another"),
    }


def guest_prediction(**changes):
    line = {"model": "q35", "text": "quiet"}
    guest = {
        "flavour": "kvm",
        "digest": sha("stage1"),
        "tree": sha("stage1"),
        "verity_root": "00" * 32,
        "file": sha("file"),
        "kernel": sha("kernel"),
        "initrd": sha("initrd"),
        "command_lines": [
            line | {"accelerator": "kvm"},
            line | {"accelerator": "kvm", "model": "microvm", "text": "quiet tpm"},
            line | {"accelerator": "tcg", "text": "quiet slow"},
        ],
    }
    return prediction(stage1=[guest | changes])


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ((), {"quiet", "quiet tpm"}),
        (("--accelerator=tcg",), {"quiet slow"}),
        (("--accelerator=kvm", "--accelerator=tcg"), {"quiet", "quiet tpm", "quiet slow"}),
    ],
)
def test_a_policy_begins_with_the_predicted_guests_of_the_accelerators_it_accepts(desk, words, lines):
    path = desk.write("p.json", guest_prediction())
    out = desk.run("policy", "init", "--id=shop", "--from", path, "--require-machine", *words)[1]
    machines = parse_policy(out.encode()).runtime.machines
    (guest,) = machines.guests
    assert (guest.kernel, guest.initrd, guest.command_lines) == (raw("kernel"), raw("initrd"), lines)
    assert machines.required
    assert machines.accelerators == {word.partition("=")[2] for word in words} or {"kvm"}


def test_a_guest_without_a_command_line_is_told_of(desk):
    lines = json.loads(guest_prediction())["stage1"][0]["command_lines"][2:]
    path = desk.write("p.json", guest_prediction(command_lines=lines))
    code, _, err = desk.run("policy", "init", "--id=shop", "--from", path, "--accelerator=kvm")
    assert (code, "a guest kernel has no command line" in err) == (0, True)


def test_what_a_policy_says_nothing_about_is_said(desk):
    code, out, err = desk.run("policy", "init", "--id=x")
    assert code == 0
    assert err.count("secrun: warning: ") == 5
    policy = parse_policy(out.encode())
    assert policy.workload.empty
    assert (policy.keys, policy.software_tpm) == (None, False)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "usage"),
        (["--id=x", "--selection=7-"], "usage-pcr"),
        (["--id=x", "--selection=0-7"], "usage-field"),
        (["--id=x", "--pcr=24"], "usage-field"),
        (["--id=x", "--pcr-value=4"], "usage-pcr"),
        (["--id=x", "--pcr-value=99=00"], "usage-pcr"),
        (["--id=x", "--pcr-value=4=00"], "usage-hex"),
        (["--id=x", f"--pcr-value=9={'00' * 32}"], "usage-field"),
        (["--id=x", "--valid=soon"], "usage"),
        (["--id=x", "--key=00"], "usage-ak"),
        (["--id=x", "--from=/dev/null"], "usage-prediction"),
        (["--id=x", "--accelerator=hvf"], "usage-field"),
    ],
)
def test_a_policy_that_would_mean_nothing_is_not_written(desk, words, code):
    status, out, err = desk.run("policy", "init", *words)
    assert (status != 0, out, f"[{code}]" in err) == (True, "", True), err


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "secrun.dev/prediction/v2"},
        {"surprise": 1},
        {"images": [{}]},
        {"stage1": {}},
        {"stage1": [json.loads(guest_prediction(command_lines=[{}]))["stage1"][0]]},
        {"stage1": [json.loads(guest_prediction(kernel="x"))["stage1"][0]]},
        {"runtime": {"version": "1", "digest": "md5:00"}},
        {"runtime": {"version": "1", "digest": None, "surprise": 1}},
    ],
)
def test_what_is_no_prediction_is_refused(desk, changes):
    words = ("policy", "init", "--id=x", "--from", desk.write("p", prediction(**changes)))
    assert (desk.run(*words)[0], desk.run(*words)[1]) == (2, "")


def test_a_signed_start_is_shown_only_under_its_key(desk):
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = desk.write("k.pem", pem_of(key)), desk.write("p.pem", public_pem_of(key))
    out = desk.path("policy.dsse")
    words = ("--from", desk.write("p.json", prediction()), "--sign", private, "--out", out)
    code, said, _ = desk.run("policy", "init", "--id=shop", *words)
    assert (code, said) == (0, "")
    code, said, _ = desk.run("policy", "show", "--policy-key", public, "--format=json", out)
    shown = json.loads(said)
    assert (code, shown["schema"], shown["policy"]["id"]) == (0, "secrun.dev/policy/v1", "shop")
    assert shown["parts"][0]["signers"] == [pair(key)[0].id]
    other = desk.write("o.pem", public_pem_of(ec.generate_private_key(ec.SECP256R1())))
    assert desk.run("policy", "show", "--policy-key", other, out)[0] == 2


def test_a_policy_is_signed_byte_for_byte(desk):
    signer, _ = pair(desk.key)
    out, private = desk.path("signed"), desk.write("k.pem", pem_of(desk.key))
    code, _, err = desk.run("policy", "sign", "--key", private, "--out", out, desk.path("policy"))
    assert (code, signer.id in err) == (0, True)
    words = ("--policy-key", desk.write("p.pem", public_pem_of(desk.key)), f"--policy={out}")
    assert desk.verify(*words)[0] == 0
    code, text, err = desk.run("policy", "show", *words[:2], out)
    assert (code, f"signed by {signer.id}" in text, err) == (0, True, "")
    assert desk.run("policy", "sign", "--key", private, desk.write("bad", b"{}"))[0] == 2


def test_a_policy_reads_back_as_it_was_written(desk):
    policy = parse_policy(desk.document(keys=[Ak().name.hex()], workload={"references": ["docker://*"]}))
    again = parse_policy(dump_policy(policy))
    assert (again.workload, again.runtime, again.platform) == (
        policy.workload,
        policy.runtime,
        policy.platform,
    )
    assert (again.keys, again.not_after, again.selection) == (
        policy.keys,
        policy.not_after,
        policy.selection,
    )


def test_layers_from_several_files_make_one_verdict(desk):
    signer, trusted = p256()
    body = json.loads(desk.document(keys=[desk.host.ak.name.hex()]))
    workload = {"layer": "workload", "id": "images", "workload": body.pop("workload")}
    body["layers"] = {"workload": {"id": "images", "min_version": 1}}
    workload |= {name: body[name] for name in ("v", "version", "not_before", "not_after")}
    for name, document in (("base", body), ("layer", workload)):
        desk.write(name, sign_policy(json.dumps(document).encode(), signer))
    key = desk.write("key", public_pem_of(signer.key))
    code, said = desk.verdict(
        *("--policy-key", key, f"--policy={desk.path('layer')}", f"--policy={desk.path('base')}")
    )
    assert (code, [part["layer"] for part in said["policy"]["parts"]]) == (0, ["base", "workload"])
    assert said["policy"]["parts"][1]["signers"] == [trusted.id]


def test_predicting_nothing_is_a_usage_error_and_a_missing_image_leaves_no_list(desk):
    assert desk.run("predict")[0] == 2
    options = ("--format=json", "--pull=never", "--insecure-options=image")
    code, out, _ = desk.run("predict", *options, "oci:/nope")
    assert (code, out) == (125, "")


def test_an_event_of_an_entry_shows_in_the_verdict(desk):
    host = Host(ak=desk.host.ak)
    host.open(runtime={"version": "1", "digest": str(runtime_digest())})
    host.admit()
    host.prepare()
    host.measure(Operation.POD_START, pod=POD)
    host.measure(Operation.POD_EXEC, pod=POD)
    desk.write("evidence", host.evidence())
    desk.policy(keys=[host.ak.name.hex()], runtime={"binaries": [str(runtime_digest())]})
    assert desk.verdict()[1]["pods"][0]["entries"] == 1
