"""Write the manual pages: section 1 from the option table, 5 and 7 from docs/.

`python ci/man.py DIR` writes DIR/man1/secrun-run.1 and so on. A wheel holds them (`ci/wheel_tag.py`).
SOURCE_DATE_EPOCH sets the date that the pages show; without it they show none, so that they never differ.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
# In a build nothing is installed yet; the table needs the standard library alone.
sys.path[:0] = [str(TOP / name) for name in ("ci", "runtime", "attest")]

import docs  # noqa: E402
import roff  # noqa: E402

from secrun import __version__  # noqa: E402
from secrun.cli.options import GLOBAL, all_verbs  # noqa: E402
from secrun.cli.parse import IMAGE  # noqa: E402
from secrun.cli.table import Kind, Option, Positional, Scope, Verb  # noqa: E402

# What is no manual page of its own: the list of pages, section 1 itself, figures of one machine.
LEFT_OUT = ("README", "commands", "benchmarks")
# Files, formats and protocols; all other pages are section 7.
FORMATS = (
    "agent-protocol", "configuration", "event-log", "pod-manifest", "policy-files", "policy-format",
    "rootfs-format",
)  # fmt: skip
NAMES = {"configuration": "secrun.toml"}


def pages() -> dict[str, Path]:
    """Map the stem of each page of docs/ that becomes a manual page to its file."""
    return {path.stem: path for path in sorted((TOP / "docs").glob("*.md")) if path.stem not in LEFT_OUT}


def title_of(stem: str) -> tuple[str, int]:
    """Return name and section of the manual page of docs/STEM.md."""
    return NAMES.get(stem, f"secrun-{stem}"), 5 if stem in FORMATS else 7


def reference(stem: str) -> str:
    """Return `name(section)` for a page of docs/; commands.md is secrun(1)."""
    if stem == "commands":
        return r"\fBsecrun\fR(1)"
    if stem not in pages():
        return ""
    name, section = title_of(stem)
    return f"{roff.bold(name)}({section})"


def head(name: str, section: int, summary: str) -> Iterator[str]:
    """Yield the title lines of a page."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    date = time.strftime("%Y-%m-%d", time.gmtime(int(epoch))) if epoch else ""
    version = roff.argument(f"secrun {__version__}")
    yield f'.TH {roff.argument(name.upper())} {section} "{date}" {version} "secrun manual"'
    yield from (".nh", ".ad l", ".SH NAME", rf"{roff.text(name)} \- {roff.text(summary)}")


def _value(option: Option) -> str:
    if option.kind is Kind.FLAG:
        return ""
    if option.kind is Kind.CHOICE:
        return "|".join(option.choices)
    return option.metavar or option.dest.upper()


def option_lines(option: Option) -> Iterator[str]:
    """Yield one option as an item."""
    value = roff.text(_value(option))
    if option.kind is Kind.OPTIONAL_TEXT:
        value = f"[={value}]"
    elif value:
        value = f" {value}"
    yield ".TP"
    yield ", ".join(
        rf"{roff.bold(flag)}\fI{value}\fR" if value else roff.bold(flag) for flag in option.flags
    )
    extra = ["may be given several times"] if option.kind is Kind.LIST else []
    if option.default not in (None, "") and option.kind is not Kind.FLAG:
        extra.append(f"default: {option.default}")
    if option.key:
        extra.append(f"setting: {option.key}")
    tail = f" ({'; '.join(extra)})" if extra else ""
    yield roff.line(roff.text(f"{option.help}{tail}"))


def operand_lines(positional: Positional) -> Iterator[str]:
    """Yield one positional argument as an item."""
    yield from (".TP", rf"\fI{roff.text(positional.name.upper())}\fR", roff.line(roff.text(positional.help)))


def verb_page(verb: Verb) -> Iterator[str]:
    """Yield the page of one command."""
    yield from head(f"secrun-{'-'.join(verb.words)}", 1, verb.summary)
    yield from (".SH SYNOPSIS", roff.text(docs.synopsis(verb)), ".SH DESCRIPTION")
    summary = f"{verb.summary[:1].upper()}{verb.summary[1:]}."
    yield from (roff.line(roff.text(part)) for part in (summary, verb.description) if part)
    if verb.needs_root:
        yield "Needs root."
    operands = (*verb.positionals, IMAGE) if verb.takes_apps else verb.positionals
    if operands:
        yield ".SH ARGUMENTS"
    for positional in operands:
        yield from operand_lines(positional)
    for scope, title in ((Scope.VERB, "OPTIONS"), (Scope.APP, '"OPTIONS OF EACH APP"')):
        options = [option for option in verb.options if option.scope is scope]
        yield from ([f".SH {title}"] if options else [])
        for option in options:
            yield from option_lines(option)
    if verb.examples:
        yield ".SH EXAMPLES"
        yield from roff.block("\n".join(verb.examples))
    yield from (".SH SEE ALSO", rf"\fBsecrun\fR(1), {reference('configuration')}, {reference('errors')}")


def main_page() -> Iterator[str]:
    """Yield secrun(1)."""
    yield from head("secrun", 1, "daemonless, hardened pods whose state can be proved to a remote service")
    yield from (".SH SYNOPSIS", r"secrun [\fIGLOBAL OPTION\fR ...] \fICOMMAND\fR ...", ".SH GLOBAL OPTIONS")
    for option in GLOBAL:
        yield from option_lines(option)
    yield ".SH COMMANDS"
    for verb in all_verbs():
        name = "-".join(("secrun", *verb.words))
        yield from (".TP", f"{roff.bold(name)}(1)", roff.line(roff.text(verb.summary)))
    yield ".SH EXIT STATUS"
    for status, meaning in docs.FAMILY_MEANING.items():
        yield from (".TP", roff.bold(str(status)), roff.line(roff.text(meaning)))
    yield from (".TP", "any other", "the workload\\(aqs own; 128 + n if signal n killed it")
    yield ".SH SEE ALSO"
    yield ",\n".join(reference(stem) for stem in pages())


def document_page(stem: str, path: Path) -> Iterator[str]:
    """Yield the page of a document; its title is its summary."""
    markdown = path.read_text()
    name, section = title_of(stem)
    title = next(one.removeprefix("# ") for one in markdown.splitlines() if one.startswith("# "))
    yield from head(name, section, title)
    yield ".SH DESCRIPTION"
    yield from roff.Page(reference).lines(markdown)


def _tidy(lines: Iterator[str]) -> Iterator[str]:
    """Leave out what begins a paragraph where a heading has begun one."""
    before = ""
    for one in lines:
        if one != ".PP" or not before.startswith((".SH", ".SS")):
            yield one
        before = one


def write(folder: Path) -> list[Path]:
    """Write all pages below `folder`; return them."""
    found = {("secrun", 1): main_page()}
    found |= {(f"secrun-{'-'.join(verb.words)}", 1): verb_page(verb) for verb in all_verbs()}
    found |= {title_of(stem): document_page(stem, path) for stem, path in pages().items()}
    written = []
    for (name, section), lines in found.items():
        path = folder / f"man{section}" / f"{name}.{section}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(_tidy(lines)) + "\n")
        written.append(path)
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python ci/man.py DIR")
    print(f"{len(write(Path(sys.argv[1])))} pages")
