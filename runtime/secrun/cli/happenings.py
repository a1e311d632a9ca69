"""The verb that tells what happened."""

import json
import sys

from secrun.cli.audit import span_of
from secrun.cli.table import Arguments, Context
from secrun.measure.happenings import happenings
from secrun.pod.liferows import LifeRows
from secrun.pod.states import find
from secrun_attest.audit.rows import when
from secrun_attest.audit.trail import Row

_SHORT, _WHOLE = 8, 36


def _line(row: Row) -> str:
    """Return a row for people: when, what, of which pod, what came of it."""
    words = [when(row.time), row.event, row.pod[:_SHORT] or "-"]
    if row.outcome != "done":
        words.append(row.outcome.value)
    if row.apps:
        words.append(f"apps={','.join(row.apps)}")
    words += [f"image={image.reference or image.manifest}" for image in row.images]
    if row.code is not None:
        words.append(f"code={row.code}")
    words += [
        f"{name}={value}" for name, value in (("by", row.who), ("what", row.what), ("why", row.why)) if value
    ]
    text = " ".join(words)
    # Names of images and units are not ours: nothing of them may move a cursor.
    return "".join(char if char.isprintable() else "?" for char in text)


def events(args: Arguments, context: Context) -> int:
    """Print what happened, and with --follow what happens, as the event log tells it and apps' agents do."""
    span, follow, word = span_of(args), args.flag("follow"), args.text("uuid")
    pod = find(context.layout, word).uuid if word and len(word) < _WHOLE else word
    for row in happenings(context.layout, follow=follow, beside=LifeRows(context.layout)):
        if (pod and row.pod != pod) or row.time < span.since or (row.time >= span.until and not follow):
            continue
        text = json.dumps(row.to_json(), ensure_ascii=False) if args.text("format") == "json" else _line(row)
        context.out.write(f"{text}\n")
        sys.stdout.flush()
    return 0
