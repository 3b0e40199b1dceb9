"""`execution=best`: real workers time what there is to choose from; choices are kept, and followed.

Which of equals is the fastest is a matter of chance, so nothing here depends on what was measured: a test
writes other times into the file where the choice is kept, and looks at what becomes of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness.core.config.run_config import FrameworkConfig, RunConfig
from harness.core.machine.matmul_limits import Device
from harness.core.runs import autotune
from harness.core.runs.run_folder import RunFolder
from harness.core.validation import ConfigError, Mistake, to_plain
from harness.shell.runs.inputs import DatasetCache, RunInputs
from harness.shell.runs.prepare import prepare
from harness.shell.runs.records import PreparedRun
from harness.shell.session.autotune import ExecutionTuner
from tests.support.compose import composing, config_of
from tests.support.paths import FAULTY, ROOT
from tests.support.workspace import Workspace, cleanup, end

THREE = ("eager", "compiled", "epoch")
NUMPY = FrameworkConfig(
    name="faulty",
    adapter="faulty_adapter",
    backend="numpy",
    distributions=("numpy",),
    execution="eager",
    executions={"cpu": ["idiomatic", *THREE]},
)
COMMAND = (
    *("framework=faulty", "+framework.executions={cpu: [eager, compiled]}", "optimizer=sgd", "data=iris"),
    *("train.epochs=2", "limit=off", "certify=off"),
)


def tuned(tuner: ExecutionTuner, configs: Sequence[RunConfig], local: bool = True) -> list[PreparedRun]:
    """The runs as a session prepares them."""
    inputs = RunInputs()
    return tuner.tune(prepare(configs, inputs), inputs, local)


@dataclass
class Bench:
    """A results folder, and runs of NumPy that ask for the best execution."""

    folder: Path
    config: RunConfig
    notes: list[str]

    def prepare(self, *configs: RunConfig) -> list[PreparedRun]:
        """As a command of its own prepares them."""
        return tuned(ExecutionTuner(self.notes.append), configs or [self.config])

    def calibrated(self) -> int:
        """How often something was measured since it was last asked."""
        count = sum(text.startswith("finding the fastest") for text in self.notes)
        self.notes.clear()
        return count

    def kept(self) -> list[Path]:
        return sorted(self.folder.glob("results/machine/executions/*.json"))

    def rewrite(self, step_ms: Mapping[str, float], **changes: Any) -> None:
        """Give the candidates of the only choice other times, and the choice other values."""
        (path,) = self.kept()
        stored = json.loads(path.read_text())
        for one in stored["choice"]["candidates"]:
            one["step_ms"] = step_ms.get(one["execution"], one["step_ms"])
        stored["choice"] |= changes
        path.write_text(json.dumps(stored))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(FAULTY))))
    monkeypatch.setenv("FAULTS", str(tmp_path / "faults.json"))
    (tmp_path / "faults.json").write_text("{}")
    with composing():
        composed = config_of("model=fnn", "data=iris", "optimizer=sgd", f"results_dir={tmp_path / 'results'}")
    return Bench(tmp_path, replace(composed, framework=NUMPY, execution="best"), [])


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        yield workspace


def test_a_choice_is_measured_once(bench: Bench) -> None:
    """Catches: a choice that is not the fastest of those that were timed, the tutorial's loop among them,
    times that the run does not tell; a kept choice that is measured again, or not followed; a seed or a
    learning rate that makes another choice."""
    (run,) = bench.prepare()
    assert bench.calibrated() == 1
    recorded = run.job.calibration
    assert recorded is not None and {one["execution"] for one in recorded["candidates"]} == set(THREE)
    best = min(recorded["candidates"], key=lambda one: float(one["step_ms"]))
    assert all(one["step_ms"] > 0 and one["compile_s"] >= 0 for one in recorded["candidates"])
    assert best["execution"] == recorded["execution"] == run.config.execution == run.job.config["execution"]
    assert [to_plain(choice) for choice in autotune.read_all(run.results_dir)] == [recorded]

    bench.rewrite({}, execution="epoch", disturbed=[])
    seeds = [replace(bench.config, seed=seed) for seed in range(3)]
    other = replace(bench.config, optimizer=replace(bench.config.optimizer, learning_rate=0.5))
    runs = bench.prepare(*seeds, other)
    assert [run.config.execution for run in runs] == ["epoch"] * 4
    assert bench.calibrated() == 0 and len(bench.kept()) == 1


def test_the_chosen_and_the_named_are_one_run(bench: Bench) -> None:
    """Catches: an identity that says `best`; XLA switched on in a run that left it alone."""
    (best,) = bench.prepare()
    (named,) = prepare([replace(bench.config, execution=best.config.execution)], RunInputs())
    assert best.config.execution in THREE and best.job.run_id == named.job.run_id
    assert named.job.calibration is None


def test_what_was_disturbed_is_measured_again(bench: Bench) -> None:
    """Catches: disturbed times that stay for ever, or that hide shorter ones; a second measure
    in the same command; a choice that changes from run to run because equals are never quite equal."""
    bench.prepare()
    bench.calibrated()
    bench.rewrite({"compiled": 1e-9}, disturbed=["by a test"])
    choices = ExecutionTuner(bench.notes.append)
    for _ in range(2):
        (run,) = tuned(choices, [bench.config])
        assert run.config.execution == "compiled"
    assert bench.calibrated() == 1
    assert run.job.calibration is not None
    times = {one["execution"]: one["step_ms"] for one in run.job.calibration["candidates"]}
    assert times["compiled"] == 1e-9 < min(times["eager"], times["epoch"])

    bench.rewrite({"eager": 0.97e-9}, disturbed=["by a test"])
    assert bench.prepare()[0].config.execution == "compiled"  # 3 % is not clearly faster
    bench.rewrite({"eager": 0.5e-9}, disturbed=["by a test"])
    assert bench.prepare()[0].config.execution == "eager"


def test_what_cannot_run_is_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: one execution that fails and takes the others with it, or is chosen; its reason lost; a choice
    among none that is kept, so that what is mended later is never tried."""
    monkeypatch.setenv("REFUSED", "eager epoch")
    (run,) = bench.prepare()
    assert run.config.execution == "compiled" and run.job.calibration is not None
    reasons = {one["execution"]: one["reason"] for one in run.job.calibration["candidates"]}
    assert reasons == {
        "compiled": "",
        "eager": "ValueError: eager is refused",
        "epoch": "ValueError: epoch is refused",
    }
    assert any("eager left out (ValueError: eager is refused)" in text for text in bench.notes)

    (path,) = bench.kept()
    path.unlink()
    monkeypatch.setenv("REFUSED", " ".join(THREE))
    (run,) = bench.prepare()
    assert run.config.execution == "eager" and not bench.kept()
    assert any(
        "using the default execution eager, because none could be timed" in text for text in bench.notes
    )


def test_a_worker_that_dies_costs_the_choice_alone(bench: Bench) -> None:
    """Catches: a crash while executions are timed that ends the sweep, or leaves a later program without."""
    (bench.folder / "faults.json").write_text(json.dumps({"1": "segfault"}))
    deadly = replace(bench.config, seed=1)
    other = replace(bench.config, train=replace(bench.config.train, batch_size=8))
    first, second = bench.prepare(deadly, other)
    assert first.config.execution == "eager" and first.job.calibration is not None
    assert "SIGSEGV" in str(first.job.calibration["disturbed"])
    assert second.job.calibration is not None and second.job.calibration["steps"] > 0
    assert len(bench.kept()) == 1


def test_one_execution_is_no_choice(bench: Bench) -> None:
    """Catches: a worker that is started to compare something with nothing."""
    alone = replace(NUMPY, executions={"cpu": ["idiomatic", "eager"]})
    (run,) = bench.prepare(replace(bench.config, framework=alone))
    assert run.config.execution == "eager" and bench.calibrated() == 0


def test_runs_that_go_elsewhere_have_no_best(bench: Bench) -> None:
    """Catches: an execution that was the fastest on one machine in the runs of others."""
    with pytest.raises(ConfigError) as caught:
        tuned(ExecutionTuner(bench.notes.append), [bench.config], local=False)
    (mistake,) = caught.value.mistakes
    assert mistake.key == "execution" and mistake.allowed == "faulty: eager, compiled, epoch"


def test_nothing_is_measured_for_a_wrong_request(bench: Bench) -> None:
    """Catches: seconds of measuring before what is wrong is said."""
    wrong = replace(bench.config, seed=1, tracking=replace(bench.config.tracking, uri="nowhere://"))
    with pytest.raises(ConfigError):
        bench.prepare(bench.config, wrong)
    assert not bench.notes


CHANGES: dict[str, Callable[[RunConfig], RunConfig]] = {
    "batch size": lambda c: replace(c, train=replace(c.train, batch_size=16)),
    "threads": lambda c: replace(c, threads=2),
    "precision": lambda c: replace(c, precision="float64"),
    "layers": lambda c: replace(c, model=replace(c.model, layers=({"kind": "output"},))),
    "xla": lambda c: replace(c, framework=replace(c.framework, xla=None)),
    "environment": lambda c: replace(c, framework=replace(c.framework, env={"FLAG": "1"})),
    "executions": lambda c: replace(c, framework=replace(c.framework, executions={"cpu": list(THREE[:2])})),
}


def test_a_choice_is_of_a_machine_its_versions_and_a_program(bench: Bench) -> None:
    """Catches: times of another machine, other versions or another program taken for this one's, or not taken
    for this one's because a number differs that no step depends on."""
    dataset, _ = DatasetCache().get(bench.config.data, bench.folder)
    here, versions = Device("cpu", "EPYC", 2, "x86_64", (), {"numpy": "2.0"}), {"numpy": "2.0"}

    def name(config: RunConfig, device: Device = here, of: dict[str, str] = versions) -> str:
        return autotune.identity(device, config, config.plan(dataset), of)

    same = [
        replace(bench.config, seed=7),
        replace(bench.config, execution="compiled"),
        replace(bench.config, train=replace(bench.config.train, epochs=3)),
        replace(bench.config, study="another"),
    ]
    assert {name(config) for config in same} == {name(bench.config)}
    others = [name(change(bench.config)) for change in CHANGES.values()]
    others += [name(bench.config, replace(here, cpu="Xeon")), name(bench.config, of={"numpy": "2.1"})]
    assert len({name(bench.config), *others}) == 1 + len(others)


def test_a_long_epoch_is_cut_short(bench: Bench) -> None:
    """Catches: minutes of measuring where an epoch takes minutes."""
    dataset, _ = DatasetCache().get(bench.config.data, bench.folder)
    plan = bench.config.plan(dataset)
    short = autotune.trial_plan(replace(plan, steps=10**6, rows=(10**6 * plan.batch_size, 5, 6)))
    assert short.steps == autotune.MAX_TRIAL_STEPS and short.rows == (short.steps * plan.batch_size, 5, 6)
    few = autotune.trial_plan(plan)
    assert few.steps == plan.steps and few.rows[0] <= plan.rows[0]
    with composing():
        large = config_of("model=fnn", "model.units=[16384,16384]", "data=iris").plan(dataset)
    assert autotune.trial_plan(large).steps == 1


def test_a_wrong_execution_is_told_of_the_best() -> None:
    """Catches: a message that leaves out `best`, or that finds no near match in it."""
    with composing(), pytest.raises(ConfigError) as caught:
        config_of("execution=bset")
    (mistake,) = caught.value.mistakes
    assert mistake == Mistake(
        "execution",
        "torch on cpu has no execution 'bset'",
        "idiomatic, eager, compiled, best",
        "best",
        mistake.source,
        mistake.hints,
    )


@pytest.mark.slow
def test_by_the_command(workspace: Workspace) -> None:
    """Catches: a command that does a run again which has the execution that was chosen; a result, or a job,
    that does not say what the execution was chosen by; a sweep with `best` and a named execution that is done
    twice."""
    status, printed = end(workspace.start(*COMMAND, "execution=best"))
    assert status == 0, printed
    (run,) = workspace.runs()
    chosen = run.config["execution"]
    assert chosen in ("eager", "compiled")
    recorded = (RunFolder(run.folder.path).job() or {})["calibration"]
    assert recorded == run.result["environment"]["calibration"] and recorded["execution"] == chosen
    status, printed = end(workspace.start("-m", *COMMAND, f"execution=best,{chosen}"))
    assert status == 0, printed
    (again,) = workspace.runs()
    assert again.folder.path == run.folder.path and not again.attempts


@pytest.mark.exhaustive
def test_xla_is_a_choice_where_it_is_open(tmp_path: Path) -> None:
    """Catches: TensorFlow's XLA tried only as the adapter has it by default, or tried where it was asked for;
    torch's unrolled steps, of which it refuses more than 64, taken for an execution."""
    pytest.importorskip("tensorflow")
    with composing():
        both = ("model=fnn", "data=iris", f"results_dir={tmp_path}", "execution=best", "framework=keras")
        left, named = config_of(*both), config_of(*both, "framework.xla=false")
    notes: list[str] = []
    runs = tuned(ExecutionTuner(notes.append), [left, named])
    tried = [
        {(one["execution"], one["xla"]) for one in (run.job.calibration or {})["candidates"]} for run in runs
    ]
    assert tried[0] == {("compiled", None), ("compiled", False), ("epoch", None), ("epoch", False)}
    assert tried[1] == {("compiled", False), ("epoch", False)}
    for run in runs:
        assert (run.job.calibration or {})["xla"] == run.config.framework.xla
