"""The verbs that make room in the store."""

import time
from collections.abc import Sequence
from pathlib import Path

from secrun.cli.table import Arguments, Context
from secrun.cli.views import write_json
from secrun.digest import Digest
from secrun.errors import ImageError, StateError
from secrun.image import rootfs, sweeping
from secrun.image.entries import Entry
from secrun.image.progress import human
from secrun.image.store import ImageStore
from secrun.record import record

GC_SCHEMA = "secrun.dev/image-gc/v1"
_FAILED = 125


@record
class _Done:
    """What went, or would go: entries, bytes; and why files stayed, with the status that this ends with."""

    entries: tuple[Entry, ...]
    freed: int
    kept: str = ""
    status: int = 0


def gc(args: Arguments, context: Context) -> int:
    """Remove what nobody used for a while, and what nothing needs."""
    from secrun.pod.request import duration

    return _run(args, context, duration(args.required("grace_period")))


def prune(args: Arguments, context: Context) -> int:
    """Remove what nothing needs; with --all, all images that no pod has."""
    return _run(args, context, 0.0 if args.flag("all") else None)


def _run(args: Arguments, context: Context, grace: float | None) -> int:
    from secrun.pod.view import images_of_pods
    from secrun.stage1.imageview import images_mounted

    store = ImageStore(context.layout)
    if not context.layout.images.exists():
        done = _Done(entries=(), freed=0)
    else:
        # Whoever prepares a pod meanwhile waits, and so do we for those who do.
        with store.sole_use():
            in_use = images_of_pods(context.layout) | images_mounted(context.layout)
            doomed: Sequence[Entry] = ()
            if grace is not None:
                now = time.time()
                doomed = sweeping.unused(store.entries(), in_use, store.used_at, now=now, grace=grace)
            done = (_planned if args.flag("dry_run") else _removed)(store, doomed, in_use)
    _tell(args, context, done)
    return done.status


def _planned(store: ImageStore, doomed: Sequence[Entry], in_use: frozenset[Digest]) -> _Done:
    left = [entry for entry in store.entries() if entry not in doomed]
    try:
        files = store.unneeded(left, in_use=in_use)
    except (ImageError, StateError) as error:
        return _Done(entries=tuple(doomed), freed=0, kept=error.message, status=_FAILED)
    return _Done(entries=tuple(doomed), freed=_bytes(files))


def _bytes(files: Sequence[Path]) -> int:
    return sum(path.lstat().st_size for path in files)


def _removed(store: ImageStore, doomed: Sequence[Entry], in_use: frozenset[Digest]) -> _Done:
    rootfs.purge_stale(store.layout)
    store.purge_stale()
    done = store.remove(doomed, in_use=in_use)
    return _Done(
        entries=done.removed,
        freed=done.freed_bytes,
        kept=done.kept,
        status=_FAILED if done.damaged else 0,
    )


def _tell(args: Arguments, context: Context, done: _Done) -> None:
    dry = args.flag("dry_run")
    if args.text("format") == "json":
        rows = [
            {"id": str(entry.digest), "reference": entry.reference, "tag": entry.tag}
            for entry in done.entries
        ]
        write_json(
            context,
            {
                "schema": GC_SCHEMA,
                "dry_run": dry,
                "images": rows,
                "freed_bytes": done.freed,
                "kept": done.kept,
            },
        )
        return
    for entry in done.entries:
        context.out.write(f"{entry.digest} {entry.shown}\n")
    context.out.write(f"{'would free' if dry else 'freed'} {human(done.freed)}\n")
    if done.kept:
        context.warn(f"note: files that nothing needs stay for now: {done.kept}")
