"""What verification costs: the verifier alone, and whole sessions against a server on loopback."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from report import Row

from secrun_attest.service.auth import token_hash
from secrun_attest.service.database import open_database
from secrun_attest.service.main import BOOT_ID
from secrun_attest.service.store import NewHost, Store
from secrun_attest.verify import appraise
from support.attest_bench import NOW, Host, enrolled, policy, session
from support.verifier import Client
from support.verifier_server import Server, own, private_folder, serving, usual_options

SMALL, LARGE = 20, 20_000
# DESIGN.md, 12: at least 1,400 of the small ones per second, and a large one in 400 ms.
SMALL_MS = 1000 / 1400
LARGE_MS = 400.0
# At least 300 sessions per second.
SESSION_MS = 1000 / 300
# The server lets a host come twenty times at once and twice a second: each does ten sessions here.
HOSTS, ROUNDS, CLIENTS = 60, 10, 4


def attestation_rows(rounds: int) -> list[Row]:
    """Measure verification and sessions; CPU time, since others may use this machine too."""
    small = statistics.median(_verify_ms(SMALL, 200) for _ in range(rounds))
    large = statistics.median(_verify_ms(LARGE, 1) for _ in range(max(1, rounds // 3)))
    sessions = [_sessions() for _ in range(max(1, rounds // 3))]
    cpu = statistics.median(found.server_ms for found in sessions)
    wall = statistics.median(found.rate for found in sessions)
    return [
        _row(
            f"verification of evidence with {SMALL} events, CPU", f"{1000 / small:.0f} /s", small, SMALL_MS
        ),
        _row(
            f"verification of evidence with {LARGE:,} events, CPU", f"{large / 1000:.2f} s", large, LARGE_MS
        ),
        _row(
            "session with 3 new events against a server with SQLite, CPU of the server",
            f"{1000 / cpu:.0f} /s of CPU; {wall:.0f} /s on the clock, clients beside it",
            cpu,
            SESSION_MS,
        ),
    ]


def _row(what: str, ours: str, value: float, budget: float) -> Row:
    return Row(
        what=what, ours=ours, theirs="-", value=value, unit="ms", budget=round(budget, 2), against="-"
    )


def _host(events: int) -> Host:
    """A host whose log has `events` records: LogOpen, one image, then the lives of pods."""
    host = Host()
    host.open()
    host.admit()
    number = 0
    while len(host.records) < events:
        host.pod(_uuid(number))
        number += 1
    del host.records[events:]
    return host


def _uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def _verify_ms(events: int, times: int) -> float:
    host, rules = _host(events), policy()
    asked, evidence = session(host), host.evidence()
    begin = time.process_time()
    for _ in range(times):
        appraise(evidence, asked, rules, None, NOW)
    return (time.process_time() - begin) * 1000 / times


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Whole sessions per second on the clock, and the server's CPU time for each."""

    rate: float
    server_ms: float


def _sessions() -> Sessions:
    with private_folder() as folder:
        options = usual_options(folder)
        hosts = list(_enrolled_hosts(folder))
        with serving(folder, *options) as server:
            work = [_worker(server, hosts[index::CLIENTS]) for index in range(CLIENTS)]
            before, begin = _cpu(server), time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as pool:
                for done in [pool.submit(one) for one in work]:
                    done.result()
            seconds, cpu = time.perf_counter() - begin, _cpu(server) - before
    count = HOSTS * ROUNDS
    return Sessions(rate=count / seconds, server_ms=cpu * 1000 / count)


def _enrolled_hosts(folder: Path) -> Iterator[tuple[Host, str]]:
    """Put hosts straight into the database: enrolling is not what is measured."""
    (folder / "root").mkdir()
    store = Store(open_database(str(folder / "root/verifier.db")))
    store.open(BOOT_ID.read_text().strip())
    for number in range(HOSTS):
        host, token = Host(name=f"host-{number}"), f"token-of-host-number-{number}"
        host.open()
        host.admit()
        name = number.to_bytes(34, "big")
        enrolment = enrolled(host, software=True)
        store.enrol(NewHost(enrolment=enrolment, ek_name=name, token_hash=token_hash(token), now=0))
        yield host, token
    store.database.close()
    own(folder)


def _worker(server: Server, hosts: list[tuple[Host, str]]) -> Callable[[], None]:
    link = server.link()

    def work() -> None:
        for number in range(ROUNDS):
            for host, token in hosts:
                host.pod(_uuid(number))
                answer = Client(link, host=host, token=token).attest()
                assert answer.status == 200, answer.body

    return work


def _cpu(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
