"""The configuration: every file and every combination is valid, and a run's identity is what it should be."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from harness.core.config.identity import identity
from harness.core.config.run_config import RunConfig, resolve_model
from harness.core.data import dataset
from harness.core.validation import ConfigError, to_plain
from harness.shell.compose.origins import Origins
from harness.shell.environment.versions import installed
from harness.shell.runs.inputs import DatasetCache
from harness.shell.runs.prepare import check_parts
from harness.shell.workers.key import WorkerKey
from tests.support.compose import choices, composed, composing, config_of
from tests.support.paths import CONF

VERSIONS = {"torch": "2.13.0", "python": "3.11.7"}


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    with composing():
        yield


def run_id(*overrides: str, versions: dict[str, str] = VERSIONS, fingerprint: str = "f") -> str:
    return identity(config_of(*overrides), versions, fingerprint)


def sweep_of(experiment: str) -> Iterator[list[str]]:
    """The overrides of every run that an experiment asks for."""
    node = composed(f"experiment={experiment}").hydra
    params = node.sweeper.params or {}
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    axes = [
        [f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line or ""]
        for o in parsed
    ]
    yield from (list(run) for run in itertools.product(*axes))


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_run_of_every_experiment_is_valid_and_gets_its_own_settings(experiment: str) -> None:
    """Catches: an experiment with a typo, or whose settings `config.yaml` overrules."""
    runs = list(sweep_of(experiment))
    datasets = DatasetCache()
    for run in runs:
        config = config_of(f"experiment={experiment}", *run)
        config.plan(datasets.get(config.data, CONF)[0])
    config = config_of(f"experiment={experiment}", *runs[0])
    assert config.study == experiment
    assert config.study != config_of().study


def test_the_main_job_is_a_sweep() -> None:
    """Catches: `experiment=bench` that runs once, since `config.yaml` overrules its mode."""
    assert composed("experiment=bench").hydra.mode.name == "MULTIRUN"
    runs = [dict(text.split("=") for text in run) for run in sweep_of("bench")]
    models = {"fnn", "cnn", "rnn", "lstm", "transformer", "autoencoder"}
    frameworks = {"torch", "keras", *(["keras_jax"] if installed(("jax",)) else [])}
    assert {(run["model"], run["framework"]) for run in runs} == set(itertools.product(models, frameworks))
    assert len({run["seed"] for run in runs}) >= 3


def test_an_experiment_sets_keys_for_one_model() -> None:
    """Catches: a model's own file that is not read, that is read for every model or every experiment, that
    the experiment or the model's defaults overrule, and a message that does not name it."""
    own = {name: composed("experiment=bench", f"model={name}").train.epochs for name in choices("model")}
    general = own["fnn"]
    assert own == dict.fromkeys(own, general) | {"cnn": 10} and general != 10
    assert composed("experiment=bench", "model=cnn").model.filters == [16]
    assert composed("experiment=bench", "model=cnn", "train.epochs=3").train.epochs == 3
    assert composed("model=cnn").model.filters != [16]
    origins = Origins.of(composed("experiment=bench", "model=cnn"))
    assert origins.place("train.epochs").endswith("experiment/bench/cnn.yaml")
    assert origins.place("study").endswith("experiment/bench.yaml")


def assert_valid(config: RunConfig) -> None:
    """A configuration that is read back from its own JSON form has every key, and no mistake."""
    plain = config.to_plain()
    assert plain.keys() == to_plain(config).keys()
    assert RunConfig.parse(plain) == config


def test_every_combination_of_files_is_valid() -> None:
    """Catches: a new file of any group that does not go with the others, or that no data set fits."""
    by_framework = {name: config_of(f"framework={name}") for name in choices("framework")}
    sections: dict[str, dict[str, Any]] = {
        group: {name: getattr(config_of(f"{group}={name}"), group) for name in choices(group)}
        for group in ("model", "data", "optimizer", "schedule")
    }
    datasets = {name: dataset.load(section) for name, section in sections["data"].items()}
    fitting: dict[str, int] = dict.fromkeys(sections["model"], 0)
    for model, of_data in itertools.product(sections["model"], datasets):
        try:
            resolve_model(sections["model"][model], "auto", datasets[of_data].sample)
        except ConfigError as error:
            assert f"model {model!r} can't take data {of_data!r}" in str(error)
            continue
        fitting[model] += 1
        for framework in by_framework.values():
            assert_valid(replace(framework, model=sections["model"][model], data=sections["data"][of_data]))
    for framework, optimizer, schedule in itertools.product(
        by_framework.values(), sections["optimizer"].values(), sections["schedule"].values()
    ):
        assert_valid(replace(framework, optimizer=optimizer, schedule=schedule))
    assert all(fitting.values()), fitting


@pytest.mark.parametrize("group", ["model", "framework", "data", "optimizer", "schedule"])
def test_a_file_gives_every_key_of_its_section_and_its_own_name(group: str) -> None:
    """Catches: a key that exists but that no file shows, and a name that is not the file's."""
    for name in choices(group):
        file = composed(f"{group}={name}")[group]
        parsed = config_of(f"{group}={name}").to_plain()[group]
        if group == "data":  # options are the loader's own, and those of a loader without any are none
            assert file.name == name
            continue
        assert file.keys() == parsed.keys(), name
        if (group, name) != ("schedule", "warmup"):  # a warm-up is a constant schedule that has one
            assert file.name == name


@pytest.mark.parametrize("framework", choices("framework"))
def test_every_execution_that_a_file_names_can_be_asked_for_and_no_other(framework: str) -> None:
    """Catches: a default that the framework can't do, and an execution that slips through."""
    config = config_of(f"framework={framework}")
    possible = config.framework.executions["cpu"]
    assert config.execution in possible
    for execution in ("idiomatic", "eager", "compiled", "epoch"):
        if execution in possible:
            assert config_of(f"framework={framework}", f"execution={execution}").execution == execution
        else:
            with pytest.raises(
                ConfigError, match=f"{framework} on cpu has no execution '{execution}'"
            ) as caught:
                config_of(f"framework={framework}", f"execution={execution}")
            assert caught.value.mistakes[0].allowed == ", ".join([*possible, "best"])


def test_an_execution_can_have_an_environment_of_its_own() -> None:
    """Catches: runs of another execution in it, or in one worker with those that need it; one that changes
    the ids of runs that don't use it, or not those of runs that do; an execution that does not exist."""
    more = ("++framework.execution_env.eager.A=1", "execution=eager")
    with_it, without = (WorkerKey.of(config_of(*overrides)) for overrides in (more, more[1:]))
    assert with_it.environment()["A"] == "1" and with_it != without
    assert WorkerKey.of(config_of(*more, "++framework.env.A=2")).environment()["A"] == "2"
    elsewhere = (more[0], "execution=compiled")
    assert WorkerKey.of(config_of(*elsewhere)) == WorkerKey.of(config_of(elsewhere[1]))
    assert run_id(*more) != run_id(more[1]) and run_id(*elsewhere) == run_id(elsewhere[1])
    with pytest.raises(ConfigError, match=r"framework.execution_env.eagre: no such execution; .*'eager'"):
        config_of("++framework.execution_env.eagre.A=1")


def test_a_job_file_reads_back_as_the_configuration_it_was_written_from() -> None:
    """Catches: a worker that gets another configuration than the one that was checked."""
    config = config_of("data=make_classification", "train.target={metric: val/accuracy, value: 0.9}")
    assert RunConfig.parse(json.loads(json.dumps(config.to_plain()))) == config
    assert config.to_plain()["model"]["units"] == [64, 32]  # next to the layers, as in YAML


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "repeat=1", "precision=float64", "execution=compiled", "threads=2", "device=cuda"),
        *("train.epochs=11", "train.batch_size=16", "train.loss=cross_entropy"),
        "train.target={metric: val/accuracy, value: 0.9}",
        *(
            "model.units=[64,33]",
            "model.activation=tanh",
            "model.dropout=0.1",
            "model.kernel_init=he_uniform",
        ),
        *("optimizer=sgd", "optimizer.learning_rate=0.002", "optimizer.beta_1=0.8", "optimizer.impl=shared"),
        *("schedule=cosine", "schedule.warmup_epochs=1", "framework.xla=true", "++framework.env.A=1"),
        *("data=iris", "data.split_seed=1", "data.standardise=false"),
    ],
)
def test_the_run_id_changes_with_what_can_change_the_result(override: str) -> None:
    """Catches: a run taken for another one, and its result for that of a run that never was."""
    assert run_id(override) != run_id()


def test_the_run_id_changes_with_the_framework_its_version_and_the_data() -> None:
    """Catches: results of an old version, or of other rows, that count as those of today's."""
    ids = {
        run_id(),
        run_id("framework=keras_torch"),
        run_id(versions=VERSIONS | {"torch": "2.13.1"}),
        run_id(fingerprint="g"),
    }
    assert len(ids) == 4
    other = dataset.load(config_of("data=iris", "data.split_seed=1").data)
    assert dataset.load(config_of("data=iris").data).fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        *("study=other", "results_dir=/elsewhere", "force=true", "isolation=fresh", "timeout_s=9"),
        *("tracking.uri=http://127.0.0.1:1", "framework.python=/usr/bin/python3"),
        "checkpoint.every_epochs=1",
    ],
)
def test_the_run_id_does_not_change_with_what_cannot(override: str) -> None:
    """Catches: a finished run that is done again because it goes by another name or lies elsewhere."""
    assert run_id(override) == run_id()


def test_the_run_id_is_that_of_the_network_and_not_of_the_way_it_was_written() -> None:
    """Catches: the same network trained twice because its sizes were given in another form."""
    assert run_id("model.units=[64,64]") == run_id("model.units=64", "model.depth=2")


def test_the_run_id_is_the_same_in_every_process() -> None:
    """Catches: a hash that depends on the process (Python's own, the order of a set)."""
    program = "from tests.core.test_config import *\nwith composing(): print(run_id('data=iris'))"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=CONF.parent)
        assert done.stdout.strip() == run_id("data=iris"), done.stderr


@pytest.mark.parametrize(
    ("device", "allowed"),
    [
        *(("cpu", True), ("auto", True), ("cuda:3", True)),
        *(("gpu", False), ("cpu:1", False), ("cuda:", False), ("cuda:x", False), ("auto:0", False)),
    ],
)
def test_devices(device: str, allowed: bool) -> None:
    """Catches: a device that only the framework would refuse, an hour later."""
    if allowed:
        assert config_of(f"device='{device}'").device == device
    else:
        with pytest.raises(ConfigError, match=f"'{device}' is not a device"):
            config_of(f"device='{device}'")


def test_a_loss_for_another_task_is_refused_with_those_that_suit() -> None:
    """Catches: a training that runs and means nothing."""
    config = config_of("train.loss=binary_cross_entropy")
    with pytest.raises(ConfigError) as caught:
        config.plan(dataset.load(config.data))
    (mistake,) = caught.value.mistakes
    assert (mistake.key, mistake.allowed) == ("train.loss", "cross_entropy")


def test_sections_are_checked_against_the_data_even_where_others_cannot_be_read() -> None:
    """Catches: a mistake that is reported only after another one was corrected."""
    raw = config_of("data=digits").to_plain()
    raw["train"] = {"epochs": "many", "loss": "mse"}
    raw["framework"]["distributions"] = ["no-such-package"]
    keys = [mistake.key for mistake in check_parts(raw, DatasetCache())]
    assert keys == ["framework", "train.loss"]
    raw["model"]["layers"] = [{"kind": "output"}]
    raw["train"]["loss"] = "auto"
    assert [m.key for m in check_parts(raw, DatasetCache())] == ["framework", "model.layers[0]"]
