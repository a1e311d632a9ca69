"""What users of podman and rkt type, and what it is here: for error texts, and for the pages about it."""

from collections.abc import Iterable
from enum import StrEnum

from secrun.record import record


class Verdict(StrEnum):
    """How ours compares with theirs."""

    SAME = "same"
    RENAMED = "renamed"
    BETTER = "better"
    REFUSED = "refused"
    LATER = "not yet"


@record
class Row:
    """One command or flag of theirs; `ours` are words of the command line, empty if there is nothing."""

    theirs: str
    ours: str
    verdict: Verdict
    why: str = ""


def rows(verdict: Verdict, table: str) -> Iterable[Row]:
    """Read lines `THEIRS = OURS : WHY`; without `=` ours is called the same, `=` and nothing is nothing.

    `the same` repeats the reason of the line before.
    """
    before = ""
    for line in table.strip().splitlines():
        words, _, why = line.partition(" : ")
        theirs, equals, ours = words.partition(" =")
        before = before if why == "the same" else why
        own = ours.strip() if equals else theirs.strip()
        yield Row(theirs=theirs.strip(), ours=own, verdict=verdict, why=before)


def _said(row: Row) -> str:
    said = {Verdict.RENAMED: f"here it is {row.ours}", Verdict.LATER: "it is not there yet"}
    return ". ".join(part for part in (said.get(row.verdict, ""), row.why) if part)


def explain(flag: str) -> str:
    """Return what to do instead of a flag that is podman's or rkt's; empty if it is neither's."""
    from secrun.cli.foreign_podman import RUN as PODMAN
    from secrun.cli.foreign_rkt import RUN as RKT

    return next((_said(row) for row in (*PODMAN, *RKT) if flag in row.theirs.split(", ")), "")


def explain_of(command: str, flag: str) -> str:
    """Return what to do instead of a flag that a command of podman's has and ours, `command`, lacks."""
    from secrun.cli.foreign_flags import COMMANDS, FLAGS

    theirs = COMMANDS.get(command)
    for row in FLAGS if theirs else ():
        name, _, flags = row.theirs.partition(" ")
        if name == theirs and flag in flags.split(", "):
            return _said(row)
    return ""


def explain_command(word: str) -> str:
    """Return what to type instead of a command that is podman's or rkt's; empty if it is neither's."""
    from secrun.cli.foreign_podman import COMMANDS as PODMAN
    from secrun.cli.foreign_rkt import COMMANDS as RKT

    return next((_said(row) for row in (*PODMAN, *RKT) if row.theirs == word), "")


def page(name: str, tables: Iterable[tuple[str, Iterable[Row]]]) -> str:
    """Return the page that compares, in Markdown."""
    parts = [f"\n# From {name}\n\nWhat {name} has, what it is here, and why it differs.\n"]
    for title, found in tables:
        parts.append(f"\n## {title}\n\n| {name} | secrun | | |\n|---|---|---|---|\n")
        for row in found:
            ours = f"`{row.ours}`" if row.ours else "-"
            parts.append(f"| `{row.theirs}` | {ours} | {row.verdict} | {row.why} |\n")
    return "".join(parts)
