"""The pattern of all subcommands: a name, one line of summary, options, examples, and the function to run.

Each module of this package defines one `Subcommand` (or a `SubcommandGroup`) named `COMMAND`; `main` finds it
by the module's name. Help texts are drawn up here, so that they look alike, and a wrong option is reported as
any other mistake in a request.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from harness.core.validation import ConfigError, Mistake, nearest

RESULTS_DIR = Path("results")
LINE_WIDTH = 100


class Parser(argparse.ArgumentParser):
    """The standard parser, whose errors are mistakes in the request (`ConfigError`)."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError; an unknown option is reported with the nearest known one."""
        from harness.shell.compose.overrides import unknown_options

        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            raise ConfigError([Mistake("", f"{self.prog}: {message}")])
        raise ConfigError(unknown_options(unknown.split(), sorted(self._option_string_actions)))


def no_options(parser: Parser) -> None:
    """Add nothing: the subcommand has no options of its own."""


class Command(Protocol):
    """What `main` needs of a subcommand: its line in the help, and a call with its arguments."""

    @property
    def summary(self) -> str:
        """One line, shown by `evenbench --help`."""
        ...

    def __call__(self, arguments: Sequence[str]) -> int:
        """Parse the arguments, run, return the exit status; raises ConfigError."""
        ...


@dataclass(frozen=True)
class Subcommand:
    """A subcommand of `evenbench`.

    `options` adds arguments to the parser, `run` gets them parsed and returns the exit status; `arguments`
    are the positional ones in the usage line. A subcommand reads either a results folder (`--results-dir`, as
    `options.results_dir`) or a configuration (`composes=True`): then everything that is not an option of its
    own is passed to Hydra and arrives as `options.overrides`.
    """

    name: str
    summary: str
    examples: str
    run: Callable[[argparse.Namespace], int]
    options: Callable[[Parser], None] = no_options
    arguments: str = ""
    composes: bool = False

    def __call__(self, arguments: Sequence[str]) -> int:
        """Parse the arguments, run, return the exit status; raises ConfigError."""
        parser = Parser(
            prog=f"evenbench {self.name}",
            usage=" ".join(filter(None, (f"evenbench {self.name} [options]", self.arguments))),
            description=self.summary,
            epilog=f"examples:\n{self.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=not self.composes,
        )
        self.options(parser)
        if self.composes:
            options, overrides = parser.parse_known_args(arguments)
            options.overrides = overrides
        else:
            help_text = f"default: {RESULTS_DIR}"
            parser.add_argument(
                "--results-dir", type=Path, metavar="DIR", default=RESULTS_DIR, help=help_text
            )
            options = parser.parse_args(arguments)
        return self.run(options)


@dataclass(frozen=True)
class SubcommandGroup:
    """A subcommand with actions, `evenbench study rm`; `members` by the name of the action."""

    name: str
    summary: str
    examples: str
    members: dict[str, Subcommand]

    def __call__(self, arguments: Sequence[str]) -> int:
        """Run the action that is named first; without one, print the help."""
        action, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
        if action in ("-h", "--help"):
            print(self.help())
            return 0
        if action not in self.members:
            problem, allowed = f"unknown action {action!r}", ", ".join(self.members)
            raise ConfigError([Mistake("", problem, allowed, nearest(action, self.members))])
        return self.members[action](rest)

    def help(self) -> str:
        """The help text, laid out as argparse does it."""
        return "\n\n".join(
            (
                f"usage: evenbench {self.name} {'|'.join(self.members)} [options]",
                self.summary,
                listing("actions", {name: member.summary for name, member in self.members.items()}),
                f"examples:\n{self.examples}",
            )
        )


def listing(title: str, entries: dict[str, str]) -> str:
    """A section of a help text: names, each with its text, which is wrapped."""
    width = max(map(len, entries)) + 4
    lines = [
        textwrap.fill(
            text,
            LINE_WIDTH,
            initial_indent=f"  {name}".ljust(width),
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        for name, text in entries.items()
    ]
    return "\n".join([f"{title}:", *lines])
