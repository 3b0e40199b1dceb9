"""The Makefile installs once, again when the pins change, and never uses a partial installation.

A stand-in for Python writes a journal instead of installing, so nothing is downloaded. The Makefile, make and
.ci/run are real.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# Passes the version check (unless TOO_OLD), creates a "venv" that contains itself, and logs every other call,
# which fails for the program named in FAILS. `pip` executes the file `pip-does`.
STAND_IN = """#!/bin/sh
case "$1 $2" in
    "-c import sys"*) exit "${TOO_OLD:-0}" ;;
    "--version ") echo "Python 3.9.2" ;;
    "-m venv")
        echo venv >> journal
        mkdir -p .venv/bin && for p in python evenbench ruff mypy; do cp "$0" .venv/bin/$p; done ;;
    "-m pip") echo "pip $(echo "$*" | sed 's/.* //')" >> journal; . ./pip-does ;;
    *) echo "$(basename "$0") $*" >> journal; [ "$(basename "$0")" != "${FAILS:-}" ] ;;
esac
"""
BENCH = ("evenbench experiment=bench model=fnn data=breast_cancer", "evenbench experiment=bench")


@dataclass(frozen=True)
class Checkout:
    """A folder with the real Makefile, a stand-in for Python, and its journal."""

    folder: Path

    def make(self, *targets: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run make to its end."""
        process = self.start(*targets, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *targets: str, **environment: str) -> subprocess.Popen[str]:
        """Start make in its own process group."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        return subprocess.Popen(
            ["make", *targets, f"PYTHON={self.folder / 'python'}"],
            cwd=self.folder,
            env=clean | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def pip_does(self, shell: str) -> None:
        """Set the shell code that an installation executes from now on."""
        (self.folder / "pip-does").write_text(shell + "\n")

    def done(self) -> list[str]:
        """Calls since the last time this was called."""
        journal = self.folder / "journal"
        lines = journal.read_text().splitlines() if journal.exists() else []
        journal.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Checkout:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path / name)
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    checkout = Checkout(tmp_path)
    checkout.pip_does("true")
    return checkout


def test_bench_installs_once_and_then_only_runs(checkout: Checkout) -> None:
    """Catches: a second `make bench` that installs again, or a first one that does not run the main job."""
    first = checkout.make("bench")
    assert first.returncode == 0, first.stderr
    assert checkout.done() == ["venv", "pip .[jax]", *BENCH]
    second = checkout.make("bench")
    assert checkout.done() == list(BENCH)
    assert second.stdout + second.stderr == ""


def test_environment_of_the_tests_serves_bench_too(checkout: Checkout) -> None:
    """Catches: `make bench` after `make test` that installs a subset of the installed extras."""
    assert checkout.make("test").returncode == 0
    assert checkout.done()[:2] == ["venv", "pip .[jax,data,dev]"]
    assert checkout.make("bench").returncode == 0
    assert checkout.done() == list(BENCH)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_into_the_same_environment(checkout: Checkout, name: str) -> None:
    """Catches: stamps that do not depend on the pins, so that old versions stay installed after a pull."""
    checkout.make("bench")
    checkout.done()
    later = time.time() + 60
    os.utime(checkout.folder / name, (later, later))
    assert checkout.make("bench").returncode == 0
    assert checkout.done() == ["pip .[jax]", *BENCH]


def test_failed_installation_is_reported_and_repeated(checkout: Checkout) -> None:
    """Catches: a stamp written although pip failed; a swallowed error of pip; a broken environment that is
    reused."""
    checkout.pip_does("echo 'no such version' >&2; exit 1")
    failed = checkout.make("bench")
    assert failed.returncode != 0
    assert "no such version" in failed.stderr
    checkout.done()
    checkout.pip_does("true")
    assert checkout.make("bench").returncode == 0
    assert checkout.done() == ["venv", "pip .[jax]", *BENCH]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("earlier", [False, True], ids=["first", "update"])
def test_interrupted_installation_is_repeated(
    checkout: Checkout, stop: signal.Signals, earlier: bool
) -> None:
    """Catches: an interrupted installation that counts as complete, be it the first or a later one."""
    if earlier:
        checkout.make("bench")
        later = time.time() + 60
        os.utime(checkout.folder / "constraints.txt", (later, later))
    checkout.pip_does(
        ": > installing; exec sleep 60"
    )  # exec, because a shell would shield a child from SIGINT
    process = checkout.start("bench")
    while not (checkout.folder / "installing").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, stop)
    process.communicate(timeout=30)
    checkout.done()
    checkout.pip_does("true")
    assert checkout.make("bench").returncode == 0
    assert checkout.done() == ["venv", "pip .[jax]", *BENCH]


def test_unsuitable_python_is_refused_by_name(checkout: Checkout) -> None:
    """Catches: minutes of installing that end in a message about a missing wheel."""
    refused = checkout.make("bench", TOO_OLD="1")
    assert refused.returncode != 0
    assert "evenbench needs Python 3.11, 3.12 or 3.13" in refused.stderr
    assert "Python 3.9.2" in refused.stderr
    assert "make bench PYTHON=" in refused.stderr
    assert not (checkout.folder / ".venv").exists()


def test_make_alone_prints_help_for_every_target(checkout: Checkout) -> None:
    """Catches: a bare `make` that starts something long, and a target without help."""
    printed = checkout.make().stdout
    makefile = (checkout.folder / "Makefile").read_text().splitlines()
    (targets,) = (line.split()[1:] for line in makefile if line.startswith(".PHONY:"))
    assert [name for name in targets if f"make {name} " not in printed] == ["help"]
    assert checkout.done() == []


@pytest.mark.parametrize(
    ("fails", "failed"),
    [("", []), ("ruff", ["make lint"]), ("python", ["make test-all"]), ("mypy", ["make lint"])],
)
def test_ci_runs_every_part_and_names_those_that_failed(
    checkout: Checkout, fails: str, failed: list[str]
) -> None:
    """Catches: tests that do not run because the linter failed; a failure without its name or exit status."""
    (checkout.folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", checkout.folder / ".ci/run")
    for browser in ("chromium", "chromedriver"):  # else CI would install them
        (checkout.folder / browser).write_text("#!/bin/sh\n")
        (checkout.folder / browser).chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    environment |= {"PATH": f"{checkout.folder}:{os.environ['PATH']}", "FAILS": fails}
    environment |= {"PYTHON": str(checkout.folder / "python")}
    done = subprocess.run(
        [checkout.folder / ".ci/run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == (1 if failed else 0), done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("FAILED")] == [
        f"FAILED: {part}" for part in failed
    ]
    tests = [call for call in checkout.done() if call.startswith("python -m pytest")]
    assert len(tests) == 1 and "not bench" in tests[0]
