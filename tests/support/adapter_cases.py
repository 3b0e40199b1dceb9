"""Cases of the contract tests, run in an adapter's process (see `tests/support/adapter_process.py`).

Programs are cached by their plan, as in a worker, so that tests also see the effects of the cache on runs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.core.adapter import Adapter, Epoch, Examples, Plan, Program, Trainer
from harness.core.network import Input, ModelSpec
from harness.core.runs.run_folder import RunFolder
from harness.core.training import optimizers
from harness.core.training.training_state import State
from harness.core.validation import ConfigError, parse
from harness.worker import train as worker
from harness.worker.program_cache import Programs

_programs: dict[Plan, Program] = {}
_worker_programs: list[Programs] = []


def network(task: dict[str, Any]) -> Any:
    """The network of a task: `layers`, `in_shape`, `outputs`, maybe `vocabulary`, `lengths`, `freeze`."""
    shape = Input(tuple(task["in_shape"]), task.get("vocabulary", 0), task.get("lengths") is not None)
    spec = ModelSpec.parse(task["layers"]).freeze(task.get("freeze", ()))
    return spec.resolve(shape, task["outputs"])


def examples(task: dict[str, Any]) -> Examples:
    """The arrays of a task."""
    return Examples(task["x"], task["y"], task.get("lengths"))


def rule(raw: dict[str, Any]) -> optimizers.Rule:
    """An update rule from its JSON form."""
    return parse(optimizers.Rule, raw)  # type: ignore[arg-type]


def train_epochs(
    trainer: Trainer,
    run: dict[str, Any],
    observe: Callable[[Trainer], Any] = lambda trainer: trainer.losses(),
    which: slice = slice(None),
) -> list[Any]:
    """Train epochs of a run; return what `observe` returns after each of them."""
    observed = []

    def epochs() -> Iterator[Epoch]:
        for order, rates in zip(run["orders"][which], run["rates"][which], strict=True):
            yield Epoch(order, rates)
            trainer.sync()
            observed.append(observe(trainer))

    trainer.train(epochs())
    return observed


def plan(task: dict[str, Any], raw_rule: dict[str, Any]) -> Plan:
    """The plan of a task with a rule; numbers of rows and batch size come from the task."""
    train, val, test = (len(task["x"][split]) for split in ("train", "val", "test"))
    steps, batch_size = task["batches"]
    return Plan(
        network=network(task),
        loss=task["loss"],
        rule=optimizers.program_rule(rule(raw_rule)),
        batch_size=batch_size,
        steps=steps,
        rows=(train, val, test),
        precision=task["precision"],
        execution=task["execution"],
        xla=task.get("xla", False),
    )


def train(
    adapter: Adapter, task: dict[str, Any], rule: dict[str, Any], runs: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Execute runs one after the other with one program.

    Each has `weights`, `orders` `[epochs, steps, batch]`, `rates` `[epochs, steps]`, and optionally `seed`,
    `numbers` (which replace those of the rule), `again` (load into the trainer of the previous run) and
    `state` (the training state to start from, as an earlier run returned it).
    """
    key, data = plan(task, rule), examples(task)
    program = _program(adapter, key)
    results = []
    for run in runs:
        if not run.get("again"):
            real = parse(optimizers.Rule, rule | run.get("numbers", {}))  # type: ignore[arg-type]
            assert optimizers.program_rule(real) == key.rule
            trainer = program.trainer(data, real, run.get("seed", 0))
        trainer.load(run["weights"], State(**run["state"]) if "state" in run else None)
        loaded = trainer.weights()
        before = {split: trainer.predict(split) for split in ("train", "val", "test")}
        losses = train_epochs(trainer, run)
        results.append(
            {
                "loaded": loaded,
                "before": before,
                "losses": losses,
                "weights": trainer.weights(),
                "state": vars(trainer.state()),
                "after": trainer.predict("test"),
                "compilations": program.compilations(),
            }
        )
    return results


def _program(adapter: Adapter, of: Plan) -> Program:
    """The program of a plan, from the cache if it was built before."""
    return _programs.get(of) or _programs.setdefault(of, adapter.build(of))


class _BreakError(Exception):
    """An exception that no framework raises."""


def broken_then_again(
    adapter: Adapter, task: dict[str, Any], rule: dict[str, Any], run: dict[str, Any]
) -> dict[str, Any]:
    """End a run of a new program by an exception after its first epoch, then train it whole with the same
    trainer."""
    program = adapter.build(plan(task, rule))
    trainer = program.trainer(examples(task), parse(optimizers.Rule, rule), 0)  # type: ignore[arg-type]
    messages = []

    def end(trainer: Trainer) -> None:
        trainer.predict("val")
        raise _BreakError("after 1")

    trainer.load(run["weights"])
    try:
        train_epochs(trainer, run, end)
    except _BreakError as error:
        messages.append(str(error))
    before = program.compilations()
    trainer.load(run["weights"])
    losses = train_epochs(trainer, run)
    counts = [before, program.compilations()]
    return {"caught": messages, "losses": losses, "weights": trainer.weights(), "compilations": counts}


def refusal(adapter: Adapter, task: dict[str, Any], rule: dict[str, Any]) -> str:
    """The message with which `build` refuses a plan; empty if it builds."""
    try:
        adapter.build(plan(task, rule))
    except ConfigError as error:
        return str(error)
    return ""


def load_refusal(
    adapter: Adapter,
    task: dict[str, Any],
    rule: dict[str, Any],
    weights: dict[str, Any],
    state: dict[str, Any] | None = None,
) -> str:
    """The message with which `load` refuses weights or a state; empty if it accepts them."""
    program = _program(adapter, plan(task, rule))
    trainer = program.trainer(examples(task), parse(optimizers.Rule, rule), 0)  # type: ignore[arg-type]
    try:
        trainer.load(weights, State(**state) if state else None)
    except ValueError as error:
        return str(error)
    return ""


def products(adapter: Adapter, sizes: list[int], repeats: int) -> list[list[float]]:
    """Seconds of each matrix product, then seconds of the whole call; one list per size."""
    seconds = []
    for size in sizes:
        start = time.perf_counter()
        products_s = adapter.multiply(size, repeats)
        seconds.append([*products_s, time.perf_counter() - start])
    return seconds


def description(adapter: Adapter, task: dict[str, Any], rule: dict[str, Any]) -> dict[str, Any]:
    """The adapter's executions and environment, and the settings of a program."""
    settings = adapter.build(plan(task, rule)).settings()
    return {
        "executions": list(adapter.executions()),
        "environment": adapter.environment(),
        "settings": settings,
    }


def do_run(adapter: Adapter, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """Execute a prepared run as a worker does, pruned after a number of epochs; return its result."""
    if not _worker_programs:
        _worker_programs.append(Programs(adapter))
    run = RunFolder(Path(folder))
    run.set_aside()
    trained = itertools.count(1)
    should_continue = None if epochs is None else lambda: next(trained) < epochs
    worker.run(run, _worker_programs[0], 0.0, lambda event: None, should_continue)
    return run.result() or {}


def interrupted(
    adapter: Adapter, task: dict[str, Any], rule: dict[str, Any], run: dict[str, Any], after: int
) -> list[dict[str, Any]]:
    """Train a run of a task (see `train`) three times: uninterrupted; with its weights and state read after
    each epoch; and resumed in a program of its own from what was read after epoch `after`. Each result has
    `losses` and `predictions` of the validation split after each epoch, and `weights` and `slots` at the
    end."""
    key = plan(task, rule)
    real = parse(optimizers.Rule, rule)  # type: ignore[arg-type]
    data = examples(task)

    def parts(trainer: Trainer, which: slice, read: bool) -> dict[str, Any]:
        def observe(trainer: Trainer) -> Any:
            outputs = trainer.losses(), trainer.predict("val")
            return *outputs, (trainer.weights(), trainer.state()) if read else None

        losses, predictions, states = zip(*train_epochs(trainer, run, observe, which), strict=True)
        states_read.append(states)
        end = {"weights": trainer.weights(), "slots": trainer.state().slots}
        return {"losses": list(losses), "predictions": list(predictions), **end}

    states_read: list[Any] = []
    trainer = adapter.build(key).trainer(data, real, run["seed"])
    results = []
    for read in (False, True):
        trainer.load(run["weights"])
        results.append(parts(trainer, slice(None), read))
    weights, state = states_read[1][after - 1]
    trainer = adapter.build(key).trainer(data, real, run["seed"])
    trainer.load(run["weights"])
    trainer.load(weights, state)
    results.append(parts(trainer, slice(after, None), False))
    return results
