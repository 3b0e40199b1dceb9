"""CUDA graphs of PyTorch's steps, as far as a machine without a GPU can test them.

Instead of being captured, the step runs each time, on the same tables and tensors. Only a GPU can show
whether the whole step can be captured, and how fast it is then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.core.training import weights as canonical
from tests.support import adapter_cases
from tests.support.adapter_process import Adapters
from tests.support.tasks import BOUND, RULES, Run, Task, make_run, make_task, shared

LAYERS: list[dict[str, Any]] = [
    {"kind": "conv1d", "filters": 3, "kernel_size": 2},
    {"kind": "batch_norm"},
    {"kind": "lstm", "units": 4, "returns": "last"},
    {"kind": "dropout", "rate": 0.3},
    {"kind": "output"},
]


def eager_and_replayed(
    adapter: Any, task: Task, rule: dict[str, Any], run: Run, after: int
) -> list[dict[str, Any]]:
    """The case: a run in eager mode, one with replayed steps, and the latter again in two parts.

    The second part resumes in a new trainer from the state `after` so many epochs.
    """
    from adapters.torch import cuda_graphs
    from adapters.torch.program import TorchProgram

    def warm_up(step: cuda_graphs.Step) -> cuda_graphs.Step:
        for _ in range(cuda_graphs.WARMUP_STEPS):
            step()
        return step

    real, data = adapter_cases.rule(rule), adapter_cases.examples(task)
    results = []

    def train(trainer: Any, which: slice) -> None:
        losses = adapter_cases.train_epochs(trainer, run, which=which)
        results.append({"losses": losses, "weights": trainer.weights(), "state": trainer.state()})

    gpu_capture, cuda_graphs.graph_capture = cuda_graphs.graph_capture, lambda device: warm_up
    try:
        for execution in ("eager", "epoch"):
            # without the adapter, which refuses the execution `epoch` on a CPU
            program = TorchProgram(adapter_cases.plan(task | {"execution": execution}, rule))
            trainer = program.trainer(data, real, 3)
            trainer.load(run["weights"])
            train(trainer, slice(None))
        trainer.load(run["weights"])
        train(trainer, slice(after))
        trainer = program.trainer(data, real, 3)
        trainer.load(results[-1]["weights"], results[-1]["state"])
        train(trainer, slice(after, None))
    finally:
        cuda_graphs.graph_capture = gpu_capture
    return [result | {"state": vars(result["state"])} for result in results]


@pytest.mark.parametrize("impl", ["native", "shared"])
@pytest.mark.parametrize("name", RULES)
def test_replayed_steps_are_those_of_eager_mode(name: str, impl: str, adapters: Adapters) -> None:
    """Catches: warm-up steps that are not undone (in weights, statistics, slots, counts, masks), a rate, a
    row, a count or a loss of another step, a state that is not resumed from."""
    rule = shared(name) if impl == "shared" else {"name": name} | RULES[name]
    task = make_task("eager", layers=LAYERS, in_shape=[5, 4])
    run = make_run(task, rule["learning_rate"])
    eager, replayed, first_part, resumed = adapters("torch", "float64").call(
        "tests.adapters.test_cuda_graphs:eager_and_replayed", task=task, rule=rule, run=run, after=1
    )
    assert len(run["orders"]) > 1 and len(set(np.ravel(run["rates"]))) > 1
    assert _largest_difference(eager, replayed) <= BOUND
    assert np.array_equal([*first_part["losses"], *resumed["losses"]], replayed["losses"])
    assert canonical.compare(resumed["weights"], replayed["weights"]).largest == 0
    assert resumed["state"]["steps"] == eager["state"]["steps"]


def _largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference in losses, weights and slots."""
    weights = canonical.compare(one["weights"], other["weights"])
    slots = canonical.compare(one["state"]["slots"], other["state"]["slots"])
    losses = np.abs(np.subtract(one["losses"], other["losses"])).max()
    return max(float(losses), weights.largest, slots.largest)


def test_an_epoch_longer_than_the_tables_is_split(adapters: Adapters) -> None:
    """Catches: steps beyond the tables' end that are lost, or that use the rows of the first ones."""
    task = make_task("eager", layers=LAYERS, in_shape=[5, 4])
    run = make_run(task, 0.02)
    long = run | {key: np.concatenate([run[key]] * 2, axis=1) for key in ("orders", "rates")}
    eager, replayed, *_ = adapters("torch", "float64").call(
        "tests.adapters.test_cuda_graphs:eager_and_replayed",
        task=task,
        rule=shared("adam"),
        run=long,
        after=1,
    )
    assert len(replayed["losses"][0]) == 2 * len(run["rates"][0])
    assert _largest_difference(eager, replayed) <= BOUND
