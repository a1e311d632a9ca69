"""The help of one verb, laid out by argparse; only who asks for it pays for that."""

import argparse

from secrun.cli.parse import IMAGE
from secrun.cli.table import Kind, Option, Verb


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    if option.kind is Kind.FLAG:
        parser.add_argument(*option.flags, dest=option.dest, action="store_true", help=option.help)
        return
    # `--wait [=DURATION]`: its value must be joined.
    optional = option.kind is Kind.OPTIONAL_TEXT
    parser.add_argument(
        *option.flags,
        dest=option.dest,
        metavar=f"={option.metavar}" if optional else option.metavar or None,
        choices=option.choices or None,
        nargs="?" if optional else None,
        help=option.help,
    )


def help_of(prog: str, verb: Verb) -> str:
    """Return the help text of `verb`, as wide as the terminal."""
    parser = argparse.ArgumentParser(prog=prog, description=verb.description or verb.summary)
    for option in verb.options:
        _add_option(parser, option)
    for positional in (*verb.positionals, IMAGE) if verb.takes_apps else verb.positionals:
        parser.add_argument(
            positional.name,
            help=positional.help,
            nargs=None if positional.count == "1" else positional.count,
            metavar=positional.name.upper(),
        )
    return parser.format_help()
