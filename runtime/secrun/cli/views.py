"""The verbs that only look."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from secrun import __version__
from secrun.cli import uuids
from secrun.cli.table import Arguments, Context
from secrun.errors import StateError, UsageError
from secrun.jsonio import JsonValue
from secrun.pod.states import find
from secrun.stage1.podfiles import PodFiles

if TYPE_CHECKING:
    from secrun.pod.glance import Glance
    from secrun.pod.lifestate import LifeState
    from secrun.pod.log import Line

_NS = 1_000_000_000


def table(context: Context, heading: Sequence[str], rows: Sequence[Sequence[str]], *, legend: bool) -> None:
    """Print columns, each as wide as its widest cell."""
    lines = [heading, *rows] if legend else list(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))] if lines else []
    for line in lines:
        cells = map(str.ljust, line, widths)
        context.out.write("  ".join(cells).rstrip() + "\n")


def _when(nanoseconds: int | None, *, full: bool) -> str:
    """Return a time for people: how long ago, or in full and in UTC."""
    if not nanoseconds:
        return "-"
    if full:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // _NS))
    seconds = max(0, int(time.time()) - nanoseconds // _NS)
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"


def write_json(context: Context, value: Mapping[str, object]) -> None:
    """Print one JSON document."""
    context.out.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def list_pods(args: Arguments, context: Context) -> int:
    """List pods, the newest last."""
    seen = _chosen(args, context)
    if args.text("format") == "json":
        from secrun.pod import view

        wanted = [pod.uuid for pod in seen]
        found = {pod.uuid: pod for pod in view.all_pods(context.layout, frozenset(wanted))}
        rows = [found[uuid].to_json() for uuid in wanted if uuid in found]
        write_json(context, {"schema": view.LIST_SCHEMA, "pods": rows})
        return 0
    if args.flag("quiet"):
        context.out.write("".join(f"{pod.uuid}\n" for pod in seen))
        return 0
    full = args.flag("full")
    heading = ("UUID", "APP", "IMAGE", "STATE", "CREATED", "STARTED", "NETWORKS")
    lines = [row for pod in seen for row in _rows(pod, full=full)]
    table(context, heading, lines, legend=not args.flag("no_legend"))
    for pod in seen:
        if pod.problem:
            context.err.write(f"secrun: pod {pod.uuid}: {pod.problem}\n")
    return 0


def _last(args: Arguments) -> int | None:
    """Return how many of the pods created last are asked for; None for all."""
    last, latest = args.integer("last"), args.flag("latest")
    if last is not None and latest:
        raise UsageError("--last and --latest exclude each other")
    if last is not None and last < 1:
        raise UsageError(f"--last {last} is no number of pods")
    return 1 if latest else last


def _chosen(args: Arguments, context: Context) -> "list[Glance]":
    from secrun.pod import select

    last = _last(args)
    seen = uuids.chosen(context, args.many("filter"))
    return select.arrange(seen, key=args.required("sort"), backwards=args.flag("reverse"), last=last)


def _bare(addresses: Sequence[str]) -> list[str]:
    """Return addresses without their prefix lengths."""
    return [address.partition("/")[0] for address in addresses]


def _rows(pod: "Glance", *, full: bool) -> list[tuple[str, ...]]:
    """Return a line per app; what belongs to the pod is shown once, as rkt does."""
    uuid = pod.uuid if full else pod.uuid[:8]
    networks = " ".join(f"{name}:{','.join(_bare(own))}" for name, _, *own in pod.networks) or "-"
    times = (_when(pod.created_ns, full=full), _when(pod.started_ns, full=full))
    tail = (str(pod.state), *times, networks)
    if not pod.apps:
        return [(uuid, "-", "-", *tail)]
    rows: list[tuple[str, ...]] = []
    for index, (name, reference, image_id) in enumerate(pod.apps):
        image = f"{reference} {image_id}" if full else reference
        own = tail if index == 0 else ("", "", "", "")
        rows.append((uuid if index == 0 else "", name, image, *own))
    return rows


def _wait(context: Context, text: str, limit: str) -> None:
    from secrun.pod.request import duration
    from secrun.pod.stop import wait_unlocked

    found = find(context.layout, text)
    if not wait_unlocked(found, None if limit == "forever" else duration(limit)):
        raise StateError(f"pod {found.uuid} has not exited within {limit}", code="state-timeout")


def _wait_ready(context: Context, text: str, limit: str) -> None:
    from secrun.pod.request import duration
    from secrun.pod.stop import wait_ready

    wait_ready(context.layout, text, None if limit == "forever" else duration(limit))


def _life(app: str, found: "LifeState") -> Iterator[str]:
    """Yield what is known of an app from one run to the next."""
    if found.problem:
        yield f"{app}-problem={found.problem}"
    if found.restarts or found.waiting:
        yield f"{app}-restarts={found.restarts}{' (waiting)' if found.waiting else ''}"
    if found.last is not None and found.restarts:
        yield f"{app}-last={found.last.code}"
    if found.health is not None:
        yield f"{app}-health={found.health.state}"
        said = [check.output for check in found.health.checks if check.output]
        if said:
            yield f"{app}-health-output={said[-1].splitlines()[0]}"


def status(args: Arguments, context: Context) -> int:
    """Show one pod."""
    from secrun.pod import view

    text, limit, ready = uuids.one(args), args.text("wait"), args.text("wait_ready")
    if ready is not None:
        _wait_ready(context, text, ready)
    if limit is not None:
        _wait(context, text, limit)
    pod = view.look(find(context.layout, text))
    if args.text("format") == "json":
        write_json(context, {"schema": view.STATUS_SCHEMA, **pod.to_json()})
        return 0
    lines = [f"uuid={pod.uuid}", f"state={pod.state}", f"created={_when(pod.created_ns, full=True)}"]
    if pod.started_ns:
        lines.append(f"started={_when(pod.started_ns, full=True)}")
    if pod.pid:
        lines.append(f"pid={pod.pid}")
    lines += [f"networks={net.network}:{net.interface}={','.join(net.addresses)}" for net in pod.networks]
    if pod.uid_base:
        lines.append(f"uid-base={pod.uid_base}")
    known = pod.measured
    lines.append(f"measured={f'{known.last or known.pending} in epoch {known.epoch}' if known else 'no'}")
    if pod.exit:
        lines += [f"exited={_when(pod.exit.finished_ns, full=True)}", f"exit-code={pod.exit.code}"]
        lines += [f"app-{app.name}={'-' if app.code is None else app.code}" for app in pod.exit.apps]
        lines += [f"app-{app.name}-error={app.error}" for app in pod.exit.apps if app.error]
        if pod.exit.error:
            lines.append(f"error={pod.exit.error}")
    lines += [f"app-{name}-log-lost={count} bytes" for name, count in pod.log_lost.items()]
    by = " (reported by the guest)" if pod.reported_by == "guest" else ""
    lines += [f"app-{name}-enforced={found.verdict}{by}" for name, found in pod.enforced.items()]
    lines += [line for name, found in pod.life.items() for line in _life(f"app-{name}", found)]
    if pod.problem:
        lines.append(f"problem={pod.problem}")
    context.out.write("\n".join(lines) + "\n")
    return 0


def cat_manifest(args: Arguments, context: Context) -> int:
    """Print the pod manifest, byte for byte."""
    found = find(context.layout, uuids.one(args))
    files = PodFiles(found.path)
    files.read_manifest()
    context.out.flush()
    sys.stdout.buffer.write(files.manifest.read_bytes() + b"\n")
    return 0


def logs(args: Arguments, context: Context) -> int:
    """Print what an app wrote: its stdout to ours, its stderr to ours."""
    from secrun.pod import log

    found = find(context.layout, args.required("uuid"))
    files = PodFiles(found.path)
    manifest = files.read_manifest()
    name = args.text("app") or manifest.apps[0].name
    known = ", ".join(app.name for app in manifest.apps)
    if args.text("app") is None and len(manifest.apps) > 1:
        raise UsageError(f"pod {found.uuid} has several apps", hint=f"name one of: {known}")
    if manifest.app(name) is None:
        raise UsageError(f"pod {found.uuid} has no app {name!r}", hint=f"it has: {known}")
    if args.flag("follow") and args.text("until"):
        raise UsageError("--until and --follow exclude each other")
    span = log.span(args.text("since"), args.text("until"), time.time_ns())
    tail = args.integer("tail")
    lines = (
        log.follow(found, name, tail, span) if args.flag("follow") else log.history(files, name, tail, span)
    )
    for line in lines:
        _write_line(line, stamps=args.flag("timestamps"), as_json=args.text("format") == "json")
    return 0


def _write_line(line: "Line", *, stamps: bool, as_json: bool) -> None:
    if as_json:
        text = line.text.decode("utf-8", "backslashreplace")
        row = {"time": line.time, "stream": line.stream, "partial": line.partial, "text": text}
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    out = sys.stdout.buffer if line.stream == "stdout" else sys.stderr.buffer
    head = f"{line.time} {line.stream} ".encode() if stamps else b""
    out.write(head + line.text + (b"" if line.partial else b"\n"))
    out.flush()


def version(args: Arguments, context: Context) -> int:
    """Print the versions of secrun and of what it stands on."""
    from secrun.launch import run

    rows = {"secrun": __version__, "python": sys.version.split()[0], "kernel": os.uname().release}
    for name, command in (("systemd", "systemd-nspawn"), ("crun", "crun")):
        words = run([command, "--version"], check=False).stdout.decode("utf-8", "replace").split()
        rows[name] = next((word for word in words if word[:1].isdigit()), "unknown")
    if args.text("format") == "json":
        write_json(context, {"schema": "secrun.dev/version/v1", **rows})
    else:
        context.out.write("".join(f"{name} {value}\n" for name, value in rows.items()))
    return 0


def doctor(args: Arguments, context: Context) -> int:
    """Tell what this host lacks; exit 125 if no pod can start."""
    from secrun.cli.attestoptions import attest_settings
    from secrun.cli.netoptions import network_places
    from secrun.pod.doctor import examine

    settings, places = attest_settings(context), network_places(context)
    problems = examine(context.layout, settings, places, args.required("stage1"))
    if args.text("format") == "json":
        rows: list[JsonValue] = [
            {"subject": item.subject, "problem": item.text, "hint": item.hint, "fatal": item.fatal}
            for item in problems
        ]
        write_json(context, {"schema": "secrun.dev/doctor/v1", "problems": rows})
    else:
        for item in problems:
            mark = "FAIL" if item.fatal else "note"
            context.out.write(f"{mark} {item.subject} {item.text}\n")
            if item.hint:
                context.out.write(f"     hint: {item.hint}\n")
        if not problems:
            context.out.write("ok   this host can run pods\n")
    return 125 if any(item.fatal for item in problems) else 0
