"""The verbs that show what is in an image."""

from secrun.cli.guard import each
from secrun.cli.imageoptions import fetch_options
from secrun.cli.images import ensured
from secrun.cli.table import Arguments, Context
from secrun.cli.views import table, write_json
from secrun.errors import UsageError
from secrun.image import reference as references
from secrun.image import resolve
from secrun.image.options import FetchOptions
from secrun.image.store import ImageStore

MOUNTS_SCHEMA = "secrun.dev/image-mounts/v1"


def mount(args: Arguments, context: Context) -> int:
    """Mount stored images that the policy admits, and print where; without one list what is mounted."""
    words = args.many("image")
    if not words:
        return _list(args, context)
    options = fetch_options(args, context)
    return each(words, lambda word: _mount_one(args, context, word, options))


def _mount_one(args: Arguments, context: Context, word: str, options: FetchOptions) -> None:
    from secrun.image import rootfs
    from secrun.stage1 import imageview
    from secrun.syscalls import LinuxSyscalls

    # Until it is mounted nobody may take it for unused.
    with ImageStore(context.layout).using():
        image = ensured(args, context, word, options)
        rendered = rootfs.ensure(context.layout, image.layers)
        path = imageview.mount(context.layout, LinuxSyscalls(), image.manifest_digest, rendered)
    context.out.write(f"{path}\n")


def _list(args: Arguments, context: Context) -> int:
    from secrun.stage1 import imageview

    found = list(imageview.mounted(context.layout))
    if args.text("format") == "json":
        rows = [{"id": str(item.digest), "path": str(item.path)} for item in found]
        write_json(context, {"schema": MOUNTS_SCHEMA, "mounts": rows})
        return 0
    cells = [(item.digest.hex[:12], str(item.path)) for item in found]
    table(context, ("ID", "PATH"), cells, legend=not args.flag("no_legend"))
    return 0


def unmount(args: Arguments, context: Context) -> int:
    """Unmount images."""
    from secrun.stage1 import imageview
    from secrun.syscalls import LinuxSyscalls

    words, every = args.many("image"), args.flag("all")
    if every == bool(words):
        raise UsageError("name images, or give --all", code="usage-unmount")
    if every:
        words = tuple(str(item.digest) for item in imageview.mounted(context.layout))
    entries = ImageStore(context.layout).entries()

    def one(word: str) -> None:
        entry = resolve.lookup(entries, references.localize(references.parse(word)))[0]
        path = imageview.unmount(context.layout, LinuxSyscalls(), entry.digest, force=args.flag("force"))
        context.out.write(f"{path}\n")

    return each(words, one)
