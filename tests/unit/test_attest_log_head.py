"""The head of a log saves reading it and decides nothing: whatever it says, log and PCR agree."""

import fcntl
import hashlib
import json
import os
import stat
from itertools import count

import pytest

from secrun_attest import celjson, history, logstore
from secrun_attest.errors import FormatError, LogError, TpmError, TpmTransportError
from secrun_attest.limits import MAX_HEAD, MAX_RUNTIME
from secrun_attest.logfile import Runtime
from secrun_attest.record import Operation, parse_event_data
from support.eventlog import (
    BOOT_ID,
    FakeTpm,
    agrees,
    append_killed_at,
    open_log,
    operations,
    the_file,
    write_later,
)

POINTS = ("torn", "logged", "extended", "measured", "head written")


@pytest.fixture
def tpm():
    return FakeTpm()


@pytest.fixture
def filled(tmp_path, tpm):
    """A log of five records, and its head."""
    log = open_log(tmp_path, tpm)
    for number in range(4):
        log.append(Operation.POD_START, {"n": number})
    return log


@pytest.fixture
def read(monkeypatch):
    """What is read of logs, as the numbers of bytes."""
    sizes = []
    honest = celjson.parse_lines
    monkeypatch.setattr(celjson, "parse_lines", lambda data: sizes.append(len(data)) or honest(data))
    return sizes


def head_of(folder):
    return the_file(folder, "head")


def test_a_fresh_process_reads_nothing_of_a_log_whose_head_fits(filled, tpm, tmp_path, read):
    for number in range(3):
        assert open_log(tmp_path, tpm).append(Operation.POD_EXIT, {}).recnum == 5 + number
    assert read == [0, 0, 0]
    assert len(filled.records()) == 8
    assert read[-1] == the_file(tmp_path).stat().st_size
    assert agrees(filled.recover(), tpm)
    assert read[-1] == the_file(tmp_path).stat().st_size


def test_the_head_is_a_private_file(filled, tmp_path):
    path = head_of(tmp_path)
    assert path.name == "7-0.head"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(os.listdir(path.parent)) == ["7-0.cel", "7-0.head", "lock"]


@pytest.mark.parametrize("point", POINTS)
def test_after_a_death_at_any_instant_only_what_is_new_is_read(filled, tpm, tmp_path, read, point):
    old = the_file(tmp_path).stat().st_size
    append_killed_at(open_log(tmp_path, tpm), point)
    new = the_file(tmp_path).stat().st_size - old
    del read[:]
    open_log(tmp_path, tpm).append(Operation.POD_EXIT, {"late": True})
    assert read == [0 if point == "torn" else new]
    found = filled.recover()
    assert operations(found)[5:] == ["PodStart"] * (point != "torn") + ["PodExit"]
    assert agrees(found, tpm)
    open_log(tmp_path, tpm).append(Operation.POD_EXIT, {})
    assert read[-1] == 0
    assert sorted(os.listdir(tmp_path / "measure")) == ["7-0.cel", "7-0.head", "lock"]


@pytest.mark.parametrize("point", POINTS)
def test_after_a_death_in_a_log_without_a_head_it_is_read(filled, tpm, tmp_path, point):
    head_of(tmp_path).unlink()
    append_killed_at(open_log(tmp_path, tpm), point)
    open_log(tmp_path, tpm).append(Operation.POD_EXIT, {})
    assert agrees(filled.recover(), tpm)


def replaced(path, data):
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o600)


DAMAGE = {
    "empty": lambda path: replaced(path, b""),
    "cut": lambda path: replaced(path, path.read_bytes()[:-9]),
    "bit": lambda path: replaced(path, path.read_bytes()[:90] + b"!" + path.read_bytes()[91:]),
    "rubbish": lambda path: replaced(path, b"\0" * 5000),
    "large": lambda path: replaced(path, path.read_bytes() + b" " * MAX_HEAD),
    "mode": lambda path: path.chmod(0o640),
    "link": lambda path: path.symlink_to(path.rename(path.with_name("elsewhere"))),
    "hard link": lambda path: path.with_name("elsewhere").hardlink_to(path),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
    "absent": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_head_that_is_none_is_ignored_and_made_anew(filled, tpm, tmp_path, read, how):
    honest = head_of(tmp_path).read_bytes()
    DAMAGE[how](head_of(tmp_path))
    assert open_log(tmp_path, tpm).append(Operation.POD_EXIT, {}).recnum == 5
    assert read[0] > 1000
    assert agrees(filled.recover(), tpm)
    made = head_of(tmp_path)
    assert stat.S_IMODE(made.lstat().st_mode) == 0o600
    assert stat.S_ISREG(made.lstat().st_mode)
    assert made.read_bytes() != honest
    open_log(tmp_path, tpm).append(Operation.POD_EXIT, {})
    assert read[-1] == 0
    if (elsewhere := tmp_path / "measure" / "elsewhere").exists():
        assert elsewhere.read_bytes() == honest


def test_a_head_that_cannot_be_written_costs_only_time(filled, tpm, tmp_path):
    path = head_of(tmp_path)
    path.unlink()
    path.mkdir()
    assert open_log(tmp_path, tpm).append(Operation.POD_EXIT, {}).recnum == 5
    assert open_log(tmp_path, tpm).append(Operation.POD_EXIT, {}).recnum == 6
    assert agrees(filled.recover(), tpm)


def forged(data, **changes):
    """Return a head that says something else and is whole."""
    value = json.loads(data.split(b"\n", 1)[1])
    text = json.dumps(value | changes, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


ZERO = {"sha1": "00" * 20, "sha256": "00" * 32, "sha384": "00" * 48, "sha512": "00" * 64}
FORGED = {
    "v": 2,
    "inode": "1:1",
    "changed": "5",
    "size": 10,
    "last": 0,
    "count": 4,
    "epoch": {"reset": 7, "restart": 0, "boot_id": BOOT_ID.replace("6", "7")},
    "restart": 1,
    "before": ZERO,
    "admitted": ["00" * 31],
    "runtime": "x" * (MAX_RUNTIME + 1),
    "fingerprint": 5,
    "unknown": 1,
}


@pytest.mark.parametrize("name", FORGED)
def test_a_head_that_does_not_fit_is_not_believed(filled, tpm, tmp_path, read, name):
    path = head_of(tmp_path)
    path.write_bytes(forged(path.read_bytes(), **{name: FORGED[name]}))
    assert open_log(tmp_path, tpm).append(Operation.POD_EXIT, {}).recnum == 5
    assert max(read) > 1000
    assert operations(filled.recover()) == ["LogOpen"] + ["PodStart"] * 4 + ["PodExit"]
    assert agrees(filled.recover(), tpm)


def test_an_honest_head_survives_the_same_forgery(filled, tpm, tmp_path, read):
    """Else the test above would prove nothing."""
    path = head_of(tmp_path)
    path.write_bytes(forged(path.read_bytes()))
    open_log(tmp_path, tpm).append(Operation.POD_EXIT, {})
    assert read == [0]


def test_a_last_record_without_its_end_is_not_believed(filled, tpm, tmp_path):
    path = the_file(tmp_path)
    whole = path.read_bytes()
    write_later(path, whole[:-1] + b" ")
    head = head_of(tmp_path)
    head.write_bytes(forged(head.read_bytes(), changed=str(path.stat().st_ctime_ns)))
    with pytest.raises(LogError) as caught:
        open_log(tmp_path, tpm).append(Operation.POD_EXIT, {})
    assert caught.value.code == "log-broken"


def test_a_refusal_does_not_make_the_next_append_read_the_log(filled, tpm, tmp_path, read):
    tpm.fail = TpmError("locality")
    with pytest.raises(TpmError):
        filled.append(Operation.POD_START, {})
    assert open_log(tmp_path, tpm).append(Operation.POD_EXIT, {}).recnum == 5
    assert read == [0, 0]
    assert agrees(filled.recover(), tpm)


def test_an_older_head_of_the_same_log_serves(filled, tpm, tmp_path, read):
    old = head_of(tmp_path).read_bytes()
    for _ in range(2):
        filled.append(Operation.POD_EXIT, {})
    head_of(tmp_path).write_bytes(old)
    del read[:]
    assert open_log(tmp_path, tpm).append(Operation.POD_EXIT, {}).recnum == 7
    assert 0 < read[0] < the_file(tmp_path).stat().st_size // 2
    assert agrees(filled.recover(), tpm)


def test_a_head_is_not_believed_against_the_tpm(filled, tpm, tmp_path):
    tpm.values = {key: b"\1" * len(value) for key, value in tpm.values.items()}
    with pytest.raises(LogError) as caught:
        open_log(tmp_path, tpm).append(Operation.POD_START, {})
    assert caught.value.code == "log-broken"


def test_a_head_of_a_life_that_is_over_is_not_used(filled, tpm, tmp_path):
    tpm.reboot()
    assert operations(open_log(tmp_path, tpm).recover()) == ["LogOpen"]
    open_log(tmp_path, tpm).append(Operation.POD_EXIT, {})
    assert sorted(path.name for path in (tmp_path / "measure").glob("*.head")) == ["7-0.head", "8-0.head"]


def test_a_resumed_host_reads_its_log_once(filled, tpm, tmp_path, read):
    tpm.resume()
    open_log(tmp_path, tpm).append(Operation.POD_EXIT, {})
    assert max(read) > 1000
    del read[:]
    open_log(tmp_path, tpm).append(Operation.POD_EXIT, {})
    assert max(read) == 0
    found = filled.recover()
    assert operations(found)[5:] == ["Resume", "PodExit", "PodExit"]
    assert agrees(found, tpm)


def image(number):
    return {"manifest": f"sha256:{number:064x}", "tree": f"sha256:{number + 1:064x}"}


@pytest.mark.parametrize("whole", [False, True])
def test_an_image_is_known_once_it_is_admitted_in_this_epoch(tpm, tmp_path, read, whole):
    log = open_log(tmp_path, tpm)
    assert not log.admitted(**image(1))
    log.append(Operation.IMAGE_ADMIT, {"reference": "docker://r/web:1"} | image(1))
    del read[:]
    if whole:
        head_of(tmp_path).unlink()
    fresh = open_log(tmp_path, tpm)
    assert fresh.admitted(**image(1))
    assert not fresh.admitted(**image(2))
    assert not fresh.admitted(manifest=image(1)["manifest"], tree=image(2)["tree"])
    assert (max(read) > 0) is whole
    tpm.reboot()
    assert not open_log(tmp_path, tpm).admitted(**image(1))


@pytest.mark.parametrize("whole", [False, True])
def test_only_the_last_admissions_are_remembered(tpm, tmp_path, monkeypatch, whole):
    monkeypatch.setattr(history, "MAX_ADMITTED", 3)
    log = open_log(tmp_path, tpm)
    for number in (1, 2, 3, 1, 4):
        log.append(Operation.IMAGE_ADMIT, image(number))
    if whole:
        head_of(tmp_path).unlink()
    fresh = open_log(tmp_path, tpm)
    assert [fresh.admitted(**image(number)) for number in (1, 2, 3, 4)] == [True, False, True, True]


def test_several_records_need_one_hold_and_an_extend_each(filled, tpm, tmp_path, monkeypatch):
    holds, before = [], tpm.extends
    honest = logstore.locked
    monkeypatch.setattr(logstore, "locked", lambda folder: holds.append(folder) or honest(folder))
    made = filled.append_many([(Operation.POD_PREPARE, {"pod": "p"}), (Operation.POD_START, {"pod": "p"})])
    assert len(holds) == 1
    assert tpm.extends - before == 2
    assert [record.recnum for record in made] == [5, 6]
    assert filled.records()[5:] == made
    assert agrees(filled.records(), tpm)


def test_nobody_comes_between_a_question_and_an_append(filled, tmp_path):
    with filled.held() as hold, (tmp_path / "measure" / "lock").open("rb") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert (hold.epoch.reset, hold.epoch.boot_id) == (7, BOOT_ID)
        if not hold.admitted(**image(1)):
            hold.append(Operation.IMAGE_ADMIT, image(1))
        assert hold.admitted(**image(1))
    assert filled.admitted(**image(1))


@pytest.mark.parametrize("error", [TpmError("locality"), TpmTransportError("broken pipe")])
def test_after_a_failed_append_a_hold_takes_no_more(filled, tpm, error):
    with filled.held() as hold:
        tpm.fail, tpm.lost, tpm.unreadable = error, True, 1
        with pytest.raises(type(error)):
            hold.append(Operation.POD_START, {})
        tpm.unreadable = 0
        with pytest.raises(LogError) as caught:
            hold.append(Operation.POD_START, {})
        assert caught.value.code == "log-hold"
    found = filled.recover()
    assert len(found) == 5 + isinstance(error, TpmTransportError)
    assert agrees(found, tpm)


def test_records_before_the_one_that_failed_are_measured(filled, tpm, tmp_path):
    def events():
        yield Operation.POD_PREPARE, {}
        tpm.fail = TpmError("locality")
        yield Operation.POD_START, {}

    with pytest.raises(TpmError):
        filled.append_many(events())
    found = open_log(tmp_path, tpm).recover()
    assert operations(found)[5:] == ["PodPrepare"]
    assert agrees(found, tpm)


@pytest.mark.parametrize("operation", [Operation.LOG_OPEN, Operation.RESUME])
def test_what_the_log_writes_itself_nobody_else_writes(filled, tpm, operation):
    with pytest.raises(FormatError) as caught:
        filled.append(operation, {"restart": 0})
    assert caught.value.code == "event-operation"
    assert len(filled.recover()) == 5


class Binary:
    """The files that run pods, of which a digest is dear."""

    def __init__(self):
        self.number = 1
        self.digested = 0

    def fields(self):
        self.digested += 1
        return {"runtime": {"digest": f"sha256:{self.number:064x}", "version": "1"}}

    def open(self, folder, tpm, fingerprint):
        return open_log(
            folder, tpm, opening=self.fields, runtime=Runtime(fingerprint=fingerprint, fields=self.fields)
        )


@pytest.fixture
def binary():
    return Binary()


def test_a_digest_of_the_runtime_is_made_once_an_epoch(binary, tpm, tmp_path):
    for _ in range(3):
        log = binary.open(tmp_path, tpm, "a")
        log.append(Operation.POD_START, {})
    assert binary.digested == 1
    assert log.runtime() == f"sha256:{1:064x}"
    assert open_log(tmp_path, tpm).runtime() == f"sha256:{1:064x}"
    tpm.reboot()
    binary.open(tmp_path, tpm, "a").append(Operation.POD_START, {})
    assert binary.digested == 2


def test_another_runtime_is_recorded_before_what_it_does(binary, tpm, tmp_path):
    binary.open(tmp_path, tpm, "a").append(Operation.POD_START, {})
    binary.number = 2
    for _ in range(2):
        binary.open(tmp_path, tpm, "b").append(Operation.POD_START, {})
    assert binary.digested == 2
    found = open_log(tmp_path, tpm).records()
    assert operations(found) == ["LogOpen", "PodStart", "RuntimeUpgrade", "PodStart", "PodStart"]
    assert parse_event_data(found[2].event_data).fields["runtime"]["digest"] == f"sha256:{2:064x}"
    assert open_log(tmp_path, tpm).runtime() == f"sha256:{2:064x}"
    assert agrees(found, tpm)


def test_files_that_changed_without_another_digest_are_no_upgrade(binary, tpm, tmp_path):
    for fingerprint in ("a", "b", "b"):
        binary.open(tmp_path, tpm, fingerprint).append(Operation.POD_START, {})
    assert binary.digested == 2
    assert "RuntimeUpgrade" not in operations(open_log(tmp_path, tpm).records())


def test_without_a_head_the_log_says_what_ran(binary, tpm, tmp_path):
    binary.open(tmp_path, tpm, "a").append(Operation.POD_START, {})
    head_of(tmp_path).unlink()
    binary.open(tmp_path, tpm, "a").append(Operation.POD_START, {})
    assert binary.digested == 2
    binary.number = 2
    head_of(tmp_path).unlink()
    binary.open(tmp_path, tpm, "a").append(Operation.POD_START, {})
    found = open_log(tmp_path, tpm).records()
    assert operations(found) == ["LogOpen", "PodStart", "PodStart", "RuntimeUpgrade", "PodStart"]


@pytest.mark.parametrize("fingerprint", ["", "x" * (MAX_RUNTIME + 1), "\N{SNOWMAN}"])
def test_a_fingerprint_that_the_head_cannot_hold_is_refused(fingerprint):
    with pytest.raises(FormatError):
        Runtime(fingerprint=fingerprint, fields=dict)


def test_the_digests_of_a_log_that_is_open_are_not_made(tpm, tmp_path):
    numbers = count()
    for _ in range(2):
        open_log(tmp_path, tpm, opening=lambda: {"n": next(numbers)}).append(Operation.POD_START, {})
    assert next(numbers) == 1
