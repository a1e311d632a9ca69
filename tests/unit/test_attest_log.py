"""The log and the PCR agree, whatever the TPM, the disk or a neighbour does."""

import os
import stat

import pytest

from secrun_attest import celjson, checkpoint
from secrun_attest.errors import BrokenEpochError, FormatError, LogError, TpmError, TpmTransportError
from secrun_attest.history import History
from secrun_attest.record import Bank, Epoch, Operation, Record, make_record, parse_event_data
from secrun_attest.replay import replay, zeros
from support.eventlog import (
    BOOT_ID,
    PCR,
    FakeTpm,
    agrees,
    append_killed_at,
    event,
    open_log,
    operations,
    the_file,
    write_later,
)


@pytest.fixture
def tpm():
    return FakeTpm()


@pytest.fixture
def log(tmp_path, tpm):
    return open_log(tmp_path, tpm)


def test_a_log_begins_with_log_open_and_replays_to_the_pcr(log, tpm, tmp_path):
    started = log.append(Operation.POD_START, {"pod": "p"})
    records = log.records()
    assert operations(records) == ["LogOpen", "PodStart"]
    assert records[1] == started
    assert agrees(records, tpm)
    opening = parse_event_data(records[0].event_data)
    assert opening.fields["runtime"] == "1.0"
    assert opening.fields["baseline"] == {bank.value: "00" * len(v) for bank, v in zeros(Bank).items()}
    assert (opening.epoch.reset, opening.epoch.restart, opening.epoch.boot_id) == (7, 0, BOOT_ID)


def test_each_record_is_one_extend_of_all_banks(log, tpm):
    log.append(Operation.POD_START, {})
    assert tpm.extends == 2


def test_files_are_private_and_named_by_the_epoch(log, tmp_path):
    log.recover()
    path = the_file(tmp_path)
    assert path.name == "7-0.cel"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert celjson.parse_line(path.read_bytes().splitlines()[0]).recnum == 0


def test_another_process_goes_on_where_the_first_stopped(log, tpm, tmp_path):
    other = open_log(tmp_path, tpm)
    for number in range(6):
        (log, other)[number % 2].append(Operation.POD_EXIT, {"n": number})
    assert [record.recnum for record in log.records()] == list(range(7))
    assert agrees(other.records(), tpm)


@pytest.mark.parametrize("point", ["torn", "logged", "extended"])
@pytest.mark.parametrize("records", [0, 1, 3])
def test_a_process_killed_at_any_instant_leaves_what_recovery_mends(
    tpm, tmp_path, monkeypatch, point, records
):
    log = open_log(tmp_path, tpm)
    for number in range(records):
        log.append(Operation.POD_PREPARE, {"n": number})
    append_killed_at(log, point)
    found = open_log(tmp_path, tpm).recover()
    assert agrees(found, tpm)
    # Records that were whole on disk stay; before the first append LogOpen is the one that was cut short.
    started = "PodStart" in operations(found)
    assert started is (records > 0 and point != "torn")
    assert agrees(log.recover(), tpm)


def test_a_torn_record_is_dropped_at_any_length(log, tpm, tmp_path):
    log.append(Operation.POD_START, {})
    path = the_file(tmp_path)
    whole = path.read_bytes()
    for length in (1, 200, len(whole) - whole.index(b"\n") - 2):
        with path.open("ab") as stream:
            stream.write(whole[whole.index(b"\n") + 1 :][:length])
        assert len(open_log(tmp_path, tpm).recover()) == 2
        assert path.read_bytes() == whole


def test_a_refused_extend_leaves_no_record(log, tpm, tmp_path):
    log.recover()
    before = the_file(tmp_path).read_bytes()
    tpm.fail = TpmError("locality")
    with pytest.raises(TpmError):
        log.append(Operation.POD_START, {})
    assert the_file(tmp_path).read_bytes() == before
    assert log.append(Operation.POD_EXIT, {}).recnum == 1


@pytest.mark.parametrize("lost", [True, False])
def test_after_a_lost_answer_the_pcr_tells_whether_the_record_counts(log, tpm, lost):
    log.recover()
    tpm.fail, tpm.lost = TpmTransportError("broken pipe"), lost
    if lost:
        with pytest.raises(TpmTransportError):
            log.append(Operation.POD_START, {})
    else:
        log.append(Operation.POD_START, {})
    assert operations(log.records()) == ["LogOpen"] + ["PodStart"] * (not lost)
    assert agrees(log.recover(), tpm)


@pytest.mark.parametrize("lost", [True, False])
def test_a_tpm_that_is_gone_is_asked_at_the_next_start(log, tpm, tmp_path, lost):
    log.recover()
    tpm.fail, tpm.lost, tpm.extends = TpmTransportError("broken pipe"), lost, 0
    tpm.unreadable = 1
    with pytest.raises(TpmTransportError):
        log.append(Operation.POD_START, {})
    tpm.extends = 0
    found = open_log(tmp_path, tpm).recover()
    assert operations(found) == ["LogOpen", "PodStart"]
    assert agrees(found, tpm)


def test_a_foreign_extend_breaks_the_epoch_for_good(log, tpm, tmp_path):
    log.append(Operation.POD_START, {})
    whole = the_file(tmp_path).read_bytes()
    old = dict(tpm.values)
    tpm.extend(PCR, {bank: b"\1" * len(value) for bank, value in zeros(Bank).items()})
    for opened in (log, open_log(tmp_path, tpm)):
        with pytest.raises(BrokenEpochError) as caught:
            opened.append(Operation.POD_START, {})
        assert caught.value.code == "log-broken"
        assert "reboot" in caught.value.hint
    tpm.values = old  # as on a PCR that can be reset: what was seen stays seen
    with pytest.raises(BrokenEpochError):
        log.recover()
    assert the_file(tmp_path).read_bytes() == whole
    tpm.reboot()
    assert operations(log.recover()) == ["LogOpen"]


def test_a_foreign_extend_of_one_bank_is_seen(log, tpm):
    log.recover()
    tpm.values[PCR, Bank.SHA1] = b"\1" * 20
    with pytest.raises(BrokenEpochError):
        log.append(Operation.POD_START, {})


def test_an_extend_between_ours_and_the_look_back_is_seen(log, tpm, monkeypatch):
    log.recover()

    def hook(name):
        if name == "extended":
            monkeypatch.setattr(checkpoint, "hook", None)
            tpm.extend(PCR, {bank: b"\1" * len(value) for bank, value in zeros(Bank).items()})

    monkeypatch.setattr(checkpoint, "hook", hook)
    with pytest.raises(BrokenEpochError):
        log.append(Operation.POD_START, {})


def test_a_deleted_log_is_not_begun_anew(log, tpm, tmp_path):
    log.append(Operation.POD_START, {})
    the_file(tmp_path).unlink()
    for opened in (log, open_log(tmp_path, tpm)):
        with pytest.raises(LogError) as caught:
            opened.append(Operation.POD_START, {})
        assert caught.value.code == "log-baseline"


def test_a_shortened_log_is_refused(log, tpm, tmp_path):
    for _ in range(3):
        log.append(Operation.POD_START, {})
    path = the_file(tmp_path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(BrokenEpochError):
        log.append(Operation.POD_START, {})


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_changed_record_is_refused(log, tpm, tmp_path, place):
    for _ in range(2):
        log.append(Operation.POD_START, {"word": "honest"})
    path = the_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[place] = lines[place].replace(b'"event_data":"4c45', b'"event_data":"4c46')
    write_later(path, b"".join(lines))
    with pytest.raises(LogError) as caught:
        open_log(tmp_path, tpm).append(Operation.POD_START, {})
    assert caught.value.code == "log-damaged"


def test_a_value_that_other_logs_explain_is_the_baseline(tpm, tmp_path):
    tpm.extend(PCR, {bank: b"\2" * len(value) for bank, value in zeros(Bank).items()})
    explained = tpm.read_pcr(PCR)
    records = open_log(tmp_path, tpm, baseline=explained).recover()
    assert replay(records, explained) == tpm.read_pcr(PCR)
    fields = parse_event_data(records[0].event_data).fields
    assert fields["baseline"] == {bank.value: value.hex() for bank, value in explained.items()}


def test_a_resumed_host_goes_on_in_its_log(log, tpm, tmp_path):
    log.append(Operation.POD_START, {})
    for _ in range(2):
        tpm.resume()
        log.append(Operation.POD_EXIT, {})
    other = open_log(tmp_path, tpm)
    other.append(Operation.POD_EXIT, {})
    found = other.records()
    assert operations(found) == ["LogOpen", "PodStart", "Resume", "PodExit", "Resume", "PodExit", "PodExit"]
    assert [parse_event_data(found[at].event_data).fields["restart"] for at in (2, 4)] == [1, 2]
    assert agrees(found, tpm)
    assert the_file(tmp_path).name == "7-0.cel"


def test_a_record_cut_short_before_a_resume_is_still_rolled_forward(log, tpm, tmp_path, monkeypatch):
    log.append(Operation.POD_PREPARE, {})
    append_killed_at(log, "logged")
    tpm.resume()
    found = open_log(tmp_path, tpm).recover()
    assert operations(found) == ["LogOpen", "PodPrepare", "PodStart", "Resume"]
    assert agrees(found, tpm)


@pytest.mark.parametrize("how", ["sleep_and_lose", "reboot", "power_cut"])
def test_a_cleared_pcr_begins_a_new_epoch(log, tpm, tmp_path, how):
    log.append(Operation.POD_START, {})
    getattr(tpm, how)()
    found = log.recover()
    assert operations(found) == ["LogOpen"]
    assert agrees(found, tpm)
    assert len(list((tmp_path / "measure").glob("*.cel"))) == 2


def test_kexec_keeps_pcr_and_log(log, tpm, tmp_path):
    log.recover()
    other = open_log(tmp_path, tpm, boot_id=lambda: BOOT_ID.replace("6", "7"))
    other.append(Operation.POD_START, {})
    assert operations(other.records()) == ["LogOpen", "PodStart"]


def test_banks_that_change_within_an_epoch_are_refused(log, tpm, tmp_path):
    log.recover()
    tpm.banks = (Bank.SHA256,)
    with pytest.raises(LogError) as caught:
        open_log(tmp_path, tpm).append(Operation.POD_START, {})
    assert caught.value.code == "log-banks"


def test_a_full_disk_leaves_the_log_as_it_was(log, tpm, tmp_path, monkeypatch):
    log.recover()
    whole = the_file(tmp_path).read_bytes()
    with monkeypatch.context() as patch:

        def full(fd):
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fdatasync", lambda fd: patch.undo() or full(fd))
        with pytest.raises(LogError) as caught:
            log.append(Operation.POD_START, {})
    assert caught.value.code == "log-write"
    assert the_file(tmp_path).read_bytes() == whole
    assert tpm.extends == 1


@pytest.mark.parametrize("what", ["link", "mode", "hard link", "fifo"])
def test_a_log_that_others_could_write_is_refused(tpm, tmp_path, what):
    folder = tmp_path / "measure"
    folder.mkdir()
    path = folder / "7-0.cel"
    other = tmp_path / "other"
    other.touch(0o600)
    {
        "link": lambda: path.symlink_to(other),
        "mode": lambda: (path.touch(), path.chmod(0o620)),
        "hard link": lambda: path.hardlink_to(other),
        "fifo": lambda: os.mkfifo(path, 0o600),
    }[what]()
    with pytest.raises(LogError) as caught:
        open_log(tmp_path, tpm).recover()
    assert caught.value.code == "log-file"
    assert tpm.extends == 0


def test_an_append_reads_only_what_is_new(log, tmp_path, tpm, monkeypatch):
    for _ in range(5):
        log.append(Operation.POD_START, {})
    read = []
    honest = celjson.parse_lines
    monkeypatch.setattr(celjson, "parse_lines", lambda data: read.append(len(data)) or honest(data))
    log.append(Operation.POD_START, {})
    assert read == [0]


def test_a_torn_record_of_a_neighbour_is_dropped(log, tpm, tmp_path, monkeypatch):
    log.append(Operation.POD_PREPARE, {})
    append_killed_at(open_log(tmp_path, tpm), "torn")
    log.append(Operation.POD_EXIT, {})
    assert operations(log.records()) == ["LogOpen", "PodPrepare", "PodExit"]


def test_a_log_that_was_put_in_its_place_is_read_again(log, tpm, tmp_path):
    log.append(Operation.POD_START, {})
    path = the_file(tmp_path)
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes().replace(b"4c454141", b"4c454142"))
    other.chmod(0o600)
    other.rename(path)
    with pytest.raises(LogError) as caught:
        log.append(Operation.POD_START, {})
    assert caught.value.code == "log-damaged"


def test_a_log_that_was_never_opened_is_not_resumed(log, tpm, tmp_path, monkeypatch):
    append_killed_at(log, "logged")
    tpm.sleep_and_lose()
    found = log.recover()
    assert operations(found) == ["LogOpen"]
    assert parse_event_data(found[0].event_data).epoch.restart == 1


def test_a_damaged_log_of_a_life_that_is_over_does_not_matter(log, tpm, tmp_path):
    log.append(Operation.POD_START, {})
    the_file(tmp_path).write_bytes(b"rubbish\n")
    tpm.sleep_and_lose()
    assert operations(open_log(tmp_path, tpm).recover()) == ["LogOpen"]


def test_a_log_of_another_boot_under_this_name_is_named_as_that(log, tpm, tmp_path):
    log.append(Operation.POD_START, {})
    whole = the_file(tmp_path).read_bytes()
    tpm.values.clear()
    later = open_log(tmp_path, tpm, boot_id=lambda: BOOT_ID.replace("6", "7"))
    with pytest.raises(LogError) as caught:
        later.append(Operation.POD_START, {})
    assert caught.value.code == "log-stale"
    assert the_file(tmp_path).read_bytes() == whole
    the_file(tmp_path).unlink()
    assert operations(later.recover()) == ["LogOpen"]


def test_a_refused_roll_forward_keeps_the_record(log, tpm, tmp_path, monkeypatch):
    log.recover()
    append_killed_at(log, "logged")
    tpm.fail = TpmError("lockout")
    with pytest.raises(TpmError):
        log.recover()
    found = log.recover()
    assert operations(found) == ["LogOpen", "PodStart"]
    assert agrees(found, tpm)


ZERO = {bank.value: "00" * len(value) for bank, value in zeros(Bank).items()}
OTHER_EPOCH = Epoch(reset=8, restart=0, boot_id=BOOT_ID)


def opening(**fields):
    return event(0, Operation.LOG_OPEN, **({"baseline": ZERO} | fields))


def record(one, pcr=PCR):
    return make_record(one, pcr=pcr, banks=Bank)


def moved(one, recnum):
    return Record(recnum=recnum, pcr=one.pcr, digests=one.digests, event_data=one.event_data)


def forged(one, bank):
    return Record(
        recnum=one.recnum,
        pcr=one.pcr,
        digests={**one.digests, bank: bytes(len(one.digests[bank]))},
        event_data=one.event_data,
    )


@pytest.mark.parametrize(
    ("records", "code"),
    [
        ([record(event(0))], "log-open"),
        ([record(opening()), record(event(1, Operation.LOG_OPEN, baseline=ZERO))], "log-open"),
        ([record(opening()), record(event(1, epoch=OTHER_EPOCH))], "log-epoch"),
        ([record(opening()), record(event(1), pcr=8)], "log-pcr"),
        ([record(opening(), pcr=8)], "log-pcr"),
        ([record(opening()), forged(record(event(1)), Bank.SHA1)], "log-digest"),
        ([record(opening()), forged(record(event(1)), Bank.SHA512)], "log-digest"),
        ([record(opening()), moved(record(event(2)), 1)], "log-order"),
        ([record(opening()), record(event(2))], "log-order"),
        ([record(opening()), moved(record(event(1)), 2)], "log-order"),
        ([record(opening()), record(event(1, Operation.RESUME))], "log-resume"),
        ([record(opening()), record(event(1, Operation.RESUME, restart=0))], "log-resume"),
        ([record(opening()), record(event(1, Operation.RESUME, restart=True))], "log-resume"),
        ([record(opening(baseline=None))], "log-baseline-field"),
        ([record(opening(baseline={}))], "log-baseline-field"),
        ([record(opening(baseline=ZERO | {"sm3_256": "00" * 32}))], "log-baseline-field"),
        ([record(opening(baseline=ZERO | {"sha1": "00" * 19}))], "log-baseline-field"),
        ([record(opening(baseline=ZERO | {"sha1": "AB" * 20}))], "log-baseline-field"),
        ([record(opening(baseline=ZERO | {"sha1": "0 " * 20}))], "log-baseline-field"),
        ([record(opening(baseline={"sha256": "00" * 32}))], "record-banks"),
    ],
)
def test_records_that_cannot_follow_are_refused(records, code):
    with pytest.raises(FormatError) as caught:
        History.of(PCR, records)
    assert caught.value.code == code


def test_history_follows_a_resume():
    found = History.of(PCR, [record(opening()), record(event(1, Operation.RESUME, restart=3))])
    assert found.restart == 3
    assert History.of(PCR, []) is None
