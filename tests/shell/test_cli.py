"""The command line: wrong requests are refused whole, right ones are done, and the exit status says which.

Wrong requests run in this process, since nothing may start for them; the few right ones are real commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

from harness.shell.commands import main
from harness.shell.compose import hydra
from tests.support.paths import ROOT


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


Evenbench = Callable[..., Said]


@pytest.fixture
def evenbench(workdir: Path, capfd: pytest.CaptureFixture[str]) -> Evenbench:
    """`evenbench("data=iris")`: the command in this process, in an empty folder."""

    def call(*arguments: str) -> Said:
        status = main.main(arguments)
        return Said(status, *capfd.readouterr())

    return call


def command(*arguments: str, cwd: Path) -> Said:
    """The command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "harness", *arguments]
    done = subprocess.run(program, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
    return Said(done.returncode, done.stdout, done.stderr)


WRONG = {
    "unknown key": (["train.epoch=2"], ["train.epoch: no such key; did you mean 'epochs'?", "train.epoch=2"]),
    "unknown section": (["modle=fnn"], ["modle: no such key; did you mean 'model'?"]),
    "unknown choice": (["data=irsi"], ["data: 'irsi' is not known; did you mean 'iris'?", "breast_cancer, "]),
    "no choice": (["data="], ["data: '' is not known"]),
    "null choice": (["model=null"], ["model: 'null' is not known"]),
    "wrong type": (["train.epochs=abc"], ["train.epochs: 'abc' is not a whole number"]),
    "list for a number": (["train.epochs=[1,2]"], ["train.epochs: [1, 2] is not a whole number"]),
    "number for a section": (["train=3"], ["train: 3 is not a mapping"]),
    "list for a name": (["optimizer.name=[a]"], ["optimizer.name: ['a'] is not known", "adam, "]),
    "out of range": (["optimizer.learning_rate=0"], ["optimizer.learning_rate: 0.0 is out of range", "> 0"]),
    "removed": (["~train.epochs"], ["train.epochs: is missing", "~train.epochs"]),
    "mandatory": (["train.epochs=???"], ["train.epochs: Missing mandatory value"]),
    "nowhere": (["train.epochs=${no.key}"], ["train.epochs: Interpolation key 'no.key' not found"]),
    "no resolver": (["train.epochs=${no:3}"], ["train.epochs: Unsupported interpolation type no"]),
    "execution": (
        ["execution=epoch"],
        ["torch on cpu has no execution 'epoch'", "idiomatic, eager, compiled"],
    ),
    "loss": (["train.loss=binary_cross_entropy"], ["the task is classification with 10 classes"]),
    "fractions": (["data.test_fraction=0"], ["data.test_fraction: 0.0 is out of range", "> 0 and < 1"]),
    "fractions too small": (
        ["data.val_fraction=1e-4"],
        ["data.val_fraction: 0.0001 of 1797 rows is less than one row"],
    ),
    "unknown layer": (
        ["init.freeze=[1.0.1x]"],
        [
            "init.freeze: '1.0.1x' is not a layer of the model; did you mean '1.0.1'?",
            "the override init.freeze",
        ],
    ),
    "a layer without weights": (
        ["init.freeze=[0]"],
        ["init.freeze: '0' has no weights to freeze"],
    ),
    "every layer": (["init.freeze=[1,2]"], ["init.freeze: freezes every layer: nothing is left to train"]),
    "number for a layer": (
        ["init.freeze=[1.0]"],
        ["init.freeze: 1.0 is read as a number", "'init.freeze=[\"1.10\"]'"],
    ),
    "on from nowhere": (
        ["init.resume=true"],
        ["init.resume: needs a run to resume, and init.from_run is not set"],
    ),
    "unknown run": (
        ["init.from_run=abc"],
        ["init.from_run: there are no runs in", "the override init.from_run=abc"],
    ),
    "all fractions": (["data.test_fraction=0.5", "data.val_fraction=0.5"], ["leave no rows to train on"]),
    "depth": (
        ["model.units=[64,32]", "model.depth=3"],
        ["3 copies, but a list", "the override model.depth=3"],
    ),
    "no depth": (["model.units=64"], ["how many copies?", "conf/model/fnn.yaml (model.depth)"]),
    "activation": (["model.activation=rleu"], ["did you mean 'relu'?", "the override model.activation=rleu"]),
    "hyperparameter": (
        ["model.unitz=3"],
        ["model.unitz: no layer of the model uses it; did you mean 'units'?"],
    ),
    "target": (["train.target={metric: val/acc, value: 1}"], ["did you mean 'val/accuracy'?"]),
    "data option": (["data=xor", "data.options.rows=3"], ["data.options.rows: no such key"]),
    "package": (["framework.distributions=[torchh]"], ["'torch' needs torchh, not installed here"]),
    "interpreter": (["framework.python=/no/python"], ["framework.python: '/no/python' can't be run"]),
    "folder": (["results_dir=/proc/nowhere"], ["results_dir: '/proc/nowhere' can't be written to"]),
    "store": (
        ["tracking.uri=postgres://x"],
        ["tracking.uri: 'postgres' in 'postgres://x' is not a known kind"],
    ),
    "several values": (["seed=1,2"], ["seed: '1,2' are several values for a single run", "-m"]),
    "syntax": (["-m", "seed=range(3"], ["'seed=range(3' can't be read"]),
    "launcher": (["hydra/launcher=fast"], ["Could not find 'hydra/launcher/fast'", "evenbench"]),
    "no command": (["leaderbord"], ["unknown command 'leaderbord'; did you mean 'leaderboard'?"]),
    "no command either": (["train"], ["unknown command 'train'", "or key=value"]),
    "option": (["--cfgg", "job"], ["--cfgg: unknown option; did you mean '--cfg'?"]),
    "option's value": (["--cfg", "jbo"], ["invalid choice: 'jbo'"]),
    "options that exclude each other": (["-m", "--cfg", "job"], ["--multirun and --cfg can't be combined"]),
    "resolve": (["--resolve"], ["--resolve: shows nothing by itself", "--cfg job --resolve"]),
    "command's option": (["ui", "--prot", "1"], ["--prot: unknown option; did you mean '--port'?"]),
    "command's value": (["ui", "--port", "x"], ["argument --port: invalid int value: 'x'"]),
    "no such study": (["leaderboard", "mine"], ["'results' contains no finished or failed run"]),
    "no such folder": (["--config-dir", "nowhere", "seed=1"], ["--config-dir: 'nowhere' is not a folder"]),
    "shown, not run": (["--cfg", "job", "data=irsi"], ["data: 'irsi' is not known"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_refused_in_plain_words_and_leaves_nothing_behind(
    case: str, evenbench: Evenbench, workdir: Path
) -> None:
    """Catches: a traceback, an exit status other than 2, a message without its place or what is allowed, and
    a results folder, a log or a worker for what was never going to run."""
    arguments, parts = WRONG[case]
    result = evenbench(*arguments)
    assert result.status == 2
    assert result.err.startswith("1 mistake in the request; nothing was started:\n  - "), result.err
    for part in parts:
        assert part in result.err
    assert "Traceback" not in result.err and "HYDRA" not in result.err
    assert result.out == ""
    assert list(workdir.iterdir()) == []


def test_all_mistakes_of_a_command_come_in_one_message(evenbench: Evenbench, workdir: Path) -> None:
    """Catches: an attempt for each mistake, since choices, keys, types or data are looked at later."""
    result = evenbench(
        *("data=wine", "optimizer=adamm", "seed=range(3", "train.epcohs=3", "threads=0", "train.loss=mse"),
        *("precision=${nowhere}", "framework.python=/no/python", "model.activation=rleu"),
    )
    assert result.status == 2
    assert result.err.startswith("8 mistakes in the request"), result.err
    for part in (
        *(
            "optimizer: 'adamm'",
            "'seed=range(3' can't",
            "train.epcohs: no such",
            "threads: 0 is out of range",
        ),
        *("train.loss: mse is for", "precision: Interpolation", "framework.python: '/no/python'", "'rleu'"),
    ):
        assert part in result.err
    assert list(workdir.iterdir()) == []


def test_a_sweep_is_checked_whole_before_its_first_run(evenbench: Evenbench, workdir: Path) -> None:
    """Catches: a sweep that starts and dies in its last axis; a mistake said again for each run."""
    result = evenbench("data=iris", "-m", "seed=0,-1", "train.epochs=1,0", "optimizer=sgd,adam")
    assert result.status == 2
    assert result.err.startswith("2 mistakes in the request"), result.err
    assert "the override seed=-1" in result.err and "the override train.epochs=0" in result.err
    assert list(workdir.iterdir()) == []


FILES = {
    "model/typo.yaml": "name: typo\nlayers:\n  - {kind: flaten}\n  - {kind: output, inits: x}\n",
    "model/deep.yaml": "name: deep\nlayers:\n  - {kind: dense, units: 5}\n  - {kind: output}\n",
    "model/idle.yaml": "name: idle\nwidth: 3\nlayers:\n  - {kind: flatten}\n  - {kind: output}\n",
    "model/empty.yaml": "",
    "data/mine.yaml": "name: mnits\nsplit_sed: 1\n",
    "optimizer/mine.yaml": "name: adam\nlearning_rate: fast\n",
    "experiment/values.yaml": "# @package _global_\ntrain: {epochs: many}\nseed: -1\n",
    "experiment/choice.yaml": "# @package _global_\ndefaults:\n  - override /optimizer: adma\n",
    "experiment/nowhere.yaml": "train:\n  epochs: 3\n",
}


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model=typo"], ["layers[0].kind: 'flaten'", "did you mean 'flatten'?", "in: own/model/typo.yaml"]),
        (["model=typo"], ["layers[1].inits: output has no such key", "use_bias, kernel_init"]),
        (["model=deep"], ["model 'deep' can't take data 'digits'", "(8, 5)", "in: own/model/deep.yaml"]),
        (["model=idle"], ["model.width: no layer of the model uses it", "in: own/model/idle.yaml"]),
        (["model=empty"], ["model.name: is missing", "model.layers: is missing"]),
        (
            ["data=mine"],
            ["data.split_sed: no such key; did you mean 'split_seed'?", "in: own/data/mine.yaml"],
        ),
        (["optimizer=mine"], ["'fast' is not a number", "in: own/optimizer/mine.yaml"]),
        (["experiment=values"], ["epochs: 'many' is", "seed: -1 is", "in: own/experiment/values.yaml"]),
        (["experiment=choice"], ["Could not find 'optimizer/adma'", "rmsprop"]),
        (["experiment=nowhere"], ["experiment: sets a section of its own name", "# @package _global_"]),
    ],
)
def test_a_mistake_in_a_file_of_ones_own_is_refused_with_that_file(
    overrides: list[str], parts: list[str], evenbench: Evenbench, workdir: Path
) -> None:
    """Catches: a schema that holds for the command line alone, and a mistake blamed on a file of ours."""
    for name, text in FILES.items():
        path = workdir / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    result = evenbench("--config-dir", "own", *overrides)
    assert result.status == 2
    for part in parts:
        assert part in result.err
    assert "Traceback" not in result.err
    assert [path.name for path in workdir.iterdir()] == ["own"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: x\nlayers: [\n  - {kind: flatten}\n", "line 3"),
        ("name: x\nname: y\n", "duplicate key name"),
        ('name: x\nlayers:\n  - {kind: dense, units: "${model.units"}\n', "layers[0].units"),
    ],
)
def test_a_file_that_is_no_yaml_is_named(text: str, reason: str, evenbench: Evenbench, workdir: Path) -> None:
    """Catches: a parser's traceback, and a message that does not say which file."""
    folder = workdir / "own" / "model"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_text(text)
    result = evenbench("--config-dir", "own", "model=broken")
    assert result.status == 2
    assert "own/model/broken.yaml: is not readable YAML" in result.err and reason in result.err
    assert "Traceback" not in result.err


def test_an_own_file_that_ours_would_hide_is_refused(evenbench: Evenbench, workdir: Path) -> None:
    """Catches: one's own `fnn` that is silently passed over, since Hydra takes the first that it finds."""
    folder = workdir / "own" / "model"
    folder.mkdir(parents=True)
    ours = (ROOT / "conf/model/fnn.yaml").read_text()
    (folder / "fnn.yaml").write_text(ours.replace("relu", "tanh"))
    result = evenbench("--config-dir", "own", "--cfg", "job")
    assert result.status == 2 and "own/model/fnn.yaml: would be hidden" in result.err
    (folder / "fnn.yaml").write_text(ours)
    assert evenbench("--config-dir", "own", "--cfg", "job").status == 0


def test_help_names_every_choice_and_its_examples_are_real(evenbench: Evenbench) -> None:
    """Catches: a choice that help does not know, and an example that would be refused."""
    result = evenbench("--help")
    assert result.status == 0 and result.err == ""
    for path in (ROOT / "conf").glob("*/*.yaml"):
        assert path.stem in result.out
    for name in main.COMMANDS:
        assert name in result.out
    section = result.out.partition("examples:\n")[2].partition("\n\n")[0]
    examples = [line.split("  ")[1].split() for line in section.splitlines()]
    own = Path("my_conf/model/mine.yaml")  # the one that an example takes to be there
    own.parent.mkdir(parents=True)
    own.write_text((ROOT / "conf/model/fnn.yaml").read_text())
    assert len(examples) > 4
    for program, *arguments in examples:
        assert program == "evenbench"
        if "--cfg" in arguments:
            assert evenbench(*arguments).status == 0
        else:  # refused for the one thing that is wrong with it now, so the rest is right
            result = evenbench(*arguments, "train.epochs=0")
            assert result.err.startswith("1 mistake in the request"), arguments
            assert "train.epochs: 0 is out of range" in result.err


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_command_has_help_with_examples(name: str, evenbench: Evenbench) -> None:
    """Catches: a command whose help fails or shows nothing to copy."""
    try:
        result = evenbench(name, "--help")
    except SystemExit as stop:  # argparse's way
        assert not stop.code
    else:
        assert result.status == 0
        assert "examples:" in result.out


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["--info", "defaults"], ["--info"], ["--version"]])
def test_what_only_shows_something_writes_nothing(
    arguments: list[str], evenbench: Evenbench, workdir: Path
) -> None:
    """Catches: a log or a folder from a command that was only asked to show; an option lost on the way."""
    result = evenbench("data=wine", *arguments)
    assert result.status == 0
    assert arguments == ["--version"] or "wine" in result.out
    assert list(workdir.iterdir()) == []


def test_a_run_of_a_sweep_is_composed_once(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: Hydra's own sweeper, which composes each run, throws that away and composes it again; runs
    that differ in numbers alone, composed from their files each."""
    composed: list[list[str]] = []
    load = ConfigLoaderImpl.load_sweep_config

    def counted(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed.append(sweep_overrides)
        return load(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    assert len(hydra.collect(["data=iris,wine", "seed=range(3)"])) == 6
    assert composed == [[f"data={name}", "++seed=0"] for name in ("iris", "wine")]


def test_a_run_is_done_once_shown_and_done_again_when_asked(workdir: Path) -> None:
    """Catches: an exit status that is not 0, a finished run done again, `force` without effect, files left
    next to the results folder, a table that went to standard error, JSON that is none."""
    request = ("data=iris", "train.epochs=1", "optimizer.learning_rate=0.01")
    first = command(*request, cwd=workdir)
    assert first.status == 0, first.err
    assert "1 run to do" in first.err and "[1/1] fnn torch iris s0: test/accuracy" in first.err
    assert first.out.startswith("Leaderboard") and "evenbench ui" in first.out
    again = command(*request, "study=another", cwd=workdir)
    assert again.status == 0
    assert "nothing to do: 1 run finished before (force=true does them again)" in again.err
    forced = command("-m", *request, "force=true", "seed=0,1", cwd=workdir)
    assert forced.status == 0 and "2 runs to do" in forced.err
    assert [path.name for path in workdir.iterdir()] == ["results"]
    table = command("leaderboard", "--json", cwd=workdir)
    (row,) = json.loads(table.out)
    assert (table.status, row["runs"], row["failed"]) == (0, 2, 0)


def test_a_run_that_fails_is_reported_and_gives_status_1(workdir: Path) -> None:
    """Catches: a failure that a script takes for success."""
    result = command("data=iris", "train.epochs=1000000", "timeout_s=0.5", cwd=workdir)
    assert result.status == 1
    assert "timeout: " in result.err and "1 (1 failed)" in result.out
    assert "Traceback" not in result.err


def test_a_reader_that_goes_away_is_no_error(workdir: Path) -> None:
    """Catches: the traceback of a broken pipe under `evenbench ... | head`."""
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "harness", "--help"]
    done = subprocess.run(
        program, cwd=workdir, env=environment, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.stderr == ""
