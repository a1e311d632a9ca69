"""From the Markdown of docs/ to manual pages: man(7) macros that groff and mandoc both read.

A table becomes a list, a line of it one item: what is wide on a screen is narrow in a manual.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

# What a link to another page of docs/ becomes, e.g. `secrun-volumes(7)`; empty if it has no manual page.
PageName = Callable[[str], str]

_PARSER = MarkdownIt("commonmark", {"html": False}).enable("table")
_ESCAPES = str.maketrans({"\\": r"\e", "-": r"\-", "~": r"\(ti", "^": r"\(ha", "`": r"\(ga", "'": r"\(aq"})


def text(words: str) -> str:
    """Escape what roff would take for its own."""
    return words.translate(_ESCAPES)


def line(words: str) -> str:
    """Return one line of a page: a full stop at its beginning is none of roff's requests."""
    return rf"\&{words}" if words.startswith((".", "'")) else words


def argument(words: str) -> str:
    """Return `words` as one argument of a macro."""
    return '"' + text(words).replace('"', r"\(dq") + '"'


def bold(words: str) -> str:
    """Return escaped words in bold."""
    return rf"\fB{text(words)}\fR"


def block(words: str) -> Iterator[str]:
    """Yield lines that stay as they are: examples, commands."""
    yield from (".PP", ".RS 4", ".nf")
    yield from (line(text(one)) for one in words.rstrip("\n").split("\n"))
    yield from (".fi", ".RE")


class Page:
    """Renders one document; links name manual pages where `page_name` knows one."""

    def __init__(self, page_name: PageName) -> None:
        self._page_name = page_name

    def lines(self, markdown: str) -> Iterator[str]:
        """Yield the lines of a whole document, without its title."""
        for node in SyntaxTreeNode(_PARSER.parse(markdown)).children:
            if node.type == "heading" and node.tag == "h1":
                continue
            yield from self._block(node)

    def _block(self, node: SyntaxTreeNode) -> Iterator[str]:
        if node.type == "heading":
            title = re.sub(r"\\f[BIR]", "", self._inline(node.children[0]))
            yield f".SH {title}" if node.tag == "h2" else f".SS {title}"
        elif node.type == "paragraph":
            yield ".PP"
            yield from self._lines_of(node.children[0])
        elif node.type in ("code_block", "fence"):
            yield from block(node.content)
        elif node.type in ("bullet_list", "ordered_list"):
            yield from self._list(node)
        elif node.type == "table":
            yield from self._table(node)
        elif node.type != "html_block":  # notes to who edits the page
            raise ValueError(f"no manual page can show {node.type}")

    def _list(self, node: SyntaxTreeNode) -> Iterator[str]:
        for index, item in enumerate(node.children):
            yield f".IP {index + 1}. 4" if node.type == "ordered_list" else r".IP \(bu 2"
            for place, part in enumerate(item.children):
                if part.type == "paragraph":
                    yield from ([] if place == 0 else [".IP"])
                    yield from self._lines_of(part.children[0])
                else:
                    yield ".RS"
                    yield from self._block(part)
                    yield ".RE"

    def _table(self, node: SyntaxTreeNode) -> Iterator[str]:
        rows = [
            [cell.children[0] for cell in row.children] for part in node.children for row in part.children
        ]
        heads = [self._inline(cell) for cell in rows[0]]
        for row in rows[1:]:
            yield ".TP"
            yield line(self._inline(row[0]) or r"\(en")
            cells = [self._inline(cell) for cell in row[1:]]
            for head, cell in zip(heads[1:], cells, strict=True):
                # In a table of two columns the second needs no name.
                named = len(heads) > 2 and head and cell
                yield from ([line(f"{head}: {cell}" if named else cell)] if cell else [])
                yield from ([".br"] if len(cells) > 1 and cell is not cells[-1] else [])

    def _lines_of(self, node: SyntaxTreeNode) -> Iterator[str]:
        yield from (line(one) for one in self._inline(node).split("\n"))

    def _inline(self, node: SyntaxTreeNode) -> str:
        inner = "".join(self._inline(child) for child in node.children)
        if node.type == "link":
            return self._link(str(node.attrs["href"]), inner)
        if node.type in ("strong", "em"):
            return rf"\f{'B' if node.type == 'strong' else 'I'}{inner}\fR"
        simple = {"text": text, "code_inline": bold}
        if node.type in simple:
            return simple[node.type](node.content)
        if node.type in ("softbreak", "hardbreak"):
            return "\n"
        if node.type != "inline":
            raise ValueError(f"no manual page can show {node.type}")
        return inner

    def _link(self, target: str, inner: str) -> str:
        if "://" in target:
            return inner if text(target) == inner else f"{inner} ({text(target)})"
        path = PurePosixPath(target.partition("#")[0])
        name = self._page_name(path.stem) if path.suffix == ".md" else ""
        if not name:
            return inner
        # The name of the file alone says nothing here.
        return name if inner in (text(path.name), rf"\fB{text(path.name)}\fR") else f"{inner} ({name})"
