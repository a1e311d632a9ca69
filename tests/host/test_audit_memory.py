"""How much memory an export takes, for logs of thousands of records."""

import io
import tracemalloc

from secrun_attest.audit import heads
from secrun_attest.audit.chain import opened
from secrun_attest.audit.export import BundleWriter, Span, about_of, scope_of
from secrun_attest.celjson import line, parse_line
from secrun_attest.record import Event, make_record, parse_event_data
from support.audited import AuditedHost, pod_events


def long_log(host, count):
    """Write a log of many pods as the host would, without its thousands of waits for the disk."""
    host.pod()
    (path,) = host.place.logs.glob("*.cel")
    epoch = parse_event_data(parse_line(path.read_bytes().split(b"\n")[0]).event_data).epoch
    account = next(iter(host.accounts))
    with path.open("ab") as stream:
        for number in range(5, count, 3):
            life = pod_events(f"pod-{number}", code=0, relaxations=(), signer="k", account=account)[1:]
            for seq, (operation, fields) in enumerate(life, number):
                event = Event(operation=operation, seq=seq, epoch=epoch, t=host.now + seq, fields=fields)
                stream.write(line(make_record(event, pcr=15, banks=host.banks)))
    with opened(host.place.folder, host.place.logs) as chain:
        chain.sync(going=host.going, now=host.now)
        heads.sign_head(chain, host.signer())


class Sink(io.RawIOBase):
    """Takes what is written and keeps nothing."""

    def writable(self):
        return True

    def write(self, data):
        return len(data)


def peak(host):
    tracemalloc.start()
    try:
        with opened(host.place.folder, host.place.logs) as chain:
            scope = scope_of(chain, host.signer(), Span())
            about = about_of(scope, host="h", tool="t", made=1)
            BundleWriter(chain, scope, host.signer(), about).write(
                Sink(), host.folder / "scratch", host.accounts.get
            )
            assert scope.head.size > 900
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_export_takes_no_more_memory_for_a_longer_log(tmp_path):
    short, long = (AuditedHost(tmp_path / name) for name in ("short", "long"))
    long_log(short, 2_000)
    long_log(long, 10_000)
    # What is kept of a record takes hundreds of bytes; pieces and pages differ by some that do not add up.
    assert peak(long) - peak(short) < 64 * 8_000
