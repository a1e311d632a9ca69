"""One case of a policy file: a command line, judged without its image."""

from collections.abc import Sequence

from secrun.cli.options_policy import POLICY_VERBS
from secrun.cli.parse import parse_verb
from secrun.cli.pods import pod_request
from secrun.cli.table import Context
from secrun.errors import UsageError
from secrun.image import reference as references
from secrun.pod import confine, policy, request
from secrun.pod.confine import ConfinedApp
from secrun.pod.request import AppRequest, PodRequest
from secrun.stage1.bundle import Process
from secrun.stage1.manifest import Network
from secrun_policies.rules import (
    AppView,
    Case,
    Denial,
    PodView,
    PolicySet,
    ReadBack,
    demands_strict,
    judge,
)

_WORDS = ("policy", "check")


def _process(app: AppRequest) -> Process:
    """Return a process of the user that the flags name; without an image only a number says who that is."""
    uid, _, gid = (app.user or "0").partition(":")
    if not uid.isdecimal() or (gid and not gid.isdecimal()):
        raise UsageError(f"--user {app.user}: without the image only numbers are known")
    return Process(
        args=("program",), env=(), cwd="/", uid=int(uid), gid=int(gid or 0), groups=(), terminal=False
    )


def _view(app: AppRequest, name: str, case: Case, confined: ConfinedApp) -> AppView:
    limits = app.limits
    given = (("memory", limits.memory_bytes), ("cpu", limits.cpu_millis), ("pids", limits.pids))
    return AppView(
        name=name,
        reference=str(references.localize(references.parse(app.image))),
        labels=case.labels,
        profile=confined.security.profile,
        uid=_process(app).uid,
        capabilities=confined.capabilities,
        seccomp=confined.security.seccomp,
        no_new_privileges=confined.security.no_new_privileges,
        read_only=app.read_only,
        privileged=confined.security.privileged,
        relaxations=confined.relaxations,
        volumes=tuple(volume.source for volume in app.volumes),
        devices=tuple(device.source for device in confined.security.devices),
        limits=tuple(name for name, value in given if value is not None),
    )


def _accelerator(pod: PodRequest) -> str:
    if pod.flavour == "nspawn":
        return ""
    asked = pod.machine.accelerator
    return "tcg" if asked is not None and asked.value == "tcg" else "kvm"


def outcome(case: Case, known: PolicySet, context: Context) -> Sequence[Denial]:
    """Return what the rules refuse of a case; raises SecrunError for flags that have no meaning."""
    verb = next(verb for verb in POLICY_VERBS if verb.words == _WORDS)
    pod = pod_request(parse_verb(f"test {case.name}", verb, [*case.flags, case.image]), context)
    reference = str(references.localize(references.parse(case.image)))
    apps = [policy.apply(policy.choose(known, app, reference, case.labels), app) for app in pod.apps]
    names = request.check_pod(pod)
    confined = confine.pod(
        pod.net.mode, [(name, app, _process(app)) for name, app in zip(names, apps, strict=True)]
    )
    strict = any(app.security.strict_read_back for app in apps)
    strict = strict or demands_strict(known, ((reference, case.labels),))
    seen = PodView(
        flavour=pod.flavour,
        network=str(pod.net.mode),
        accelerator=_accelerator(pod),
        relaxations=("network:host",) if pod.net.mode is Network.HOST else (),
        read_back=ReadBack.STRICT if strict else ReadBack.WARN,
        apps=tuple(
            _view(app, name, case, confined.apps[name]) for name, app in zip(names, apps, strict=True)
        ),
    )
    return judge(known, seen)
