"""Options and verbs that concern volumes."""

from secrun.cli.options_common import FORMAT, NO_LEGEND, app_option
from secrun.cli.table import Kind, Option, Positional, Verb

VOLUMES = (
    app_option(
        "-v",
        "--volume",
        kind=Kind.LIST,
        metavar="[HOST|NAME:]POD[:OPTION,..]",
        help="a place of the host, a named volume, or one of the app's own; ro, noexec, nocopy, z, Z",
    ),
    app_option(
        "--mount",
        kind=Kind.LIST,
        metavar="type=bind|volume|tmpfs,target=..",
        help="the same in words: source=, readonly, relabel=, noexec, nocopy; mode=, uid=, gid=; size=",
    ),
    app_option(
        "--secret",
        kind=Kind.LIST,
        metavar="NAME|FILE[,target=..]",
        help="a file in memory, /run/secrets/NAME: a credential or a file of the host; source=, target=, "
        "uid=, gid=, mode=, encrypted",
    ),
)

_NAME = Positional(name="name", help="the volume's name")
_NAMES = Positional(name="name", help="names of volumes", count="+")

VOLUME_VERBS = (
    Verb(
        words=("volume", "create"),
        summary="Make an empty named volume",
        handler="secrun.cli.volumes:create",
        positionals=(_NAME,),
        options=(
            Option(
                flags=("--uid",),
                kind=Kind.INTEGER,
                default=0,
                metavar="UID",
                help="its owner, as pods see it",
            ),
            Option(flags=("--gid",), kind=Kind.INTEGER, default=0, metavar="GID", help="its group"),
            Option(flags=("--mode",), default="755", metavar="OCTAL", help="what others may do with it"),
        ),
        needs_root=True,
        examples=("secrun volume create data && secrun run -v data:/var/lib/app app:1",),
    ),
    Verb(
        words=("volume", "list"),
        summary="List named volumes",
        handler="secrun.cli.volumes:list_volumes",
        options=(FORMAT, NO_LEGEND),
    ),
    Verb(
        words=("volume", "inspect"),
        summary="Show a named volume, and the pods that may use it",
        handler="secrun.cli.volumes:inspect",
        positionals=(_NAME,),
        options=(FORMAT,),
    ),
    Verb(
        words=("volume", "rm"),
        summary="Delete named volumes with all they hold",
        handler="secrun.cli.volumes:remove",
        positionals=(_NAMES,),
        needs_root=True,
    ),
    Verb(
        words=("volume", "prune"),
        summary="Delete the named volumes that no pod may use, with all they hold",
        handler="secrun.cli.volumes:prune",
        needs_root=True,
    ),
)
