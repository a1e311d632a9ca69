"""An auditor with a bundle and a public key: what is whole is accepted, each forgery has its name."""

import io
import json

import pytest

from secrun_attest import jcs
from secrun_attest.audit import entries, verify
from secrun_attest.audit.chain import segment_line
from secrun_attest.audit.entries import Closing, State
from secrun_attest.audit.export import Span
from secrun_attest.audit.report import Fault
from secrun_attest.record import Operation
from support.attest_bench import Ak
from support.audited import BEGIN, MINUTE, AuditedHost, leaf_of, members, other_key, packed, sha


@pytest.fixture
def audited(tmp_path):
    return AuditedHost(tmp_path)


@pytest.fixture
def three(audited):
    """Three epochs, each of a pod, properly closed."""
    for _ in range(2):
        audited.pod()
        audited.close()
        audited.reboot()
    audited.pod()
    return audited


def faults(report):
    return [item.fault for item in report.findings]


def changed(host, change, *, key=None):
    """Return the report on a bundle after `change(files)`."""
    files = members(host.bundle())
    change(files)
    return host.judged(packed(files, key))


def records(files, at=0):
    return files[f"records/{at}.cel"].splitlines(keepends=True)


def put(files, lines, *, at=0, leaves=False):
    files[f"records/{at}.cel"] = b"".join(lines)
    if leaves:
        files["leaves"] = b"".join(map(leaf_of, lines)) + files["leaves"][32 * len(lines) :]


def test_a_bundle_of_three_boots_is_accepted(three):
    report = three.judged(three.bundle())
    assert report.findings == ()
    assert (report.epochs, report.pods, report.quotes, report.first) == (3, 3, 3, 0)
    assert report.keys == (three.ak.name.hex(),)
    assert not report.refused()


def remove(lines):
    del lines[2]


def change(lines):
    lines[2] = lines[2].replace(lines[2][40:44], b"0000", 1)


def swap(lines):
    lines[2], lines[3] = lines[3], lines[2]


def repeat(lines):
    lines.insert(2, lines[1])


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize(
    ("forge", "fault"),
    [
        (remove, Fault.REMOVED),
        (change, Fault.CHANGED),
        (swap, Fault.REORDERED),
        (repeat, Fault.INSERTED),
    ],
)
def test_what_is_done_to_a_record_is_named(three, forge, fault, leaves):
    """With `leaves` the forger makes the hashes fit, and even with the host's own key."""

    def change_records(files):
        lines = records(files)
        forge(lines)
        put(files, lines, leaves=leaves and fault is not Fault.CHANGED)

    report = changed(three, change_records, key=three.signer())
    assert fault in faults(report)
    assert fault in [item.fault for item in report.refused(Fault)]
    if not leaves:
        assert "leaf 2" in report.findings[0].where


def test_a_record_behind_the_last_is_inserted(three):
    def add(files):
        files["records/0.cel"] += records(files)[-1]

    assert faults(changed(three, add, key=three.signer())) == [Fault.INSERTED]


def test_a_forged_record_with_right_digests_does_not_give_the_signed_root(three):
    """The forger writes a record anew, digests and leaf and all: the root is signed, and the TPM's PCR."""
    from secrun_attest.celjson import line, parse_line
    from secrun_attest.record import event_data, make_record, parse_event_data

    def forge(files):
        lines = records(files)
        event = parse_event_data(parse_line(lines[4][:-1]).event_data)
        other = type(event)(
            operation=event.operation,
            seq=4,
            epoch=event.epoch,
            t=event.t,
            fields={**event.fields, "code": 1},
        )
        assert event_data(other)
        lines[4] = line(make_record(other, pcr=15, banks=three.banks))
        put(files, lines, leaves=True)

    found = faults(changed(three, forge, key=three.signer()))
    assert Fault.ROOT in found
    assert Fault.QUOTE in found


def test_an_epoch_that_is_not_there_is_named(three):
    files = members(three.bundle())
    first = [json.loads(line) for line in files["segments.jsonl"].splitlines()]
    names = [name for name in files if name.startswith("records/")]

    def drop_files(files):
        for name, part in zip(names, [part for part in first if "log" in part], strict=True):
            if part["log"] == "8-0":
                del files[name]

    assert Fault.EPOCH in faults(changed(three, drop_files, key=three.signer()))


def test_an_epoch_cut_out_with_its_leaves_is_named(three):
    """The hashes are made to fit, and a head signed over the rest: only the next LogOpen tells."""
    files = members(three.bundle())
    kept, leaves, at = [], b"", 0
    old, files["leaves"] = files["leaves"], b""
    for line in files["segments.jsonl"].splitlines(keepends=True):
        part = json.loads(line)
        count = part.get("count") if "log" in part else 1
        name = part["log"] if "log" in part else entries.parse(part["entry"].encode()).name
        stored = files.pop(f"records/{at}.cel", None)
        if name != "8-0":
            if stored is not None:
                files[f"records/{len(leaves) // 32}.cel"] = stored
            kept.append(line)
            leaves += old[32 * at : 32 * (at + count)]
        at += count
    report = resigned(three, files, kept, leaves)
    assert Fault.EPOCH in faults(report)


def resigned(host, files, segments, leaves):
    from secrun_attest.audit.merkle import Frontier
    from secrun_attest.audit.note import Checkpoint

    tree = Frontier()
    for place in range(0, len(leaves), 32):
        tree.append(leaves[place : place + 32])
    head = Checkpoint(origin=host.key.name, size=tree.size, root=tree.root())
    said = json.loads(files["bundle.json"]) | {"size": tree.size}
    files |= {
        "bundle.json": json.dumps(said).encode(),
        "checkpoint": host.signer().note(head.text()),
        "checkpoints.jsonl": b"",
        "segments.jsonl": b"".join(segments),
        "leaves": leaves,
    }
    return host.judged(packed(files, host.signer()))


def test_a_head_by_another_key_is_named(three):
    data = three.bundle()
    other = other_key()
    report = verify.verify_bundle(io.BytesIO(data), other.verifier).report
    assert faults(report) == [Fault.KEY]

    def sign_again(files):
        text = files["checkpoint"].decode().partition("\n\n")[0]
        files["checkpoint"] = other.note(f"{text}\n")

    assert faults(changed(three, sign_again, key=other)) == [Fault.KEY]


def test_a_false_signature_is_named(three):
    def bend(files):
        files["checkpoint"] = files["checkpoint"].replace(b"/host-1\n", b"/host-2\n", 1)

    assert faults(changed(three, bend)) == [Fault.SIGNATURE]


@pytest.mark.parametrize("share", [0, 1, 30, 60, 90, 99])
def test_a_bundle_that_ends_early_is_named(three, share):
    data = three.bundle()
    assert faults(three.judged(data[: len(data) * share // 100])) == [Fault.TRUNCATED]


def test_a_bundle_whose_last_files_are_gone_is_truncated(three):
    files = members(three.bundle())
    from secrun_attest.audit.tarball import TarWriter

    out = io.BytesIO()
    tar = TarWriter(out)
    for name, data in files.items():
        if not name.startswith("SHA256SUMS"):
            tar.add(name, data)
    tar.end()
    assert faults(three.judged(out.getvalue())) == [Fault.TRUNCATED]


def test_two_forks_of_one_log_are_named(three, tmp_path):
    """Somebody brings back an old copy of the folder and goes on: both logs are whole, and signed."""
    import shutil

    early = three.bundle()
    shutil.copytree(three.folder, tmp_path / "copy")
    for_later = dict(three.tpm.values)
    three.pod()
    long = three.bundle()
    fork = AuditedHost(tmp_path / "copy", ak=three.ak, now=three.now, boot_id=three.boot_id, serial=50)
    fork.accounts, fork.tpm.values, fork.tpm.reset = three.accounts, for_later, three.tpm.reset
    fork.pod()
    fork.pod()
    forked = fork.bundle()
    judged = {
        name: verify.verify_bundle(io.BytesIO(data), three.key)
        for name, data in (("early", early), ("long", long), ("forked", forked))
    }
    assert [item.report.findings for item in judged.values()] == [(), (), ()]
    pairs = [("early", "long"), ("early", "forked"), ("long", "forked")]
    found = [[item.fault for item in verify.compare([(n, judged[n]) for n in pair]).found] for pair in pairs]
    assert found == [[], [], [Fault.FORK]]


def test_a_head_that_the_log_does_not_continue_is_a_fork(three):
    """The host signs another root of a size that it has signed, and shows the proof of the true one."""

    def forge(files):
        lines = files["checkpoints.jsonl"].splitlines(keepends=True)
        head = json.loads(lines[0])
        origin, size = head["note"].split("\n")[:2]
        head["note"] = three.signer().note(f"{origin}\n{size}\n{'A' * 43}=\n").decode()
        files["checkpoints.jsonl"] = b"".join([jcs.encode(head) + b"\n", *lines[1:]])

    assert faults(changed(three, forge, key=three.signer())) == [Fault.FORK]


def test_a_clock_that_went_back_is_named(audited):
    audited.pod()
    audited.now -= 100 * MINUTE
    audited.pod()
    report = audited.judged(audited.bundle())
    assert faults(report) == [Fault.CLOCK]
    assert report.refused() == report.findings
    assert not report.refused([Fault.CLOCK])


def test_a_host_that_was_never_closed_is_named(audited):
    audited.pod()
    audited.reboot()
    audited.pod()
    report = audited.judged(audited.bundle())
    assert faults(report) == [Fault.NOT_CLOSED]
    assert "8-0" not in report.findings[0].where
    assert not report.refused([Fault.NOT_CLOSED])


def test_what_followed_the_last_quote_makes_an_epoch_not_closed(audited):
    audited.pod()
    audited.close()
    audited.pod()
    audited.reboot()
    audited.pod()
    report = audited.judged(audited.bundle())
    assert faults(report) == [Fault.NOT_CLOSED]
    assert "6 of 10 are quoted" in report.findings[0].text


def test_an_epoch_may_be_closed_again(audited):
    audited.pod()
    audited.close()
    audited.pod()
    audited.close()
    audited.reboot()
    audited.pod()
    assert audited.judged(audited.bundle()).findings == ()


def test_a_quote_by_another_key_or_of_another_state_is_named(three):
    three.pod()
    three.ak = Ak()
    report = three.judged(three.bundle())
    assert faults(report) == [Fault.QUOTE, Fault.UNQUOTED]
    assert "the log names" in report.findings[0].text


def test_a_closing_without_its_quote_is_named(three):
    files = members(three.bundle())
    kept, leaves = [], files["leaves"]
    at = 0
    from secrun_attest.audit.chain import Records, parse_segment
    from secrun_attest.audit.merkle import leaf_hash

    for line in files["segments.jsonl"].splitlines(keepends=True):
        part = parse_segment(line)
        if isinstance(part, Closing) and part.name == "7-0":
            bare = Closing(
                state=State.CLOSED,
                name=part.name,
                epoch=part.epoch,
                count=part.count,
                pcr=part.pcr,
                pcrs=part.pcrs,
                t=part.t,
            )
            bare_line = segment_line(bare)
            leaves = leaves[: 32 * at] + leaf_hash(entries.encode(bare)) + leaves[32 * (at + 1) :]
            kept.append(bare_line)
        else:
            kept.append(line)
        at += part.count if isinstance(part, Records) else 1
    assert Fault.QUOTE in faults(resigned(three, files, kept, leaves))


def test_an_account_that_was_changed_or_left_out_is_named(three):
    def bent(number):
        """Bend one of the accounts: each pod has one from its start and one from its end."""

        def bend(files):
            lines = files["accounts.jsonl"].splitlines(keepends=True)
            lines[number] = lines[number].replace(b'"pod"', b'"top"')
            files["accounts.jsonl"] = b"".join(lines)

        return bend

    def drop(files):
        files["accounts.jsonl"] = b""

    for number in range(6):
        assert faults(changed(three, bent(number), key=three.signer())) == [Fault.ACCOUNT]
    assert faults(changed(three, drop, key=three.signer())) == [Fault.ACCOUNT] * 6


def test_a_trail_that_says_something_else_than_the_records_is_named(three):
    def bend(files):
        files["trail.jsonl"] = files["trail.jsonl"].replace(b"web.service", b"sshd.service", 1)

    assert faults(changed(three, bend, key=three.signer())) == [Fault.TRAIL]
    assert faults(changed(three, bend)) == [Fault.TRAIL, Fault.MEMBER]


def test_files_that_nobody_signed_are_named(three):
    def add(files):
        files["report.pdf"] = b"all is well"

    assert faults(changed(three, add)) == [Fault.MEMBER]


def test_a_span_takes_whole_epochs_and_its_trail_only_what_is_in_it(three):
    files = members(three.bundle())
    rows = [json.loads(line) for line in files["trail.jsonl"].splitlines()]
    second = next(row for row in rows if row["epoch"] == "8-0" and row["event"] == "LogOpen")
    third = next(row for row in rows if row["epoch"] == "9-0" and row["event"] == "LogOpen")
    data = three.written(Span(since=second["time"] + 1, until=third["time"]))
    report = three.judged(data)
    assert report.findings == ()
    assert (report.epochs, report.first, report.size) == (1, second["index"], third["index"])
    told = [json.loads(line) for line in members(data)["trail.jsonl"].splitlines()]
    assert told == [row for row in rows if second["time"] < row["time"] < third["time"]]


def test_bundles_of_neighbouring_spans_fit_each_other(three):
    three.bundle()
    middle = BEGIN + 9 * MINUTE
    early, late = three.written(Span(until=middle)), three.written(Span(since=middle))
    found = [(name, verify.verify_bundle(io.BytesIO(data), three.key)) for name, data in
             (("early", early), ("late", late))]  # fmt: skip
    assert [item.report.findings for _, item in found] == [(), ()]
    assert verify.compare(found).found == []


def test_refusals_and_bypasses_are_in_the_trail(audited):
    audited.pod(signer="")
    audited.measure(
        (Operation.DENIED, {"what": "image", "subject": "docker://x", "code": "denied-policy", "why": "no"}),
        (Operation.UNMEASURED, {"option": "attest=off", "what": "PodStart", "subject": "a-pod"}),
        (
            Operation.POD_EXEC,
            {"pod": "p", "app": "web", "user": "7", "command": sha("ls"), "by": {"uid": 0}},
        ),
    )
    rows = [json.loads(line) for line in members(audited.bundle())["trail.jsonl"].splitlines()]
    told = {row["event"]: (row["outcome"], row.get("what", ""), row.get("who", "")) for row in rows}
    assert told["ImageAdmit"][0] == told["PodPrepare"][0] == "bypassed"
    assert told["PodStart"] == ("done", "", "login 1000, uid 0, unit web.service")
    assert told["Denied"] == ("refused", "image docker://x", "")
    assert told["Unmeasured"] == ("bypassed", "PodStart a-pod", "")
    assert told["PodExec"] == ("done", "as user 7", "uid 0")
