"""From configurations to jobs that can start: data made, shapes checked, versions known, runs identified.

Everything that can be wrong with a request is found here or before, for all runs of a sweep at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.config.identity import identity
from harness.core.config.run_config import FrameworkConfig, RunConfig, fit, model_config
from harness.core.data import dataset as data
from harness.core.data.dataset import DataConfig
from harness.core.runs import warm_start as start
from harness.core.runs.run_folder import Job, RunFolder
from harness.core.validation import ConfigError, Mistake, parse
from harness.shell.environment import devices
from harness.shell.environment.git_revisions import revisions
from harness.shell.environment.versions import versions
from harness.shell.runs.inputs import DatasetCache
from harness.shell.runs.records import PreparedRun
from harness.shell.tracking.store import resolve_uri
from harness.shell.workers.key import WorkerKey


def prepare(configs: Iterable[RunConfig], shelf: DatasetCache) -> list[PreparedRun]:
    """Check every run against its data and framework; raises ConfigError with all mistakes of all runs."""
    mistakes: list[Mistake] = []
    prepared: list[PreparedRun] = []
    for config in configs:
        try:
            prepared.append(_prepare(config, shelf))
        except ConfigError as error:
            mistakes.extend(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    for results_dir in {run.results_dir for run in prepared}:
        try:
            results_dir.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=results_dir).close()
            shelf.write(results_dir)
        except OSError as error:
            problem = f"{str(results_dir)!r} can't be written to: {error.strerror}"
            raise ConfigError([Mistake("results_dir", problem, "a folder of yours")]) from error
    return prepared


def check_parts(raw: Mapping[str, Any], shelf: DatasetCache) -> list[Mistake]:
    """What shows only with data and framework at hand, for a configuration that can't be read as a whole."""
    mistakes: list[Mistake] = []
    section, train = raw.get("model"), raw.get("train")
    loss = train.get("loss", "auto") if isinstance(train, Mapping) else "auto"
    try:
        versions(parse(FrameworkConfig, raw.get("framework"), "framework"))
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        config = parse(DataConfig, raw.get("data"), "data")
        if isinstance(section, Mapping):
            fit(model_config(section), loss, data.sample(config))
        shelf.get(config, Path("results"))
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    return mistakes


def _prepare(config: RunConfig, shelf: DatasetCache) -> PreparedRun:
    results_dir = Path(config.results_dir).resolve()
    mistakes: list[Mistake] = []
    found: dict[str, str] = {}
    try:
        found = versions(config.framework)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        config = devices.resolved(config)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        resolve_uri(results_dir, config.tracking.uri)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    source = None
    try:
        if config.init.from_run is not None:
            source = shelf.source(config.init.from_run, results_dir)
            config = replace(config, init=replace(config.init, from_run=source.run_id))
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    try:
        dataset, file = shelf.get(config.data, results_dir)
        plan = config.plan(dataset)
        if not mistakes:
            begin = start.check(config, plan, source)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    digest = source.digest if source else None
    run_id = identity(config, found, dataset.fingerprint(), digest)
    plain, of = shelf.shared.parts(config.to_plain()), shelf.shared.of
    job = Job(run_id, config.study, plain, file, of(found), source=digest, revisions=of(revisions()))
    folder = RunFolder(results_dir / "runs" / run_id)
    return PreparedRun(config, job, folder, of(WorkerKey.of(config)), of(begin), hash(plan))
