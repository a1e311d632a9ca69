"""What an organisation says about pods: profiles that give defaults, rules that no flag may relax; pure.

A profile is what an app gets without asking; flags on the command line replace what it says. A rule is a
floor: it is held against what was decided in the end, so it does not matter how that came about.
"""

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

# Patterns are compiled to regular expressions: more stars than this are no pattern that somebody can read.
MAX_STARS = 8
_REPOSITORY = re.compile(r"(?:docker://|oci:|oci-archive:|docker-archive:)?(?P<rest>.*)\Z", re.DOTALL)
_TAGGED = re.compile(r"(?P<name>[^@]*?)(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?\Z")


class ReadBack(StrEnum):
    """What happens when the kernel enforces less for an app than was compiled."""

    WARN = "warn"
    STRICT = "strict"


class Selector(NamedTuple):
    """Which apps something is about: every field that is not empty must hold."""

    images: tuple[str, ...] = ()
    except_images: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


class Profile(NamedTuple):
    """What an app gets that says nothing itself; None means that the profile says nothing either.

    Values that the command line knows too are kept in its words and parsed where they are used.
    """

    name: str
    source: str
    select: Selector | None = None
    seccomp: str | None = None
    capabilities: tuple[str, ...] | None = None
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    no_new_privileges: bool | None = None
    read_only: bool | None = None
    read_only_tmpfs: bool | None = None
    mask: tuple[str, ...] = ()
    unmask: tuple[str, ...] = ()
    ulimits: tuple[str, ...] = ()
    memory: str | None = None
    cpus: str | None = None
    pids_limit: int | None = None
    read_back: ReadBack | None = None


class Rule(NamedTuple):
    """One floor; None means that the rule says nothing about it."""

    name: str
    source: str
    reason: str = ""
    select: Selector = Selector()
    stage1: tuple[str, ...] | None = None
    network: tuple[str, ...] | None = None
    accelerator: tuple[str, ...] | None = None
    profiles: tuple[str, ...] | None = None
    seccomp: tuple[str, ...] | None = None
    capabilities: tuple[str, ...] | None = None
    allow_relaxations: tuple[str, ...] | None = None
    deny_relaxations: tuple[str, ...] = ()
    volumes: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None
    limits: tuple[str, ...] = ()
    root: bool | None = None
    read_only: bool | None = None
    no_new_privileges: bool | None = None
    enter: bool | None = None
    privileged: bool | None = None
    read_back: ReadBack | None = None


class Case(NamedTuple):
    """What a policy file expects of a command line; `secrun policy test` tries it."""

    name: str
    source: str
    image: str
    flags: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    allowed: bool
    rule: str


class PolicySet(NamedTuple):
    """Everything that is in force, in order; `digest` is empty if there is no file."""

    profiles: tuple[Profile, ...] = ()
    rules: tuple[Rule, ...] = ()
    cases: tuple[Case, ...] = ()
    sources: tuple[str, ...] = ()
    digest: str = ""


class AppView(NamedTuple):
    """What was decided for one app, as rules see it."""

    name: str
    reference: str
    labels: tuple[tuple[str, str], ...]
    profile: str
    uid: int
    capabilities: tuple[str, ...]
    seccomp: str
    """Name of the filter's profile; `unconfined` without a filter."""
    no_new_privileges: bool
    read_only: bool
    privileged: bool
    relaxations: tuple[str, ...]
    volumes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


class PodView(NamedTuple):
    """What was decided for a pod, as rules see it; `accelerator` is empty without a machine."""

    flavour: str
    network: str
    accelerator: str
    relaxations: tuple[str, ...]
    read_back: ReadBack
    apps: tuple[AppView, ...]


class Denial(NamedTuple):
    """One thing that a rule refuses: which rule, of which file, and why, in words."""

    rule: str
    source: str
    text: str
    reason: str = ""


BUILT_IN = "built in"
PRIVILEGED_RULE = "privileged"

# For services: no capability, nothing to write but memory, and proof that the kernel holds to it.
STRICT = Profile(
    name="strict",
    source=BUILT_IN,
    seccomp="strict",
    capabilities=(),
    no_new_privileges=True,
    read_only=True,
    read_only_tmpfs=True,
    read_back=ReadBack.STRICT,
)


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    parts = (".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
    return re.compile("".join(parts), re.DOTALL)


def glob(pattern: str, text: str) -> bool:
    """Match the whole of `text`; `*` stands for any characters, slashes included, `?` for one."""
    return _expression(pattern).fullmatch(text) is not None


def _any(patterns: Iterable[str], text: str) -> bool:
    return any(glob(pattern, text) for pattern in patterns)


def spellings(reference: str) -> tuple[str, ...]:
    """Return what an image pattern may match: the reference, without transport, without tag and digest."""
    found = _REPOSITORY.match(reference)
    plain = found["rest"] if found else reference
    tagged = _TAGGED.match(plain)
    return (reference, plain, tagged["name"] if tagged else plain)


def _image(patterns: Iterable[str], reference: str) -> bool:
    words = spellings(reference)
    return any(glob(pattern, word) for pattern in patterns for word in words)


def selects(selector: Selector, reference: str, labels: tuple[tuple[str, str], ...]) -> bool:
    """Tell whether an app of this image is meant."""
    if selector.images and not _image(selector.images, reference):
        return False
    if _image(selector.except_images, reference):
        return False
    known = dict(labels)
    return all(key in known and glob(pattern, known[key]) for key, pattern in selector.labels)


def uses_labels(policy: PolicySet) -> bool:
    """Tell whether any rule selects by label, so that somebody has to look them up."""
    return any(rule.select.labels for rule in policy.rules)


def profile_for(policy: PolicySet, reference: str, labels: tuple[tuple[str, str], ...]) -> Profile | None:
    """Return the first profile that selects this image by itself; None if none does."""
    for profile in policy.profiles:
        if profile.select is not None and selects(profile.select, reference, labels):
            return profile
    return None


def _words(items: Iterable[str]) -> str:
    return ", ".join(items) or "none"


def _pod_denials(rule: Rule, pod: PodView) -> Iterator[str]:
    allowed = (
        ("the stage1 flavour", pod.flavour, rule.stage1),
        ("the network", pod.network, rule.network),
        ("the accelerator", pod.accelerator or "none", rule.accelerator),
    )
    for what, got, words in allowed:
        if words is not None and got not in words:
            yield f"{what} is {got}, allowed: {_words(words)}"
    yield from _relaxation_denials(rule, "the pod", pod.relaxations)
    if rule.read_back is ReadBack.STRICT and pod.read_back is not ReadBack.STRICT:
        yield "what the kernel enforces is not read back strictly"


def _relaxation_denials(rule: Rule, what: str, relaxations: tuple[str, ...]) -> Iterator[str]:
    for item in relaxations:
        if rule.allow_relaxations is not None and not _any(rule.allow_relaxations, item):
            yield f"{what} has the relaxation {item}, allowed: {_words(rule.allow_relaxations)}"
        elif _any(rule.deny_relaxations, item):
            yield f"{what} has the relaxation {item}"


def _app_denials(rule: Rule, app: AppView) -> Iterator[str]:
    what = f"app {app.name}"
    yield from _choice_denials(rule, app, what)
    if missing := sorted(set(rule.limits) - set(app.limits)):
        yield f"{what} has no limit of {_words(missing)}"
    if rule.root is False and app.uid == 0:
        yield f"{what} runs as root"
    if rule.read_only and not app.read_only:
        yield f"{what} can write its root file system"
    if rule.no_new_privileges and not app.no_new_privileges:
        yield f"{what} may gain privileges"
    if rule.privileged is False and app.privileged:
        yield f"{what} is privileged"
    yield from _relaxation_denials(rule, what, app.relaxations)


def _choice_denials(rule: Rule, app: AppView, what: str) -> Iterator[str]:
    """Yield what is outside the lists of what is allowed."""
    if rule.profiles is not None and app.profile not in rule.profiles:
        yield f"{what} has the profile {app.profile}, allowed: {_words(rule.profiles)}"
    if rule.seccomp is not None and not _any(rule.seccomp, app.seccomp):
        yield f"{what} has the system call filter {app.seccomp}, allowed: {_words(rule.seccomp)}"
    if rule.capabilities is not None and (more := sorted(set(app.capabilities) - set(rule.capabilities))):
        yield f"{what} has {_words(more)}, allowed: {_words(rule.capabilities)}"
    for kind, paths, patterns in (
        ("volume", app.volumes, rule.volumes),
        ("device", app.devices, rule.devices),
    ):
        for path in paths:
            if patterns is not None and not _any(patterns, path):
                yield f"{what} has the {kind} {path}, allowed: {_words(patterns)}"


def _meant(rule: Rule, pod: PodView) -> tuple[AppView, ...]:
    return tuple(app for app in pod.apps if selects(rule.select, app.reference, app.labels))


def _ungranted(policy: PolicySet, pod: PodView) -> Iterator[Denial]:
    """Nobody is privileged by asking for it: some rule has to say so."""
    for app in pod.apps:
        granting = (rule for rule in policy.rules if rule.privileged)
        if app.privileged and not any(selects(rule.select, app.reference, app.labels) for rule in granting):
            yield Denial(
                rule=PRIVILEGED_RULE,
                source=BUILT_IN,
                text=f"app {app.name} asks for --privileged, and no rule allows it",
                reason="a rule with `privileged = true` for this image allows it",
            )


def judge(policy: PolicySet, pod: PodView) -> tuple[Denial, ...]:
    """Return everything that the rules refuse of a pod; empty if it may run.

    A rule about the pod as a whole (stage1, network, accelerator) holds if any of its apps is meant.
    """
    found = list(_ungranted(policy, pod))
    for rule in policy.rules:
        apps = _meant(rule, pod)
        if not apps:
            continue
        texts = [*_pod_denials(rule, pod), *(text for app in apps for text in _app_denials(rule, app))]
        found += [
            Denial(rule=rule.name, source=rule.source, text=text, reason=rule.reason) for text in texts
        ]
    return tuple(found)


def judge_entry(policy: PolicySet, pod: PodView, app: str) -> Denial | None:
    """Return what refuses that somebody runs a command in `app`; None if it is allowed."""
    for rule in policy.rules:
        if rule.enter is False and any(item.name == app for item in _meant(rule, pod)):
            return Denial(
                rule=rule.name, source=rule.source, text=f"app {app} must not be entered", reason=rule.reason
            )
    return None


def demands_strict(policy: PolicySet, images: Iterable[tuple[str, tuple[tuple[str, str], ...]]]) -> bool:
    """Tell whether a rule wants a pod of these images, references with labels, to be read back strictly."""
    strict = [rule.select for rule in policy.rules if rule.read_back is ReadBack.STRICT]
    return any(selects(select, reference, labels) for reference, labels in images for select in strict)
