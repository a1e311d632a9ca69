"""From words to Arguments, driven by the option table.

The rules are getopt_long's: options and positionals in any order, `-it` is `-i -t`, `-nVALUE`, `--n=VALUE`,
nothing is an option after `--`. Two are stricter: no option may be shortened, and a value that looks like an
option must be joined by `=`, so that a forgotten value never swallows what follows. argparse has these rules
too, but loading it takes longer than most commands.
"""

import re
from collections.abc import Iterable, Sequence

from secrun.cli.table import Arguments, Kind, Option, Positional, Scope, Value, Verb
from secrun.errors import UsageError
from secrun.record import replace

APP_SEPARATOR = "---"
COMMAND_SEPARATOR = "--"
HELP = ("-h", "--help")
IMAGE = Positional(name="image", help="an image reference, or a stored image's ID")

# What is never taken for an option: a lone dash is a name, `-1` a number.
_OPERAND = re.compile(r"[^-]|-\Z|-\d|\Z")


class HelpAskedError(Exception):
    """The words ask for help instead of the command."""


class _Scanner:
    """Takes the words of one verb, or of one app, from left to right."""

    def __init__(self, prog: str, options: Iterable[Option], words: Sequence[str]) -> None:
        self.prog = prog
        self.options = {flag: option for option in options for flag in option.flags}
        self.left = list(reversed(words))
        self.values: dict[str, Value] = {
            option.dest: False if option.kind is Kind.FLAG else option.default
            for option in self.options.values()
        }
        self.operands: list[str] = []

    def fail(self, text: str) -> UsageError:
        return UsageError(text, hint=f"see {self.prog} --help")

    def scan(self) -> None:
        """Take all words; raises UsageError, or HelpAskedError at the first word that asks for it."""
        while self.left:
            word = self.left.pop()
            if word == COMMAND_SEPARATOR:
                self.operands += reversed(self.left)
                return
            if _OPERAND.match(word):
                self.operands.append(word)
            elif word in HELP:
                raise HelpAskedError
            else:
                self._option(word)

    def _option(self, word: str) -> None:
        flag, equals, value = word.partition("=")
        if flag in self.options:
            self._take(self.options[flag], value if equals else None)
        elif word[1] != "-" and word[:2] in self.options:
            self._cluster(word)
        else:
            raise self._unknown(flag, word)

    def _unknown(self, flag: str, word: str) -> UsageError:
        """Say what to do instead of a flag that users bring along from podman or rkt."""
        from secrun.cli.foreign import explain, explain_of

        starts = any(option.scope is Scope.APP for option in self.options.values())
        reason = explain(flag) if starts else explain_of(self.prog.removeprefix("secrun "), flag)
        if reason:
            return UsageError(f"there is no {flag}: {reason}", hint=f"see {self.prog} --help")
        return self.fail(f"unrecognized arguments: {word}")

    def _cluster(self, word: str) -> None:
        """Take `-it` or `-nVALUE`."""
        flag, rest = word[:2], word[2:]
        option = self.options[flag]
        if option.kind is not Kind.FLAG:
            self._take(option, rest)
            return
        self._take(option, None)
        if f"-{rest[0]}" not in self.options:
            raise self.fail(f"unrecognized arguments: -{rest[0]} in {word}")
        self._option(f"-{rest}")

    def _take(self, option: Option, given: str | None) -> None:
        name = "/".join(option.flags)
        if option.kind is Kind.FLAG:
            if given is not None:
                raise self.fail(f"argument {name}: it takes no value, got {given[:80]!r}")
            self.values[option.dest] = True
            return
        if option.kind is Kind.OPTIONAL_TEXT:
            # A bare `--wait` never swallows the word after it.
            self.values[option.dest] = option.const if given is None else given
            return
        if given is None:
            if not self.left or not _OPERAND.match(self.left[-1]):
                raise self.fail(f"argument {name}: expected one argument")
            given = self.left.pop()
        self._store(option, name, given)

    def _store(self, option: Option, name: str, given: str) -> None:
        if option.kind is Kind.LIST:
            before = self.values[option.dest]
            self.values[option.dest] = [*(before if isinstance(before, list) else ()), given]
        elif option.kind is Kind.INTEGER:
            try:
                self.values[option.dest] = int(given)
            except ValueError as error:
                raise self.fail(f"argument {name}: invalid int value: {given[:80]!r}") from error
        elif option.choices and given not in option.choices:
            choices = ", ".join(option.choices)
            if given.startswith("{{"):
                raise UsageError(f"{name}: there are no templates", hint="--format json is for jq")
            raise self.fail(f"argument {name}: invalid choice: {given[:80]!r} (choose from {choices})")
        else:
            self.values[option.dest] = given

    def assign(self, positionals: Sequence[Positional]) -> None:
        """Give the operands their names; a `?`, `*` or `+` can only be the last."""
        left = list(self.operands)
        for item in positionals:
            if item.count in ("1", "+") and not left:
                raise self.fail(f"the following arguments are required: {item.name.upper()}")
            if item.count in ("1", "?"):
                self.values[item.name] = left.pop(0) if left else None
            else:
                self.values[item.name], left = left, []
        if left:
            raise self.fail(f"unrecognized arguments: {' '.join(left)}")


def _values(prog: str, verb: Verb, options: Iterable[Option], words: Sequence[str]) -> dict[str, Value]:
    scanner = _Scanner(prog, options, words)
    scanner.scan()
    # The file of --pod-manifest names the images.
    image = replace(IMAGE, count="?") if scanner.values.get("pod_manifest") else IMAGE
    scanner.assign((*verb.positionals, image) if verb.takes_apps else verb.positionals)
    return scanner.values


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
    """Parse the words after the verb; raises UsageError, or HelpAskedError if they ask for help."""
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
    found = Arguments(values, (), tuple(apps))
    if values.get("pod_manifest"):
        from secrun.cli.podmanifest import merge

        return merge(verb, found)
    return found
