"""The verbs that look closely at pods: inspect, top, stats."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from secrun.cli.table import Arguments, Context
from secrun.cli.views import table, write_json
from secrun.errors import StateError, UsageError
from secrun.image.progress import human
from secrun.jsonio import JsonObject
from secrun.pod.states import Found, State, find, walk
from secrun.stage1.manifest import PodManifest
from secrun.stage1.podfiles import PodFiles

if TYPE_CHECKING:
    from secrun.pod.processes import Process, Usage

INSPECT_SCHEMA = "secrun.dev/pod-inspect/v1"
TOP_SCHEMA = "secrun.dev/pod-top/v1"
STATS_SCHEMA = "secrun.dev/pod-stats/v1"
_USEC = 1_000_000
# What a pod is that went away between being found and being looked at.
_ENDED = ("state-not-running", "state-no-manifest")
# A table has a line for each process; JSON has the whole command.
_COMMAND_WIDTH = 80


def inspect(args: Arguments, context: Context) -> int:
    """Print all that is known of pods: status and manifest in one document."""
    from secrun.pod import view

    rows: list[JsonObject] = []
    for word in args.many("uuid"):
        pod = view.look(find(context.layout, word))
        manifest = json.loads(pod.manifest.to_bytes()) if pod.manifest else None
        rows.append({**pod.to_json(), "manifest": manifest})
    write_json(context, {"schema": INSPECT_SCHEMA, "pods": rows})
    return 0


def _running(context: Context, word: str) -> tuple[Found, PodManifest]:
    found = find(context.layout, word)
    if found.state is not State.RUNNING:
        raise StateError(f"pod {found.uuid} is {found.state}, expected running", code="state-not-running")
    return found, PodFiles(found.path).read_manifest()


def _uid_base(found: Found) -> int | None:
    try:
        return int(PodFiles(found.path).uid_base.read_text())
    except FileNotFoundError:
        return None


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{seconds % 60:05.2f}"


def _cut(command: str) -> str:
    return command if len(command) <= _COMMAND_WIDTH else f"{command[: _COMMAND_WIDTH - 3]}..."


def _process_json(item: "Process") -> JsonObject:
    return {
        "pid": item.pid,
        "app": item.app,
        "uid": item.uid,
        "cpu_usec": round(item.cpu_seconds * _USEC),
        "rss_bytes": item.rss_bytes,
        "command": item.command,
    }


def top(args: Arguments, context: Context) -> int:
    """List the processes of a pod; users are the pod's, process ids the host's."""
    from secrun.pod.processes import processes

    found, manifest = _running(context, args.required("uuid"))
    items = processes(manifest, _uid_base(found))
    if args.text("format") == "json":
        rows = [_process_json(item) for item in items]
        write_json(context, {"schema": TOP_SCHEMA, "uuid": found.uuid, "processes": rows})
        return 0
    cells = [
        (
            str(item.pid),
            item.app or "-",
            "-" if item.uid is None else str(item.uid),
            _clock(item.cpu_seconds),
            human(item.rss_bytes),
            _cut(item.command),
        )
        for item in items
    ]
    heading = ("PID", "APP", "UID", "TIME", "RSS", "COMMAND")
    table(context, heading, cells, legend=not args.flag("no_legend"))
    return 0


def _interval(args: Arguments) -> float:
    from secrun.pod.request import duration

    seconds = duration(args.required("interval"))
    if seconds <= 0:
        raise UsageError(f"--interval {args.required('interval')} is no time to count in")
    return seconds


def _chosen(args: Arguments, context: Context) -> list[Found]:
    words = args.many("uuid")
    if words:
        return [_running(context, word)[0] for word in words]
    return [found for found in walk(context.layout) if found.state is State.RUNNING]


def _sample(chosen: Sequence[Found], *, named: bool) -> dict[tuple[str, str], "Usage"]:
    """Read what pods use; one that ends meanwhile is left out unless it was asked for by name."""
    from secrun.pod.processes import usage

    found = {}
    for pod in chosen:
        try:
            for item in usage(PodFiles(pod.path).read_manifest()):
                found[pod.uuid, item.name] = item
        except StateError as error:
            if named or error.code not in _ENDED:
                raise
    return found


def _share(before: "Usage | None", now: "Usage", seconds: float) -> float:
    """Return the processors used since `before`; 1.0 is one of them all the time."""
    return 0.0 if before is None else max(0, now.cpu_usec - before.cpu_usec) / _USEC / seconds


def stats(args: Arguments, context: Context) -> int:
    """Print what running pods use, once or until interrupted."""
    interval, named = _interval(args), bool(args.many("uuid"))
    chosen = _chosen(args, context)
    before, at = _sample(chosen, named=named), time.monotonic()
    while True:
        time.sleep(interval)
        now, then = _sample(chosen, named=named and not args.flag("follow")), time.monotonic()
        shares = {key: _share(before.get(key), item, then - at) for key, item in now.items()}
        _write_stats(args, context, now, shares)
        if not args.flag("follow") or (named and not now):
            return 0
        chosen = _chosen(args, context) if not named else [pod for pod in chosen if pod.locked]
        before, at = now, then


def _write_stats(
    args: Arguments,
    context: Context,
    now: "Mapping[tuple[str, str], Usage]",
    shares: Mapping[tuple[str, str], float],
) -> None:
    if args.text("format") == "json":
        rows = [
            {
                "uuid": uuid,
                "app": app,
                "cpus": round(shares[uuid, app], 4),
                "cpu_usec": item.cpu_usec,
                "memory_bytes": item.memory_bytes,
                "memory_source": item.memory_source,
                "pids": item.pids,
                "read_bytes": item.read_bytes,
                "written_bytes": item.written_bytes,
            }
            for (uuid, app), item in now.items()
        ]
        document = {"schema": STATS_SCHEMA, "time_ns": time.time_ns(), "pods": rows}
        context.out.write(json.dumps(document, ensure_ascii=False) + "\n")
    else:
        heading = ("UUID", "APP", "CPU", "MEMORY", "PIDS", "READ", "WRITTEN")
        cells = [_stats_row(uuid, app, item, shares[uuid, app]) for (uuid, app), item in now.items()]
        table(context, heading, cells, legend=not args.flag("no_legend"))
    sys.stdout.flush()


def _stats_row(uuid: str, app: str, item: "Usage", share: float) -> tuple[str, ...]:
    read = "-" if item.read_bytes is None else human(item.read_bytes)
    written = "-" if item.written_bytes is None else human(item.written_bytes)
    head = (uuid[:8], app or "all", f"{share * 100:.1f} %", human(item.memory_bytes), str(item.pids))
    return (*head, read, written)
