"""The Tab key in a real shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core.validation import ConfigError
from harness.shell.commands.main import train
from tests.support.paths import ROOT

SCRIPT = """
eval "$(evenbench -sc install=bash)"
complete -p evenbench
COMP_LINE="$1" COMP_POINT=${#1} COMP_CWORD=$2
hydra_bash_completion
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash is here")
@pytest.mark.parametrize(
    ("typed", "word", "offered"),
    [
        ("evenbench model=l", 1, "model=lstm"),
        ("evenbench -m optimizer=adam train.ep", 3, "train.epochs="),
    ],
)
def test_the_tab_key_offers_keys_and_choices(typed: str, word: int, offered: str, workdir: Path) -> None:
    """Catches: `install=bash` or `query=bash` taken for a wrong override, or put where Hydra's parser does
    not find it; a completion for another command's name; a run that a Tab starts."""
    program = workdir / "bin" / "evenbench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m harness "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    shell = ["bash", "-c", SCRIPT, "bash", typed, str(word)]
    done = subprocess.run(shell, cwd=workdir, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    installed, replied = done.stdout.splitlines()
    assert installed.endswith(" evenbench") and replied == offered
    assert [path.name for path in workdir.iterdir()] == ["bin"]


@pytest.mark.parametrize("words", [[], ["install=bsh"], ["install=bash", "model=fnn"]])
def test_what_can_not_be_installed(words: list[str]) -> None:
    """Catches: Hydra's traceback for a shell that it does not know."""
    with pytest.raises(ConfigError, match="--shell-completion: needs one argument"):
        train(["-sc", *words])
