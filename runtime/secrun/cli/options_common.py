"""Options that the verbs of several tables share."""

from secrun.cli.table import Kind, Option, Positional, Scope

UUID = Positional(name="uuid", help="the pod's UUID or a unique prefix of it")
UUID_MAYBE = Positional(name="uuid", help="the pod's UUID or a unique prefix of it", count="?")
_UUID_FILE_FLAGS = ("--uuid-file", "--cidfile", "--pod-id-file")
UUID_FILE = Option(
    flags=_UUID_FILE_FLAGS, metavar="FILE", help="read the UUID from FILE, as --uuid-file-save wrote it"
)
UUIDS_MAYBE = Positional(name="uuid", help="UUIDs or unique prefixes", count="*")
UUID_FILES = Option(
    flags=_UUID_FILE_FLAGS,
    kind=Kind.LIST,
    metavar="FILE",
    help="read a UUID from FILE, as --uuid-file-save wrote it",
)
FILTERS = Option(
    flags=("--filter",),
    kind=Kind.LIST,
    metavar="KEY=VALUE",
    help="instead of UUIDs, the pods of which it holds, as secrun list has it",
)
IGNORE = Option(
    flags=("-i", "--ignore"), kind=Kind.FLAG, help="a pod that is not there, and a file, is no error"
)
UUIDS = Positional(name="uuid", help="UUIDs or unique prefixes", count="+")

FORMAT = Option(
    flags=("--format",),
    kind=Kind.CHOICE,
    choices=("table", "json"),
    default="table",
    help="table for people, json for programs",
)

DETACH_KEYS = Option(
    flags=("--detach-keys",),
    metavar="KEYS",
    default="ctrl-p,ctrl-q",
    help="keys that detach a terminal and leave the pod running; empty: none",
)


def app_option(*flags: str, help: str, kind: Kind = Kind.TEXT, metavar: str = "") -> Option:  # noqa: A002 - argparse's word
    """Return an option that belongs to one app of a `run` command line."""
    return Option(flags=flags, help=help, kind=kind, metavar=metavar, scope=Scope.APP)


ARCHIVE = (
    Option(flags=("-o", "--output"), metavar="FILE", help="the file to write; default is standard output"),
    Option(flags=("--overwrite",), kind=Kind.FLAG, help="replace a file that exists"),
)
NO_LEGEND = Option(flags=("--no-legend", "--noheading"), kind=Kind.FLAG, help="leave out the heading")

IMAGE = (
    Option(
        flags=("--platform",),
        metavar="OS/ARCH[/VARIANT]",
        help="choose from an image index; default is this host",
    ),
    Option(
        flags=("--tls-verify",),
        kind=Kind.CHOICE,
        choices=("true", "false"),
        default="true",
        help="false: accept plain HTTP and any certificate",
    ),
    Option(flags=("--authfile",), metavar="FILE", help="registry credentials (auth.json)"),
    Option(flags=("--policy",), metavar="FILE", help="trust policy instead of /etc/containers/policy.json"),
    Option(
        flags=("--insecure-options",),
        kind=Kind.LIST,
        metavar="NAME[,NAME]",
        help="relax a guard by name; image: admit what no policy accepts; for app container images http: "
        "fetch without TLS, isolators: apply none of theirs",
    ),
)

_PULL_CHOICES = ("always", "missing", "never", "newer")


def pull(default: str) -> Option:
    """Return the option that says when to ask the registry, for a verb with `default`."""
    return Option(
        flags=("--pull",),
        kind=Kind.CHOICE,
        choices=_PULL_CHOICES,
        default=default,
        help="when to ask the registry",
    )
