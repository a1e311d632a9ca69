"""Evidence that a real TPM signs, as the verifier and tpm2-tools judge it."""

import os
import re
import subprocess
from dataclasses import replace

import pytest

from secrun_attest import checkpoint
from secrun_attest.collect import read_firmware_log, read_records
from secrun_attest.errors import LogError
from secrun_attest.evidence import binding, build_evidence, parse_evidence
from secrun_attest.quotefiles import write_quote
from secrun_attest.record import Bank, Operation, digests
from secrun_attest.rejection import Code
from secrun_attest.replay import extend_all, replay, zeros
from secrun_attest.tpm import TpmKind
from secrun_attest.tss import Tss
from secrun_attest.verify import Enrolment, RejectedError, Status
from secrun_attest.wire import name_of, parse_public
from support.attest_bench import HOST, SELECTION, firmware_log
from support.attested import PCR, AttestedHost, ShortTpm
from support.eventlog_writer import check_killed_writers
from support.swtpm import manufacture, running

QUOTES = 80
WRITERS = 3
PER_QUOTE = 6
SELECTED = f"sha256:{','.join(map(str, SELECTION))}"
QUALIFYING = bytes(range(1, 33))


def refused(attested, evidence, state=None, **changes):
    with pytest.raises(RejectedError) as caught:
        attested.judged(evidence, state, **changes)
    return caught.value.reason


def test_evidence_of_a_real_tpm_is_affirmed_from_its_first_record_and_from_later_ones(attested):
    first = attested.run_pod()
    evidence = attested.evidence(attested.challenge(), channel_key="thumb", ek_chain=[b"der"])
    verdict = attested.judged(evidence)
    assert verdict.status is Status.AFFIRMING
    assert [uuid for uuid, _ in verdict.pods] == [first]
    shown = parse_evidence(evidence)
    header = shown.header
    assert (header.tpm, header.log_count, header.channel_key) == (TpmKind.SOFTWARE, 4, "thumb")
    assert (shown.log_from, len(shown.records), shown.ek_chain) == (0, 4, (b"der",))

    second = attested.run_pod()
    evidence = attested.evidence(attested.challenge(since=4))
    later = attested.judged(evidence, verdict.state)
    assert later.status is Status.AFFIRMING
    assert [uuid for uuid, _ in later.pods] == [first, second]
    assert len(parse_evidence(evidence).records) == 3
    assert dict(parse_evidence(evidence).base_pcr) == dict(verdict.state.pcrs)
    assert later.head == attested.log()._tpm.read_pcr(PCR)[Bank.SHA256]


def test_firmware_that_used_the_pcr_before_is_explained_by_its_log(attested):
    data = b"what firmware did"
    with attested.tpm.tss() as tss:
        tss.extend(PCR, digests(Bank, data))
    before = extend_all(zeros(Bank), digests(Bank, data))
    attested.source = replace(attested.source, baseline=before)
    attested.run_pod()
    explained = firmware_log([(PCR, 1, data)], tuple(Bank))
    evidence = attested.evidence(attested.challenge(), firmware_log=explained)
    assert attested.judged(evidence).status is Status.AFFIRMING
    assert parse_evidence(evidence).firmware_log == explained
    assert dict(parse_evidence(evidence).base_pcr) == before
    assert refused(attested, attested.evidence(attested.challenge())) is Code.BASELINE
    other = firmware_log([(PCR, 1, data), (0, 1, b"more")], tuple(Bank))
    assert refused(attested, attested.evidence(attested.challenge(), firmware_log=other)) is Code.BASELINE


def test_a_tpm_with_one_bank_is_as_good(tmp_path):
    with running(manufacture(tmp_path / "tpm", banks=(Bank.SHA256,))) as tpm:
        host = AttestedHost(tmp_path, tpm)
        host.run_pod()
        verdict = host.attest()
    assert verdict.status is Status.AFFIRMING
    assert [bank for bank, _ in verdict.state.pcrs] == [Bank.SHA256]


def test_evidence_is_good_for_its_own_challenge_and_state_only(attested):
    attested.run_pod()
    evidence = attested.evidence(attested.challenge())
    assert refused(attested, evidence, nonce=bytes(32)) is Code.NONCE_UNKNOWN
    assert refused(attested, evidence, audience="another") is Code.NONCE_BIND
    shown = parse_evidence(evidence)
    lied = replace(shown, header=replace(shown.header, tpm=TpmKind.HARDWARE))
    assert refused(attested, build_evidence(lied)) is Code.NONCE_BIND
    shorter = replace(shown, records=shown.records[:-1], header=replace(shown.header, log_count=3))
    assert refused(attested, build_evidence(shorter)) is Code.NONCE_BIND
    state = attested.judged(evidence).state
    attested.run_pod()
    assert refused(attested, attested.evidence(attested.challenge(since=3)), state) is Code.BASELINE


def test_a_verifier_that_knows_more_records_than_there_are_is_told(attested):
    attested.run_pod()
    with pytest.raises(LogError, match="knows 5 records, this epoch's log has 4") as caught:
        attested.evidence(attested.challenge(since=5))
    assert caught.value.code == "log-since"
    with pytest.raises(LogError, match="nonce has 3 bytes"):
        attested.evidence(replace(attested.challenge(), nonce=b"abc"))


def test_a_foreign_extend_ends_in_an_error_and_not_in_evidence(attested):
    attested.run_pod()
    attested.tpm.tool("tpm2_pcrextend", f"{PCR}:sha256={'00' * 32}")
    with pytest.raises(LogError, match="PCR 15 is quoted as sha256:") as caught:
        attested.evidence(attested.challenge())
    assert caught.value.code == "log-quote"


def test_a_record_that_waits_for_its_extend_is_not_sent(attested):
    attested.run_pod()
    log = attested.log()
    log._tpm.extend = lambda *_: os._exit(7)
    pid = os.fork()
    if not pid:
        log.append(Operation.CHECKPOINT, {})
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    evidence = attested.evidence(attested.challenge())
    shown = parse_evidence(evidence)
    assert (shown.header.log_count, len(shown.records), len(read_records(attested.source))) == (4, 4, 5)
    assert attested.judged(evidence).status is Status.AFFIRMING


def test_a_record_measured_between_quote_and_reading_costs_no_second_quote(attested, monkeypatch):
    attested.run_pod()
    quotes = []

    def hook(name):
        if name == "quoted":
            quotes.append(name)
            for _ in range(2):
                attested.log().append(Operation.CHECKPOINT, {})

    monkeypatch.setattr(checkpoint, "hook", hook)
    evidence = attested.evidence(attested.challenge())
    assert len(quotes) == 1
    assert (len(parse_evidence(evidence).records), len(read_records(attested.source))) == (4, 6)
    assert attested.judged(evidence).status is Status.AFFIRMING


def forged(attested, evidence, *, hierarchy="ENDORSEMENT", selection=SELECTED):
    """Return the evidence with a quote by another key or selection over the same; and the key's Name."""
    from secrun_attest import tss as module

    shown = parse_evidence(evidence)
    with Tss(attested.source.tcti) as tss:
        lib, api = tss._link.lib, tss._link.api
        template, _ = lib.TPMT_PUBLIC.unmarshal(module._AK_TEMPLATE)
        sensitive, public = lib.TPM2B_SENSITIVE_CREATE(), lib.TPM2B_PUBLIC(template)
        handle, public, *_ = api.create_primary(sensitive, public, getattr(lib.ESYS_TR, hierarchy))
        chosen = lib.TPML_PCR_SELECTION.parse(selection) if selection else lib.TPML_PCR_SELECTION()
        extra = lib.TPM2B_DATA(binding(shown.nonce, shown.header))
        attest, signature = api.quote(handle, chosen, extra)
        api.flush_context(handle)
    public = bytes(public.marshal())
    changed = replace(
        shown, ak_pub=public, quote=bytes(attest.attestationData), signature=bytes(signature.marshal())
    )
    return build_evidence(changed), name_of(parse_public(public))


def test_only_the_enrolled_key_of_the_endorsement_hierarchy_counts(tmp_path, attested):
    attested.run_pod()
    evidence = attested.evidence(attested.challenge())
    again, name = forged(attested, evidence)
    assert name == attested.key.name
    assert attested.judged(again).status is Status.AFFIRMING
    with running(manufacture(tmp_path / "other")) as tpm:
        other = AttestedHost(tmp_path / "elsewhere", tpm)
        other.run_pod()
        assert refused(attested, other.evidence(other.challenge())) is Code.AK_UNKNOWN
    owners, name = forged(attested, evidence, hierarchy="OWNER")
    assert refused(attested, owners) is Code.AK_UNKNOWN
    enrolled = Enrolment(host=HOST, ak_name=name)
    assert refused(attested, owners, enrolment=enrolled) is Code.QN


@pytest.mark.parametrize("selection", ["", "sha256:0", "sha1:15", "sha256:0,1,2,3,4,5,6,7,15+sha1:15"])
def test_a_quote_of_no_bank_or_of_others_is_refused(attested, selection):
    attested.run_pod()
    evidence, _ = forged(attested, attested.evidence(attested.challenge()), selection=selection)
    assert refused(attested, evidence) is Code.PCRSEL


def write_by_tokens(attested, pipe):
    """Fork a writer that appends one record for each byte it gets from the pipe; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.close(pipe[1])
        log = attested.log()
        while os.read(pipe[0], 1):
            log.append(Operation.CHECKPOINT, {"writer": os.getpid()})
        status = 0
    finally:
        os._exit(status)


def test_quotes_beside_writers_each_cover_exactly_one_prefix(attested):
    attested.run_pod()
    pipe = os.pipe()
    writers = [write_by_tokens(attested, pipe) for _ in range(WRITERS)]
    os.close(pipe[0])
    taken = []
    try:
        for _ in range(QUOTES):
            before = len(read_records(attested.source))
            os.write(pipe[1], b"." * PER_QUOTE)
            evidence = attested.evidence(attested.challenge())
            taken.append((before, parse_evidence(evidence), len(read_records(attested.source))))
            assert attested.judged(evidence).status is Status.AFFIRMING
    finally:
        os.close(pipe[1])
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in writers]
    assert ends == [0] * WRITERS
    records = read_records(attested.source)
    assert len(records) == 4 + QUOTES * PER_QUOTE
    value = zeros(Bank)
    values = [value[Bank.SHA256]]
    for record in records:
        value = replay([record], value)
        values.append(value[Bank.SHA256])
    for before, shown, after in taken:
        quoted = dict(dict(shown.pcr_values)["sha256"])[PCR]
        assert [count for count, value in enumerate(values) if value == quoted] == [len(shown.records)]
        assert before - 1 <= len(shown.records) <= after
        assert shown.header.log_count <= len(shown.records)
    # The writers did not stand still: some quotes cover what came after the header was made.
    assert any(shown.header.log_count < len(shown.records) for _, shown, _ in taken)
    assert any(len(shown.records) < after for _, shown, after in taken)


def checkquote(folder, *, key="ak.pub", nonce=QUALIFYING, log="log.tcg", **files):
    """What tpm2_checkquote says of the files: its exit status."""
    words = ["-u", folder / key, "-q", nonce.hex(), "-e", folder / log]
    for option, name in {"-m": "quote.msg", "-s": "quote.sig", "-f": "quote.pcrs"}.items():
        words += [option, folder / files.get(name.partition(".")[2], name)]
    return subprocess.run(["tpm2_checkquote", *words], capture_output=True, check=False).returncode


@pytest.mark.parametrize("pcrs", [(15,), SELECTION, tuple(range(17)), (0, 7)])
def test_tpm2_tools_agree_with_our_verdict(tmp_path, attested, pcrs):
    attested.run_pod()
    attested.run_pod()
    folder = tmp_path / "quote"
    taken = write_quote(folder, attested.source, QUALIFYING, Bank.SHA256, pcrs)
    assert checkquote(folder) == 0
    assert checkquote(folder, key="ak.pem") == 0
    assert [pcr for pcr, _ in taken.quoted.pcrs] == sorted({*pcrs, PCR})

    text = subprocess.run(["tpm2_eventlog", folder / "log.tcg"], capture_output=True, text=True, check=True)
    found = re.search(r"^  sha256:\n +15 *: 0x([0-9a-f]+)$", text.stdout, re.MULTILINE)
    assert bytes.fromhex(found[1]) == dict(taken.quoted.pcrs)[PCR]
    assert text.stdout.count("EV_EVENT_TAG") == len(taken.records) == 7

    assert checkquote(folder, nonce=bytes(32)) != 0
    shorter = folder / "log.tcg"
    whole = shorter.read_bytes()
    last = (
        len(taken.records[-1].event_data)
        + 4
        + 12
        + sum(2 + len(v) for v in taken.records[-1].digests.values())
    )
    shorter.write_bytes(whole[:-last])
    assert checkquote(folder) != 0
    shorter.write_bytes(whole)
    for name in ("quote.msg", "quote.sig", "quote.pcrs", "ak.pem"):
        path = folder / name
        good = path.read_bytes()
        at = len(good) - 40 if name != "quote.pcrs" else len(good) - 530 + 10
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert checkquote(folder, key="ak.pem") != 0, name
        path.write_bytes(good)
    assert checkquote(folder) == 0


def test_the_file_of_pcrs_is_the_one_that_tpm2_quote_writes(tmp_path, attested):
    attested.run_pod()
    write_quote(tmp_path / "ours", attested.source, QUALIFYING, Bank.SHA256, SELECTION)
    tool, context, theirs = attested.tpm.tool, tmp_path / "ak.ctx", tmp_path / "theirs.pcrs"
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
    tool("tpm2_createprimary", "-C", "e", "-G", "ecc256:ecdsa-sha256:null", "-a", attributes, "-c", context)
    tool("tpm2_flushcontext", "-t")
    pcrs = f"sha256:{','.join(map(str, SELECTION))}"
    tool("tpm2_quote", "-c", context, "-l", pcrs, "-o", theirs, "-m", tmp_path / "m", "-s", tmp_path / "s")
    assert (tmp_path / "ours/quote.pcrs").read_bytes() == theirs.read_bytes()


def test_a_real_tpm_agrees_with_the_log_whatever_kills_its_writers(tmp_path, swtpm):
    count = check_killed_writers(tmp_path, lambda: ShortTpm(swtpm.tcti), rounds=12, count=22)
    assert count >= 500


def test_the_firmware_log_is_read_where_there_is_one(tmp_path):
    path = tmp_path / "tpm0/binary_bios_measurements"
    assert read_firmware_log("device:/dev/tpmrm0", tmp_path) is None
    path.parent.mkdir()
    path.write_bytes(b"")
    assert read_firmware_log("device:/dev/tpmrm0", tmp_path) is None
    path.write_bytes(b"log")
    assert read_firmware_log("device:/dev/tpmrm0", tmp_path) == b"log"
    assert read_firmware_log("device:/dev/tpm0", tmp_path) == b"log"


@pytest.mark.parametrize("tcti", ["swtpm:path=/dev/tpmrm0", "device:/dev/tpmrm1", "device:/dev/tpmrm0/../x"])
def test_the_firmware_log_of_another_tpm_is_not_taken(tmp_path, tcti):
    path = tmp_path / "tpm0/binary_bios_measurements"
    path.parent.mkdir()
    path.write_bytes(b"log")
    assert read_firmware_log(tcti, tmp_path) is None
