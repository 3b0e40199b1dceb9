"""Train the cases of a certificate in this worker's framework and leave a trace of each.

A trace is an npz file of float64 arrays: `initial/<weight>`, the weights as the framework has them after
loading; `logits`, the outputs before training; `gradient/<weight>`, what one step of plain gradient descent
at learning rate 1 took away; `losses`, one a step; `weights/<step>/<weight>`; and `evaluation`, the outputs
after training with dropout (and BatchNorm's running statistics) in the network. Each step is an epoch of its
own, so that the weights after it can be read.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import npz, optim, parity, weights
from harness.adapter import Execution, Plan, Trainer
from harness.data import batch_order
from harness.optim import SGD, Rule
from harness.parity import BATCH_SIZE, TEST_ROWS, TRAIN_ROWS, Case
from harness.parse import parse
from harness.spec import Network
from harness.worker.programs import Programs

Emit = Callable[[Mapping[str, Any]], None]


def trace_all(command: Mapping[str, Any], programs: Programs, emit: Emit) -> None:
    """Trace the cases of a command: `cases` (plain), `folder` for `<id>.npz`, `execution`, `xla`,
    `precision`.

    A case that can't be trained is reported (`traced` with `error`) and the next goes on.
    """
    for identifier, plain in command["cases"].items():
        event: dict[str, Any] = {"event": "traced", "case": identifier}
        try:
            case = parse(Case, plain)
            tracer = _Tracer(case, programs, command["execution"], command["xla"], command["precision"])
            found = tracer.trace()
            npz.save(Path(command["folder"]) / f"{identifier}.npz", found)
            event["settings"] = tracer.settings()
        except Exception as error:
            traceback.print_exc()
            event["error"] = f"{type(error).__name__}: {error}"
        emit(event)
    emit({"event": "ended"})


class _Tracer:
    def __init__(
        self, case: Case, programs: Programs, execution: Execution, xla: bool | None, precision: str
    ) -> None:
        self._case = case
        self._programs = programs
        self._full = case.network()
        self._network = parity.without_dropout(self._full)
        self._examples = parity.examples(case)
        self._initial = weights.initialise(self._network.params(), case.seed, precision)
        self._orders = _orders(case)
        self._plan = Plan(
            network=self._network,
            loss=case.loss,
            rule=optim.program_rule(case.optimizer),
            batch_size=BATCH_SIZE,
            steps=1,
            rows=(TRAIN_ROWS, TEST_ROWS, TEST_ROWS),
            precision="float64" if precision == "float64" else "float32",
            execution=execution,
            xla=xla,
        )

    def trace(self) -> dict[str, NDArray[Any]]:
        """All arrays of the trace."""
        trace = self._gradients()
        trainer = self._trainer(self._network, self._case.optimizer)
        trainer.load(self._initial)
        trace |= {f"initial/{name}": value for name, value in trainer.weights().items()}
        trace["logits"] = trainer.predict("test")
        losses: list[float] = []
        kept = parity.kept_steps(self._network)
        for step, rate in enumerate(self._case.rates, start=1):
            trainer.train_epoch(self._orders[step - 1], np.array([rate]))
            losses.append(float(trainer.losses()[-1]))
            if step in kept:
                trace |= {f"weights/{step}/{name}": value for name, value in trainer.weights().items()}
        trace["losses"] = np.array(losses)
        trace["evaluation"] = self._evaluate(trainer)
        return {name: np.asarray(value, np.float64) for name, value in trace.items()}

    def settings(self) -> dict[str, object]:
        """What ran, as the adapter tells it: known deviations of a native optimizer among it."""
        return self._programs.get(self._plan)[0].settings()

    def _gradients(self) -> dict[str, NDArray[Any]]:
        """What one step of gradient descent at learning rate 1 takes away from each weight."""
        trainer = self._trainer(self._network, SGD(learning_rate=1.0, impl="shared"))
        trainer.load(self._initial)
        trainer.train_epoch(self._orders[0], np.array([1.0]))
        after = trainer.weights()
        return {f"gradient/{name}": self._initial[name] - after[name] for name in self._initial}

    def _evaluate(self, trained: Trainer) -> NDArray[Any]:
        """Outputs after training, with the dropout that the user asked for in the network."""
        if not self._full.has_dropout():
            return trained.predict("test")
        trainer = self._trainer(self._full, self._case.optimizer)
        trainer.load(trained.weights())
        return trainer.predict("test")

    def _trainer(self, network: Network, rule: Rule) -> Trainer:
        plan = replace(self._plan, network=network, rule=optim.program_rule(rule))
        program, _ = self._programs.get(plan)
        return program.trainer(self._examples, rule, self._case.seed)


def _orders(case: Case) -> NDArray[np.int32]:
    """The rows of each step, int32 `[steps, 1, batch]`: epochs of the training rows, one after another."""
    per_epoch = TRAIN_ROWS // BATCH_SIZE
    epochs = -(-len(case.rates) // per_epoch)
    orders = [batch_order(case.seed, epoch, TRAIN_ROWS, BATCH_SIZE) for epoch in range(epochs)]
    return np.concatenate(orders)[: len(case.rates), None, :]
