"""What the contract tests ask an adapter, run inside a lab's child (see `tests/support/adapter_process.py`).

Programs are kept by their plan, as a worker keeps them, so that tests find out what that does to a run.
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
_of_worker: list[Programs] = []


def network(task: dict[str, Any]) -> Any:
    """The network of a task: `layers`, `in_shape`, `outputs`, maybe `vocabulary`, `lengths`, `freeze`."""
    given = Input(tuple(task["in_shape"]), task.get("vocabulary", 0), task.get("lengths") is not None)
    spec = ModelSpec.parse(task["layers"]).freeze(task.get("freeze", ()))
    return spec.resolve(given, task["outputs"])


def examples(task: dict[str, Any]) -> Examples:
    """The arrays of a task."""
    return Examples(task["x"], task["y"], task.get("lengths"))


def rule(raw: dict[str, Any]) -> optimizers.Rule:
    """An update rule from its JSON form."""
    return parse(optimizers.Rule, raw)  # type: ignore[arg-type]


def follow(
    trainer: Trainer,
    run: dict[str, Any],
    look: Callable[[Trainer], Any] = lambda trainer: trainer.losses(),
    which: slice = slice(None),
) -> list[Any]:
    """Train epochs of a run; what one sees after each."""
    seen = []

    def epochs() -> Iterator[Epoch]:
        for order, rates in zip(run["orders"][which], run["rates"][which], strict=True):
            yield Epoch(order, rates)
            trainer.sync()
            seen.append(look(trainer))

    trainer.train(epochs())
    return seen


def plan(task: dict[str, Any], raw_rule: dict[str, Any]) -> Plan:
    """The plan of a task with a rule; the data's rows and the batch size are those of its arrays."""
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
    """Do runs one after the other on one program.

    Each has `weights`, `orders` `[epochs, steps, batch]`, `rates` `[epochs, steps]`, and may have `seed`,
    `numbers` (of the rule, in place of the given ones) and `again` (load into the trainer of the run before).
    One that begins with a `state` gets what an earlier one left as such.
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
        found = follow(trainer, run)
        results.append(
            {
                "loaded": loaded,
                "before": before,
                "losses": found,
                "weights": trainer.weights(),
                "state": vars(trainer.state()),
                "after": trainer.predict("test"),
                "compilations": program.compilations(),
            }
        )
    return results


def _program(adapter: Adapter, of: Plan) -> Program:
    """The program of a plan, the one that was built for it before if there is one."""
    return _programs.get(of) or _programs.setdefault(of, adapter.build(of))


class _BreakError(Exception):
    """What no framework knows."""


def broken_then_again(
    adapter: Adapter, task: dict[str, Any], rule: dict[str, Any], run: dict[str, Any]
) -> dict[str, Any]:
    """A run that ends by an exception after the first epoch of a new program, and then the whole run by the
    same trainer."""
    program = adapter.build(plan(task, rule))
    trainer = program.trainer(examples(task), parse(optimizers.Rule, rule), 0)  # type: ignore[arg-type]
    caught = []

    def end(trainer: Trainer) -> None:
        trainer.predict("val")
        raise _BreakError("after 1")

    trainer.load(run["weights"])
    try:
        follow(trainer, run, end)
    except _BreakError as error:
        caught.append(str(error))
    before = program.compilations()
    trainer.load(run["weights"])
    losses = follow(trainer, run)
    counts = [before, program.compilations()]
    return {"caught": caught, "losses": losses, "weights": trainer.weights(), "compilations": counts}


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
    """The message with which `load` refuses weights or a state; empty if it takes them."""
    program = _program(adapter, plan(task, rule))
    trainer = program.trainer(examples(task), parse(optimizers.Rule, rule), 0)  # type: ignore[arg-type]
    try:
        trainer.load(weights, State(**state) if state else None)
    except ValueError as error:
        return str(error)
    return ""


def products(adapter: Adapter, sizes: list[int], repeats: int) -> list[list[float]]:
    """The seconds of products of matrices, by size, and after them those that the call as a whole took."""
    found = []
    for size in sizes:
        start = time.perf_counter()
        taken = adapter.multiply(size, repeats)
        found.append([*taken, time.perf_counter() - start])
    return found


def description(adapter: Adapter, task: dict[str, Any], rule: dict[str, Any]) -> dict[str, Any]:
    """What the adapter says of itself, and of a program."""
    settings = adapter.build(plan(task, rule)).settings()
    return {
        "executions": list(adapter.executions()),
        "environment": adapter.environment(),
        "settings": settings,
    }


def do_run(adapter: Adapter, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """What a worker does with the folder of a run that was prepared, where it is told to stop after so many
    epochs; gives its result."""
    if not _of_worker:
        _of_worker.append(Programs(adapter))
    run = RunFolder(Path(folder))
    run.set_aside()
    asked = itertools.count(1)
    judge = None if epochs is None else lambda: next(asked) < epochs
    worker.run(run, _of_worker[0], 0.0, lambda event: None, judge)
    return run.result() or {}


def broken_off(
    adapter: Adapter, task: dict[str, Any], rule: dict[str, Any], run: dict[str, Any], after: int
) -> list[dict[str, Any]]:
    """The run of a task (see `train`) unbroken; with its weights and state read after each epoch; and gone on
    with, in a program of its own, from what was read `after` so many. Each has `losses`, `predictions` of the
    validation part after each epoch, `weights`, `slots`."""
    key = plan(task, rule)
    real = parse(optimizers.Rule, rule)  # type: ignore[arg-type]
    data = examples(task)

    def parts(trainer: Trainer, which: slice, read: bool) -> dict[str, Any]:
        def look(trainer: Trainer) -> Any:
            said = trainer.losses(), trainer.predict("val")
            return *said, (trainer.weights(), trainer.state()) if read else None

        losses, predictions, states = zip(*follow(trainer, run, look, which), strict=True)
        read_then.append(states)
        end = {"weights": trainer.weights(), "slots": trainer.state().slots}
        return {"losses": list(losses), "predictions": list(predictions), **end}

    read_then: list[Any] = []
    trainer = adapter.build(key).trainer(data, real, run["seed"])
    found = []
    for read in (False, True):
        trainer.load(run["weights"])
        found.append(parts(trainer, slice(None), read))
    weights, state = read_then[1][after - 1]
    trainer = adapter.build(key).trainer(data, real, run["seed"])
    trainer.load(run["weights"])
    trainer.load(weights, state)
    found.append(parts(trainer, slice(after, None), False))
    return found
