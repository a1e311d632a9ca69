"""The image configuration: OCI image-spec 1.1, config.md; Docker's has the same fields."""

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import fields, limits
from secrun.image.platform import Platform
from secrun.jsonio import JsonObject, parse_object
from secrun.record import record

# The kernel takes 128 KiB per argument and 2 MiB in all: more words than this cannot be executed.
_MAX_WORDS = 10_000
# Go writes times as 64-bit nanoseconds.
_MAX_NUMBER = (1 << 63) - 1


# Holds the manifest of an app container image, which this image was converted from.
APPC_LABEL = "dev.secrun.appc.manifest"


@record
class Healthcheck:
    """What Docker's HEALTHCHECK left in an image; times in nanoseconds, 0 and empty say nothing."""

    test: tuple[str, ...] = ()
    """`NONE`, `CMD` and words, or `CMD-SHELL` and a line."""
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    retries: int = 0


@record
class ImageConfig:
    """What an image asks for when it runs, and the digests of its uncompressed layers, lowest first."""

    architecture: str
    os: str
    variant: str
    created: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: tuple[str, ...]
    user: str
    working_dir: str
    stop_signal: str
    volumes: tuple[str, ...]
    exposed_ports: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    diff_ids: tuple[Digest, ...]
    healthcheck: Healthcheck | None = None

    @property
    def platform(self) -> Platform:
        """The platform that the image was built for."""
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant)


def _names(source: JsonObject, key: str, what: str) -> tuple[str, ...]:
    """Return the sorted keys of a Go set, written as an object of empty objects."""
    return tuple(sorted(fields.checked_text(name, what, key) for name in fields.mapping(source, key, what)))


def _labels(source: JsonObject, what: str) -> tuple[tuple[str, str], ...]:
    labels = fields.mapping(source, "Labels", what)
    return tuple(
        (fields.checked_text(name, what, "Labels"), fields.text(labels, name, what))
        for name in sorted(labels)
    )


def _healthcheck(source: JsonObject, what: str) -> Healthcheck | None:
    found = fields.mapping(source, "Healthcheck", what)
    if not found:
        return None

    def number(key: str) -> int:
        return 0 if found.get(key) is None else fields.integer(found, key, what, limit=_MAX_NUMBER)

    return Healthcheck(
        test=fields.texts(found, "Test", what, limit=_MAX_WORDS),
        interval_ns=number("Interval"),
        timeout_ns=number("Timeout"),
        start_period_ns=number("StartPeriod"),
        retries=number("Retries"),
    )


def _healthcheck_document(check: Healthcheck | None) -> JsonObject:
    if check is None:
        return {}
    return {
        "Healthcheck": {
            "Test": [*check.test],
            "Interval": check.interval_ns,
            "Timeout": check.timeout_ns,
            "StartPeriod": check.start_period_ns,
            "Retries": check.retries,
        }
    }


def _environment(source: JsonObject, what: str) -> tuple[str, ...]:
    words = fields.texts(source, "Env", what, limit=_MAX_WORDS)
    for word in words:
        if not word.partition("=")[0] or "=" not in word:
            raise ImageError(f"{what}: Env has {word[:80]!r}, expected NAME=VALUE", code="image-config")
    return words


def _diff_ids(document: JsonObject, what: str) -> tuple[Digest, ...]:
    rootfs = fields.mapping(document, "rootfs", what)
    if fields.text(rootfs, "type", what, None) != "layers":
        raise ImageError(f"{what}: rootfs.type is not 'layers'", code="image-config")
    words = fields.texts(rootfs, "diff_ids", what, limit=limits.MAX_LAYERS)
    return tuple(fields.parse_digest(word, what) for word in words)


def parse(data: bytes, *, what: str) -> ImageConfig:
    """Parse an image configuration; raises ImageError naming `what`."""
    return of_document(parse_object(data, what=what, limit=limits.MAX_CONFIG_BYTES), what=what)


def to_document(config: ImageConfig) -> JsonObject:
    """Return the least document that `of_document` reads the same from."""
    return {
        "architecture": config.architecture,
        "os": config.os,
        "variant": config.variant,
        "created": config.created,
        "config": {
            "Entrypoint": [*config.entrypoint],
            "Cmd": [*config.cmd],
            "Env": [*config.env],
            "User": config.user,
            "WorkingDir": config.working_dir,
            "StopSignal": config.stop_signal,
            "Volumes": {name: {} for name in config.volumes},
            "ExposedPorts": {name: {} for name in config.exposed_ports},
            "Labels": dict(config.labels),
            **_healthcheck_document(config.healthcheck),
        },
        "rootfs": {"type": "layers", "diff_ids": [str(item) for item in config.diff_ids]},
    }


def of_document(document: JsonObject, *, what: str) -> ImageConfig:
    """Read an image configuration from parsed JSON; raises ImageError naming `what`."""
    process = fields.mapping(document, "config", what)
    return ImageConfig(
        architecture=fields.word(document, "architecture", what),
        os=fields.word(document, "os", what),
        variant=fields.word(document, "variant", what),
        created=fields.text(document, "created", what),
        entrypoint=fields.texts(process, "Entrypoint", what, limit=_MAX_WORDS),
        cmd=fields.texts(process, "Cmd", what, limit=_MAX_WORDS),
        env=_environment(process, what),
        user=fields.text(process, "User", what),
        working_dir=fields.text(process, "WorkingDir", what),
        stop_signal=fields.text(process, "StopSignal", what),
        volumes=_names(process, "Volumes", what),
        exposed_ports=_names(process, "ExposedPorts", what),
        labels=_labels(process, what),
        healthcheck=_healthcheck(process, what),
        diff_ids=_diff_ids(document, what),
    )


def check_against(config: ImageConfig, layer_count: int, *, what: str) -> None:
    """Raise ImageError unless the config describes exactly `layer_count` layers."""
    if len(config.diff_ids) != layer_count:
        raise ImageError(
            f"{what} has {len(config.diff_ids)} diff_ids, but its manifest has {layer_count} layers",
            code="image-layer-count",
        )
