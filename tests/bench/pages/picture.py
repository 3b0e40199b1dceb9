"""Draw the README's picture from finished runs: `python tests/bench/pages/picture.py results bench`."""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from harness.shell.reports.leaderboard import rows, table
from harness.shell.studies.members import load_outcomes


def draw(results_dir: Path, study: str, path: Path) -> None:
    """Write the leaderboard of a study to an SVG file."""
    board = rows(load_outcomes(results_dir, study))
    console = Console(record=True, width=120, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(table(board, "Leaderboard", board))
    local = re.sub(
        r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL
    )  # no fonts from elsewhere
    console.save_svg(str(path), title=f"evenbench experiment={study}", code_format=local)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results_dir", type=Path)
    parser.add_argument("study")
    options = parser.parse_args()
    picture = Path(__file__).resolve().parents[3] / "docs" / "images" / "leaderboard.svg"
    draw(options.results_dir, options.study, picture)
