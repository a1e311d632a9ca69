"""The verb that shows the settings."""

from secrun.cli.table import Arguments, Context
from secrun.cli.views import write_json
from secrun.jsonio import JsonObject


def show(args: Arguments, context: Context) -> int:
    """Print each setting as TOML, or with its origin."""
    if args.text("format") == "json":
        rows: JsonObject = {
            key: {"value": setting.value, "origin": setting.origin}
            for key, setting in context.settings.items()
        }
        write_json(context, {"schema": "secrun.dev/config/v1", "settings": rows})
        return 0
    for key, setting in context.settings.items():
        origin = f"  # {setting.origin}" if args.flag("origin") else ""
        context.out.write(f'{key} = "{setting.value}"{origin}\n')
    return 0
