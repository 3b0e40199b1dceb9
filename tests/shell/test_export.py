"""Exported models: the same predictions in a process that has PyTorch, Keras or onnxruntime and no evenbench.

Every model of conf/ is exported with weights that are drawn at random (biases and running statistics too, so
that none that is lost goes unnoticed), from the rows as their source has them. Bounds are those of
`harness.core.export.exporter.bound`, whose docstring has the reasons.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.data import dataset as data
from harness.core.data.loaders import Task
from harness.core.export.exporter import Export, Scaling, deviation
from harness.core.export.refit import refit
from harness.core.network import Input, ModelSpec, Network
from harness.core.network.initialisers import initialise
from harness.core.storage import npz
from harness.core.validation import ConfigError
from harness.shell.commands import export as exporting
from harness.shell.commands import main
from tests.support.adapter_process import Adapters, CaseError
from tests.support.compose import choices, composing, config_of
from tests.support.exports import ALONE
from tests.support.networks import KINDS, ZOO, network_of, random_weights
from tests.support.tasks import make_task

ROWS = 9
FRAMEWORK = {"torch": "torch", "keras": "keras", "onnx": "torch"}
MODULE = {"torch": "adapters.torch", "keras": "adapters.keras"}
TARGETS = [
    "torch",
    pytest.param("keras", marks=pytest.mark.exhaustive),
    pytest.param("onnx", marks=pytest.mark.exhaustive),
]
PAIRS = [
    ("fnn", "diabetes", "model.activation=gelu"),
    ("cnn", "digits", "model.activation=leaky_relu"),
    ("cnn_norm", "digits", "model.activation=silu"),
    ("rnn", "japanese_vowels", "model.units=6"),
    ("rnn", "movie_reviews", "model.embedding=5"),
    ("lstm", "japanese_vowels", "model.bidirectional=true"),
    ("lstm", "movie_reviews", "model.depth=2"),
    ("gru", "japanese_vowels", "model.depth=2"),
    ("gru", "movie_reviews", "model.bidirectional=true"),
    ("gru", "digits", "model.bidirectional=true"),
    ("transformer", "japanese_vowels", "model.positions=sinusoidal"),
    ("transformer", "movie_reviews", "model.depth=1"),
    ("transformer", "digits", "model.causal=true"),
    ("autoencoder", "digits", "model.code=3"),
    ("conv_autoencoder", "digits", "model.kernel_size=2"),
]


def test_every_model_is_exported_here() -> None:
    """Catches: a model that was added and that no test exports."""
    assert {model for model, _, _ in PAIRS} == set(choices("model"))


def few_rows(dataset: data.Dataset) -> data.Dataset:
    """The first rows of each split."""
    parts = {name: getattr(dataset, name) for name in ("x", "y", "lengths")}
    cut = {n: p and {split: values[:ROWS] for split, values in p.items()} for n, p in parts.items()}
    return dataclasses.replace(dataset, **cut)


def drawn_weights(network: Network) -> dict[str, Any]:
    """Kernels as a training starts with them, everything else drawn at random.

    Drawn kernels as large as those of the small networks would not do: 64 tanh units then are chaotic, and 40
    steps make 1e-3 of a rounding in float32 (measured; 1e-12 in float64, so it is rounding and nothing else).
    """
    params = network.params()
    started, drawn = initialise(params, 0, "float64"), random_weights(network)
    return {name: started[name] if "kernel" in name else drawn[name] for name in params}


def request_of(model: str, name: str, override: str, to: str, folder: Path) -> dict[str, Any]:
    """A command for the worker, with random weights, in a folder of its own."""
    framework = FRAMEWORK[to]
    execution = "eager" if framework == "torch" else "idiomatic"
    config = config_of(
        f"model={model}", f"data={name}", f"framework={framework}", f"execution={execution}", override
    )
    dataset = data.load(config.data)
    fitted = refit(config.data, config.model.view(dataset))
    raw = fitted.arrays()
    raw |= {key: raw[key][:ROWS] for key in ("x", "lengths") if key in raw}
    few = few_rows(dataset)
    weights = drawn_weights(config.plan(config.model.view(few)).network)
    folder.mkdir()
    data.save(few, folder / "data.npz")
    npz.save(folder / "given.npz", raw)
    npz.save(folder / "weights.npz", {k: w.astype("float32") for k, w in weights.items()})
    kind = "int64" if few.vocabulary else "float32"
    npz.save(folder / "raw.npz", raw | {"x": raw["x"].astype(kind)})
    paths = {"data": "data.npz", "raw": "given.npz", "weights": "weights.npz", "folder": ""}
    command = {key: str(folder / name) for key, name in paths.items()}
    return {"to": to, "run_id": "0123", "config": config.to_plain(), **command}


@pytest.mark.parametrize("to", TARGETS)
def test_models_predict_the_same_without_evenbench(to: str, adapters: Adapters, tmp_path: Path) -> None:
    """Catches: a weight in another layout or lost, a permutation before a flatten that is missing, padding
    that is seen, scales that stay behind, a fixed batch size, and whatever needs evenbench to be loaded."""
    with composing():
        commands = [request_of(*pair, to, tmp_path / f"{pair[0]}-{pair[1]}") for pair in PAIRS]
    module = MODULE[FRAMEWORK[to]]
    replies = adapters(FRAMEWORK[to], "float32").call(
        "tests.support.exports:written", module=module, commands=commands
    )
    for command, answer in zip(commands, replies, strict=True):
        event, ended = answer["events"]
        assert "error" not in event, (command["folder"], event)
        assert event["deviation"] <= event["bound"] == 1e-5, (command["folder"], event)
        assert ended == {"event": "ended"} and event["rows"] == ROWS
    folders = [command["folder"] for command in commands]
    # -I: neither the working folder nor PYTHONPATH; other installed packages are hidden inside
    alone = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, to, *folders],
        cwd="/",
        env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert alone.returncode == 0, alone.stderr
    for folder, answer in zip(folders, replies, strict=True):
        expected, raw = answer["expected"][:5], npz.load(Path(folder) / "raw.npz")
        outputs = np.load(Path(folder) / "alone.npy")
        if "output_mean" in raw:
            outputs = (outputs - raw["output_mean"]) / raw["output_scale"]
        assert np.abs(outputs - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max()), folder
        assert np.abs(expected).max() > 0.05, f"{folder}: outputs that say nothing"


@pytest.mark.parametrize(
    ("to", "precision", "bound"),
    [
        ("torch", "float32", 1e-5),
        ("torch", "float64", 1e-10),
        pytest.param("keras", "float64", 1e-7, marks=pytest.mark.exhaustive),
        pytest.param("onnx", "float64", 1e-7, marks=pytest.mark.slow),
    ],
)
def test_every_layer_kind_is_exported(
    to: str, precision: str, bound: float, adapters: Adapters, tmp_path: Path
) -> None:
    """Catches: an option of a layer kind that the exported model does in another way, or not at all.

    Every kind by itself in PyTorch, where that takes milliseconds; else networks that have most of them.
    """
    cases = KINDS | ZOO if to == "torch" else ZOO
    if to == "onnx":
        cases = {"tokens": ZOO["tokens"], "rnn": KINDS["rnn-both-sequence-padded"]}
    tasks = {name: make_task("idiomatic", **case) | {"precision": precision} for name, case in cases.items()}
    weights = {
        name: {k: w.astype(precision) for k, w in random_weights(network_of(case)).items()}
        for name, case in cases.items()
    }
    module = MODULE[FRAMEWORK[to]]
    replies = adapters(FRAMEWORK[to], precision).call(
        "tests.support.exports:deviations",
        module=module,
        to=to,
        tasks=tasks,
        weights=weights,
        folder=str(tmp_path),
    )
    assert replies.keys() == cases.keys()
    assert {name: value for name, value in replies.items() if not value <= bound} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "padded"])
def test_what_onnxruntime_can_not_run_is_refused_in_words(
    name: str, adapters: Adapters, tmp_path: Path
) -> None:
    """Catches: a file that nothing can run, and an error that doesn't say what to do instead: in float64
    onnxruntime has neither convolutions nor LSTMs."""
    case = ZOO[name]
    weights = {name: random_weights(network_of(case))}
    arguments = {"tasks": {name: make_task("idiomatic", **case)}, "weights": weights, "to": "onnx"}
    with pytest.raises(CaseError, match=r"can't run this network.*\n.*precision=float32"):
        adapters("torch", "float64").call(
            "tests.support.exports:deviations", module="adapters.torch", folder=str(tmp_path), **arguments
        )


def test_a_deviation_is_of_the_networks_own_units() -> None:
    """Catches: a deviation that large targets hide, and something that is not a number passing as none."""
    network = ModelSpec.parse([{"kind": "output"}]).resolve(Input((2,)), 1)
    units = Scaling(np.array([100.0]), np.array([50.0]))
    task = Task("regression", 1, ("y",))
    export = Export("0", "m", "d", task, network, {}, "mse", "float32", None, units)
    expected = np.array([[0.5], [-0.25]])
    assert deviation(export, expected * 50 + 100, expected) == 0.0
    assert deviation(export, expected * 50 + 105, expected) == pytest.approx(0.1)
    assert deviation(export, np.array([[125.0], [np.nan]]), expected) == np.inf
    assert deviation(export, expected[:1] * 50 + 100, expected) == np.inf


def test_what_was_fitted_gives_the_rows_of_the_data_set() -> None:
    """Catches: words whose ids are not those that were trained on, and rows that are no longer the same."""
    config = data.DataConfig("movie_reviews", options={"vocabulary": 50})
    dataset = data.load(config)
    fitted = refit(config, dataset)
    assert len(fitted.words) == 48 and sorted(fitted.words.values()) == list(range(2, 50))
    assert fitted.words["."] == 2 and fitted.words["the"] < 6
    assert np.array_equal(fitted.x, dataset.x["test"])
    other = dataclasses.replace(dataset, x=dataset.x | {"test": dataset.x["test"] + 1.0})
    with pytest.raises(ConfigError, match="differ from those that the run was trained on"):
        refit(config, other)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of one short run."""
    folder = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [sys.executable, "-m", "harness", "data=diabetes", "train.epochs=1", "model.units=[4]"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(main.__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return folder / "results"


@pytest.fixture
def results(finished: Path, workdir: Path) -> Path:
    """A copy of it in the working folder."""
    shutil.copytree(finished / "runs", workdir / "results/runs")
    return workdir / "results"


def export_command(*arguments: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main.main(["export", *arguments])
    output = capfd.readouterr()
    return status, output.out, output.err


def test_a_run_becomes_a_folder_that_can_be_written_again(
    results: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches: a file that is missing, a temporary name that stays, an export that another one blocks."""
    (run,) = (results / "runs").iterdir()
    for name in ("last", run.name[:5]):
        status, out, err = export_command(name, "--to", "torch", capfd=capfd)
        assert status == 0, err
        assert "deviation" in out and "after loading" in out
    (folder,) = (results / "exports").iterdir()
    assert folder.name == f"{run.name}-torch"
    files = {"README.md", "export.json", "model.py", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == files
    output = json.loads((folder / "export.json").read_text())
    assert output["run_id"] == run.name and output["rows"] == 88 and output["deviation"] <= output["bound"]
    assert output["versions"]["torch"] and output["versions"]["safetensors"]
    assert "progression, in the units of diabetes" in (folder / "README.md").read_text()


def test_wrong_requests_are_refused_with_what_was_meant(
    results: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches: a slip that ends in a traceback, in another run's model, or in someone's folder replaced."""
    (run,) = (results / "runs").iterdir()
    slip = run.name[:7] + ("0" if run.name[7] != "0" else "1")
    twin = results / "runs" / (run.name[:4] + "xyz")
    shutil.copytree(run, twin)
    (twin / "result.json").unlink()
    foreign = results / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("dear")
    requests = {
        (slip, "--to", "torch"): f"did you mean '{run.name}'?",
        (run.name[:4], "--to", "torch"): "begins 2 of them",
        (twin.name, "--to", "torch"): "has not finished, so it has no trained weights",
        (run.name, "--to", "torhc"): "did you mean 'torch'?",
        (run.name, "--to", "torch", "--output", str(foreign)): "is not an exported model",
        (run.name,): "--to",
        ("last", "--to", "torch", "--results-dir", "elsewhere"): "there are no runs",
    }
    for arguments, problem in requests.items():
        status, _, err = export_command(*arguments, capfd=capfd)
        assert status == 2 and problem in err and "Traceback" not in err, (arguments, err)
    monkeypatch.setitem(exporting.PACKAGES, "torch", ("safetensors", "no-such-package"))
    status, _, err = export_command(run.name, "--to", "torch", capfd=capfd)
    assert status == 2 and "no-such-package" in err and "evenbench[export]" in err
    assert (foreign / "thesis.txt").read_text() == "dear" and not (results / "exports").exists()


def test_weights_that_are_not_the_runs_are_found_out(
    results: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches: a model of other weights than those that were evaluated; half an export that is left."""
    (run,) = (results / "runs").iterdir()
    weights = npz.load(run / "weights.npz")
    npz.save(run / "weights.npz", {name: array + 0.2 for name, array in weights.items()})
    status, _, err = export_command("last", "--to", "torch", capfd=capfd)
    assert status == 1 and "its data or weights have changed" in err
    npz.save(run / "weights.npz", {name: array[..., :1] for name, array in weights.items()})
    status, _, err = export_command("last", "--to", "torch", capfd=capfd)
    assert status == 1 and "can't be exported: ValueError" in err
    assert list((results / "exports").iterdir()) == []
