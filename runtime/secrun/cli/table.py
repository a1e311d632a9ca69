"""The vocabulary of the command line: what an option, a positional and a verb are.

Everything that must agree (parser, help, docs, completion) is derived from these values.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TextIO, TypeAlias

from secrun.config import Setting
from secrun.errors import UsageError
from secrun.paths import Layout
from secrun.record import field, record, row

Value: TypeAlias = str | int | bool | list[str] | None


class Kind(StrEnum):
    """How an option takes its value."""

    FLAG = "flag"
    TEXT = "text"
    INTEGER = "integer"
    CHOICE = "choice"
    LIST = "list"
    """May be given several times; values are kept in order."""
    OPTIONAL_TEXT = "optional-text"
    """`--wait` or `--wait=10s`; `const` is the value of the bare form."""


class Scope(StrEnum):
    """Which thing of a `run` command line an option belongs to."""

    VERB = "verb"
    APP = "app"


@record
class Option:
    """One option: its flags, its value and its help."""

    flags: tuple[str, ...]
    help: str
    kind: Kind = Kind.TEXT
    metavar: str = ""
    choices: tuple[str, ...] = ()
    default: str | int | None = None
    const: str = ""
    scope: Scope = Scope.VERB
    key: str = ""
    """The TOML key that sets the same; only options before the verb have one."""
    variable: str = ""
    """The variable of the environment that stands in for the default; files and the command line win."""

    @property
    def dest(self) -> str:
        """Name of the value, from the first long flag."""
        long = next((flag for flag in self.flags if flag.startswith("--")), self.flags[0])
        return long.lstrip("-").replace("-", "_")


@record
class Positional:
    """One positional argument; `count` is one of `1`, `?`, `*`, `+`."""

    name: str
    help: str
    count: str = "1"


@row
class Arguments:
    """Parsed values of one verb, read by kind so that no untyped value escapes."""

    values: dict[str, Value]
    trailing: tuple[str, ...] = ()
    apps: tuple["Arguments", ...] = ()

    def text(self, name: str) -> str | None:
        """Return a text value or None."""
        value = self.values[name]
        if value is not None and not isinstance(value, str):
            raise TypeError(name)
        return value

    def required(self, name: str) -> str:
        """Return a text value that has a default or was demanded."""
        value = self.text(name)
        if value is None:
            raise UsageError(f"--{name.replace('_', '-')} needs a value")
        return value

    def flag(self, name: str) -> bool:
        """Return whether a flag was given."""
        return self.values[name] is True

    def integer(self, name: str) -> int | None:
        """Return an integer value or None."""
        value = self.values[name]
        if value is not None and not isinstance(value, int):
            raise TypeError(name)
        return value

    def many(self, name: str) -> tuple[str, ...]:
        """Return all values of a repeatable option or positional."""
        value = self.values[name]
        if value is None:
            return ()
        if not isinstance(value, list):
            raise TypeError(name)
        return tuple(value)


@record
class Context:
    """What every verb works with."""

    layout: Layout
    out: TextIO
    err: TextIO
    settings: Mapping[str, Setting]
    """Values of the options before the verb, by TOML key."""
    debug: bool = False

    def warn(self, text: str) -> None:
        """Tell what went wrong without ending the command."""
        self.err.write(f"secrun: {text}\n")
        self.err.flush()


Handler: TypeAlias = Callable[[Arguments, Context], int]


@record
class Verb:
    """One command: `words` are what the user types after `secrun`."""

    words: tuple[str, ...]
    summary: str
    handler: str
    """`module:function`, imported only when the verb runs."""
    description: str = ""
    positionals: tuple[Positional, ...] = ()
    options: tuple[Option, ...] = ()
    takes_command: bool = False
    """Words after `--` are kept as `Arguments.trailing`."""
    takes_apps: bool = False
    """Segments separated by `---`, each an image with its own options and words after `--`."""
    needs_root: bool = False
    examples: tuple[str, ...] = field(default=())
