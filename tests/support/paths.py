"""Folders of the checkout that tests read from and run in."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
FAULTY = ROOT / "tests" / "support" / "faulty"
"""A framework outside of the project, as a user would add one: a module and a folder for `--config-dir`."""
