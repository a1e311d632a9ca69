"""From the `[attest]` settings and a verb's options to what measures the pods of one command."""

from pathlib import Path

from secrun.cli.table import Arguments, Context
from secrun.measure.measuring import Measuring
from secrun.measure.settings import AttestSettings, Mode


def attest_settings(context: Context) -> AttestSettings:
    """Return the settings in force."""
    settings = context.settings
    return AttestSettings(mode=Mode(settings["attest.mode"].value), tcti=settings["attest.tcti"].value)


def measuring(args: Arguments, context: Context) -> Measuring:
    """Return what measures the pods of this command; `--policy`, where there is one, admits images."""
    policy = args.values.get("policy")
    return Measuring(
        context.layout,
        attest_settings(context),
        context.warn,
        policy=Path(policy) if isinstance(policy, str) else None,
    )
