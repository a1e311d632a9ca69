"""The options that say what happens with an app from one run to the next; podman's words."""

from secrun.cli.options_common import FILTERS, IGNORE, UUID_FILES, UUIDS_MAYBE
from secrun.cli.options_common import app_option as _app
from secrun.cli.table import Kind, Option, Scope, Verb

LIFE = (
    _app(
        "--restart",
        metavar="POLICY",
        help="no, the default; on-failure[:COUNT]; always; unless-stopped is the same as always",
    ),
    _app(
        "--health-cmd",
        metavar="COMMAND|JSON",
        help="asks the app how it is; a line for its shell, or words as JSON; none: --no-healthcheck",
    ),
    _app("--health-interval", metavar="DURATION", help="from one check to the next; default 30s"),
    _app("--health-timeout", metavar="DURATION", help="a check that takes longer has failed; default 30s"),
    _app(
        "--health-start-period",
        metavar="DURATION",
        help="failures so soon after the start do not count; default 0s",
    ),
    _app(
        "--health-retries",
        kind=Kind.INTEGER,
        metavar="N",
        help="failures in a row that make the app unhealthy; default 3",
    ),
    Option(
        flags=("--health-on-failure",),
        kind=Kind.CHOICE,
        choices=("none", "kill", "restart", "stop"),
        scope=Scope.APP,
        help="what is done with an unhealthy app; default none",
    ),
    _app("--no-healthcheck", kind=Kind.FLAG, help="leave out the image's HEALTHCHECK"),
)

LIFE_VERBS = (
    Verb(
        words=("restart",),
        summary="End apps of running pods in good order and begin them again",
        handler="secrun.cli.lifecycle:restart_pods",
        positionals=(UUIDS_MAYBE,),
        options=(
            Option(flags=("--app",), metavar="NAME", help="this app; default is each app of the pod"),
            Option(flags=("-a", "--all"), kind=Kind.FLAG, help="all that run"),
            FILTERS,
            IGNORE,
            UUID_FILES,
        ),
        needs_root=True,
    ),
)
