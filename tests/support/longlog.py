"""A log of as many records as a host may have written in its life: real lines, real accounts."""

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from secrun_attest import celjson, jcs
from secrun_attest.jcs import JsonObject
from secrun_attest.record import Event, Operation, make_record, parse_event_data

# Pods differ in their accounts; so many of them do, and then they begin again.
ACCOUNTS = 1_000
RECORDS_OF_A_POD = 4
_MILLISECONDS_OF_A_POD = 80


def sha(text: str) -> str:
    """Return a digest as events hold it."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def account(number: int, *, ended: bool = True) -> bytes:
    """Return an account as `secrun.pod.account` makes it of a pod of one app."""
    values = {
        "capabilities": "00000000a80425fb", "no_new_privs": "1", "seccomp": "2", "label": "",
        "uid_map": "0 1879048192 65536", "gid_map": "0 1879048192 65536", "cgroup": f"/secrun/{number}",
    }  # fmt: skip
    app = {
        "name": "web", "image": "docker://registry.example/web:1", "manifest": sha("image"),
        "tree": sha("tree"), "verity_root": sha("verity")[7:], "signers": ["cosign:key:release"],
        "bypass": False, "process": sha(f"bundle {number}"), "arguments": 3,
        "environment": ["HOME", "LANG", "PATH", "TERM", "TOKEN"], "uid": 1000, "gid": 1000, "groups": [],
        "read_only": True, "terminal": False,
        "volumes": [{"source": "/srv/data", "target": "/data", "read_only": False, "relabel": ""}],
        "limits": {"memory_bytes": 1 << 28, "cpu_millis": 500, "cpu_weight": None, "pids": 100},
        "capabilities": ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_NET_BIND_SERVICE",
                         "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID"],
        "relaxations": [],
        "security": {"privileged": False, "no_new_privileges": True, "seccomp": "default",
                     "seccomp_digest": sha("filter"), "devices": [],
                     "masked_paths": ["/proc/kcore", "/proc/keys"],
                     "readonly_paths": ["/proc/sys", "/proc/irq"]},
        "read_back": {"verdict": "held", "values": values, "differences": []} if ended else None,
        "code": number % 7 // 6 if ended else None, "started": 1, "finished": 2,
    }  # fmt: skip
    return jcs.encode(
        {
            "schema": "secrun.dev/pod-account/v1", "pod": str(uuid.UUID(int=number, version=4)),
            "flavour": "nspawn", "hostname": f"pod-{number}", "stage1": sha("stage1"), "machine": None,
            "network": "cni", "networks": ["default"], "ports": ["127.0.0.1:8080:80/tcp"], "label": "",
            "policy": "", "relaxations": [], "strict_read_back": False, "created": 1, "started": 1,
            "finished": 2 if ended else None, "code": number % 7 // 6 if ended else None, "apps": [app],
        }
    )  # fmt: skip


def life(number: int, begun: str, kept: str) -> Iterator[tuple[Operation, JsonObject]]:
    """Yield the events of one pod, `begun` and `kept` being the digests of its accounts."""
    pod = str(uuid.UUID(int=number, version=4))
    code = number % 7 // 6
    yield Operation.POD_PREPARE, {
        "pod": pod, "manifest": sha(pod),
        "stage1": {"flavour": "nspawn", "digest": sha("stage1"), "tree": sha("stage1 tree")},
        "relaxations": [], "policy": "", "confinement": sha("confinement"),
        "apps": [{"name": "web", "image": sha("image"), "tree": sha("tree"), "relaxations": []}],
    }  # fmt: skip
    yield Operation.POD_START, {
        "pod": pod, "by": {"login": 1000, "uid": 0, "unit": "web.service"}, "account": begun,
        "network": sha(f"net {number}"),
    }  # fmt: skip
    yield Operation.POD_EXIT, {
        "pod": pod, "code": code, "apps": [{"name": "web", "code": code}], "account": kept,
    }  # fmt: skip
    yield Operation.POD_GC, {"pod": pod}


def write_accounts(folder: Path) -> list[tuple[str, str]]:
    """Write accounts where a host keeps them; return the digests of each pod's two."""
    return [
        (_write(folder, account(number, ended=False)), _write(folder, account(number)))
        for number in range(ACCOUNTS)
    ]


def _write(folder: Path, data: bytes) -> str:
    found = hashlib.sha256(data).hexdigest()
    place = folder / found[:2] / f"{found}.json"
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.write_bytes(data)
    return f"sha256:{found}"


def lengthen(log: Path, count: int, digests: list[tuple[str, str]]) -> int:
    """Append pods to a log until it has at least `count` records, as the host would but for waiting.

    Returns how many it has. The TPM knows nothing of it: the epoch must be over.
    """
    lines = log.read_bytes().splitlines()
    last = celjson.parse_line(lines[-1])
    event = parse_event_data(last.event_data)
    seq, time = event.seq + 1, event.t
    with log.open("ab") as out:
        while seq < count:
            time += _MILLISECONDS_OF_A_POD
            for operation, fields in life(seq, *digests[seq % len(digests)]):
                made = Event(operation=operation, seq=seq, epoch=event.epoch, t=time, fields=fields)
                out.write(celjson.line(make_record(made, pcr=last.pcr, banks=[*last.digests])))
                seq += 1
    return seq
