"""What an app container image asks for beyond OCI: isolators, mount points, ports and groups.

An image narrows its own confinement and never widens it: what goes beyond the default needs the operator's
option. Whatever the operator says of the same thing replaces what the image says, as with rkt.
"""

from collections.abc import Sequence

from secrun.errors import UsageError
from secrun.image.aci import embedded
from secrun.image.aci.isolators import Isolators
from secrun.image.aci.manifest import AciManifest, App, MountPoint, NamedPort
from secrun.image.config import ImageConfig
from secrun.network.plan import ImagePort, Protocol
from secrun.paths import Layout
from secrun.pod import mounts, security
from secrun.pod import request as requests
from secrun.pod.request import AppRequest
from secrun.pod.security import SecurityRequest
from secrun.record import record, replace
from secrun.stage1.manifest import Limits
from secrun.stage1.volume import EmptyVolume, Volume
from secrun_policies import capabilities, isolator
from secrun_policies.errors import PolicyError
from secrun_policies.libseccomp import knows
from secrun_policies.profiles import default_profile

_APP_NAME = "AC_APP_NAME"
_ALL = "all"


@record
class Applied:
    """A request with what the image asks for filled in, and what its user should know."""

    request: AppRequest
    notes: tuple[str, ...]


def _refused(image: str, what: str, hint: str, code: str) -> UsageError:
    return UsageError(f"{image}: {what}", hint=hint, code=code)


def _names(words: Sequence[str]) -> frozenset[str]:
    """Return the capabilities that an operator names, `all` aside."""
    return frozenset(capabilities.parse_name(word) for word in words if word.lower() != _ALL)


def _image_caps(
    image: str, found: Isolators, given: SecurityRequest
) -> tuple[frozenset[str], frozenset[str]]:
    """Return what the image keeps and what it removes; empty sets where it says nothing."""
    try:
        retain = frozenset(capabilities.parse_name(name) for name in found.caps_retain or ())
        # Removing what nobody has changes nothing, and old kernels' names are no error then.
        remove = frozenset(found.caps_remove or ()) & capabilities.NUMBERS.keys()
        return retain - _names(given.cap_drop), remove
    except PolicyError as error:
        raise _refused(image, error.message, error.hint, "image-capabilities") from error


def _capabilities(
    image: str, found: Isolators, given: SecurityRequest, asked: SecurityRequest
) -> SecurityRequest:
    """Narrow an app's capabilities; raises UsageError where the image wants more than it gets by default.

    Only names are dropped: granting them again by name would make them ambient for other users than root.
    """
    says = found.caps_retain is not None or found.caps_remove is not None
    every = {word.lower() for word in given.cap_add} | {word.lower() for word in asked.cap_add}
    if not says or given.capabilities is not None or given.privileged or _ALL in every:
        return asked
    added = _names(asked.cap_add)
    base = frozenset(asked.capabilities) if asked.capabilities is not None else capabilities.DEFAULT
    retain, remove = _image_caps(image, found, given)
    if found.caps_retain is not None:
        if extra := retain - base - added:
            listed = ", ".join(sorted(extra))
            raise _refused(
                image,
                f"its capabilities-retain-set has {listed}, which apps do not get by default",
                "grant it with --cap-add, refuse it with --cap-drop, or name all with --caps-retain",
                "image-capabilities",
            )
        remove = base - retain
    remove -= added
    if asked.capabilities is not None:
        return replace(asked, capabilities=tuple(sorted(base - remove)))
    return replace(asked, cap_drop=(*asked.cap_drop, *sorted(remove)))


def _seccomp(
    image: str, found: Isolators, given: SecurityRequest, asked: SecurityRequest
) -> tuple[SecurityRequest, tuple[str, ...]]:
    """Apply an image's filter, unless operator or profile have one; raises UsageError for a wider one."""
    if not found.seccomp or given.seccomp is not None or given.privileged:
        return asked, ()
    if asked.seccomp is not None:
        return asked, ("its seccomp isolator is not applied: the profile has a filter of its own",)
    try:
        narrowed, beyond = isolator.within(found.seccomp, default_profile(), knows)
    except PolicyError as error:
        raise _refused(
            image, f"its seccomp isolator: {error.message}", error.hint, "image-seccomp"
        ) from error
    if beyond:
        raise _refused(
            image,
            f"its seccomp isolator allows {', '.join(beyond[:20])}, which the default filter does not",
            "say what the app may call: --seccomp, or --security-opt seccomp=",
            "image-seccomp",
        )
    return replace(asked, seccomp=narrowed), ()


def _confined(image: str, found: Isolators, given: SecurityRequest, asked: AppRequest) -> Applied:
    narrowed = _capabilities(image, found, given, asked.security)
    narrowed, notes = _seccomp(image, found, given, narrowed)
    if found.no_new_privileges and given.new_privileges is None:
        narrowed = replace(narrowed, new_privileges=False)
    if found.oom_score_adj is not None and narrowed.oom_score_adj is None:
        score = security.oom_score_adj(found.oom_score_adj, security.inherited_oom_score())
        narrowed = replace(narrowed, oom_score_adj=score)
    if found.ignored:
        notes = (*notes, f"isolators that secrun does not know are not applied: {', '.join(found.ignored)}")
    return Applied(request=replace(asked, security=narrowed), notes=notes)


def _least(first: int | None, second: int | None) -> int | None:
    known = [value for value in (first, second) if value is not None]
    return min(known) if known else None


def _limits(image: str, found: Isolators, given: Limits, asked: Limits) -> Limits:
    """Apply an image's limits: the operator's count alone, those of a profile if they are lower."""
    memory, millis, weight = asked.memory_bytes, asked.cpu_millis, asked.cpu_weight
    if found.memory_bytes is not None and given.memory_bytes is None:
        if found.memory_bytes < requests.MIN_MEMORY_BYTES:
            raise _refused(
                image,
                f"its isolator resource/memory allows {found.memory_bytes} bytes, too few to start",
                f"give --memory; the least that works is {requests.MIN_MEMORY_BYTES >> 20}m",
                "image-memory",
            )
        memory = _least(memory, found.memory_bytes)
    if found.cpu_millis is not None and given.cpu_millis is None:
        # 10 is the least that --cpus takes.
        millis = _least(millis, max(found.cpu_millis, 10))
    if found.cpu_shares is not None and given.cpu_weight is None and weight is None:
        weight = requests.cpu_weight(found.cpu_shares)
    return replace(asked, memory_bytes=memory, cpu_millis=millis, cpu_weight=weight)


def _mounted(layout: Layout, points: Sequence[MountPoint], asked: AppRequest) -> Applied:
    """Give each mount point the volume of its name, else what is mounted there, else an empty folder."""
    declared = {item.name: item for item in asked.declared}
    taken = {item.target for kind in (asked.volumes, asked.empty_volumes) for item in kind}
    taken |= {item.target for item in asked.security.tmpfs}
    given: list[Volume | EmptyVolume] = [*asked.volumes, *asked.empty_volumes]
    notes: list[str] = []
    for point in points:
        if point.path in taken:
            continue
        if point.name in declared:
            given.append(
                mounts.declared_at(layout, declared[point.name], point.path, read_only=point.read_only)
            )
            continue
        # Without a name it is this app's alone, as with rkt.
        given.append(EmptyVolume(name="", target=point.path, read_only=point.read_only))
        notes.append(
            f"mount point {point.name} ({point.path}) has no volume: it gets an empty one that goes with "
            f"the pod; give it one with -v {point.name},kind=host,source=FOLDER"
        )
    return Applied(
        request=replace(
            asked,
            volumes=tuple(item for item in given if isinstance(item, Volume)),
            empty_volumes=tuple(item for item in given if isinstance(item, EmptyVolume)),
        ),
        notes=tuple(notes),
    )


def _check_runnable(image: str, app: App) -> None:
    """Raise UsageError for what secrun does not do."""
    if app.event_handlers:
        raise UsageError(
            f"{image} has the event handlers {', '.join(app.event_handlers)}, which secrun does not run",
            hint="build the image without them, or let the app do it",
            code="image-event-handlers",
        )
    if active := [port.name for port in app.ports if port.socket_activated]:
        raise UsageError(
            f"{image} wants to be activated by sockets ({', '.join(active)}), which secrun does not do",
            hint="build the image without socketActivated",
            code="image-socket-activation",
        )


def without_isolators(image: AciManifest) -> AciManifest:
    """Return an image that asks for no isolation of its own, for whoever says so by name."""
    return image if image.app is None else replace(image, app=replace(image.app, isolators=Isolators()))


def apply(layout: Layout, name: str, image: AciManifest, given: AppRequest, asked: AppRequest) -> Applied:
    """Fill in what an image asks for: `given` is what was said, `asked` has the profile's words too.

    Raises UsageError for what goes beyond the default, and for what secrun does not do.
    """
    app = image.app
    if app is None:
        return Applied(request=asked, notes=())
    reference = given.image
    _check_runnable(reference, app)
    limited = replace(asked, limits=_limits(reference, app.isolators, given.limits, asked.limits))
    confined = _confined(reference, app.isolators, given.security, limited)
    mounted = _mounted(layout, app.mount_points, confined.request)
    env = dict(mounted.request.env)
    env.setdefault(_APP_NAME, name)
    # Groups go with the image's own user; those that were asked for replace them.
    own = tuple(map(str, app.supplementary_gids)) if given.user is None else ()
    return Applied(
        request=replace(mounted.request, env=tuple(env.items()), groups=mounted.request.groups or own),
        notes=(*confined.notes, *mounted.notes),
    )


def _port(port: NamedPort) -> ImagePort | None:
    if port.protocol not in tuple(Protocol):
        return None
    return ImagePort(name=port.name, port=port.port, count=port.count, protocol=Protocol(port.protocol))


def ports_of(config: ImageConfig, what: str) -> tuple[ImagePort, ...]:
    """Return the ports that an image gives names."""
    image = embedded.manifest_of(config, what)
    if image is None or image.app is None:
        return ()
    return tuple(found for port in image.app.ports if (found := _port(port)) is not None)
