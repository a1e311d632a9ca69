"""Parse the command line, run the verb, print errors, return the exit status."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from secrun import __version__, checkpoint, config
from secrun.cli.guard import guarded
from secrun.cli.options import GLOBAL, all_verbs, families, verbs_of
from secrun.cli.table import Context, Handler, Kind, Option, Verb
from secrun.config import Setting
from secrun.errors import HostError, UsageError
from secrun.paths import Layout

_ROOT_FLAG = "--root"
# What members of the group secrun do without root, each in a store of their own.
_OF_MEMBERS = ("fetch", "image")


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


def _default(option: Option) -> Setting:
    """Return what an option is when neither a file nor the command line says so."""
    value = os.environ.get(option.variable) if option.variable else None
    return Setting(value, f"${option.variable}") if value else Setting(str(option.default), "default")


def _settings(found: Mapping[str, str]) -> dict[str, Setting]:
    """Join defaults, variables, files and the options given, in this order; raises UsageError."""
    options = {option.key: option for option in GLOBAL if option.key}
    settings = {key: _default(option) for key, option in options.items()}
    file = found.get("config")
    settings |= config.load(tuple(options), Path(file) if file else None, config.PLACES, os.environ)
    settings |= {
        key: Setting(found[option.dest], option.flags[0])
        for key, option in options.items()
        if option.dest in found
    }
    for key, option in options.items():
        value, origin = settings[key].value, settings[key].origin
        if option.choices and value not in option.choices:
            raise UsageError(f"{origin}: {key} is {value[:80]!r}, expected {', '.join(option.choices)}")
    return settings


def find_verb(words: Sequence[str]) -> tuple[Verb, list[str]]:
    """Return the verb that `words` begin with and the words after it; raises UsageError."""
    verbs = verbs_of(words[0])
    # The longest first: `attest policy init` before a verb `attest policy` might be.
    for verb in sorted(verbs, key=lambda verb: -len(verb.words)):
        count = len(verb.words)
        if tuple(words[:count]) == verb.words:
            return verb, list(words[count:])
    from secrun.cli.foreign import explain_command

    for said in (" ".join(words[:2]), words[0]):
        reason = explain_command(said)
        if reason and not (verbs and said == words[0]):
            raise UsageError(f"there is no command {said!r}: {reason}", hint="see secrun --help")
    if verbs:
        members = ", ".join(" ".join(verb.words[1:]) for verb in verbs)
        raise UsageError(f"secrun {words[0]} needs one of: {members}")
    import difflib

    near = difflib.get_close_matches(words[0], families(), n=1)
    hint = f"did you mean {near[0]}?" if near else "see secrun --help"
    raise UsageError(f"unknown command {words[0]!r}", hint=hint)


def help_text() -> str:
    """Return the overview of all verbs."""
    lines = ["usage: secrun [GLOBAL OPTION ...] COMMAND ...", ""]
    shown = all_verbs()
    width = max(len(" ".join(verb.words)) for verb in shown)
    lines += [f"  {' '.join(verb.words):<{width}}  {verb.summary}" for verb in shown]
    lines += ["", "secrun COMMAND --help tells the options of one command."]
    return "\n".join(lines)


def _layout(settings: Mapping[str, Setting], verb: Verb) -> Layout:
    """Return where everything is; members of the group have stores of their own, unless --root is given."""
    layout = Layout(
        root=Path(settings["root"].value).absolute(), run_root=Path(settings["run_root"].value).absolute()
    )
    own = verb.words[0] in _OF_MEMBERS and settings["root"].origin != _ROOT_FLAG and os.geteuid() != 0
    if own and os.access(layout.members, os.W_OK | os.X_OK):
        return layout.of_member(os.geteuid())
    return layout


def _dispatch(argv: Sequence[str]) -> int:
    found, words = _take_globals(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(help_text() + "\n")
        return 0 if words else UsageError.exit_code
    if words[0] == "--version":
        sys.stdout.write(f"secrun {__version__}\n")
        return 0
    verb, rest = find_verb(words)
    from secrun.cli.parse import HelpAskedError, parse_verb

    prog = f"secrun {' '.join(verb.words)}"
    try:
        arguments = parse_verb(prog, verb, rest)
    except HelpAskedError:
        from secrun.cli.usage import help_of

        sys.stdout.write(help_of(prog, verb))
        return 0
    if verb.needs_root and os.geteuid() != 0:
        raise HostError(f"{prog} needs root", code="host-root")
    settings = _settings(found)
    layout = _layout(settings, verb)
    context = Context(
        layout=layout, out=sys.stdout, err=sys.stderr, settings=settings, debug="debug" in found
    )
    if context.debug:
        checkpoint.hook = lambda step: sys.stderr.write(f"secrun: debug: {step}\n")
    return _handler(verb)(arguments, context)


def _handler(verb: Verb) -> Handler:
    module, _, function = verb.handler.partition(":")
    # Not importlib.import_module: loading importlib takes a millisecond.
    __import__(module)
    return cast("Handler", getattr(sys.modules[module], function))


def main(argv: Sequence[str]) -> int:
    """Run `argv` (without the program's name) and return the exit status."""
    return guarded(lambda: _dispatch(argv))
