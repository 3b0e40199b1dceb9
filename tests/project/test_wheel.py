"""The wheel: built, installed into an empty environment, run from an empty folder.

Nothing is downloaded. A `.pth` line makes the libraries of the test environment importable, but not its
editable installation (nested `.pth` files are not read), so `harness` can only come from the wheel.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command; fails the test with its output if its exit status is not 0."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def content(wheel: Path) -> dict[str, bytes]:
    """The wheel's files by name, without its record."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive, which `build` creates first."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, repository, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel and the test environment's libraries."""

    bin: Path
    packages: Path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel installed in a new environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    binaries = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--python", binaries / "python", "install", "-q", "--no-index")
    run(*pip, "--no-deps", "--disable-pip-version-check", wheel, cwd=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(binaries / "python", "-c", where, cwd=folder).strip())
    libraries = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n", "utf-8")
    return Installed(binaries, packages)


def test_wheel_holds_the_packages_and_every_config(repository: Path, wheel: Path) -> None:
    """Catches: a file of conf/, harness/ or adapters/ that is missing from the wheel, or tests in it."""
    expected = {
        f"harness/_conf/{path.relative_to(repository / 'conf').as_posix()}"
        for path in (repository / "conf").rglob("*.yaml")
    }
    assert expected, "conf/ has no YAML"
    for package in ("harness", "adapters"):
        expected |= {path.relative_to(repository).as_posix() for path in (repository / package).rglob("*.py")}
    datafiles = repository / "harness" / "core" / "data" / "files"
    files = [datafiles / "SOURCES.md", *datafiles.glob("*.npz")]
    assert len(files) > 1
    expected |= {path.relative_to(repository).as_posix() for path in files}
    names = set(content(wheel))
    assert not expected - names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"harness", "adapters", "evenbench"}


def test_source_archive_builds_the_same_wheel(repository: Path, wheel: Path, tmp_path: Path) -> None:
    """Catches: a file that is missing from the source archive, so that a build from it differs."""
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, repository)
    run(*build, cwd=tmp_path)
    (direct,) = tmp_path.glob("*.whl")
    assert content(direct) == content(wheel)


def test_help_works_in_an_empty_folder(installed: Installed, workdir: Path) -> None:
    """Catches: a wrong entry point, and code that only runs from a checkout."""
    assert "evenbench" in run(installed.bin / "evenbench", "--help", cwd=workdir)
    path = run(installed.bin / "python", "-c", "import harness; print(harness.__file__)", cwd=workdir)
    assert Path(path.strip()).is_relative_to(installed.packages)
    assert list(workdir.iterdir()) == []


def test_run_from_the_wheel_leaves_results_where_it_was_started(installed: Installed, workdir: Path) -> None:
    """Catches: conf/ that is missing in a wheel, results/ in the installation, a missing store or result."""
    request = ("model=fnn", "data=iris", "framework=torch", "train.epochs=1")
    run(installed.bin / "evenbench", *request, cwd=workdir)
    (result,) = (workdir / "results" / "runs").glob("*/result.json")
    assert json.loads(result.read_text("utf-8"))["status"] == "finished"
    assert (workdir / "results" / "mlflow.db").is_file()
    assert not (installed.packages / "results").exists()


def test_own_conf_folder_adds_a_model_to_the_wheel(installed: Installed, workdir: Path) -> None:
    """Catches: `--config-dir` that has no effect, or hides the wheel's configuration instead of extending
    it."""
    own = workdir / "myconf" / "model"
    own.mkdir(parents=True)
    shutil.copy(installed.packages / "harness" / "_conf" / "model" / "fnn.yaml", own / "mine.yaml")
    request = ("model=mine", "data=iris", "framework=torch", "train.epochs=1")
    run(installed.bin / "evenbench", "--config-dir", workdir / "myconf", *request, cwd=workdir)
    (result,) = (workdir / "results" / "runs").glob("*/result.json")
    assert json.loads(result.read_text("utf-8"))["status"] == "finished"
