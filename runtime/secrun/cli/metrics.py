"""What a monitoring system asks of this root, in the text format of Prometheus."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from secrun import __version__
from secrun.cli.table import Arguments, Context
from secrun.measure import journal
from secrun.pod.states import State, walk

# A sample: its labels and its value.
Samples = Sequence[tuple[Mapping[str, str], int]]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def family(name: str, text: str, samples: Samples) -> Iterator[str]:
    """Yield the lines of one gauge (exposition format 0.0.4); nothing without samples."""
    if not samples:
        return
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} gauge"
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        yield f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"


def _heads(context: Context) -> Samples:
    """Return the size of the audit log at its last signed head."""
    from secrun_attest.audit.heads import heads
    from secrun_attest.audit.note import parse_checkpoint

    found = heads(context.layout.audit)
    if not found:
        return ()
    head = parse_checkpoint(found[-1].decode("utf-8").rpartition("\n\n")[0] + "\n")
    return (({"origin": head.origin}, head.size),)


def metrics(args: Arguments, context: Context) -> int:
    """Print all metrics."""
    del args
    states = Counter(pod.state for pod in walk(context.layout))
    untold = journal.path(context.layout)
    waiting = untold.read_bytes().count(b"\n") if untold.exists() else 0
    lines = [
        *family("secrun_info", "The version of secrun.", [({"version": __version__}, 1)]),
        *family(
            "secrun_pods",
            "Pods of this root by state.",
            [({"state": str(state)}, states[state]) for state in State],
        ),
        *family("secrun_unmeasured_waiting", "Bypasses that the log was not told yet.", [({}, waiting)]),
        *family("secrun_audit_leaves", "Leaves of the audit log at its last signed head.", _heads(context)),
    ]
    context.out.write("".join(f"{line}\n" for line in lines))
    return 0
