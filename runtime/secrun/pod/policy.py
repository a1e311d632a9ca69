"""Profiles and rules applied to pods: what apps get by default, and what no flag may relax."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secrun import policyfiles
from secrun.errors import DeniedError, StateError, UsageError
from secrun.pod import request as requests
from secrun.pod import security, system
from secrun.pod.request import AppRequest
from secrun.pod.security import SecurityRequest
from secrun.record import replace
from secrun.stage1.manifest import AppManifest, Limits, PodManifest
from secrun.stage1.security import Tmpfs
from secrun_policies import capabilities, rules
from secrun_policies.errors import PolicyError
from secrun_policies.rules import BUILT_IN, STRICT, AppView, Denial, PodView, PolicySet, Profile, ReadBack

if TYPE_CHECKING:
    from secrun.paths import Layout

Labels = tuple[tuple[str, str], ...]
_ALL = "all"


def choose(policy: PolicySet, app: AppRequest, reference: str, labels: Labels) -> Profile | None:
    """Return the profile of an app: the one asked for, else the first that selects its image.

    None stands for `default`. Raises UsageError for a name that there is not.
    """
    word = app.security.profile
    if word is None:
        return rules.profile_for(policy, reference, labels)
    if word == "default":
        return None
    if word == STRICT.name:
        return STRICT
    if "/" in word:
        return policyfiles.load_profile_file(Path(word))
    for profile in policy.profiles:
        if profile.name == word:
            return profile
    known = ("default", STRICT.name, *(profile.name for profile in policy.profiles))
    raise UsageError(
        f"there is no profile {word[:80]!r}", hint=f"known: {', '.join(known)}", code="usage-profile"
    )


def apply(profile: Profile | None, app: AppRequest) -> AppRequest:
    """Fill in what an app does not say itself; raises UsageError for a value that has no meaning."""
    if profile is None:
        return app
    try:
        filled = _security(profile, app.security)
        limits = _limits(profile, app.limits)
    except (UsageError, PolicyError) as error:
        raise UsageError(
            f"profile {profile.name} of {profile.source}: {error.message}",
            hint=error.hint,
            code="usage-profile",
        ) from error
    return replace(app, security=filled, limits=limits, read_only=app.read_only or profile.read_only is True)


def _security(profile: Profile, asked: SecurityRequest) -> SecurityRequest:
    named = replace(
        asked,
        profile=profile.name,
        read_only_tmpfs=asked.read_only_tmpfs or profile.read_only_tmpfs is True,
        strict_read_back=profile.read_back is ReadBack.STRICT,
    )
    limits = tuple(security.ulimit(text) for text in profile.ulimits)
    said = {limit.name for limit in asked.rlimits}
    named = replace(named, rlimits=(*asked.rlimits, *(limit for limit in limits if limit.name not in said)))
    if asked.privileged:
        # Whoever asks for everything asks for what the profile would take away.
        return named
    seccomp = profile.seccomp if asked.seccomp is None else asked.seccomp
    new = asked.new_privileges
    if new is None and profile.no_new_privileges is not None:
        new = not profile.no_new_privileges
    return replace(
        _capabilities(profile, named),
        seccomp=seccomp,
        new_privileges=new,
        mask=(*profile.mask, *asked.mask),
        unmask=(*(path for path in profile.unmask if path not in asked.mask), *asked.unmask),
    )


def _normal(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(_ALL if name.lower() == _ALL else capabilities.parse_name(name) for name in names)


def _capabilities(profile: Profile, asked: SecurityRequest) -> SecurityRequest:
    """Join a profile's capabilities with those of the command line, which win."""
    if asked.capabilities is not None:
        return asked
    add, drop = _normal(asked.cap_add), _normal(asked.cap_drop)
    if profile.capabilities is not None:
        if _ALL in add or _ALL in drop:
            return asked
        return replace(
            asked,
            capabilities=tuple(sorted((set(profile.capabilities) | set(add)) - set(drop))),
            cap_add=(),
            cap_drop=(),
        )
    given = tuple(name for name in _normal(profile.cap_add) if name not in drop)
    taken = tuple(name for name in _normal(profile.cap_drop) if name not in add)
    return replace(asked, cap_add=(*given, *add), cap_drop=(*taken, *drop))


def _limits(profile: Profile, asked: Limits) -> Limits:
    memory, millis, pids = asked.memory_bytes, asked.cpu_millis, asked.pids
    if memory is None and profile.memory is not None:
        memory = requests.memory(profile.memory)
    if millis is None and profile.cpus is not None:
        millis = requests.cpus(profile.cpus)
    return replace(
        asked, memory_bytes=memory, cpu_millis=millis, pids=profile.pids_limit if pids is None else pids
    )


def writable_folders(app: AppRequest) -> tuple[Tmpfs, ...]:
    """Return the folders in memory of an app, those of --read-only-tmpfs and of --systemd among them."""
    asked = app.security
    kinds = (asked.tmpfs, app.volumes, app.empty_volumes)
    taken = {item.target for kind in kinds for item in kind}
    found = (*asked.tmpfs, *system.folders(app, taken))
    if not asked.read_only_tmpfs:
        return found
    if not app.read_only:
        raise UsageError("--read-only-tmpfs has no meaning without --read-only", code="usage-tmpfs")
    taken |= {item.target for item in found}
    own = (Tmpfs(target=path) for path in security.WRITABLE_FOLDERS if path not in taken)
    return (*found, *own)


def _app_view(app: AppManifest, labels: Labels) -> AppView:
    limits = app.limits
    given = (("memory", limits.memory_bytes), ("cpu", limits.cpu_millis), ("pids", limits.pids))
    return AppView(
        name=app.name,
        reference=app.image.reference,
        labels=labels,
        profile=app.security.profile,
        uid=app.uid,
        capabilities=app.capabilities,
        seccomp=app.security.seccomp,
        no_new_privileges=app.security.no_new_privileges,
        read_only=app.read_only,
        privileged=app.security.privileged,
        relaxations=app.relaxations,
        volumes=tuple(volume.source for volume in app.volumes),
        devices=tuple(device.source for device in app.security.devices),
        limits=tuple(name for name, value in given if value is not None),
    )


def view(manifest: PodManifest, labels: Mapping[str, Labels]) -> PodView:
    """Return what rules see of a pod; `labels` are the images' labels by app."""
    return PodView(
        flavour=manifest.flavour,
        network=str(manifest.network),
        accelerator=str(manifest.machine.accelerator) if manifest.machine else "",
        relaxations=manifest.relaxations,
        read_back=ReadBack.STRICT if manifest.strict_read_back else ReadBack.WARN,
        apps=tuple(_app_view(app, labels.get(app.name, ())) for app in manifest.apps),
    )


def _said(denial: Denial) -> str:
    where = denial.source if denial.source == BUILT_IN else f"of {denial.source}"
    return f"rule {denial.rule} ({where}): {denial.text}"


def refusal(denials: Sequence[Denial]) -> DeniedError:
    """Return the error that says which rules refuse, and why."""
    reasons = dict.fromkeys(denial.reason for denial in denials if denial.reason)
    return DeniedError(
        "; ".join(_said(denial) for denial in denials),
        hint="; ".join(reasons) or "secrun policy show lists the rules; no option relaxes them",
        code="denied-policy",
    )


def labels_of(policy: PolicySet, manifest: PodManifest, layout: "Layout") -> dict[str, Labels]:
    """Return the labels of a pod's images from the store, where rules ask for labels at all.

    Raises StateError if a configuration is gone: a rule that cannot be decided is not passed over.
    """
    if not rules.uses_labels(policy):
        return {}
    from secrun.image.store import ImageStore

    store = ImageStore(layout)
    result: dict[str, Labels] = {}
    for app in manifest.apps:
        known = store.facts(app.image.manifest)
        if known is None:
            raise StateError(
                f"the configuration of {app.image.reference} is gone, and a rule asks for its labels",
                hint="fetch the image again",
                code="image-missing",
            )
        result[app.name] = known.config.labels
    return result


def hold(policy: PolicySet, manifest: PodManifest, labels: Mapping[str, Labels]) -> None:
    """Raise DeniedError if a rule refuses the pod."""
    if denials := rules.judge(policy, view(manifest, labels)):
        raise refusal(denials)


def hold_again(layout: "Layout", manifest: PodManifest) -> None:
    """Judge a prepared pod by the rules of now, if they are not those it was prepared under."""
    if policyfiles.digest() == ("" if manifest.policy is None else str(manifest.policy)):
        return
    policy = policyfiles.load()
    hold(policy, manifest, labels_of(policy, manifest, layout))


def hold_entry(layout: "Layout", manifest: PodManifest, app: str) -> None:
    """Raise DeniedError if a rule refuses that a command runs in `app`."""
    policy = policyfiles.load()
    if not policy.rules:
        return
    seen = view(manifest, labels_of(policy, manifest, layout))
    if (denial := rules.judge_entry(policy, seen, app)) is not None:
        raise refusal([denial])
