"""Parse the command line, run the verb, print errors, return the exit status."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from secrun import __version__, checkpoint
from secrun.cli.guard import guarded
from secrun.cli.options import GLOBAL, VERBS
from secrun.cli.table import Context, Handler, Kind, Verb
from secrun.errors import HostError, UsageError
from secrun.paths import DEFAULT_ROOT, DEFAULT_RUN_ROOT, Layout


def _take_globals(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split the options before the verb from the rest; they are few and must not cost a parser."""
    options = {flag: option for option in GLOBAL for flag in option.flags}
    found: dict[str, str] = {}
    words = list(argv)
    while words and words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
        flag, equals, value = words.pop(0).partition("=")
        option = options.get(flag)
        if option is None:
            raise UsageError(f"unknown global option {flag}", hint="see secrun --help")
        if option.kind is Kind.FLAG:
            found[option.dest] = "yes"
            continue
        if not equals:
            if not words:
                raise UsageError(f"{flag} needs a value")
            value = words.pop(0)
        if not value:
            raise UsageError(f"{flag} needs a value")
        found[option.dest] = value
    return found, words


def find_verb(words: Sequence[str]) -> tuple[Verb, list[str]]:
    """Return the verb that `words` begin with and the words after it; raises UsageError."""
    for verb in VERBS:
        count = len(verb.words)
        if tuple(words[:count]) == verb.words:
            return verb, list(words[count:])
    families = sorted({verb.words[0] for verb in VERBS})
    if words[0] in families:
        members = ", ".join(verb.words[1] for verb in VERBS if verb.words[0] == words[0] and verb.words[1:])
        raise UsageError(f"secrun {words[0]} needs one of: {members}")
    import difflib

    near = difflib.get_close_matches(words[0], families, n=1)
    hint = f"did you mean {near[0]}?" if near else "see secrun --help"
    raise UsageError(f"unknown command {words[0]!r}", hint=hint)


def help_text() -> str:
    """Return the overview of all verbs."""
    lines = ["usage: secrun [--root DIR] [--run-root DIR] [--debug] COMMAND ...", ""]
    shown = list(VERBS)
    width = max(len(" ".join(verb.words)) for verb in shown)
    lines += [f"  {' '.join(verb.words):<{width}}  {verb.summary}" for verb in shown]
    lines += ["", "secrun COMMAND --help tells the options of one command."]
    return "\n".join(lines)


def _dispatch(argv: Sequence[str]) -> int:
    found, words = _take_globals(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(help_text() + "\n")
        return 0 if words else UsageError.exit_code
    if words[0] == "--version":
        sys.stdout.write(f"secrun {__version__}\n")
        return 0
    verb, rest = find_verb(words)
    from secrun.cli.parse import parse_verb

    arguments = parse_verb(f"secrun {' '.join(verb.words)}", verb, rest)
    if verb.needs_root and os.geteuid() != 0:
        raise HostError(f"secrun {' '.join(verb.words)} needs root", code="host-root")
    layout = Layout(
        root=Path(found.get("root", DEFAULT_ROOT)).absolute(),
        run_root=Path(found.get("run_root", DEFAULT_RUN_ROOT)).absolute(),
    )
    context = Context(layout=layout, out=sys.stdout, err=sys.stderr, debug="debug" in found)
    if context.debug:
        checkpoint.hook = lambda step: sys.stderr.write(f"secrun: debug: {step}\n")
    module, _, function = verb.handler.partition(":")
    handler = cast("Handler", getattr(importlib.import_module(module), function))
    return handler(arguments, context)


def main(argv: Sequence[str]) -> int:
    """Run `argv` (without the program's name) and return the exit status."""
    return guarded(lambda: _dispatch(argv))
