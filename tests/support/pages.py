"""README.md and the pages of docs/: where they are, and the fenced blocks in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "results/README.md"]

BOX = "─━│┃┏┓┗┛┡┩╇┳┻╋┌┐└┘├┤┬┴┼╭╮╰╯═║╔╗╚╝"
"""Characters that tables and panels are drawn with."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str

    def commands(self) -> Iterator[list[str]]:
        """The words of each shell command in the block."""
        for command, _ in self.session():
            words = shlex.split(command, comments=True)
            if words:
                yield words

    def session(self) -> Iterator[tuple[str, list[str]]]:
        """Each command with the lines of output that the page shows below it.

        If lines begin with `$ `, those are the commands and the others their output; otherwise every line is
        a command. A command that ends with a backslash continues on the next line.
        """
        lines = self.text.replace("\\\n", "").splitlines()
        if not any(line.startswith("$ ") for line in lines):
            yield from ((line, []) for line in lines)
            return
        command, output = "", list[str]()
        for line in lines:
            if line.startswith("$ "):
                if command:
                    yield command, output
                command, output = line.removeprefix("$ "), []
            elif line.strip():
                output.append(line)
        yield command, output


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    pairs = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(*pair) for pair in pairs]


def page_named(name: str) -> Path:
    """The page of docs/ with a file name, whatever its folder."""
    (page,) = (ROOT / "docs").rglob(name)
    return page


def first_missing_line(output: list[str], printed: str) -> str | None:
    """The first line of a page's output that a command did not print; None if it printed all of them in
    order.

    Pages abridge: `...` stands for any text, and alone on a line for any lines. Words with digits in them,
    the width of columns and the length of rules may differ.
    """
    position = 0
    for line in output:
        match = re.compile(_pattern(line)).search(printed, position)
        if match is None:
            return line
        position = match.end()
    return None


def _pattern(line: str) -> str:
    """A regular expression for a line of abridged output."""
    words = []
    for word in line.replace("…", " ... ").replace("...", " ... ").split():
        if word == "...":
            words.append(r"[^\n]*?")
        elif not word.strip(BOX):
            words.append(rf"[{BOX}]+")
        else:
            words.append(r"\S+" if re.search(r"\d", word) else re.escape(word))
    return r"[^\S\n]*".join(words)
