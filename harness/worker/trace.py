"""Train the cases of a certificate in this worker's framework and write a trace of each.

A trace is a set of float64 arrays: `initial/<weight>`, the weights read back after loading; `logits`, the
outputs before training; `gradient/<weight>`, what one step of plain gradient descent at learning rate 1
subtracts; `losses`, one per step; `weights/<step>/<weight>`; and `evaluation`, the outputs after training,
with dropout (and BatchNorm's running statistics) in the network. Each step is an epoch of its own, so that
the weights after it can be read.

The trace of the shared rule is written to an npz file and compared with those of other frameworks. The
deviation of the framework's own optimizer from that rule is computed here, as no other framework matters for
it.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.adapter import Epoch, Execution, Plan, Trainer
from harness.core.certificates import cases, gates, native_rules
from harness.core.certificates.cases import BATCH_SIZE, TEST_ROWS, TRAIN_ROWS, Case
from harness.core.certificates.gates import BOUND, NativeOptimizerCheck, Trace
from harness.core.network import Network, initialisers
from harness.core.storage import npz
from harness.core.training import optimizers
from harness.core.training.batches import batch_order
from harness.core.training.optimizers import SGD, Rule
from harness.core.validation import parse, to_plain
from harness.worker.events import Emit
from harness.worker.program_cache import Programs
from harness.worker.train import Epochs, train_all


def trace_all(command: Mapping[str, Any], programs: Programs, emit: Emit) -> None:
    """Execute a `trace` task: `cases` (plain, with the shared rule), `folder` for `<id>.npz`, `execution`,
    `xla`, `precision`.

    Emits a `traced` event per case, with the check of the framework's own optimizer (`native`), or with an
    `error` if the case cannot be trained; the other cases are traced nonetheless.
    """
    for identifier, plain in command["cases"].items():
        event: dict[str, Any] = {"event": "traced", "case": identifier}
        try:
            case = parse(Case, plain)
            tracer = _Tracer(case, programs, command["execution"], command["xla"], command["precision"])
            trace = tracer.trace()
            npz.save(Path(command["folder"]) / f"{identifier}.npz", trace)
            event["native"] = to_plain(tracer.native(trace))
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
        self._network = cases.without_dropout(self._full)
        self._examples = cases.examples(case)
        self._initial = initialisers.initialise(self._network.params(), case.seed, precision)
        self._orders = _orders(case)
        self._plan = Plan(
            network=self._network,
            loss=case.loss,
            rule=optimizers.program_rule(case.optimizer),
            batch_size=BATCH_SIZE,
            steps=1,
            rows=(TRAIN_ROWS, TEST_ROWS, TEST_ROWS),
            precision="float64" if precision == "float64" else "float32",
            execution=execution,
            xla=xla,
        )

    def trace(self) -> dict[str, NDArray[Any]]:
        """The arrays of the trace, trained with the rule of the case."""
        trace = self._gradients()
        trainer = self._loaded_trainer(self._case.optimizer)
        trace |= {f"initial/{name}": value for name, value in trainer.weights().items()}
        trace["logits"] = trainer.predict("test")
        trace |= self._train(trainer)
        trace["evaluation"] = self._evaluate(trainer)
        return _float64(trace)

    def native(self, shared: Trace) -> NativeOptimizerCheck:
        """Compare the framework's own optimizer with the trace of the shared rule.

        If they differ and the adapter names deviations, compare it with a rule that has these deviations.
        """
        rule = replace(self._case.optimizer, impl="native")
        own = _float64(self._train(self._loaded_trainer(rule)))
        deviation = gates.training_gap(shared, own)
        if deviation <= BOUND:
            return NativeOptimizerCheck(deviation, BOUND)
        names = self._deviations(rule)
        named = native_rules.deviating_rule(rule, names)
        if named is None:
            return NativeOptimizerCheck(deviation, BOUND, names, unproven=bool(names))
        as_named = _float64(self._train(self._loaded_trainer(named)))
        return NativeOptimizerCheck(deviation, BOUND, names, gates.training_gap(as_named, own))

    def _loaded_trainer(self, rule: Rule) -> Trainer:
        trainer = self._trainer(self._network, rule)
        trainer.load(self._initial)
        return trainer

    def _train(self, trainer: Trainer) -> dict[str, NDArray[Any]]:
        """Train all steps; returns the losses, and the weights after the recorded steps."""
        trace: dict[str, NDArray[Any]] = {}
        losses: list[float] = []
        recorded_steps = cases.recorded_steps(self._network)

        def steps() -> Epochs:
            for step, rate in enumerate(self._case.rates, start=1):
                yield Epoch(self._orders[step - 1], np.array([rate]))
                losses.append(float(trainer.losses()[-1]))
                if step in recorded_steps:
                    trace.update({f"weights/{step}/{name}": w for name, w in trainer.weights().items()})

        train_all(trainer, steps())
        trace["losses"] = np.array(losses)
        return trace

    def _deviations(self, rule: Rule) -> tuple[str, ...]:
        """The deviations of its own optimizer that the adapter declares for a rule, if any."""
        program, _ = self._programs.get(replace(self._plan, rule=optimizers.program_rule(rule)))
        names = program.settings().get("deviations", ())
        return tuple(map(str, names)) if isinstance(names, list | tuple) else ()

    def _gradients(self) -> dict[str, NDArray[Any]]:
        """What one step of gradient descent at learning rate 1 subtracts from each weight."""
        trainer = self._loaded_trainer(SGD(learning_rate=1.0, impl="shared"))
        trainer.train([Epoch(self._orders[0], np.array([1.0]))])
        after = trainer.weights()
        return {f"gradient/{name}": self._initial[name] - after[name] for name in self._initial}

    def _evaluate(self, trained: Trainer) -> NDArray[Any]:
        """The outputs after training, of the network with its dropout layers."""
        if not self._full.has_dropout():
            return trained.predict("test")
        trainer = self._trainer(self._full, self._case.optimizer)
        trainer.load(trained.weights())
        return trainer.predict("test")

    def _trainer(self, network: Network, rule: Rule) -> Trainer:
        plan = replace(self._plan, network=network, rule=optimizers.program_rule(rule))
        program, _ = self._programs.get(plan)
        return program.trainer(self._examples, rule, self._case.seed)


def _float64(trace: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(value, np.float64) for name, value in trace.items()}


def _orders(case: Case) -> NDArray[np.int32]:
    """The rows of each step, int32 `[steps, 1, batch]`, from consecutive epochs of the training rows."""
    per_epoch = TRAIN_ROWS // BATCH_SIZE
    epochs = -(-len(case.rates) // per_epoch)
    orders = [batch_order(case.seed, epoch, TRAIN_ROWS, BATCH_SIZE) for epoch in range(epochs)]
    return np.concatenate(orders)[: len(case.rates), None, :]
