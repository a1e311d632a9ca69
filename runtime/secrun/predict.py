"""Reference values: what a host will measure of an image, computed from the image alone on any machine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from secrun import __version__
from secrun.digest import Digest
from secrun.errors import HostError, UsageError
from secrun.image.fetch import FetchOptions, ensure_image
from secrun.jsonio import JsonObject
from secrun.paths import Layout
from secrun.record import record
from secrun.stage1 import flavours
from secrun.stage1.machine import Accelerator, CommandLine
from secrun_attest.errors import FormatError
from secrun_attest.fields import FieldError, Fields, parse_json

if TYPE_CHECKING:
    from secrun.stage1.imagerecord import Manifest

SCHEMA = "secrun.dev/prediction/v1"
# Ten thousand images.
MAX_PREDICTION = 8 << 20
_MAX_ENTRIES = 20_000


@record
class PredictedImage:
    """One image: digests of its manifest and config, the key of its rootfs image, and what is in that."""

    reference: str
    platform: str
    manifest: Digest
    config: Digest
    rootfs: Digest
    tree: Digest
    verity_root: str


@record
class PredictedStage1:
    """One built stage1 image; `file` is the digest of the image file.

    A guest's `tree` is the image's own digest, for its kernel and initramfs are not among the files.
    """

    flavour: str
    digest: Digest
    tree: Digest
    verity_root: str
    file: Digest
    kernel: Digest | None = None
    initrd: Digest | None = None
    command_lines: tuple[CommandLine, ...] = ()


@record
class Prediction:
    """Reference values; `runtime` is None where secrun has no agent and could run no pod."""

    version: str
    runtime: Digest | None
    stage1: tuple[PredictedStage1, ...]
    images: tuple[PredictedImage, ...]


def predict(layout: Layout, words: Sequence[str], options: FetchOptions) -> Prediction:
    """Compute the values of images, of this installation and of the stage1 images below `layout`.

    Raises what fetching and rendering raise; nothing is left out in silence but a missing agent.
    """
    from secrun.stage1.imagestore import list_images

    stage1 = tuple(_stage1(item) for item in list_images(layout))
    return Prediction(
        version=__version__,
        runtime=_runtime(),
        stage1=stage1,
        images=tuple(_image(layout, word, options) for word in words),
    )


def _stage1(manifest: "Manifest") -> PredictedStage1:
    guest = manifest.guest
    return PredictedStage1(
        flavour=manifest.flavour,
        digest=manifest.digest,
        tree=manifest.reference,
        verity_root=manifest.verity_root,
        file=Digest("sha256", manifest.file_sha256),
        kernel=Digest("sha256", guest.kernel.sha256) if guest else None,
        initrd=Digest("sha256", guest.initrd.sha256) if guest else None,
        command_lines=tuple(flavours.load(manifest.flavour).command_lines()) if guest else (),
    )


def _runtime() -> Digest | None:
    from secrun.selfdigest import runtime_digest

    try:
        return runtime_digest()
    except HostError as error:
        if error.code != "host-agent":
            raise
        return None


def _image(layout: Layout, word: str, options: FetchOptions) -> PredictedImage:
    from secrun.image import rootfs

    image = ensure_image(layout, word, options)
    rendered = rootfs.ensure(layout, image.layers)
    return PredictedImage(
        reference=image.reference,
        platform=str(image.config.platform),
        manifest=image.manifest_digest,
        config=image.config_digest,
        rootfs=rendered.key,
        tree=rendered.tree_digest,
        verity_root=rendered.verity_root,
    )


def _stage1_json(stage1: PredictedStage1) -> JsonObject:
    found: JsonObject = {
        "flavour": stage1.flavour,
        "digest": str(stage1.digest),
        "tree": str(stage1.tree),
        "verity_root": stage1.verity_root,
        "file": str(stage1.file),
    }
    if stage1.kernel is not None:
        found["kernel"] = str(stage1.kernel)
    if stage1.initrd is not None:
        found["initrd"] = str(stage1.initrd)
    if stage1.command_lines:
        found["command_lines"] = [_command_line_json(item) for item in stage1.command_lines]
    return found


def _command_line_json(line: CommandLine) -> JsonObject:
    return {
        "accelerator": str(line.accelerator),
        "model": line.model,
        "text": line.text,
    }


def to_json(prediction: Prediction) -> JsonObject:
    """Return what `parse` reads."""
    return {
        "schema": SCHEMA,
        "runtime": {
            "version": prediction.version,
            "digest": None if prediction.runtime is None else str(prediction.runtime),
        },
        "stage1": [_stage1_json(item) for item in prediction.stage1],
        "images": [
            {
                "reference": item.reference,
                "platform": item.platform,
                "manifest": str(item.manifest),
                "config": str(item.config),
                "rootfs": str(item.rootfs),
                "tree": str(item.tree),
                "verity_root": item.verity_root,
            }
            for item in prediction.images
        ],
    }


def parse(data: bytes, *, what: str) -> Prediction:
    """Read a prediction from a file; raises UsageError naming `what` if it is none."""
    try:
        fields = Fields(parse_json(data, what=what, limit=MAX_PREDICTION), what)
        if (schema := fields.text("schema", limit=100)) != SCHEMA:
            raise UsageError(
                f"{what} has the schema {schema!r}, expected {SCHEMA}",
                hint="secrun attest predict --format=json writes it",
                code="usage-prediction",
            )
        runtime = fields.object("runtime")
        found = Prediction(
            version=runtime.text("version"),
            runtime=_digest(runtime, "digest") if runtime.has("digest") else None,
            stage1=tuple(
                _parse_stage1(Fields(item, f"{what}.stage1"))
                for item in fields.items("stage1", limit=_MAX_ENTRIES)
            ),
            images=tuple(
                _parse_image(Fields(item, f"{what}.images"))
                for item in fields.items("images", limit=_MAX_ENTRIES)
            ),
        )
        runtime.done()
        fields.done()
    except FormatError as error:
        raise UsageError(error.message, hint=error.hint, code="usage-prediction") from error
    return found


def _digest(fields: Fields, name: str) -> Digest:
    return Digest("sha256", fields.digest(name).hex())


def _verity(fields: Fields) -> str:
    return fields.hex("verity_root", sizes=(32,)).hex()


def _parse_stage1(fields: Fields) -> PredictedStage1:
    stage1 = PredictedStage1(
        flavour=fields.text("flavour", limit=40),
        digest=_digest(fields, "digest"),
        tree=_digest(fields, "tree"),
        verity_root=_verity(fields),
        file=_digest(fields, "file"),
        kernel=_digest(fields, "kernel") if fields.has("kernel") else None,
        initrd=_digest(fields, "initrd") if fields.has("initrd") else None,
        command_lines=_command_lines(fields) if fields.has("command_lines") else (),
    )
    fields.done()
    return stage1


def _command_lines(fields: Fields) -> tuple[CommandLine, ...]:
    found = []
    for item in fields.items("command_lines", limit=_MAX_ENTRIES):
        inner = Fields(item, f"{fields.what}.command_lines")
        accelerator = inner.text("accelerator", limit=40)
        if accelerator not in tuple(Accelerator):
            raise FieldError(f"{inner.what} has the accelerator {accelerator!r}, expected kvm or tcg")
        line = CommandLine(
            accelerator=Accelerator(accelerator),
            model=inner.text("model", limit=40),
            text=inner.text("text"),
        )
        inner.done()
        found.append(line)
    return tuple(found)


def _parse_image(fields: Fields) -> PredictedImage:
    image = PredictedImage(
        reference=fields.text("reference"),
        platform=fields.text("platform", limit=100),
        manifest=_digest(fields, "manifest"),
        config=_digest(fields, "config"),
        rootfs=_digest(fields, "rootfs"),
        tree=_digest(fields, "tree"),
        verity_root=_verity(fields),
    )
    fields.done()
    return image
