"""Whole epochs of PyTorch on a card, as far as a machine without one can tell.

What is recorded there is done here step by step, on the same tables and tensors. What only a card can show is
whether all of it can be recorded, and how fast it is then.
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


def both(adapter: Any, task: Task, rule: dict[str, Any], run: Run, after: int) -> list[dict[str, Any]]:
    """The case: a run in eager mode and one with replayed steps; then the second one again in two parts, the
    second of them from what was there `after` so many epochs."""
    from adapters.torch import cuda_graphs
    from adapters.torch.program import TorchProgram

    def record(step: cuda_graphs.Step) -> cuda_graphs.Step:
        for _ in range(cuda_graphs.WARM_UPS):
            step()
        return step

    real, data = adapter_cases.rule(rule), adapter_cases.examples(task)
    found = []

    def follow(trainer: Any, which: slice) -> None:
        losses = adapter_cases.train_epochs(trainer, run, which=which)
        found.append({"losses": losses, "weights": trainer.weights(), "state": trainer.state()})

    of_card, cuda_graphs.recorder = cuda_graphs.recorder, lambda device: record
    try:
        for execution in ("eager", "epoch"):
            # not by the adapter, which refuses whole epochs on a CPU
            program = TorchProgram(adapter_cases.plan(task | {"execution": execution}, rule))
            trainer = program.trainer(data, real, 3)
            trainer.load(run["weights"])
            follow(trainer, slice(None))
        trainer.load(run["weights"])
        follow(trainer, slice(after))
        trainer = program.trainer(data, real, 3)
        trainer.load(found[-1]["weights"], found[-1]["state"])
        follow(trainer, slice(after, None))
    finally:
        cuda_graphs.recorder = of_card
    return [entry | {"state": vars(entry["state"])} for entry in found]


@pytest.mark.parametrize("impl", ["native", "shared"])
@pytest.mark.parametrize("name", RULES)
def test_replayed_steps_are_those_of_eager_mode(name: str, impl: str, adapters: Adapters) -> None:
    """Catches: steps before the recording that are not undone (in weights, statistics, slots, counts, masks),
    a rate, a row, a count or a loss of another step, a state that is not gone on from."""
    rule = shared(name) if impl == "shared" else {"name": name} | RULES[name]
    task = make_task("eager", layers=LAYERS, in_shape=[5, 4])
    run = make_run(task, rule["learning_rate"])
    found = adapters("torch", "float64").call(
        "tests.adapters.test_cuda_graphs:both", task=task, rule=rule, run=run, after=1
    )
    eager, replayed, begun, gone_on = found
    assert len(run["orders"]) > 1 and len(set(np.ravel(run["rates"]))) > 1
    assert _apart(eager, replayed) <= BOUND
    assert np.array_equal([*begun["losses"], *gone_on["losses"]], replayed["losses"])
    assert canonical.compare(gone_on["weights"], replayed["weights"]).largest == 0
    assert gone_on["state"]["steps"] == eager["state"]["steps"]


def _apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference in losses, weights and slots."""
    weights = canonical.compare(one["weights"], other["weights"])
    slots = canonical.compare(one["state"]["slots"], other["state"]["slots"])
    losses = np.abs(np.subtract(one["losses"], other["losses"])).max()
    return max(float(losses), weights.largest, slots.largest)


def test_an_epoch_longer_than_the_tables_goes_in_parts(adapters: Adapters) -> None:
    """Catches: steps beyond the tables' end that are lost, or that take the rows of the first ones."""
    task = make_task("eager", layers=LAYERS, in_shape=[5, 4])
    run = make_run(task, 0.02)
    long = run | {key: np.concatenate([run[key]] * 2, axis=1) for key in ("orders", "rates")}
    eager, replayed, *_ = adapters("torch", "float64").call(
        "tests.adapters.test_cuda_graphs:both", task=task, rule=shared("adam"), run=long, after=1
    )
    assert len(replayed["losses"][0]) == 2 * len(run["rates"][0])
    assert _apart(eager, replayed) <= BOUND
