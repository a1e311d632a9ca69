"""The verbs on profiles and rules."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from secrun import policyfiles
from secrun.cli.table import Arguments, Context
from secrun.cli.views import write_json
from secrun.errors import DeniedError, SecrunError
from secrun.jsonio import JsonObject, JsonValue
from secrun_policies.rules import STRICT, Case, PolicySet, Profile, Rule, Selector

if TYPE_CHECKING:
    from secrun.stage1.manifest import PodManifest

SHOW_SCHEMA = "secrun.dev/policy/v1"
EXPLAIN_SCHEMA = "secrun.dev/policy-explain/v1"
TEST_SCHEMA = "secrun.dev/policy-test/v1"


def _json_value(value: object) -> JsonValue:
    if value is None or isinstance(value, bool | int | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, tuple) and all(isinstance(item, tuple) and len(item) == 2 for item in value):
        return {str(key): _json_value(item) for key, item in value}
    return [_json_value(item) for item in value] if isinstance(value, tuple) else str(value)


def _said(item: Profile | Rule) -> dict[str, JsonValue]:
    """Return what a profile or a rule says, without what it does not."""
    fields: dict[str, object] = {
        name: value
        for name, value in zip(item._fields, item, strict=True)
        if value not in (None, "", Selector()) and name not in ("name", "source", "select")
    }
    select = item.select
    if select is not None:
        selectors = (("images", select.images), ("except", select.except_images), ("labels", select.labels))
        fields = {**{name: value for name, value in selectors if value}, **fields}
    # An empty list says "none" where it was given, and nothing where it is the default.
    default = item._field_defaults
    return {name: _json_value(value) for name, value in fields.items() if default.get(name) != value}


def _lines(item: Profile | Rule) -> Iterable[str]:
    for name, value in _said(item).items():
        if isinstance(value, dict):
            text = ", ".join(f"{key} = {pattern}" for key, pattern in value.items())
        elif isinstance(value, list):
            text = ", ".join(map(str, value)) or "none"
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
        yield f"    {name}: {text}\n"


def show(args: Arguments, context: Context) -> int:
    """Show files, profiles and rules."""
    policy = policyfiles.load()
    profiles = (STRICT, *policy.profiles)
    if args.text("format") == "json":
        write_json(
            context,
            {
                "schema": SHOW_SCHEMA,
                "digest": policy.digest,
                "files": list(policy.sources),
                "profiles": [_row(item) for item in profiles],
                "rules": [_row(item) for item in policy.rules],
                "tests": len(policy.cases),
            },
        )
        return 0
    context.out.write(f"digest {policy.digest or '-'}\n")
    context.out.write("".join(f"file {source}\n" for source in policy.sources))
    for word, items in (("profile", profiles), ("rule", policy.rules)):
        for item in items:
            context.out.write(f"{word} {item.name} ({item.source})\n")
            context.out.write("".join(_lines(item)))
    return 0


def _row(item: Profile | Rule) -> JsonObject:
    return {"name": item.name, "source": item.source, **_said(item)}


def _explained(policy: PolicySet, manifest: "PodManifest", labels: Mapping[str, object]) -> JsonObject:
    from secrun.pod import policy as applied
    from secrun_policies.rules import AppView, judge, selects

    seen = applied.view(manifest, {name: _labels(value) for name, value in labels.items()})

    def about(app: AppView) -> list[JsonValue]:
        return [
            f"{rule.name} ({rule.source})"
            for rule in policy.rules
            if selects(rule.select, app.reference, app.labels)
        ]

    apps: list[JsonValue] = [
        {
            "name": app.name,
            "image": app.reference,
            "profile": app.profile,
            "capabilities": list(app.capabilities),
            "seccomp": app.seccomp,
            "no_new_privileges": app.no_new_privileges,
            "privileged": app.privileged,
            "read_only": app.read_only,
            "relaxations": list(app.relaxations),
            "rules": about(app),
        }
        for app in seen.apps
    ]
    denials: list[JsonValue] = [
        {"rule": item.rule, "source": item.source, "text": item.text} for item in judge(policy, seen)
    ]
    return {
        "uuid": manifest.uuid,
        "policy": "" if manifest.policy is None else str(manifest.policy),
        "policy_now": policy.digest,
        "label": "" if manifest.label is None else manifest.label.process,
        "relaxations": list(manifest.relaxations),
        "read_back": "strict" if manifest.strict_read_back else "warn",
        "apps": apps,
        "denied_now": denials,
    }


def _labels(value: object) -> tuple[tuple[str, str], ...]:
    return value if isinstance(value, tuple) else ()


def explain(args: Arguments, context: Context) -> int:
    """Tell what confines a pod."""
    from secrun.pod import policy as applied
    from secrun.pod.states import find
    from secrun.stage1.podfiles import PodFiles

    manifest = PodFiles(find(context.layout, args.required("uuid")).path).read_manifest()
    policy = policyfiles.load()
    found = _explained(policy, manifest, applied.labels_of(policy, manifest, context.layout))
    if args.text("format") == "json":
        write_json(context, {"schema": EXPLAIN_SCHEMA, **found})
        return 0
    for key, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                context.out.write(f"{key}\n" + "".join(_entry(item)))
        else:
            context.out.write(f"{key}: {_text(value)}\n")
    return 0


def _text(value: JsonValue) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value) or "none"


def _entry(item: JsonValue) -> Iterable[str]:
    if isinstance(item, dict):
        for name, value in item.items():
            yield f"    {name}: {_text(value)}\n"


def check(args: Arguments, context: Context) -> int:
    """Decide a pod as `prepare` does and write nothing of it; a denial is not measured."""
    from secrun.cli.pods import pod_request
    from secrun.pod.prepare import planned
    from secrun.pod.request import check_pod
    from secrun.pod.states import new_uuid

    pod = pod_request(args, context)
    plan = planned(context.layout, pod, check_pod(pod), None, new_uuid())
    for app in plan.manifest.apps:
        relaxed = ", ".join(app.relaxations) or "none"
        context.out.write(f"app {app.name}: profile {app.security.profile}, relaxations: {relaxed}\n")
    context.out.write("allowed\n")
    return 0


def _try(case: Case, policy: PolicySet, context: Context) -> str:
    """Return what is wrong with a case; empty if it comes out as expected."""
    from secrun.cli.policytest import outcome

    try:
        denials = outcome(case, policy, context)
    except DeniedError as error:
        return error.message
    except SecrunError as error:
        return f"{error.message} {error.hint}".strip()
    if case.allowed:
        return "; ".join(f"rule {item.rule} ({item.source}): {item.text}" for item in denials)
    if not denials:
        return "nothing refuses it"
    names = sorted({item.rule for item in denials})
    return "" if not case.rule or case.rule in names else f"refused by {', '.join(names)}"


def test(args: Arguments, context: Context) -> int:
    """Try the cases of the policy files; exit 1 if one does not come out as expected."""
    policy = policyfiles.load()
    results = [(case, _try(case, policy, context)) for case in policy.cases]
    if args.text("format") == "json":
        rows: list[JsonValue] = [
            {"name": case.name, "source": case.source, "ok": not wrong, "problem": wrong}
            for case, wrong in results
        ]
        write_json(context, {"schema": TEST_SCHEMA, "tests": rows})
    else:
        for case, wrong in results:
            expected = "allow" if case.allowed else "deny"
            context.out.write(f"{'FAIL' if wrong else 'ok  '} {case.name} ({expected}, {case.source})\n")
            if wrong:
                context.out.write(f"     {wrong}\n")
    return 1 if any(wrong for _, wrong in results) else 0
