"""Make certificates: each framework trains the same cases in its own worker, all workers in parallel.

The traces of a case are compared, and then removed, as soon as the last framework has written its own.
Nothing is timed here, so the workers may share the machine.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.adapter import Execution
from harness.core.certificates import gates
from harness.core.certificates.cases import STEPS, Case
from harness.core.config.run_config import RunConfig
from harness.core.storage import npz
from harness.core.storage.dates import today
from harness.core.training import schedules
from harness.core.validation import to_plain
from harness.shell.certificates.store import Certificate, CertificateStore, CertifiedFramework, certificate_id
from harness.shell.runs.records import PreparedRun
from harness.shell.workers.key import WorkerKey
from harness.shell.workers.process import Worker, WorkerDiedError

STEPS_PER_EPOCH = 5  # of the schedule in a certificate: its 20 steps are 4 epochs


@dataclass(frozen=True)
class Subject:
    """A network with an optimizer, and the frameworks that have to agree on it: a run of each."""

    id: str
    model: str
    case: Case
    frameworks: Mapping[str, PreparedRun]

    def parties(self) -> dict[str, CertifiedFramework]:
        """The frameworks with their execution and installed versions."""
        return {name: _certified_framework(run) for name, run in self.frameworks.items()}


def subjects(runs: Iterable[PreparedRun]) -> list[Subject]:
    """List what to certify so that all of these runs are covered."""
    by_id: dict[str, Subject] = {}
    for run in runs:
        identifier, case = _case(run)
        subject = by_id.get(identifier)
        frameworks = dict(subject.frameworks) if subject else {}
        frameworks.setdefault(run.config.framework.name, run)
        by_id[identifier] = Subject(identifier, run.config.model.name, case, frameworks)
    return list(by_id.values())


def make_missing(runs: Sequence[PreparedRun], store: CertificateStore, note: Callable[[str], None]) -> None:
    """Certify what several frameworks will train and no stored certificate covers."""
    missing = [
        subject
        for subject in subjects(runs)
        if len(subject.frameworks) > 1 and not store.covers(subject.id, subject.parties())
    ]
    if not missing:
        return
    names = sorted({name for subject in missing for name in subject.frameworks})
    pairs = ", ".join(f"{s.model} {s.case.optimizer.name}" for s in missing)
    note(f"certifying {pairs} in {', '.join(names)} (certify=off leaves it out)")

    def report(certificate: Certificate) -> None:
        store.put(certificate)
        if not certificate.passed:
            title = f"{certificate.model} {certificate.optimizer}"
            note(f"{title}: the frameworks do NOT agree, see {store.path(certificate.id)}")

    certify(missing, report)


def statements(runs: Iterable[PreparedRun], store: CertificateStore) -> dict[str, dict[str, str]]:
    """For each run by its id: the verdict of its certificate, and the certificate's id."""
    certificates: dict[str, Certificate | None] = {}
    stated: dict[str, dict[str, str]] = {}
    for run in runs:
        identifier, _ = _case(run)
        if identifier not in certificates:
            certificates[identifier] = store.get(identifier)
        certificate, name = certificates[identifier], run.config.framework.name
        current = to_plain(_certified_framework(run))
        if certificate is None or certificate.parties.get(name) != current:
            stated[run.job.run_id] = {"status": "none"}
        else:
            verdict = certificate.verdict(name, run.config.optimizer.impl)
            stated[run.job.run_id] = {"status": verdict, "id": identifier}
    return stated


def certify(subjects: Sequence[Subject], done: Callable[[Certificate], None]) -> None:
    """Certify all subjects; `done` receives each certificate as soon as it is complete.

    A framework whose worker dies, or that can't train a case, has an error in its certificates.
    """
    if not subjects:
        return
    with tempfile.TemporaryDirectory(prefix="evenbench-certify-") as name:
        collector = TraceCollector(Path(name), subjects, done)
        frameworks = {n: run.config for subject in subjects for n, run in subject.frameworks.items()}
        threads = [threading.Thread(target=collector.trace, args=item) for item in frameworks.items()]
        for thread in threads:
            thread.start()
        collector.collect(len(threads))
        for thread in threads:
            thread.join()


class TraceCollector:
    """Collects traces from one thread per framework, and compares them in the caller's thread."""

    def __init__(
        self, folder: Path, subjects: Sequence[Subject], done: Callable[[Certificate], None]
    ) -> None:
        self._folder = folder
        self._subjects = {subject.id: subject for subject in subjects}
        self._done = done
        self._inbox: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()

    def trace(self, framework: str, config: RunConfig) -> None:
        """Trace every case of a framework in a worker."""
        cases = {s.id: to_plain(s.case) for s in self._subjects.values() if framework in s.frameworks}
        folder = self._folder / framework
        folder.mkdir()
        command = {
            "cases": cases,
            "folder": str(folder),
            "execution": _execution(config),
            "xla": config.framework.xla,
            "precision": "float64",
        }
        worker = Worker(WorkerKey.of(replace(config, precision="float64", device="cpu")))
        remaining = dict.fromkeys(cases)
        try:
            for event in worker.trace(command):
                remaining.pop(event["case"], None)
                self._inbox.put((framework, event))
        except WorkerDiedError as error:
            for identifier in remaining:
                self._inbox.put((framework, {"case": identifier, "error": error.exit.message}))
        finally:
            worker.close()
            self._inbox.put((framework, None))

    def collect(self, frameworks: int) -> None:
        """Receive events until every framework has ended; issue each certificate after its last trace."""
        events: dict[str, dict[str, dict[str, Any]]] = {identifier: {} for identifier in self._subjects}
        while frameworks:
            framework, event = self._inbox.get()
            if event is None:
                frameworks -= 1
                continue
            of_case, subject = events[event["case"]], self._subjects[event["case"]]
            of_case[framework] = event
            if len(of_case) == len(subject.frameworks):
                self._done(self._certificate(subject, of_case))

    def _certificate(self, subject: Subject, events: Mapping[str, Mapping[str, Any]]) -> Certificate:
        errors = {name: str(event["error"]) for name, event in events.items() if "error" in event}
        traced = [name for name in subject.frameworks if name not in errors]
        paths = {name: self._folder / name / f"{subject.id}.npz" for name in subject.frameworks}
        reference = npz.load(paths[traced[0]]) if traced else {}
        others = ((name, npz.load(paths[name])) for name in traced[1:])
        comparisons = tuple(gates.compare(traced[0], reference, name, trace) for name, trace in others)
        for path in paths.values():
            path.unlink(missing_ok=True)
        case = subject.case
        return Certificate(
            id=subject.id,
            model=subject.model,
            optimizer=case.optimizer.name,
            network={"input": to_plain(case.input), "outputs": case.outputs, "loss": case.loss},
            steps=len(case.rates),
            seed=case.seed,
            parties=to_plain(subject.parties()),
            comparisons=comparisons,
            native={name: events[name]["native"] for name in traced},
            errors=errors,
            made=today(),
        )


def _case(run: PreparedRun) -> tuple[str, Case]:
    config, plan = run.config, run.plan
    rate = config.optimizer.learning_rate
    rates = schedules.learning_rates(config.schedule, rate, STEPS // STEPS_PER_EPOCH, STEPS_PER_EPOCH)
    case = Case(
        name=config.model.name,
        layers=config.model.layers,
        input=plan.network.input,
        outputs=plan.network.out_shape[0],
        loss=plan.loss,
        optimizer=replace(config.optimizer, impl="shared"),
        rates=tuple(float(value) for value in rates.ravel()),
        freeze=config.init.freeze,
    )
    network = {
        "layers": case.layers,
        "input": to_plain(case.input),
        "outputs": case.outputs,
        "loss": case.loss,
        **({"freeze": case.freeze} if case.freeze else {}),
    }
    return certificate_id(network, to_plain(case.optimizer), case.rates), case


def _certified_framework(run: PreparedRun) -> CertifiedFramework:
    return CertifiedFramework(_execution(run.config), run.job.versions)


def _execution(config: RunConfig) -> Execution:
    """Return the framework's default execution: a certificate is about the network, not about timing."""
    return config.framework.execution
