"""Write the pages that come from the program: docs/commands.md and docs/errors.md.

`python ci/docs.py` writes them, `python ci/docs.py --check` exits 1 when a page on disk differs.
"""

import ast
import json
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from secrun import errors
from secrun.cli import foreign, foreign_flags, foreign_podman, foreign_rkt, podmanifest
from secrun.cli.options import GLOBAL, all_verbs
from secrun.cli.table import Kind, Option, Positional, Scope, Verb

TOP = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made by `make docs`; change the program, not this page. -->\n"
ROOTS = ("runtime/secrun", "stage1-kvm/secrun_kvm", "policies/secrun_policies", "attest/secrun_attest")


def flags_of(option: Option) -> str:
    """Render `-e`, `--env NAME=VALUE`."""
    value = option.metavar or (option.dest.upper() if option.kind in _TAKES_VALUE else "")
    if option.kind is Kind.CHOICE:
        value = "|".join(option.choices)
    if option.kind is Kind.OPTIONAL_TEXT:
        return ", ".join(f"`{flag}[={value or 'VALUE'}]`" for flag in option.flags)
    return ", ".join(f"`{flag} {value}`" if value else f"`{flag}`" for flag in option.flags)


_TAKES_VALUE = (Kind.TEXT, Kind.INTEGER, Kind.LIST)


def option_line(option: Option) -> str:
    """Render one option as a list item."""
    extra = []
    if option.kind is Kind.LIST:
        extra.append("may be given several times")
    if option.default not in (None, "") and option.kind is not Kind.FLAG:
        extra.append(f"default: `{option.default}`")
    if option.key:
        extra.append(f"setting: `{option.key}`")
    tail = f" ({'; '.join(extra)})" if extra else ""
    return f"- {flags_of(option)}: {option.help}{tail}\n"


def word_of(positional: Positional) -> str:
    """Render a positional as it stands in a synopsis."""
    name = positional.name.upper()
    return {"1": name, "?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} [...]"}[positional.count]


def synopsis(verb: Verb) -> str:
    """Render the line that shows how a verb is typed."""
    words = ["secrun", *verb.words]
    if verb.options:
        words.append("[OPTION ...]")
    words += [word_of(positional) for positional in verb.positionals]
    if verb.takes_apps:
        app = "IMAGE [APP OPTION ...] [-- ARGUMENT ...]"
        words.append(f"{app} [--- {app}] ...")
    elif verb.takes_command:
        words.append("[-- COMMAND ...]")
    return " ".join(words)


def verb_section(verb: Verb) -> Iterator[str]:
    """Render one verb."""
    yield f"\n## secrun {' '.join(verb.words)}\n\n{verb.summary[:1].upper()}{verb.summary[1:]}.\n"
    if verb.needs_root:
        yield "Needs root.\n"
    yield f"\n    {synopsis(verb)}\n"
    if verb.description:
        yield f"\n{verb.description}\n"
    if verb.positionals:
        yield "\n"
        yield from (f"- `{item.name.upper()}`: {item.help}\n" for item in verb.positionals)
    for scope, title in ((Scope.VERB, "Options"), (Scope.APP, "Options of each app")):
        options = [option for option in verb.options if option.scope is scope]
        if options:
            yield f"\n{title}:\n\n"
            yield from map(option_line, options)
    if verb.examples:
        yield "\nExamples:\n\n"
        yield from (f"    {example}\n" for example in verb.examples)


def commands_page() -> str:
    """Render docs/commands.md from the option table."""
    shown = all_verbs()
    parts = [NOTE, "\n# Commands\n\n    secrun [GLOBAL OPTION ...] COMMAND ...\n\nGlobal options:\n\n"]
    parts += map(option_line, GLOBAL)
    parts.append("\n| command | what it does |\n|---|---|\n")
    for verb in shown:
        name = " ".join(verb.words)
        parts.append(f"| [{name}](#secrun-{name.replace(' ', '-')}) | {verb.summary} |\n")
    for verb in shown:
        parts += verb_section(verb)
    return "".join(parts)


ERRORS_HEAD = """
# Errors and exit codes

An error is two lines on standard error: what failed and on which object, with its code in brackets; then
what to do next.

    secrun: pod 3f2a is running, expected exited [state-pod]
      hint: stop it first: secrun stop 3f2a

The words may change from version to version; the codes do not. A program should compare codes.

## Exit codes

| exit code | meaning |
|---|---|
| 0 | done; of `run`: every app ended with 0 |
| any | of `run`, `run-prepared`, `attach`, `enter` and `status --wait`: the workload's own |
| 128 + n | the workload was killed by signal n |
"""

CODES_HEAD = """
## Codes

A code begins with its family. Evidence that is rejected has the code of the check (`E_*`,
[verifier.md](verifier.md)); a verifier's policy `usage-` and a code of [policy-format.md](policy-format.md).

| code | exit code |
|---|---|
"""

FAMILY_MEANING = {
    2: "the command line or a configuration file has no meaning",
    120: "a policy refuses what was asked",
    121: "evidence does not prove what it claims",
    125: "secrun failed before or beside the workload",
    126: "the workload's program exists but cannot be invoked",
    127: "the workload's program does not exist in its image",
}


def families() -> dict[str, type[errors.SecrunError]]:
    """Map the name of each error class to the class."""
    classes = (value for value in vars(errors).values() if isinstance(value, type))
    return {cls.__name__: cls for cls in classes if issubclass(cls, errors.SecrunError)}


def raised_codes() -> Iterator[tuple[str, str]]:
    """Yield (code, family) of every error that the sources can raise with a code of its own."""
    known = families()
    for path in (path for root in ROOTS for path in (TOP / root).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant) and name in known:
                    yield str(keyword.value.value), name


def errors_page() -> str:
    """Render docs/errors.md from the error classes and the places that raise them."""
    parts = [NOTE, ERRORS_HEAD]
    known = families()
    parts += [f"| {status} | {meaning} |\n" for status, meaning in FAMILY_MEANING.items()]
    parts.append("\n## Families\n\n| code | exit code | when |\n|---|---|---|\n")
    for cls in known.values():
        parts.append(f"| `{cls.code}` | {cls.exit_code} | {(cls.__doc__ or '').splitlines()[0]} |\n")
    parts.append(CODES_HEAD)
    for code, name in sorted(set(raised_codes())):
        parts.append(f"| `{code}` | {known[name].exit_code} |\n")
    return "".join(parts)


def comparison(name: str, commands: Iterable[foreign.Row], flags: Iterable[foreign.Row]) -> str:
    """Render the page for users of another program from the table that its error texts come from."""
    tables = [("Commands", sorted_rows(commands)), (f"Flags of `{name} run`", sorted_rows(flags))]
    if name == "podman":
        tables.append(("Flags of other commands", sorted(foreign_flags.FLAGS, key=lambda row: row.theirs)))
    return NOTE + foreign.page(name, tables)


POD_MANIFEST_HEAD = """
# Pods from a file

    secrun run --pod-manifest FILE
    secrun prepare --pod-manifest FILE

FILE is one JSON object of at most 1 MiB. A key is an option's long name without its dashes, a value what
the option takes; nothing else is accepted, and nothing twice. Options that are the caller's (`--rm`,
`--detach`, `--pull`, `--insecure-options` ...) stay on the command line, where no option of an app may
stand beside the file. Its JSON Schema is `runtime/secrun/pod-manifest.schema.json`.

    {
      "schema": "secrun.dev/pod-request/v1",
      "hostname": "web",
      "publish": ["8080:80"],
      "apps": [
        {"image": "docker://registry.example/web:1", "args": ["serve"], "memory": "64m"},
        {"image": "docker://registry.example/cache:2", "read-only": true}
      ]
    }
"""


def pod_manifest_page() -> str:
    """Render docs/pod-manifest.md from the option table."""
    parts = [NOTE, POD_MANIFEST_HEAD]
    for title, options in (("the pod", podmanifest.pod_options()), ("an app", podmanifest.app_options())):
        parts.append(f"\n## Keys of {title}\n\n| key | value | the same as |\n|---|---|---|\n")
        if title == "an app":
            parts.append(
                "| `image` | string, required | IMAGE |\n| `args` | list of strings | -- ARGUMENT ... |\n"
            )
        for key, option in sorted(options.items()):
            kind = _JSON_TYPES.get(option.kind, "string")
            parts.append(f"| `{key}` | {kind} | `{option.flags[-1]}`: {option.help} |\n")
    return "".join(parts)


_JSON_TYPES = {Kind.FLAG: "true or false", Kind.INTEGER: "integer", Kind.LIST: "list of strings"}


def behaviours() -> str:
    """Render what secrun does otherwise than rkt, of the table that names a test for each behaviour."""
    rows = tomllib.loads((TOP / "tests/rkt-behaviour.toml").read_text())["behaviour"]
    parts = [BEHAVIOURS_HEAD]
    parts += [f"| {row['area']} | {row['rkt']} | {row['here']} |\n" for row in rows if "here" in row]
    return "".join(parts)


BEHAVIOURS_HEAD = """
## Behaviour

Of what rkt does on every flavour, the rest is the same here. The tests of each are
named in `tests/rkt-behaviour.toml`.

| | rkt | here |
|---|---|---|
"""


def sorted_rows(found: Iterable[foreign.Row]) -> list[foreign.Row]:
    """Sort by their word, without dashes."""
    return sorted(found, key=lambda row: row.theirs.rpartition(", ")[2].lstrip("-"))


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them."""
    stale = []
    for path, text in (
        (TOP / "docs/commands.md", commands_page()),
        (TOP / "docs/errors.md", errors_page()),
        (TOP / "docs/pod-manifest.md", pod_manifest_page()),
        (
            TOP / "runtime/secrun/pod-manifest.schema.json",
            json.dumps(podmanifest.json_schema(), indent=1) + "\n",
        ),
        (TOP / "docs/from-podman.md", comparison("podman", foreign_podman.COMMANDS, foreign_podman.RUN)),
        (
            TOP / "docs/from-rkt.md",
            comparison("rkt", foreign_rkt.COMMANDS, foreign_rkt.RUN) + behaviours(),
        ),
    ):
        if arguments == ["--check"]:
            if not path.exists() or path.read_text() != text:
                stale.append(str(path.relative_to(TOP)))
        else:
            path.write_text(text)
    if stale:
        print(f"out of date: {', '.join(stale)}; run: make docs")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
