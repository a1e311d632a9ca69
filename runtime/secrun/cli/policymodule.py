"""`secrun policy install`: the module that gives pods labels where the host's policy has none."""

from pathlib import Path

from secrun import selinuxmodule
from secrun.cli.table import Arguments, Context
from secrun.cli.views import write_json
from secrun.errors import StateError, UsageError
from secrun.pod.states import State
from secrun.pod.view import all_pods
from secrun.selinuxmodule import ModuleState, ModuleStatus
from secrun.stage1.agent import agent_path

SCHEMA = "secrun.dev/policy-module/v1"


def _tell(args: Arguments, context: Context, found: ModuleStatus) -> None:
    if args.text("format") == "json":
        fields = {"state": str(found.state), "shipped": found.shipped, "installed": found.installed}
        write_json(context, {"schema": SCHEMA, "module": "selinux", **fields})
        return
    have = "" if found.installed is None else f", installed is version {found.installed}"
    context.out.write(f"{found.state}: this secrun brings version {found.shipped}{have}\n")


def install(args: Arguments, context: Context) -> int:
    """Install, remove or look at the module."""
    if (name := args.required("module")) != "selinux":
        raise UsageError(f"there is no module {name[:40]!r}", hint="the one there is: selinux")
    if args.flag("remove") and args.flag("status"):
        raise UsageError("--remove and --status exclude each other")
    agent, layout = agent_path(), context.layout
    text = selinuxmodule.module_text(selinuxmodule.shipped_text(), agent, layout)
    found = selinuxmodule.status(text)
    places = (agent, layout.root, layout.run_root)
    if args.flag("remove"):
        _remove(context, found, places)
    elif not args.flag("status") and found.state is not ModuleState.CURRENT:
        selinuxmodule.install(text, places)
    _tell(args, context, found if args.flag("status") else selinuxmodule.status(text))
    return 0


def _remove(context: Context, found: ModuleStatus, places: tuple[Path, ...]) -> None:
    running = [view.uuid for view in all_pods(context.layout) if view.state is State.RUNNING]
    if running:
        raise StateError(
            f"{len(running)} pods are running, which would lose their labels: {running[0]}",
            hint="stop them first",
            code="state-running",
        )
    if found.state is not ModuleState.ABSENT:
        selinuxmodule.remove(places)
