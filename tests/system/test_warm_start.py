"""Runs that start from others: training resumed in another framework, transfer, frozen layers.

Runs are prepared as by the command and executed by the worker's code in adapter processes, so that each
framework is imported once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.config.run_config import RunConfig
from harness.core.storage import npz
from harness.core.training import weights
from harness.core.validation import ConfigError, to_plain
from harness.shell.reports.progress_text import start_text
from harness.shell.runs.inputs import RunInputs
from harness.shell.runs.prepare import prepare
from harness.shell.runs.records import PreparedRun
from tests.support.adapter_process import Adapters
from tests.support.compose import composing, config_of

BOUND = 1e-10
LSTM = ("model=lstm", "model.units=8", "data=digits", "precision=float64", "certify=off")
MOONS = ("data=make_classification", "data.options.n_samples=200", "model.units=[6,5]", "train.epochs=1")
CLASSES = ("data.options.n_classes=3", "data.options.n_informative=4")


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    with composing():
        yield


@dataclass(frozen=True)
class Runs:
    """Runs in one results folder."""

    adapters: Adapters
    results: Path

    def prepared(self, *overrides: str, **sections: Any) -> PreparedRun:
        """A prepared run, optionally with whole sections replaced; raises ConfigError."""
        config = config_of(f"results_dir={self.results}", *overrides)
        config = RunConfig.parse(config.to_plain() | sections)
        (run,) = prepare([config], RunInputs())
        return run

    def do(self, *overrides: str) -> str:
        """Execute a run unless it is finished; return its id."""
        run = self.prepared(*overrides)
        if run.folder.status() != "finished":
            run.folder.write_job(to_plain(run.job))
            process = self.adapters(run.config.framework.name, run.config.precision)
            result = process.call("tests.support.adapter_cases:do_run", folder=str(run.folder.path))
            assert result["status"] == "finished", result["error"]
        return run.job.run_id

    def result(self, run_id: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.results / "runs" / run_id / "result.json").read_text())
        return result

    def losses(self, run_id: str) -> dict[int, list[float]]:
        """Training and validation loss by epoch."""
        epochs = self.result(run_id)["epochs"]
        return {e["epoch"]: [e["metrics"][name] for name in ("train/loss", "val/loss")] for e in epochs}

    def weights(self, run_id: str) -> dict[str, Any]:
        return npz.load(self.results / "runs" / run_id / "weights.npz")

    def mistakes(self, *overrides: str) -> list[tuple[str, str]]:
        """Key and message of each mistake in a request."""
        with pytest.raises(ConfigError) as caught:
            self.prepared(*overrides)
        return [(mistake.key, str(mistake)) for mistake in caught.value.mistakes]


@pytest.fixture(scope="module")
def runs(adapters: Adapters, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(adapters, tmp_path_factory.mktemp("warm_start") / "results")


def largest(a: dict[int, list[float]], b: dict[int, list[float]]) -> float:
    assert a.keys() == b.keys()
    return max(abs(x - y) for epoch in a for x, y in zip(a[epoch], b[epoch], strict=True))


@pytest.mark.parametrize(("here", "there"), [("torch", "keras"), ("keras", "torch"), ("torch", "keras_jax")])
@pytest.mark.parametrize(
    "rule", [("optimizer=adam", "optimizer.impl=shared"), ("optimizer=momentum",)], ids=["adam", "momentum"]
)
def test_a_training_resumes_in_another_framework(
    rule: tuple[str, ...], here: str, there: str, runs: Runs
) -> None:
    """Catches: weights or optimizer state that are lost or converted wrongly; a step count, a schedule or an
    order of batches that restarts. Momentum runs natively: Keras stores it differently."""
    schedule = "schedule=exponential" if "optimizer=adam" in rule else "schedule=constant"
    common = (*LSTM, *rule, schedule)
    first = runs.do(*common, f"framework={here}", "train.epochs=3")
    second = runs.do(
        *common, f"framework={there}", "train.epochs=6", f"init.from_run={first}", "init.resume=true"
    )
    pieces = runs.losses(first) | runs.losses(second)
    for framework in (here, there):
        whole = runs.do(*common, f"framework={framework}", "train.epochs=6")
        assert largest(pieces, runs.losses(whole)) <= BOUND
        assert weights.compare(runs.weights(second), runs.weights(whole)).largest <= BOUND
    assert pieces[6][0] < pieces[3][0] < pieces[1][0]


@pytest.mark.parametrize("framework", ["torch", "keras", "keras_torch"])
def test_a_resumed_run_equals_the_uninterrupted_one(framework: str, runs: Runs) -> None:
    """Catches: masks, running statistics or slots that are not resumed bit for bit, in float32 with
    dropout."""
    common = (f"framework={framework}", "model=cnn_norm", "model.filters=[4]", "model.dropout=0.3")
    common = (*common, "optimizer=momentum", "schedule=exponential", "data=digits")
    half = runs.do(*common, "train.epochs=2")
    end = runs.do(*common, "train.epochs=4", f"init.from_run={half[:10]}", "init.resume=true")
    whole = runs.do(*common, "train.epochs=4")
    assert runs.losses(half) | runs.losses(end) == runs.losses(whole)
    assert weights.compare(runs.weights(end), runs.weights(whole)).largest == 0.0
    other = runs.do(*common, "train.epochs=4", f"init.from_run={half}", "init.resume=true", "seed=1")
    assert runs.losses(other)[3] != runs.losses(whole)[3]


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_transfer_to_another_task(framework: str, runs: Runs) -> None:
    """Catches: an output layer partly from the old task; layers that are initialised without a message; a
    frozen layer that trains; an optimizer that resumes although only weights were requested."""
    source = runs.do("framework=torch", *MOONS, "optimizer.weight_decay=0.1", "optimizer=adamw")
    task = (f"framework={framework}", *MOONS, *CLASSES, f"init.from_run={source}", "optimizer=adamw")
    run = runs.prepared(*task, "init.freeze=[1]")
    assert (run.start.taken, run.start.new, run.start.frozen) == (
        ("1.0.0", "1.1.0"),
        ("2",),
        ("1.0.0", "1.1.0"),
    )
    assert start_text(run.start) == (
        f"starting from run {source}; weights taken: 1.0.0, 1.1.0; initialised: 2; frozen: 1.0.0, 1.1.0"
    )
    frozen = runs.do(*task, "init.freeze=[1]")
    assert runs.result(frozen)["start"] == json.loads(json.dumps(to_plain(run.start)))
    assert list(runs.losses(frozen)) == [1]
    before, after = runs.weights(source), runs.weights(frozen)
    for name, value in after.items():
        assert (name in before and np.array_equal(value, before[name])) == (not name.startswith("2.")), name
    assert after["2.kernel"].shape == (5, 3)
    free = runs.weights(runs.do(*task))
    assert not any(np.array_equal(free[name], after[name]) for name in free)


def test_a_layer_is_named_by_its_path_or_its_name(runs: Runs) -> None:
    """Catches: a prefix that matches too much (1 and 10), and two runs for one request."""
    dense = {"kind": "dense", "units": 4}
    block = {"kind": "residual", "name": "block", "body": [dense]}
    layers = [dense | {"name": "first"}, block, {"kind": "repeat", "times": 11, "body": [dense]}]
    model = {"name": "tower", "layers": [*layers, {"kind": "output"}]}

    def prepared(*names: str | int) -> PreparedRun:
        return runs.prepared("data=iris", model=model, init={"freeze": list(names)})

    frozen = {
        "first": ("0",),
        0: ("0",),
        "block": ("1.body.0",),
        1: ("1.body.0",),
        "2.1": ("2.1.0",),
        2: tuple(f"2.{copy}.0" for copy in range(11)),
    }
    for name, paths in frozen.items():
        assert prepared(name).start.frozen == paths
    assert len({prepared(*names).job.run_id for names in (["first"], [0], [0, "first"])}) == 1
    assert len({prepared(*names).job.run_id for names in (["first"], [], [1])}) == 3


def test_the_run_id_depends_on_the_source(runs: Runs) -> None:
    """Catches: a run that counts as done although its source has changed; a run id that depends on how the
    source was named."""
    source = runs.do("framework=torch", *MOONS)
    start = ("framework=torch", *MOONS, f"init.from_run={source}")
    run_id = runs.prepared(*start).job.run_id
    assert runs.prepared(*start[:-1], f"init.from_run={source[:9]}").job.run_id == run_id
    (runs.results / "runs" / source / "result.json").touch()
    assert runs.prepared(*start[:-1], "init.from_run=last").job.run_id == run_id
    assert runs.prepared(*start[:-1]).job.run_id == source
    path = runs.results / "runs" / source / "weights.npz"
    original = path.read_bytes()
    npz.save(path, {name: value + 1 for name, value in npz.load(path).items()})
    try:
        run = runs.prepared(*start)
        assert run.job.run_id != run_id
        run.folder.write_job(to_plain(run.job))
    finally:
        path.write_bytes(original)
    result = runs.adapters("torch", "float32").call(
        "tests.support.adapter_cases:do_run", folder=str(run.folder.path)
    )
    assert result["status"] == "failed"
    assert f"run {source} was repeated in the meantime" in result["error"]["message"]
    shutil.rmtree(run.folder.path)


def test_weights_that_do_not_fit_are_refused_with_both_shapes(runs: Runs) -> None:
    """Catches: a source that is used in part, or whose layer is used for another layer."""
    source = runs.do("framework=torch", *MOONS)
    start = ("framework=torch", *MOONS, f"init.from_run={source}")
    wider = runs.mistakes(*start, "model.units=[6,9]")
    assert [key for key, _ in wider] == ["init.from_run"] * 2
    assert f"1.1.0.kernel is (6, 9) in this model and (6, 5) in run {source}" in wider[0][1]
    deeper = " ".join(message for _, message in runs.mistakes(*start, "model.units=[6,5,4]"))
    assert f"1.2.0.kernel is (5, 4) in this model and missing in run {source}" in deeper
    flatter = " ".join(message for _, message in runs.mistakes(*start, "model.units=[6]"))
    assert f"1.1.0.kernel is (6, 5) in run {source} and missing in this model" in flatter


def test_an_impossible_resume_is_refused(runs: Runs) -> None:
    """Catches: a training that silently resumes with half of its state, or without it."""
    source = runs.do("framework=torch", *MOONS, "init.freeze=['1.0']")
    start = ("framework=torch", *MOONS, f"init.from_run={source}", "init.resume=true")
    mistakes = dict(runs.mistakes(*start, "optimizer=sgd", "precision=float64", *CLASSES))
    assert mistakes.keys() == {"optimizer", "precision", "train.epochs", "init.from_run"}
    assert "sgd can't resume from the state of adam" in mistakes["optimizer"]
    assert "float64 can't resume from float32" in mistakes["precision"]
    assert (
        "has already trained 1 epochs" in mistakes["train.epochs"]
        and "more than 1" in mistakes["train.epochs"]
    )
    assert "2.bias is (3) here, not as in run" in mistakes["init.from_run"]
    ((key, message),) = runs.mistakes(*start, "train.epochs=2")
    assert key == "init.freeze" and "1.0.0: frozen in run" in message
    assert runs.prepared(*start, "train.epochs=2", "init.freeze=[1]").start.epochs == 1
    (runs.results / "runs" / source / "state.npz").rename(runs.results / "state.npz")
    try:
        messages = " ".join(message for _, message in runs.mistakes(*start, "train.epochs=2"))
        assert f"run {source} has no optimizer state" in messages
        assert runs.prepared(*start[:-1]).start.taken
    finally:
        (runs.results / "state.npz").rename(runs.results / "runs" / source / "state.npz")


def test_a_missing_or_unfinished_source_is_refused(runs: Runs) -> None:
    """Catches: a typo in an id, or an ambiguous prefix, that ends in a traceback or is not noticed."""
    source = runs.do("framework=torch", *MOONS)
    typo = source[:7] + ("0" if source[7] != "0" else "1") + source[8:]
    for name in (typo, typo[:9]):
        ((key, message),) = runs.mistakes(*MOONS, f"init.from_run='{name}'")
        assert key == "init.from_run" and f"no run has the id '{name}'" in message
        assert f"did you mean '{source}'" in message
    twin, unfinished = (runs.results / "runs" / f"{source[:12]}{end}" for end in ("zzzz", "yyyy"))
    for folder in (twin, unfinished):
        shutil.copytree(runs.results / "runs" / source, folder)
    try:
        ((_, message),) = runs.mistakes(*MOONS, f"init.from_run='{source[:12]}'")
        assert "begins 3 of them" in message and twin.name in message
        (unfinished / "result.json").unlink()
        ((_, message),) = runs.mistakes(*MOONS, f"init.from_run={unfinished.name}")
        assert f"run {unfinished.name} is not finished" in message
        (twin / "weights.npz").unlink()
        ((_, message),) = runs.mistakes(*MOONS, f"init.from_run={twin.name}")
        assert "no longer has weights in its folder" in message
    finally:
        shutil.rmtree(twin)
        shutil.rmtree(unfinished)
