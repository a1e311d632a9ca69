"""The verb that lists pods."""

from secrun.cli.options_common import FORMAT, NO_LEGEND
from secrun.cli.table import Kind, Option, Verb

_OPTIONS = (
    FORMAT,
    NO_LEGEND,
    Option(flags=("--full", "--no-trunc"), kind=Kind.FLAG, help="whole UUIDs and digests, absolute times"),
    Option(flags=("-q", "--quiet"), kind=Kind.FLAG, help="UUIDs only"),
    Option(
        flags=("-f", "--filter"),
        kind=Kind.LIST,
        metavar="KEY=VALUE",
        help="only pods of which it holds: id, name (a regular expression), app, label, label!, state or "
        "status, image or ancestor, network, exited (the exit code), before or "
        "since (another pod), until (a time); "
        "one of a key's values, all of labels and times",
    ),
    Option(
        flags=("--sort",),
        kind=Kind.CHOICE,
        choices=("created", "started", "uuid", "app", "image", "state"),
        default="created",
        help="by what the lines are sorted, the greatest last",
    ),
    Option(flags=("--reverse",), kind=Kind.FLAG, help="the greatest first"),
    Option(flags=("-l", "--latest"), kind=Kind.FLAG, help="only the pod that was created last"),
    Option(flags=("-n", "--last"), kind=Kind.INTEGER, metavar="N", help="only the N pods created last"),
    Option(flags=("-a", "--all"), kind=Kind.FLAG, help="implied: pods of every state are shown"),
)

LIST_VERBS = (
    Verb(
        words=("list",),
        summary="List pods",
        handler="secrun.cli.views:list_pods",
        options=_OPTIONS,
        examples=(
            "secrun list --filter state=running --filter label=tier=web",
            "secrun logs $(secrun list --latest --quiet)",
        ),
    ),
)
