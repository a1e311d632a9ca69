"""The audit log of a host: what a crash leaves, what was damaged, what is given up, what exports say."""

import csv
import io
import json

import pytest

from secrun_attest.audit import command, heads, retention
from secrun_attest.audit.chain import ChainError, opened
from secrun_attest.audit.entries import State, encode, parse
from secrun_attest.audit.proof import make_proof, open_proof
from secrun_attest.audit.report import Fault
from secrun_attest.audit.rows import COLUMNS, csv_lines, json_line, when
from secrun_attest.audit.tarball import BLOCK, TarError, TarWriter, index
from secrun_attest.audit.trail import Image, Outcome, Row
from secrun_attest.errors import FormatError
from secrun_attest.record import Operation
from support.attest_bench import sha
from support.audited import MINUTE, NAME, AuditedHost, members, other_key


@pytest.fixture
def audited(tmp_path):
    return AuditedHost(tmp_path)


def faults(report):
    return [item.fault for item in report.findings]


def file(host, name):
    return host.place.folder / name


@pytest.mark.parametrize("name", ["hashes", "segments"])
def test_what_a_killed_writer_left_is_cut_off(audited, name):
    audited.pod()
    audited.close()
    with file(audited, name).open("ab") as stream:
        stream.write(b'{"log":"7-0","co')
    audited.pod()
    audited.close()
    assert audited.judged(audited.bundle()).findings == ()


def test_leaves_that_were_hashed_and_not_counted_are_hashed_again(audited):
    audited.pod()
    audited.close()
    before = file(audited, "segments").read_bytes()
    audited.pod()
    with opened(audited.place.folder, audited.place.logs) as chain:
        chain.sync(going=audited.going, now=audited.now)
    # The hashes got to the disk, the line that counts them did not.
    assert file(audited, "segments").read_bytes() != before
    file(audited, "segments").write_bytes(before)
    assert audited.judged(audited.bundle()).findings == ()


@pytest.mark.parametrize(
    ("name", "code"), [("hashes", "audit-damaged"), ("segments", "audit-fork"), ("key.pem", "audit-key")]
)
def test_files_that_were_cut_are_no_ground_to_sign_on(audited, name, code):
    audited.pod()
    audited.close()
    path = file(audited, name)
    if name == "key.pem":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:32] if name == "hashes" else b"")
    with pytest.raises(ChainError) as caught:
        audited.close()
    assert caught.value.code == code


def test_an_old_copy_of_the_folder_is_not_signed_again(audited):
    audited.pod()
    audited.close()
    kept = {name: file(audited, name).read_bytes() for name in ("hashes", "segments")}
    audited.pod()
    audited.close()
    for name, data in kept.items():
        file(audited, name).write_bytes(data)
    with pytest.raises(ChainError) as caught, opened(audited.place.folder, audited.place.logs) as chain:
        heads.sign_head(chain, heads.signer(audited.place.folder, NAME))
    assert caught.value.code == "audit-fork"


def test_a_record_that_was_changed_on_disk_is_not_exported(audited):
    audited.pod()
    audited.close()
    (log,) = audited.place.logs.glob("*.cel")
    lines = log.read_bytes().splitlines(keepends=True)
    lines[1], lines[2] = lines[2], lines[1]
    log.write_bytes(b"".join(lines))
    with pytest.raises(ChainError) as caught:
        audited.written()
    assert "leaf 1" in caught.value.message


def test_an_earlier_log_that_is_damaged_ends_where_it_can_be_read(audited):
    audited.pod()
    (log,) = audited.place.logs.glob("*.cel")
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:3], b"{}\n", *lines[4:]]))
    audited.reboot()
    audited.pod()
    report = audited.judged(audited.bundle())
    assert faults(report) == [Fault.DAMAGED]
    assert "3 records" in report.findings[0].text


def test_a_log_that_is_gone_is_an_error_and_no_gap_that_nobody_sees(audited):
    audited.pod()
    audited.close()
    audited.reboot()
    audited.pod()
    (audited.place.logs / "7-0.cel").unlink()
    with pytest.raises(ChainError) as caught:
        audited.bundle()
    assert caught.value.code == "audit-epoch"


def pruned(host, before):
    forgotten = []
    with opened(host.place.folder, host.place.logs) as chain:
        given = retention.prune(
            chain, before=before, going=host.going, now=host.tick(), why="a rule", forget=forgotten.append
        )
        heads.sign_head(chain, host.signer())
    return [item.name for item in given], forgotten


def test_what_is_given_up_leaves_its_hashes_and_a_word(audited):
    for _ in range(2):
        audited.pod()
        audited.close()
        audited.reboot()
    audited.pod()
    early = audited.bundle()
    assert pruned(audited, before=0) == ([], [])
    rows = [json.loads(line) for line in members(early)["trail.jsonl"].splitlines()]
    opening = next(row["time"] for row in rows if row["epoch"] == "8-0")
    names, forgotten = pruned(audited, before=opening)
    assert names == ["7-0"]
    assert forgotten == [*audited.accounts][:2]
    assert sorted(path.name for path in audited.place.logs.glob("*.cel")) == ["8-0.cel", "9-0.cel"]
    late = audited.bundle()
    report = audited.judged(late)
    assert faults(report) == [Fault.PRUNED]
    assert "6 records were removed: a rule" in report.findings[0].text
    assert not report.refused([Fault.PRUNED])
    rows = [json.loads(line) for line in members(late)["trail.jsonl"].splitlines()]
    assert [row["what"] for row in rows if row["outcome"] == "gap"] == ["pruned"]
    assert audited.judged(early).findings == ()
    # An epoch that goes on is never given up.
    assert pruned(audited, before=audited.now + MINUTE)[0] == ["8-0"]


def test_an_entry_has_one_text():
    closing = b'secrun.audit.v1 Closing {"count":1}'
    for data in (b"", b"x", closing, closing.replace(b"Closing", b"Other"), b"secrun.audit.v1 Pruned []"):
        with pytest.raises(FormatError):
            parse(data)


def test_entries_are_read_back(audited):
    audited.pod()
    audited.close()
    audited.reboot()
    audited.pod()
    audited.close(State.OPEN)
    with opened(audited.place.folder, audited.place.logs) as chain:
        found = [placed.part for placed in chain.placed if not hasattr(placed.part, "first")]
    assert [entry.state for entry in found] == [State.CLOSED, State.OPEN]
    assert [parse(encode(entry)) for entry in found] == found
    with pytest.raises(FormatError):
        parse(encode(found[0]).replace(b'"v":1', b'"v":1 '))


ROW = Row(leaf=7, epoch="3-0", number=2, time=1_790_000_000_123, event="PodExec", outcome=Outcome.DONE)


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"])
def test_no_cell_of_the_table_is_a_formula(cell):
    row = ROW._replace(what=cell, why=f"a{cell}")
    (told,) = csv.DictReader(io.StringIO(b"".join(csv_lines([row])).decode(), newline=""))
    assert told["what"] == f"'{cell}"
    assert told["why"] == f"a{cell}"
    assert tuple(told) == COLUMNS


def test_rows_are_told_in_full():
    image = Image(manifest=sha("m"), tree=sha("t"), reference="docker://r/a:1", signers=("gpg:a", "gpg:b"))
    row = ROW._replace(images=(image,), apps=("a", "b"), code=0, relaxations=("x, y",))
    (told,) = csv.DictReader(io.StringIO(b"".join(csv_lines([row])).decode(), newline=""))
    assert told["images"] == f"docker://r/a:1@{sha('m')}"
    assert (told["signers"], told["apps"], told["code"], told["time"]) == (
        "gpg:a, gpg:b", "a b", "0", "2026-09-21T14:13:20.123Z"
    )  # fmt: skip
    said = json.loads(json_line(row.to_json()))
    assert (said["code"], said["images"][0]["signers"], said["time"]) == (0, ["gpg:a", "gpg:b"], ROW.time)
    assert "pod" not in said


def test_a_time_beyond_the_calendar_is_a_number():
    assert when(2**53) == str(2**53)
    assert when(0) == "1970-01-01T00:00:00.000Z"


def test_events_of_a_shape_that_nobody_expects_are_told_as_far_as_they_go(audited):
    audited.pod()
    odd = {"apps": [1, {"name": 2}], "stage1": [], "relaxations": "x", "verdict": 5, "by": "me", "pod": 7}
    audited.measure(*((operation, odd) for operation in Operation if operation not in ("LogOpen", "Resume",
        "Checkpoint")))  # fmt: skip
    audited.close()
    rows = [json.loads(line) for line in members(audited.written())["trail.jsonl"].splitlines()]
    assert [row["event"] for row in rows[5:9]] == [
        "TrustChange",
        "PolicyLoad",
        "RuntimeUpgrade",
        "ImageAdmit",
    ]


def tar(*files):
    out = io.BytesIO()
    writer = TarWriter(out)
    for name, data in files:
        writer.add(name, data)
    writer.end()
    return out.getvalue()


def test_a_tar_is_what_the_system_reads():
    import tarfile

    data = tar(("a", b"x"), ("b/c", b"y" * 1000), ("d", b""))
    assert {name: (item.begin, item.size) for name, item in index(io.BytesIO(data)).items()} == {
        "a": (512, 1), "b/c": (1536, 1000), "d": (3072, 0)
    }  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        assert [(item.name, item.size, item.mode) for item in found] == [
            ("a", 1, 0o644), ("b/c", 1000, 0o644), ("d", 0, 0o644)
        ]  # fmt: skip


def test_a_tar_of_another_kind_is_refused():
    good = bytearray(tar(("a", b"x")))
    for place, value in ((0, b"b"), (124, b"77777777777"), (156, b"2"), (257, b"other"), (148, b"999999")):
        bad = bytearray(good)
        bad[place : place + len(value)] = value
        with pytest.raises(TarError):
            index(io.BytesIO(bytes(bad)))
    with pytest.raises(TarError):
        index(io.BytesIO(bytes(good[: 2 * BLOCK]) * 2 + bytes(1024)))
    with pytest.raises(TarError):
        TarWriter(io.BytesIO()).add_parts("a", 2, [b"x"])


def test_one_record_is_shown_with_its_proof_and_nothing_else_passes_for_it(audited, tmp_path):
    audited.pod()
    head = audited.close()
    with opened(audited.place.folder, audited.place.logs) as chain:
        note = heads.heads(chain.folder)[-1]
        proofs = [make_proof(chain, index, note, head) for index in range(head.size)]
        with pytest.raises(FormatError):
            make_proof(chain, head.size, note, head)
    for number, data in enumerate(proofs):
        assert (open_proof(data, audited.key).index, open_proof(data, audited.key).head) == (number, head)
        other = data.replace(f"index {number}".encode(), f"index {number + 1}".encode())
        for bad in (
            other,
            data.replace(b"extra ", b"extra AAAA"),
            data[:-5],
            b"x" + data,
            data.replace(b"extra", b""),
        ):
            with pytest.raises(FormatError):
                open_proof(bad, audited.key)
    (tmp_path / "proof").write_bytes(proofs[3])
    result = command.verify_files([str(tmp_path / "proof")], audited.key)
    assert not result.refused
    assert '"event":"PodStart"' in result.text()
    assert (
        command.verify_files([str(tmp_path / "proof")], other_key().verifier).refused[0].fault is Fault.KEY
    )
    (tmp_path / "proof").write_bytes(proofs[3].replace(b"index 3", b"index 2"))
    assert command.verify_files([str(tmp_path / "proof")], audited.key).refused[0].fault is Fault.ROOT
