"""A run's configuration: every key, its type, what is allowed, and the identity that follows from it.

`RunConfig.parse` reads the resolved mapping that Hydra composes (or a `job.json`) and reports every mistake
in one go. `identity` hashes what determines the result and nothing else, so that a finished run is found
again whatever the study is called and wherever its results lie.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, cast

from harness.core.adapter import Execution, Loss, Plan, Precision
from harness.core.config import init_section as init
from harness.core.config.checks import (
    BEST,
    device_mistakes,
    environment_mistakes,
    execution_mistakes,
    layer_mistakes,
    readable_spec,
)
from harness.core.config.init_section import InitConfig
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
    """The section `model`: a name, the layer tree, and whatever hyperparameters the tree refers to."""

    name: str
    layers: tuple[Any, ...]
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        """The layer tree, read; raises ConfigError."""
        return read_spec(list(self.layers))

    @property
    def reconstructs(self) -> bool:
        """Whether it is an autoencoder, as far as its last layer says; a tree that can't be read is none."""
        last = self.layers[-1] if self.layers else None
        return isinstance(last, Mapping) and last.get("kind") == Reconstruction.kind

    def view(self, dataset: Dataset) -> Dataset:
        """The data as this model has to learn them: an autoencoder's targets are its inputs.

        Raises ConfigError where they can't be that.
        """
        return data.as_reconstruction(dataset) if self.reconstructs else dataset


@dataclass(frozen=True)
class FrameworkConfig:
    """The section `framework`: which adapter, in which interpreter, and what it can do.

    `adapter` is the module that speaks the framework's language, `backend` what it is told to run on,
    `distributions` the packages whose versions belong to a result; one of `cuda_distributions`, if there are
    any, is what it needs for a card. `python` names another interpreter for the worker, `env` more of its
    environment, and `execution_env` what is added to that for the runs of one execution, which then have
    workers of their own; `env` has the last word. `xla` asks TensorFlow to compile with XLA; null leaves it
    to the adapter.
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
        """What a worker for runs of this execution has in its environment."""
        given = {**self.execution_env.get(execution, {}), **self.env}
        return {name: str(value) for name, value in given.items()}


@dataclass(frozen=True)
class Target:
    """A validation metric's value that counts as trained: gives `time/to_target_s`."""

    metric: Annotated[str, OneOf(METRICS)]
    value: float


@dataclass(frozen=True)
class TrainConfig:
    """The section `train`. `loss: auto` takes the one that the task asks for."""

    epochs: Positive
    batch_size: Positive
    loss: Literal["auto", "mse", "binary_cross_entropy", "cross_entropy"] = "auto"
    target: Target | None = None


@dataclass(frozen=True)
class CheckpointConfig:
    """The section `checkpoint`: after how many epochs, and how many minutes, a run that goes on for longer
    notes where it is; null is never. The minutes are looked at when an epoch ends."""

    every_epochs: Positive | None = None
    every_minutes: Annotated[float, Range(min=0.0, exclusive_min=True)] | None = 5.0


@dataclass(frozen=True)
class TrialMark:
    """The section `search` of a run that a search asked for: the trial's number, the objectives in words."""

    trial: Whole
    objectives: str


@dataclass(frozen=True)
class TrackingConfig:
    """The section `tracking`: where MLflow keeps its runs; null is the SQLite store in `results_dir`."""

    uri: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """One run, completely described. See the README for what each key does."""

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
    limit: Literal["auto", "off"] = "auto"  # not in the jobs of earlier versions
    init: InitConfig = field(default_factory=InitConfig)  # jobs of an earlier version have none
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)  # nor this
    workers: Positive = 1  # nor these
    pin: bool = False
    timings: Literal["alone", "shared"] = "alone"
    search: TrialMark | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> RunConfig:
        """Read a resolved mapping; raises ConfigError with every mistake that shows without loading data."""
        plain = dict(raw)
        mistakes: list[Mistake] = []
        if isinstance(plain.get("model"), Mapping):
            plain["model"] = _model_section(plain["model"])
        if isinstance(plain.get("init"), Mapping):
            plain["init"] = init.plain_section(plain["init"])
        try:
            config = parse(cls, plain)
        except ConfigError as error:
            mistakes.extend(error.mistakes)
        else:
            mistakes.extend(data.check(config.data))
            if not config.study.strip():
                mistakes.append(Mistake("study", "is empty", "a name"))
        mistakes.extend(layer_mistakes(plain.get("model")))
        mistakes.extend(init.check(raw.get("init"), readable_spec(plain.get("model"))))
        mistakes.extend(device_mistakes(plain.get("device")))
        mistakes.extend(environment_mistakes(plain.get("framework")))
        if found := execution_mistakes(plain):  # which says what this framework has, as the type can't
            mistakes = [mistake for mistake in mistakes if mistake.key != "execution"] + found
        if mistakes:
            raise ConfigError(mistakes)
        return config

    def to_plain(self) -> dict[str, Any]:
        """JSON form that `parse` reads back; hyperparameters stand beside the layers, as in YAML."""
        plain: dict[str, Any] = to_plain(self)
        plain["model"] |= plain["model"].pop("hyperparameters")
        return plain

    def plan(self, dataset: Dataset) -> Plan:
        """What has to be compiled for this run on `dataset`; raises ConfigError where they don't fit.

        As long as it is not known which execution is the best, it is the framework's default.
        """
        network, loss = fit(self.model, self.train.loss, dataset.sample, self.init.freeze)
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
        """A short name for people: model, framework, data, seed."""
        return f"{self.model.name} {self.framework.name} {self.data.name} s{self.seed}"


@dataclass(frozen=True)
class Misfit(Mistake):
    """A model that can't take the data, with both, so that others can be looked for that go with either."""

    model: ModelConfig = field(kw_only=True, compare=False)
    sample: Sample = field(kw_only=True, compare=False)


def fit(model: ModelConfig, loss: str, sample: Sample, freeze: tuple[str, ...] = ()) -> tuple[Network, str]:
    """The model resolved for the data, and the loss that it is trained with (`auto` is the task's own).

    Raises ConfigError where the loss is for another task, or `freeze` names layers without weights or leaves
    none to train, and one of Misfits where a layer can't take what reaches it.
    """
    task = sample.task
    if model.reconstructs:
        with _said_of(model, sample):
            task = data.reconstruction(sample)
    loss = losses.default_loss(task) if loss == "auto" else loss
    mistakes = losses.check(task, loss)
    if mistakes:
        raise ConfigError(mistakes)
    spec = model.spec.freeze(freeze)
    with _said_of(model, sample):
        network = _resolved(spec, sample.input, losses.outputs(task, loss))
    weighty = {node.path for node in network.layers() if node.params}
    empty = [name for name in freeze if not spec.meant(name) & weighty]
    mistakes = [Mistake("init.freeze", f"{name!r} has no weights that could be frozen") for name in empty]
    if freeze and not network.trained():
        mistakes.append(Mistake("init.freeze", "freezes every layer: nothing is left to train"))
    if mistakes:
        raise ConfigError(mistakes)
    return network, loss


@functools.lru_cache(MAX_SPECS)
def _resolved(spec: ModelSpec, shape: Input, outputs: int) -> Network:
    return spec.resolve(shape, outputs)


@contextlib.contextmanager
def _said_of(model: ModelConfig, sample: Sample) -> Iterator[None]:
    """Begin the problems of a ConfigError with what they are about."""
    try:
        yield
    except ConfigError as error:
        pair = f"model {model.name!r} can't take data {sample.name!r}"
        raise ConfigError(
            Misfit(m.key, f"{pair}: {m.problem}", m.allowed, model=model, sample=sample)
            for m in error.mistakes
        ) from error


def model_config(section: Mapping[str, Any]) -> ModelConfig:
    """The section `model`, in which hyperparameters stand beside the layers; raises ConfigError."""
    return parse(ModelConfig, _model_section(section), "model")


def _model_section(model: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(ModelConfig)}
    rest = {k: v for k, v in model.items() if k not in known}
    return {k: v for k, v in model.items() if k in known} | {"hyperparameters": rest}


# These look at the raw sections, so that they have their say even where another section can't be read.
