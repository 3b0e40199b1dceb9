"""A run's configuration: every key, its type and its allowed values.

`RunConfig.parse` reads the resolved mapping that Hydra composes (or a `job.json`) and reports all mistakes at
once. `resolve_model` resolves the model for its data, which needs no framework and no loaded data.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, cast

from harness.core.adapter import Execution, Loss, Plan, Precision
from harness.core.config.checks import (
    BEST,
    device_mistakes,
    environment_mistakes,
    execution_mistakes,
    layer_mistakes,
    readable_spec,
)
from harness.core.config.init_section import InitConfig, init_mistakes, numbers_to_names
from harness.core.config.model_specs import MAX_SPECS, read_spec
from harness.core.data import dataset as data
from harness.core.data.dataset import DataConfig, Dataset, Sample
from harness.core.network import Input, ModelSpec, Network, Reconstruction
from harness.core.training import batches, losses, optimizers, schedules
from harness.core.validation import ConfigError, Mistake, OneOf, Range, parse, to_plain

Whole = Annotated[int, Range(min=0)]
Positive = Annotated[int, Range(min=1)]

METRICS = ("val/loss", "val/accuracy", "val/f1", "val/mse", "val/mae", "val/r2")


@dataclass(frozen=True)
class ModelConfig:
    """The section `model`: a name, the layer tree, and the hyperparameters that the tree refers to."""

    name: str
    layers: tuple[Any, ...]
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        """The parsed layer tree; raises ConfigError."""
        return read_spec(list(self.layers))

    @property
    def reconstructs(self) -> bool:
        """Whether the last layer makes it an autoencoder; False for a tree that cannot be read."""
        last = self.layers[-1] if self.layers else None
        return isinstance(last, Mapping) and last.get("kind") == Reconstruction.kind

    def view(self, dataset: Dataset) -> Dataset:
        """Return the data set as this model learns it: an autoencoder's targets are its inputs.

        Raises ConfigError if the data cannot be reconstructed.
        """
        return data.as_reconstruction(dataset) if self.reconstructs else dataset


@dataclass(frozen=True)
class FrameworkConfig:
    """The section `framework`: which adapter, in which interpreter, and what it can do.

    `adapter` is the adapter's module, `backend` is passed to it, and `distributions` are the packages whose
    versions belong to a result. If `cuda_distributions` is not empty, one of them must be installed to use a
    card. `python` selects another interpreter for the worker. `env` adds to its environment variables, and
    `execution_env` adds more for the runs of one execution, which then use separate workers; `env` takes
    precedence. `xla` makes TensorFlow compile with XLA; null leaves it to the adapter.
    """

    name: str
    adapter: str
    backend: str
    distributions: tuple[str, ...]
    execution: Execution
    executions: dict[str, tuple[Execution, ...]]
    xla: bool | None = False
    python: str | None = None
    env: dict[str, Any] = field(default_factory=dict)
    cuda_distributions: tuple[str, ...] = ()
    execution_env: dict[str, dict[str, Any]] = field(default_factory=dict)

    def environment(self, execution: str) -> dict[str, str]:
        """Return the environment variables that a worker for runs of this execution gets."""
        variables = {**self.execution_env.get(execution, {}), **self.env}
        return {name: str(value) for name, value in variables.items()}


@dataclass(frozen=True)
class Target:
    """The value of a validation metric that ends the clock of `time/to_target_s`."""

    metric: Annotated[str, OneOf(METRICS)]
    value: float


@dataclass(frozen=True)
class TrainConfig:
    """The section `train`. `loss: auto` selects the task's default loss."""

    epochs: Positive
    batch_size: Positive
    loss: Literal["auto", "mse", "binary_cross_entropy", "cross_entropy"] = "auto"
    target: Target | None = None


@dataclass(frozen=True)
class CheckpointConfig:
    """The section `checkpoint`: the number of epochs, and of minutes, between two checkpoints; null: never.

    Minutes are checked at the end of each epoch.
    """

    every_epochs: Positive | None = None
    every_minutes: Annotated[float, Range(min=0.0, exclusive_min=True)] | None = 5.0


@dataclass(frozen=True)
class TrialMark:
    """The section `search` of a run that a search requested: the trial's number, the objectives as text."""

    trial: Whole
    objectives: str


@dataclass(frozen=True)
class TrackingConfig:
    """The section `tracking`: MLflow's tracking URI; null is the SQLite store in `results_dir`."""

    uri: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """One run, completely described. docs/reference/configuration.md explains every key.

    The fields with defaults may be missing from a `job.json` of an earlier version.
    """

    model: ModelConfig
    framework: FrameworkConfig
    data: DataConfig
    optimizer: optimizers.Rule
    schedule: schedules.Schedule
    train: TrainConfig
    seed: Whole
    repeat: Whole
    precision: Precision
    execution: Literal[Execution, "best"]
    threads: Positive
    device: str
    certify: Literal["auto", "off"]
    isolation: Literal["warm", "fresh"]
    timeout_s: Annotated[float, Range(min=0.0, exclusive_min=True)] | None
    study: str
    results_dir: str
    tracking: TrackingConfig
    force: bool
    limit: Literal["auto", "off"] = "auto"
    init: InitConfig = field(default_factory=InitConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    workers: Positive = 1
    pin: bool = False
    timings: Literal["alone", "shared"] = "alone"
    search: TrialMark | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> RunConfig:
        """Read a resolved mapping; raises ConfigError with all mistakes that show without loading data."""
        plain = dict(raw)
        mistakes: list[Mistake] = []
        if isinstance(plain.get("model"), Mapping):
            plain["model"] = _model_section(plain["model"])
        if isinstance(plain.get("init"), Mapping):
            plain["init"] = numbers_to_names(plain["init"])
        try:
            config = parse(cls, plain)
        except ConfigError as error:
            mistakes.extend(error.mistakes)
        else:
            mistakes.extend(data.check(config.data))
            if not config.study.strip():
                mistakes.append(Mistake("study", "is empty", "a name"))
        mistakes.extend(layer_mistakes(plain.get("model")))
        mistakes.extend(init_mistakes(raw.get("init"), readable_spec(plain.get("model"))))
        mistakes.extend(device_mistakes(plain.get("device")))
        mistakes.extend(environment_mistakes(plain.get("framework")))
        if unavailable := execution_mistakes(plain):  # these name the framework's executions; the type cannot
            mistakes = [mistake for mistake in mistakes if mistake.key != "execution"] + unavailable
        if mistakes:
            raise ConfigError(mistakes)
        return config

    def to_plain(self) -> dict[str, Any]:
        """Return the JSON form that `parse` reads back; hyperparameters are next to the layers, as in
        YAML."""
        plain: dict[str, Any] = to_plain(self)
        plain["model"] |= plain["model"].pop("hyperparameters")
        return plain

    def plan(self, dataset: Dataset) -> Plan:
        """Return what has to be compiled for this run on `dataset`; raises ConfigError if they do not fit.

        With `execution=best`, the plan has the framework's default execution.
        """
        network, loss = resolve_model(self.model, self.train.loss, dataset.sample, self.init.freeze)
        rows = dataset.rows("train"), dataset.rows("val"), dataset.rows("test")
        batch_size = batches.effective_batch(rows[0], self.train.batch_size)
        return Plan(
            network=network,
            loss=cast(Loss, loss),
            rule=optimizers.program_rule(self.optimizer),
            batch_size=batch_size,
            steps=rows[0] // batch_size,
            rows=rows,
            precision=self.precision,
            execution=self.framework.execution if self.execution == BEST else self.execution,
            xla=self.framework.xla,
            device=self.device.partition(":")[0],  # a worker sees one card
        )

    def label(self) -> str:
        """Return a short name for messages: model, framework, data, seed."""
        return f"{self.model.name} {self.framework.name} {self.data.name} s{self.seed}"


@dataclass(frozen=True)
class Misfit(Mistake):
    """A model that does not fit the data, with both, so that suggestions for either can be looked up."""

    model: ModelConfig = field(kw_only=True, compare=False)
    sample: Sample = field(kw_only=True, compare=False)


def resolve_model(
    model: ModelConfig, loss: str, sample: Sample, freeze: tuple[str, ...] = ()
) -> tuple[Network, str]:
    """Resolve the model for the data; return the network and its loss (`auto` becomes the task's default).

    Raises ConfigError if the loss is for another task, if `freeze` names layers without weights, or if it
    leaves nothing to train; raises one with Misfits if a layer does not accept its input.
    """
    task = sample.task
    if model.reconstructs:
        with _as_misfits(model, sample):
            task = data.reconstruction_task(sample)
    loss = losses.default_loss(task) if loss == "auto" else loss
    mistakes = losses.check(task, loss)
    if mistakes:
        raise ConfigError(mistakes)
    spec = model.spec.freeze(freeze)
    with _as_misfits(model, sample):
        network = _resolved(spec, sample.input, losses.outputs(task, loss))
    with_weights = {node.path for node in network.layers() if node.params}
    empty = [name for name in freeze if not spec.paths_of(name) & with_weights]
    mistakes = [Mistake("init.freeze", f"{name!r} has no weights to freeze") for name in empty]
    if freeze and not network.trained_weights():
        mistakes.append(Mistake("init.freeze", "freezes every layer: nothing is left to train"))
    if mistakes:
        raise ConfigError(mistakes)
    return network, loss


@functools.lru_cache(MAX_SPECS)
def _resolved(spec: ModelSpec, shape: Input, outputs: int) -> Network:
    return spec.resolve(shape, outputs)


@contextlib.contextmanager
def _as_misfits(model: ModelConfig, sample: Sample) -> Iterator[None]:
    """Turn the mistakes of a ConfigError into Misfits, which begin with the model and the data."""
    try:
        yield
    except ConfigError as error:
        pair = f"model {model.name!r} can't take data {sample.name!r}"
        raise ConfigError(
            Misfit(m.key, f"{pair}: {m.problem}", m.allowed, model=model, sample=sample)
            for m in error.mistakes
        ) from error


def model_config(section: Mapping[str, Any]) -> ModelConfig:
    """Parse the section `model`, in which hyperparameters are next to the layers; raises ConfigError."""
    return parse(ModelConfig, _model_section(section), "model")


def _model_section(model: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(ModelConfig)}
    hyperparameters = {k: v for k, v in model.items() if k not in names}
    return {k: v for k, v in model.items() if k in names} | {"hyperparameters": hyperparameters}
