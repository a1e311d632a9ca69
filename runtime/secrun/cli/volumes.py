"""The verbs that concern named volumes."""

import re
import time

from secrun.cli.guard import each
from secrun.cli.table import Arguments, Context
from secrun.cli.views import table, write_json
from secrun.errors import UsageError
from secrun.pod import volumes
from secrun.stage1.uidrange import SIZE as POD_IDS

LIST_SCHEMA = "secrun.dev/volume-list/v1"
INSPECT_SCHEMA = "secrun.dev/volume/v1"
_NS = 1_000_000_000
_MODE = re.compile(r"0?[0-7]{3,4}\Z")


def _owner(args: Arguments) -> volumes.Owner:
    ids = {key: args.integer(key) or 0 for key in ("uid", "gid")}
    for key, value in ids.items():
        if not 0 <= value < POD_IDS:
            raise UsageError(f"--{key} {value} is not a number from 0 to {POD_IDS - 1}")
    mode = args.required("mode")
    if not _MODE.match(mode):
        raise UsageError(f"--mode {mode[:20]!r} is not a mode of chmod(1), in digits")
    return volumes.Owner(uid=ids["uid"], gid=ids["gid"], mode=int(mode, 8))


def create(args: Arguments, context: Context) -> int:
    """Make a volume and print its name."""
    name = args.required("name")
    volumes.create(context.layout, name, _owner(args))
    context.out.write(f"{name}\n")
    return 0


def list_volumes(args: Arguments, context: Context) -> int:
    """List every volume."""
    found = [*volumes.volumes(context.layout)]
    if args.text("format") == "json":
        write_json(context, {"schema": LIST_SCHEMA, "volumes": [item.to_json() for item in found]})
        return 0
    rows = [(item.name, str(len(item.pods)), str(item.path)) for item in found]
    table(context, ("NAME", "PODS", "PATH"), rows, legend=not args.flag("no_legend"))
    return 0


def inspect(args: Arguments, context: Context) -> int:
    """Show one volume."""
    found = volumes.inspect(context.layout, args.required("name"))
    if args.text("format") == "json":
        write_json(context, {"schema": INSPECT_SCHEMA, **found.to_json()})
        return 0
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.created_ns // _NS))
    lines = [f"name={found.name}", f"path={found.path}", f"created={created}"]
    lines += [f"pod={uuid}" for uuid in found.pods]
    context.out.write("\n".join(lines) + "\n")
    return 0


def remove(args: Arguments, context: Context) -> int:
    """Delete volumes."""

    def one(name: str) -> None:
        volumes.remove(context.layout, name)
        context.out.write(f"{name}\n")

    return each(args.many("name"), one)


def prune(_: Arguments, context: Context) -> int:
    """Delete what no pod may use."""
    for name in volumes.prune(context.layout):
        context.out.write(f"{name}\n")
    return 0
