"""The hidden verb that the waiter executes when stage1 has ended."""

from secrun.cli.table import Arguments, Context
from secrun.errors import UsageError
from secrun.pod.finish import complaints
from secrun.pod.finish import finish as finish_pod


def finish(args: Arguments, context: Context) -> int:
    """Conclude the pod and return its exit code as our own."""
    lock_fd, status = args.integer("lock_fd"), args.integer("stage1_status")
    if lock_fd is None or status is None:
        raise UsageError("finish is called by the waiter, not by hand", code="usage-finish")
    result = finish_pod(
        context.layout,
        args.required("uuid"),
        lock_fd=lock_fd,
        stage1_status=status,
        remove=args.flag("rm"),
    )
    if not args.flag("quiet"):
        for line in complaints(result):
            context.err.write(f"secrun: {line}\n")
    return result.code
