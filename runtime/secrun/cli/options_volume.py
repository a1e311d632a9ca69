"""Options and verbs that concern volumes."""

from secrun.cli.options_common import FORMAT, NO_LEGEND, app_option
from secrun.cli.table import Kind, Positional, Verb

VOLUMES = (
    app_option(
        "-v",
        "--volume",
        kind=Kind.LIST,
        metavar="HOST|NAME:POD[:ro,z]",
        help="a folder or file of the host, or a named volume; z, Z: label it for all pods, for this one",
    ),
    app_option(
        "--mount",
        kind=Kind.LIST,
        metavar="type=bind|volume|tmpfs,target=..",
        help="the same in words: source=, readonly, relabel=; size= and mode= of tmpfs",
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
)
