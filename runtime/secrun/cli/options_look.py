"""Verbs that look closely at pods."""

from secrun.cli.options_audit import SPAN
from secrun.cli.options_common import (
    ARCHIVE,
    DETACH_KEYS,
    FORMAT,
    NO_LEGEND,
    UUID,
    UUID_FILE,
    UUID_MAYBE,
    UUIDS,
)
from secrun.cli.table import Kind, Option, Positional, Verb

LOOK_VERBS = (
    Verb(
        words=("attach",),
        summary="Attach to the streams of a running app",
        handler="secrun.cli.pods:attach",
        description="What the app says from now on; `logs` has what it said before. What is typed goes to "
        "an app that was started with -i, from one caller at a time; that is an entry, and measured. Ends "
        "with the app's exit code, or with 0 when it is detached.",
        positionals=(UUID_MAYBE,),
        options=(
            UUID_FILE,
            Option(flags=("--app",), metavar="NAME", help="the app; needed if there are several"),
            Option(flags=("--no-stdin",), kind=Kind.FLAG, help="follow what the app says, send it nothing"),
            Option(
                flags=("--sig-proxy",),
                kind=Kind.CHOICE,
                choices=("true", "false"),
                default="true",
                help="true: signals, Ctrl-C among them, go to the app; false: they end attach",
            ),
            DETACH_KEYS,
        ),
        needs_root=True,
        examples=("secrun attach 0a1b", "secrun attach --no-stdin --sig-proxy=false 0a1b"),
    ),
    Verb(
        words=("inspect",),
        summary="Show all that is known of pods, as JSON",
        handler="secrun.cli.podlook:inspect",
        positionals=(UUIDS,),
    ),
    Verb(
        words=("top",),
        summary="List the processes of a running pod",
        handler="secrun.cli.podlook:top",
        positionals=(UUID,),
        options=(FORMAT, NO_LEGEND),
    ),
    Verb(
        words=("stats",),
        summary="Show what running pods use: processor, memory, processes, disk",
        handler="secrun.cli.podlook:stats",
        positionals=(Positional(name="uuid", help="UUIDs or unique prefixes; default is all", count="*"),),
        options=(
            Option(flags=("-f", "--follow"), kind=Kind.FLAG, help="go on until interrupted"),
            Option(
                flags=("-i", "--interval"),
                metavar="DURATION",
                default="1s",
                help="the time over which the use of the processor is counted",
            ),
            FORMAT,
            NO_LEGEND,
        ),
        needs_root=True,
    ),
    Verb(
        words=("export",),
        summary="Write an app of an exited pod, with what it changed, to an OCI archive",
        handler="secrun.cli.podexport:export",
        description="The archive holds the layers of the app's image and one more with its changes, under "
        "the image's configuration. Nobody has signed it. Pods of --stage1=kvm keep no changes.",
        positionals=(UUID,),
        options=(
            Option(flags=("--app",), metavar="NAME", help="the app; needed if there are several"),
            *ARCHIVE,
        ),
        needs_root=True,
        examples=("secrun export 3f2a -o app.tar",),
    ),
    Verb(
        words=("events",),
        summary="Tell what happened to pods and images, as it was measured",
        handler="secrun.cli.happenings:events",
        description="One line for each record of the event logs; what ran with --attest=off is there as far "
        "as it was measured later. A whole UUID may be of a pod that is gone.",
        positionals=(Positional(name="uuid", help="of this pod only", count="?"),),
        options=(
            Option(flags=("-f", "--follow"), kind=Kind.FLAG, help="go on with what happens"),
            *SPAN,
            FORMAT,
        ),
        examples=("secrun events --since 1h", "secrun events -f --format json"),
    ),
)
