"""From words to Arguments, driven by the option table."""

import argparse
from collections.abc import Iterable, Sequence
from typing import NoReturn

from secrun.cli.table import Arguments, Kind, Option, Scope, Value, Verb
from secrun.errors import UsageError

APP_SEPARATOR = "---"
COMMAND_SEPARATOR = "--"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see {self.prog} --help")


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    if option.kind is Kind.FLAG:
        parser.add_argument(*option.flags, dest=option.dest, action="store_true", help=option.help)
        return
    if option.kind is Kind.LIST:
        parser.add_argument(
            *option.flags, dest=option.dest, action="append", metavar=option.metavar, help=option.help
        )
        return
    parser.add_argument(
        *option.flags,
        dest=option.dest,
        default=option.default,
        metavar=option.metavar or None,
        choices=option.choices or None,
        type=int if option.kind is Kind.INTEGER else str,
        help=option.help,
    )


def make_parser(prog: str, verb: Verb, options: Iterable[Option]) -> argparse.ArgumentParser:
    """Build the argparse parser of one verb."""
    parser = _Parser(prog=prog, description=verb.description or verb.summary, allow_abbrev=False)
    for option in options:
        _add_option(parser, option)
    for positional in verb.positionals:
        parser.add_argument(
            positional.name,
            help=positional.help,
            nargs=None if positional.count == "1" else positional.count,
            metavar=positional.name.upper(),
        )
    if verb.takes_apps:
        parser.add_argument("image", metavar="IMAGE", help="an image reference, or a stored image's ID")
    return parser


def _spell_out(words: Sequence[str], options: Iterable[Option]) -> list[str]:
    """Give a bare `--wait` its value, so that it never swallows the word after it."""
    bare = {
        flag: f"{flag}={option.const}"
        for option in options
        if option.kind is Kind.OPTIONAL_TEXT
        for flag in option.flags
    }
    return [bare.get(word, word) for word in words]


def _values(prog: str, verb: Verb, options: Sequence[Option], words: Sequence[str]) -> dict[str, Value]:
    parser = make_parser(prog, verb, options)
    spelled = _spell_out(words, options)
    # Intermixed parsing runs twice; only lists of positionals need it.
    several = any(positional.count != "1" for positional in verb.positionals)
    namespace = parser.parse_intermixed_args(spelled) if several else parser.parse_args(spelled)
    known: dict[str, Value] = vars(namespace)
    return known


def _split_command(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    if COMMAND_SEPARATOR in words:
        index = list(words).index(COMMAND_SEPARATOR)
        return list(words[:index]), tuple(words[index + 1 :])
    return list(words), ()


def split_apps(words: Sequence[str]) -> list[list[str]]:
    """Split the words of `run` at each `---` into the segments of the apps."""
    segments: list[list[str]] = [[]]
    for word in words:
        if word == APP_SEPARATOR:
            segments.append([])
        else:
            segments[-1].append(word)
    return segments


def parse_verb(prog: str, verb: Verb, words: Sequence[str]) -> Arguments:
    """Parse the words after the verb; raises UsageError."""
    if not verb.takes_apps:
        head, trailing = _split_command(words) if verb.takes_command else (list(words), ())
        return Arguments(_values(prog, verb, verb.options, head), trailing)
    first, *others = split_apps(words)
    head, trailing = _split_command(first)
    values = _values(prog, verb, verb.options, head)
    apps = [Arguments(values, trailing)]
    app_options = [option for option in verb.options if option.scope is Scope.APP]
    for segment in others:
        head, trailing = _split_command(segment)
        apps.append(Arguments(_values(f"{prog} ... ---", verb, app_options, head), trailing))
    return Arguments(values, (), tuple(apps))
