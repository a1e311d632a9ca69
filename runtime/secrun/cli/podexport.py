"""The verb that writes what an app left behind to an archive."""

from secrun.cli.outputs import archive_output
from secrun.cli.table import Arguments, Context

# What an app left may hold its keys: the file is its caller's.
_MODE = 0o600


def export(args: Arguments, context: Context) -> int:
    """Write an app of an exited pod, with its changes, as an OCI archive; prints the image's digest."""
    from secrun.pod import export as exporting

    with (
        exporting.ended(context.layout, args.required("uuid"), args.text("app")) as one,
        archive_output(args, mode=_MODE) as out,
    ):
        done = exporting.export(context.layout, one, out)
    for note in done.notes:
        context.warn(f"note: {note}")
    if args.text("output") is not None:
        context.out.write(f"{done.digest}\n")
    return 0
