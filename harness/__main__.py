"""`python -m harness` is the same command as `evenbench`."""

from __future__ import annotations

from harness.shell.commands.main import command

command()
