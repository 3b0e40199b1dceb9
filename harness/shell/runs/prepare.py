"""From checked configurations to runs that can start.

Data sets are loaded, networks resolved, versions looked up and runs identified. Every mistake in a request is
reported here or earlier, for all runs of a sweep at once.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.adapter import Plan
from harness.core.config.identity import identity
from harness.core.config.run_config import FrameworkConfig, RunConfig, model_config, resolve_model
from harness.core.data import dataset as data
from harness.core.data.dataset import DataConfig
from harness.core.runs import warm_start
from harness.core.runs.autotune import TunedExecution
from harness.core.runs.run_folder import Job, RunFolder
from harness.core.runs.warm_start import WarmStart
from harness.core.validation import ConfigError, Mistake, parse, to_plain
from harness.shell.environment import devices
from harness.shell.environment.git_revisions import revisions
from harness.shell.environment.versions import versions
from harness.shell.runs.inputs import DatasetCache, RunInputs
from harness.shell.runs.records import PreparedRun
from harness.shell.tracking.uri import resolve_uri
from harness.shell.workers.key import WorkerKey


def prepare(configs: Iterable[RunConfig], inputs: RunInputs) -> list[PreparedRun]:
    """Check all runs and write the data that their workers read; raises ConfigError with all mistakes."""
    runs = check_runs(configs, inputs)
    for results_dir in {run.results_dir for run in runs}:
        try:
            results_dir.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=results_dir).close()
            inputs.datasets.write(results_dir)
        except OSError as error:
            problem = f"{str(results_dir)!r} can't be written to: {error.strerror}"
            raise ConfigError([Mistake("results_dir", problem, "a folder of yours")]) from error
    return runs


def check_runs(configs: Iterable[RunConfig], inputs: RunInputs) -> list[PreparedRun]:
    """Check every run against its data and framework, write nothing; raises ConfigError with all mistakes."""
    mistakes: list[Mistake] = []
    runs: list[PreparedRun] = []
    for config in configs:
        with _collecting(mistakes):
            runs.append(_check(config, inputs))
    if mistakes:
        raise ConfigError(mistakes)
    return runs


def check_parts(raw: Mapping[str, Any], datasets: DatasetCache) -> list[Mistake]:
    """The mistakes that show only with data and framework at hand, of a configuration that is not valid as a
    whole."""
    mistakes: list[Mistake] = []
    section, train = raw.get("model"), raw.get("train")
    loss = train.get("loss", "auto") if isinstance(train, Mapping) else "auto"
    with _collecting(mistakes):
        versions(parse(FrameworkConfig, raw.get("framework"), "framework"))
    with _collecting(mistakes):
        config = parse(DataConfig, raw.get("data"), "data")
        if isinstance(section, Mapping):
            resolve_model(model_config(section), loss, data.sample(config))
        datasets.get(config, Path("results"))
    return mistakes


def with_execution(run: PreparedRun, tuned: TunedExecution, inputs: RunInputs) -> PreparedRun:
    """The run with the tuned execution in place of `best`: the same run as if the user had named it."""
    framework = replace(run.config.framework, xla=tuned.xla)
    config = replace(run.config, execution=tuned.execution, framework=framework)
    plan = replace(run.plan, execution=tuned.execution, xla=tuned.xla)
    renamed = _identify(config, plan, run.start, run.job.versions, run.job.source, inputs)
    return replace(renamed, job=replace(renamed.job, calibration=to_plain(tuned)))


def _check(config: RunConfig, inputs: RunInputs) -> PreparedRun:
    results_dir = Path(config.results_dir).resolve()
    mistakes: list[Mistake] = []
    installed: dict[str, str] = {}
    source = None
    with _collecting(mistakes):
        installed = versions(config.framework)
    with _collecting(mistakes):
        config = devices.resolve_device(config)
    with _collecting(mistakes):
        resolve_uri(results_dir, config.tracking.uri)
    with _collecting(mistakes):
        if config.init.from_run is not None:
            source = inputs.sources.get(config.init.from_run, results_dir)
            config = replace(config, init=replace(config.init, from_run=source.run_id))
    with _collecting(mistakes):
        dataset, _ = inputs.datasets.get(config.data, results_dir)
        plan = config.plan(dataset)
        if not mistakes:
            start = warm_start.check(config, plan, source)
    if mistakes:
        raise ConfigError(mistakes)
    return _identify(config, plan, start, installed, source.digest if source else None, inputs)


def _identify(
    config: RunConfig,
    plan: Plan,
    start: WarmStart,
    installed: Mapping[str, str],
    source: str | None,
    inputs: RunInputs,
) -> PreparedRun:
    """The run under its id. `source` is the digest of the run that it starts from."""
    intern = inputs.interner.intern
    results_dir = Path(config.results_dir).resolve()
    dataset, file = inputs.datasets.get(config.data, results_dir)
    run_id = identity(config, installed, dataset.fingerprint(), source)
    job = Job(
        run_id,
        config.study,
        inputs.interner.intern_values(config.to_plain()),
        file,
        intern(dict(installed)),
        source=source,
        revisions=intern(revisions()),
    )
    return PreparedRun(
        config,
        job,
        RunFolder(results_dir / "runs" / run_id),
        intern(WorkerKey.of(config)),
        hash(plan),
        intern(start),
        inputs.plans.setdefault(plan, plan),
    )


@contextlib.contextmanager
def _collecting(mistakes: list[Mistake]) -> Iterator[None]:
    """Add the mistakes of a ConfigError to a list instead of raising it."""
    try:
        yield
    except ConfigError as error:
        mistakes.extend(error.mistakes)
