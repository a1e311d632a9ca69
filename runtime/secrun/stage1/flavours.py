"""Find a flavour by its name: nspawn is built in, others come through an entry point."""

from typing import TYPE_CHECKING, cast

from secrun.errors import UsageError

if TYPE_CHECKING:
    from secrun.stage1.contract import Flavour

ENTRY_POINT_GROUP = "secrun.stage1"
BUILT_IN = "nspawn"


def others() -> tuple[str, ...]:
    """Return the names of the installed flavours that are not built in."""
    from importlib.metadata import entry_points

    return tuple(sorted(entry_points(group=ENTRY_POINT_GROUP).names - {BUILT_IN}))


def load(name: str) -> "Flavour":
    """Return the flavour called `name`; raises UsageError if none is installed."""
    if name == BUILT_IN:
        from secrun.stage1.nspawn import NspawnFlavour

        return NspawnFlavour()
    from importlib.metadata import entry_points  # 20 ms: not for the built-in flavour

    found = entry_points(group=ENTRY_POINT_GROUP)
    if name not in found.names:
        known = ", ".join(sorted({BUILT_IN, *found.names}))
        raise UsageError(f"unknown stage1 flavour {name!r}", hint=f"installed: {known}")
    return cast("Flavour", found[name].load()())


def note(flavour: "Flavour") -> str:
    """Return how a pod remembers its flavour: the name, and where its code is.

    The process that concludes a pod sees no installed package's entry points, and has no time for them.
    """
    kind = type(flavour)
    return f"{flavour.name} {kind.__module__}:{kind.__qualname__}\n"


def recall(written: str) -> "Flavour":
    """Return the flavour that `note` described; raises UsageError if it is gone."""
    name, _, place = written.strip().partition(" ")
    module, _, attribute = place.partition(":")
    if not place:
        return load(name)
    from importlib import import_module

    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError):
        # It has moved since: another version of it may be installed.
        return load(name)
    return cast("Flavour", found())
