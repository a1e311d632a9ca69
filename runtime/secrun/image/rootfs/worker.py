"""What the sandboxed process does: render, and report the facts."""

from collections.abc import Callable, Sequence

from secrun.image.rootfs import inflate, render
from secrun.image.rootfs.record import Facts, facts_to_json
from secrun.image.rootfs.render import OpenLayer
from secrun.image.rootfs.sandbox import Confined
from secrun.jsonio import JsonObject


def job(layers: Sequence[OpenLayer], out_fd: int) -> Confined:
    """Return the rendering of `layers` into `out_fd` as a job for the sandbox."""
    processes = render.default_processes()

    def body() -> JsonObject:
        found = render.render(layers, out_fd, processes=processes)
        return facts_to_json(
            Facts(
                data_size=found.packed.data_size,
                file_size=found.packed.file_size,
                tree_digest=found.packed.tree_digest,
                verity_root=found.packed.verity_root,
                verity_salt=found.packed.verity_salt,
                max_id=found.max_id,
                users=found.users,
                groups=found.groups,
                dropped_xattrs=found.dropped_xattrs,
            )
        )

    return confined(body, layers, out_fd)


def confined(body: Callable[[], JsonObject], layers: Sequence[OpenLayer], out_fd: int) -> Confined:
    """Return a job that reads `layers` and writes `out_fd`."""

    def prepare() -> None:
        for compression in {layer.compression for layer in layers}:
            inflate.preload(compression)
        for algorithm in {layer.diff_id.algorithm for layer in layers} | {"sha256"}:
            inflate.preload_hash(algorithm)

    keep = [out_fd]
    for layer in layers:
        keep += (layer.blob_fd, layer.scratch_fd)
    return Confined(body=body, prepare=prepare, keep_fds=keep)
