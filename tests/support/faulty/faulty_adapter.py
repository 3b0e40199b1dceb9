"""A framework that a user adds, made of NumPy, which fails on demand.

It lives outside of the project, like a user's: a module on the path and a file in a folder for
`--config-dir`. The file named by the variable FAULTS maps seeds to faults (see `FAULTS`) and is read again in
each run, so that the same command can succeed the second time. The executions in the variable REFUSED cannot
be built. Training uses the NumPy reference of the adapter tests.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.adapter import (
    Adapter,
    AdapterOptions,
    Epoch,
    Examples,
    Execution,
    Plan,
    Program,
    Trainer,
    Weights,
    storage,
)
from harness.core.machine import matmul
from harness.core.training.optimizers import Rule
from harness.core.training.training_state import State
from tests.support import numpy_training

FAULTY_EPOCH = 2
CHATTER = 200_000  # bytes: more than a pipe holds
PRINTED = b"straight to the descriptor\n"


def adapter(options: AdapterOptions) -> Adapter:
    """Create the adapter. AT_IMPORT makes it fail while the worker starts, AT_MULTIPLY later."""
    print("numpy is here")
    with Path(os.environ["FAULTS"]).with_name("workers").open("a") as file:
        file.write(f"{os.getpid()}\n")
    match os.environ.get("AT_IMPORT"):
        case "raise":
            raise ImportError("libnumbers.so.7: cannot open shared object file")
        case "segfault":
            segfault()
    return FaultyAdapter(options)


def segfault() -> None:
    ctypes.string_at(0)


def hang() -> None:
    time.sleep(600)


def chat() -> None:
    """Print more than a pipe holds, on both streams, through Python and past it."""
    for stream in (sys.stdout, sys.stderr):
        for line in range(CHATTER // 50):
            print(f"{line:06d} {'x' * 42}", file=stream)
    os.write(1, PRINTED)
    print('{"event": "ended"}')


def raise_error() -> None:
    raise FloatingPointError("the numbers are wrong")


def fork_and_die() -> None:
    """Leave a child behind that holds all our files open, like a data loader's process."""
    if os.fork() == 0:
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Callable[[], None]] = {
    "raise": raise_error,
    "exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(4),
    "segfault": segfault,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "fork": fork_and_die,
    "hang": hang,
    "chat": chat,
    "slow": lambda: time.sleep(0.2),
}


def _other_rows(order: Any, rates: Any) -> tuple[Any, Any]:
    """Replace one row of the first batch by another."""
    changed = order.copy()
    changed[0, 0] = (changed[0, 0] + 1) % (1 + order.max())
    return changed, rates


WRONG_INPUTS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "rate": lambda order, rates: (order, rates * (1 + 1e-6)),
    "rows": _other_rows,
}
"""Mathematical faults in the inputs of a step."""

WRONG_WEIGHTS: dict[str, Callable[[dict[str, Any], Weights], dict[str, Any]]] = {
    "bias": lambda new, old: {n: old[n] if n.endswith("bias") else w for n, w in new.items()},
    "float32": lambda new, old: {n: w.astype("float32").astype("float64") for n, w in new.items()},
    "decay": lambda new, old: {n: w - 1e-6 * old[n] for n, w in new.items()},
}
"""Mathematical faults in the weights after a step."""

WRONG_OUTPUTS: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda outputs: np.exp(outputs) / np.exp(outputs).sum(axis=-1, keepdims=True),
    "relu": lambda outputs: np.maximum(outputs, 0.0),
}
"""Mathematical faults in the outputs."""


def planned(seed: int) -> str:
    """The planned fault of a seed's run; `*` stands for all seeds."""
    plan = json.loads(Path(os.environ["FAULTS"]).read_text("utf-8"))
    return str(plan.get(str(seed), plan.get("*", "")))


class FaultyAdapter:
    """See `harness.core.adapter.Adapter`."""

    def __init__(self, options: AdapterOptions) -> None:
        self._precision = options.precision

    def executions(self) -> tuple[Execution, ...]:
        return ("eager",)

    def environment(self) -> dict[str, object]:
        return {"numpy": np.__version__}

    def build(self, plan: Plan) -> Program:
        if plan.execution in os.environ.get("REFUSED", "").split():
            raise ValueError(f"{plan.execution} is refused")
        return FaultyProgram(plan)

    def multiply(self, size: int, repeats: int) -> list[float]:
        if os.environ.get("AT_MULTIPLY") == "raise":
            raise_error()
        factors = np.ones((size, size), storage(self._precision))
        return matmul.time_calls(lambda: factors @ factors, repeats)

    def start_device_peak(self) -> bool:
        return True

    def device_peak_mb(self) -> float | None:
        return None


class FaultyProgram:
    """See `harness.core.adapter.Program`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def trainer(self, examples: Examples, rule: Rule, seed: int) -> Trainer:
        return FaultyTrainer(self.plan, examples, rule, planned(seed))

    def compilations(self) -> int:
        return 0

    def settings(self) -> dict[str, object]:
        return {}


class FaultyTrainer:
    """See `harness.core.adapter.Trainer`."""

    def __init__(self, plan: Plan, examples: Examples, rule: Rule, fault: str) -> None:
        self._plan, self._examples, self._rule, self._fault = plan, examples, rule, fault

    def load(self, weights: Weights, state: State | None = None) -> None:
        self._weights: Weights = weights
        self._state = state
        self._epoch = 0

    def train(self, epochs: Iterable[Epoch]) -> None:
        for order, rates in epochs:
            if self._fault == "stop" and self._epoch + 1 == FAULTY_EPOCH:
                return
            self._train(order, rates)

    def _train(self, order: Any, learning_rates: Any) -> None:
        self._epoch += 1
        if self._fault == "slow" or (self._fault in FAULTS and self._epoch == FAULTY_EPOCH):
            FAULTS[self._fault]()
        x, y = self._examples.x["train"], self._examples.y["train"]
        network, loss = self._plan.network, self._plan.loss
        if self._fault in WRONG_INPUTS:
            order, learning_rates = WRONG_INPUTS[self._fault](order, learning_rates)
        before = self._weights
        losses, self._weights, self._state = numpy_training.train(
            network, loss, self._rule, dict(before), x, y, order[None], learning_rates[None], self._state
        )
        if self._fault in WRONG_WEIGHTS:
            self._weights = WRONG_WEIGHTS[self._fault](dict(self._weights), before)
        self._losses = losses[0]
        if self._fault == "nan" and self._epoch == FAULTY_EPOCH:
            self._losses = self._losses * np.nan

    def losses(self) -> Any:
        return self._losses

    def predict(self, split: str) -> Any:
        outputs, _ = numpy_training.forward(self._plan.network, dict(self._weights), self._examples.x[split])
        return WRONG_OUTPUTS[self._fault](outputs) if self._fault in WRONG_OUTPUTS else outputs

    def weights(self) -> dict[str, Any]:
        return {name: weight.astype(self._plan.dtype) for name, weight in self._weights.items()}

    def state(self) -> State:
        return self._state or State(0, 0.0, {}, {})

    def sync(self) -> None:
        pass
