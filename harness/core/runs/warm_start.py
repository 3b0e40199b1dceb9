"""Warm starts: begin a run from the weights, or the training state, of a finished run of any framework.

Weights are matched by name and shape. Only the output layer may differ, since its size depends on the task;
it is then initialised like in a new run. Any other difference is a mistake, because a partly loaded network
would train without an error. Resuming a training requires more: all weights, the optimizer's state, and
epochs left to train.
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
from harness.core.training import training_state
from harness.core.training.training_state import State
from harness.core.validation import ConfigError, Mistake

KEY = "init.from_run"


@dataclass(frozen=True)
class SourceRun:
    """A finished run that another run starts from.

    `epochs` includes those of its own sources if it resumed them. `state` is None if it has no `state.npz`.
    """

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
    """The start of a run, in paths of layers.

    `taken`: layers with weights from the source. `new`: newly initialised layers. `frozen`: layers that are
    not trained. `epochs`: those trained before. The field names are keys of `result.json`.
    """

    from_run: str | None
    resume: bool
    epochs: int
    taken: tuple[str, ...]
    new: tuple[str, ...]
    frozen: tuple[str, ...]


def read(folder: RunFolder) -> SourceRun:
    """Read the run in a folder as a source; raises ConfigError unless it is finished and complete."""
    run_id, result, job = folder.run_id, folder.result(), folder.job()
    if result is None or result["status"] != "finished" or job is None:
        status = "not finished" if result is None else result["status"]
        raise ConfigError([Mistake(KEY, f"run {run_id} is {status}", "a finished run")])
    weights_path, state_path = folder.path / "weights.npz", folder.path / "state.npz"
    digest = hashlib.sha256()
    for file in (weights_path, state_path):
        digest.update(file.read_bytes() if file.exists() else b"")
    try:
        return SourceRun(
            run_id=run_id,
            config=RunConfig.parse(job["config"]),
            weights=npz.load(weights_path),
            state=training_state.load(state_path)[0] if state_path.exists() else None,
            epochs=int(result["epochs"][-1]["epoch"]),
            digest=digest.hexdigest()[:16],
        )
    except FileNotFoundError:
        problem = f"run {run_id} no longer has weights in its folder"
        raise ConfigError([Mistake(KEY, problem, "force=true repeats it")]) from None
    except ConfigError as error:
        problem = f"run {run_id} has a configuration that this version can't read"
        raise ConfigError([Mistake(KEY, f"{problem}: {error.mistakes[0]}")]) from error


def check(config: RunConfig, plan: Plan, source: SourceRun | None) -> WarmStart:
    """Determine how the run starts; raises ConfigError with all reasons why it cannot start from the
    source."""
    frozen = tuple(node.path for node in plan.network.layers() if node.frozen and node.params)
    if source is None:
        return WarmStart(None, False, 0, (), _layers(plan.network.params()), frozen)
    new, mistakes = _unfit(config, plan, source)
    if config.init.resume:
        mistakes += _resume_mistakes(config, plan, source, new)
    if mistakes:
        raise ConfigError(mistakes)
    loaded = [name for name in plan.network.params() if name not in new]
    epochs = source.epochs if config.init.resume else 0
    return WarmStart(source.run_id, config.init.resume, epochs, _layers(loaded), _layers(new), frozen)


def initial(config: RunConfig, plan: Plan, source: SourceRun | None) -> tuple[Weights, State | None]:
    """Return the weights that the run starts with, and the state if it resumes a training.

    Weights of another precision are rounded. If the seed differs from the source's, the dropout masks
    come from the run's own seed.
    """
    initialised = initialisers.initialise(plan.network.params(), config.seed, plan.dtype)
    if source is None:
        return initialised, None
    new, _ = _unfit(config, plan, source)
    loaded = {name: array.astype(plan.dtype) for name, array in source.weights.items() if name in initialised}
    weights = {name: array if name in new else loaded[name] for name, array in initialised.items()}
    state = source.state if config.init.resume else None
    if state is None:
        return weights, None
    trained = set(plan.network.trained_weights())
    slots = {name: array for name, array in state.slots.items() if name.rpartition("/")[0] in trained}
    masks = state.masks if config.seed == source.config.seed else {}
    return weights, State(state.steps, state.rate, slots, masks)


def _unfit(config: RunConfig, plan: Plan, source: SourceRun) -> tuple[list[str], list[Mistake]]:
    """Return the names of the output's weights if they must be new, and a mistake for every other misfit."""
    params, weights = plan.network.params(), source.weights
    output, source_output = (f"{path}." for path in (config.model.spec.layers[-1].path, source.output))
    unfit = [n for n, param in params.items() if n not in weights or weights[n].shape != param.shape]
    # an output is one layer: a kernel of the old task with a bias of the new one would be neither
    new_output = output != source_output or any(name.startswith(output) for name in unfit)
    new = [name for name in params if name.startswith(output)] if new_output else []
    mistakes = [
        Mistake(
            KEY,
            f"{n} is {_shape(param.shape)} in this model "
            f"and {_source_shape(weights, n)} in run {source.run_id}",
        )
        for n, param in params.items()
        if n in unfit and not n.startswith(output)
    ]
    unused = [name for name in weights if name not in params and not name.startswith(source_output)]
    mistakes += [
        Mistake(KEY, f"{n} is {_shape(weights[n].shape)} in run {source.run_id} and missing in this model")
        for n in unused
    ]
    return new, mistakes


def _resume_mistakes(config: RunConfig, plan: Plan, source: SourceRun, new: list[str]) -> list[Mistake]:
    """Return the mistakes that prevent resuming the source's training, besides unfit weights."""
    theirs, run = source.config, f"run {source.run_id}"
    advice = "init.resume=false starts a new training from its weights"
    mistakes = [
        Mistake(KEY, f"{n} is {_shape(plan.network.params()[n].shape)} here, not as in {run}", advice)
        for n in new
    ]
    if config.optimizer.name != theirs.optimizer.name:
        problem = f"{config.optimizer.name} can't resume from the state of {theirs.optimizer.name} in {run}"
        mistakes.append(Mistake("optimizer", problem, f"{theirs.optimizer.name}; {advice}"))
    if config.precision != theirs.precision:
        problem = f"{config.precision} can't resume from {theirs.precision} of {run}"
        mistakes.append(Mistake("precision", problem, f"{theirs.precision}; {advice}"))
    if config.train.epochs <= source.epochs:
        problem = f"{run} has already trained {source.epochs} epochs, which train.epochs includes"
        mistakes.append(Mistake("train.epochs", problem, f"more than {source.epochs}"))
    if source.state is None:
        mistakes.append(Mistake(KEY, f"{run} has no optimizer state", advice))
    elif config.optimizer.name == theirs.optimizer.name and config.optimizer.slots:
        with_state = {name.rpartition("/")[0] for name in source.state.slots}
        lacking = _layers(n for n in plan.network.trained_weights() if n not in with_state and n not in new)
        if lacking:
            problem = f"{', '.join(lacking)}: frozen in {run}, which has no optimizer state for it"
            mistakes.append(Mistake("init.freeze", problem, advice))
    return mistakes


def _layers(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct layers of weights."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _source_shape(weights: dict[str, Any], name: str) -> str:
    return _shape(weights[name].shape) if name in weights else "missing"


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
