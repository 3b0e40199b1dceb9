"""Where a run starts: from new weights, or from what another run left, in whichever framework that was.

Weights are taken layer by layer: those of the same name and shape. The one layer that may differ is the
output, whose size is the task's: it is made anew. Anything else that does not fit is a mistake, because a
network that was taken in part would train all the same and nobody would know. To go on with a training asks
for more: all weights, the optimizer's state, and epochs that are left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.core.adapter import Plan, Weights
from harness.core.config.run_config import RunConfig
from harness.core.network import initialisers
from harness.core.runs.run_folder import RunFolder
from harness.core.storage import npz
from harness.core.training import training_state as state
from harness.core.training.training_state import State
from harness.core.validation import ConfigError, Mistake

KEY = "init.from_run"


@dataclass(frozen=True)
class SourceRun:
    """A finished run that another one starts from. `epochs` counts those of its own sources too; `state` is
    None where it left none."""

    run_id: str
    config: RunConfig
    weights: dict[str, Any]
    state: State | None
    epochs: int
    digest: str

    @property
    def output(self) -> str:
        """The path of its output layer."""
        return self.config.model.spec.layers[-1].path


@dataclass(frozen=True)
class WarmStart:
    """How a run starts, in paths of layers: those whose weights were `taken`, those that are `new`, those
    that are `frozen`; `epochs` were done before."""

    from_run: str | None
    resume: bool
    epochs: int
    taken: tuple[str, ...]
    new: tuple[str, ...]
    frozen: tuple[str, ...]


def read(folder: RunFolder) -> SourceRun:
    """What a run left in its folder; raises ConfigError unless it is finished and whole."""
    run_id, result, job = folder.run_id, folder.result(), folder.job()
    if result is None or result["status"] != "finished" or job is None:
        status = "not finished" if result is None else result["status"]
        raise ConfigError([Mistake(KEY, f"run {run_id} is {status}", "a finished run")])
    path, beside = folder.path / "weights.npz", folder.path / "state.npz"
    digest = hashlib.sha256()
    for file in (path, beside):
        digest.update(file.read_bytes() if file.exists() else b"")
    try:
        return SourceRun(
            run_id=run_id,
            config=RunConfig.parse(job["config"]),
            weights=npz.load(path),
            state=state.load(beside)[0] if beside.exists() else None,
            epochs=int(result["epochs"][-1]["epoch"]),
            digest=digest.hexdigest()[:16],
        )
    except FileNotFoundError:
        problem = f"run {run_id} has no weights in its folder any more"
        raise ConfigError([Mistake(KEY, problem, "force=true does it again")]) from None
    except ConfigError as error:
        problem = f"run {run_id} was left by a version whose configuration this one can't read"
        raise ConfigError([Mistake(KEY, f"{problem}: {error.mistakes[0]}")]) from error


def check(config: RunConfig, plan: Plan, source: SourceRun | None) -> WarmStart:
    """How the run starts; raises ConfigError with everything that keeps it from starting there."""
    frozen = tuple(node.path for node in plan.network.layers() if node.frozen and node.params)
    if source is None:
        return WarmStart(None, False, 0, (), _layers(plan.network.params()), frozen)
    new, mistakes = _unfit(config, plan, source)
    if config.init.resume:
        mistakes += _resume_mistakes(config, plan, source, new)
    if mistakes:
        raise ConfigError(mistakes)
    taken = [name for name in plan.network.params() if name not in new]
    done = source.epochs if config.init.resume else 0
    return WarmStart(source.run_id, config.init.resume, done, _layers(taken), _layers(new), frozen)


def initial(config: RunConfig, plan: Plan, source: SourceRun | None) -> tuple[Weights, State | None]:
    """The weights that the run starts with, and the state where a training goes on.

    Weights of another precision are rounded. With another seed than the source's the masks are new ones.
    """
    made = initialisers.initialise(plan.network.params(), config.seed, plan.dtype)
    if source is None:
        return made, None
    new, _ = _unfit(config, plan, source)
    kept = {name: array.astype(plan.dtype) for name, array in source.weights.items() if name in made}
    found = {name: array if name in new else kept[name] for name, array in made.items()}
    before = source.state if config.init.resume else None
    if before is None:
        return found, None
    trained = set(plan.network.trained_weights())
    slots = {name: array for name, array in before.slots.items() if name.rpartition("/")[0] in trained}
    masks = before.masks if config.seed == source.config.seed else {}
    return found, State(before.steps, before.rate, slots, masks)


def _unfit(config: RunConfig, plan: Plan, source: SourceRun) -> tuple[list[str], list[Mistake]]:
    """The weights of the output where they are to be new, and a mistake for all else that doesn't fit."""
    params, given = plan.network.params(), source.weights
    output, other = (f"{path}." for path in (config.model.spec.layers[-1].path, source.output))
    unfit = [n for n, param in params.items() if n not in given or given[n].shape != param.shape]
    # an output is one layer: a kernel of the old task with a bias of the new one would be neither
    anew = output != other or any(name.startswith(output) for name in unfit)
    new = [name for name in params if name.startswith(output)] if anew else []
    mistakes = [
        Mistake(
            KEY, f"{n} is {_shape(param.shape)} in this model and {_there(given, n)} in run {source.run_id}"
        )
        for n, param in params.items()
        if n in unfit and not n.startswith(output)
    ]
    left = [name for name in given if name not in params and not name.startswith(other)]
    mistakes += [
        Mistake(KEY, f"{n} is {_shape(given[n].shape)} in run {source.run_id} and missing in this model")
        for n in left
    ]
    return new, mistakes


def _resume_mistakes(config: RunConfig, plan: Plan, source: SourceRun, new: list[str]) -> list[Mistake]:
    """What a training that goes on needs besides weights."""
    theirs, run = source.config, f"run {source.run_id}"
    advice = "init.resume=false starts a new training from its weights"
    mistakes = [
        Mistake(KEY, f"{n} is {_shape(plan.network.params()[n].shape)} here, not as in {run}", advice)
        for n in new
    ]
    if config.optimizer.name != theirs.optimizer.name:
        problem = f"{config.optimizer.name} can't go on with the state of {theirs.optimizer.name} in {run}"
        mistakes.append(Mistake("optimizer", problem, f"{theirs.optimizer.name}; {advice}"))
    if config.precision != theirs.precision:
        problem = f"{config.precision} can't go on with {theirs.precision} of {run}"
        mistakes.append(Mistake("precision", problem, f"{theirs.precision}; {advice}"))
    if config.train.epochs <= source.epochs:
        problem = f"{run} has trained {source.epochs} epochs already, which train.epochs counts too"
        mistakes.append(Mistake("train.epochs", problem, f"more than {source.epochs}"))
    if source.state is None:
        mistakes.append(Mistake(KEY, f"{run} left no state of its optimizer", advice))
    elif config.optimizer.name == theirs.optimizer.name and config.optimizer.slots:
        known = {name.rpartition("/")[0] for name in source.state.slots}
        lacking = _layers(n for n in plan.network.trained_weights() if n not in known and n not in new)
        if lacking:
            problem = f"{', '.join(lacking)}: frozen in {run}, which left no state for what is trained now"
            mistakes.append(Mistake("init.freeze", problem, advice))
    return mistakes


def _layers(names: Iterable[str]) -> tuple[str, ...]:
    """The layers of weights, each once."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _there(given: dict[str, Any], name: str) -> str:
    return _shape(given[name].shape) if name in given else "missing"


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
