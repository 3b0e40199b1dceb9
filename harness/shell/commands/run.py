"""`evenbench [key=value ...]`: one run, a sweep or a search, and the table of what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.shell.compose.hydra import compose
from harness.shell.reports.leaderboard import print_leaderboard
from harness.shell.reports.progress import reporter
from harness.shell.session.session import Session


@dataclass(frozen=True)
class RunCommand:
    """What `evenbench` does without a subcommand. Hydra parses the arguments, `main` prints the help."""

    summary: str = "Train what the configuration describes."

    def __call__(self, arguments: Sequence[str]) -> int:
        """Compose, train and print; returns 1 if a run failed. Raises ConfigError."""
        with Session(reporter()) as session:
            status = compose(arguments, session.execute, session)
        if session.report is not None:
            session.report()
        elif session.outcomes:
            print_leaderboard(session.outcomes)
        if session.outcomes:
            return int(any(outcome.failed for outcome in session.outcomes))
        return status


COMMAND = RunCommand()
