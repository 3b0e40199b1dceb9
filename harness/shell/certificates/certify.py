"""Make certificates: every framework trains the same cases in a worker of its own, all workers side by side.

A case's traces are compared as soon as the last framework has left its own, and removed. Nothing is timed
here, so the workers may share the machine.
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
    """What has to be certified so that all of these runs are covered."""
    by_id: dict[str, Subject] = {}
    for run in runs:
        identifier, case = _case(run)
        subject = by_id.get(identifier)
        frameworks = dict(subject.frameworks) if subject else {}
        frameworks.setdefault(run.config.framework.name, run)
        by_id[identifier] = Subject(identifier, run.config.model.name, case, frameworks)
    return list(by_id.values())


def make_missing(runs: Sequence[PreparedRun], store: CertificateStore, note: Callable[[str], None]) -> None:
    """Certify what several frameworks are to train and no stored certificate covers."""
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


def certify(wanted: Sequence[Subject], done: Callable[[Certificate], None]) -> None:
    """Certify; `done` gets each certificate as soon as it is made.

    A framework whose worker dies, or that can't train a case, has an error in its certificates.
    """
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="evenbench-certify-") as name:
        desk = TraceCollector(Path(name), wanted, done)
        frameworks = {n: run.config for subject in wanted for n, run in subject.frameworks.items()}
        threads = [threading.Thread(target=desk.trace, args=item) for item in frameworks.items()]
        for thread in threads:
            thread.start()
        desk.collect(len(threads))
        for thread in threads:
            thread.join()


class TraceCollector:
    """Where traces come in, one thread a framework, and are compared in the caller's thread."""

    def __init__(self, folder: Path, wanted: Sequence[Subject], done: Callable[[Certificate], None]) -> None:
        self._folder = folder
        self._wanted = {subject.id: subject for subject in wanted}
        self._done = done
        self._inbox: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()

    def trace(self, framework: str, config: RunConfig) -> None:
        """Have a worker trace every case that its framework takes part in."""
        mine = [s for s in self._wanted.values() if framework in s.frameworks]
        cases = {subject.id: to_plain(subject.case) for subject in mine}
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
        left = dict.fromkeys(cases)
        try:
            for event in worker.trace(command):
                left.pop(event["case"], None)
                self._inbox.put((framework, event))
        except WorkerDiedError as error:
            for identifier in left:
                self._inbox.put((framework, {"case": identifier, "error": error.exit.message}))
        finally:
            worker.close()
            self._inbox.put((framework, None))

    def collect(self, frameworks: int) -> None:
        """Take events until every framework has ended; make each certificate when its last trace is there."""
        events: dict[str, dict[str, dict[str, Any]]] = {identifier: {} for identifier in self._wanted}
        while frameworks:
            framework, event = self._inbox.get()
            if event is None:
                frameworks -= 1
                continue
            arrived, subject = events[event["case"]], self._wanted[event["case"]]
            arrived[framework] = event
            if len(arrived) == len(subject.frameworks):
                self._done(self._certificate(subject, arrived))

    def _certificate(self, subject: Subject, arrived: Mapping[str, Mapping[str, Any]]) -> Certificate:
        errors = {name: str(event["error"]) for name, event in arrived.items() if "error" in event}
        sound = [name for name in subject.frameworks if name not in errors]
        paths = {name: self._folder / name / f"{subject.id}.npz" for name in subject.frameworks}
        reference = npz.load(paths[sound[0]]) if sound else {}
        others = ((name, npz.load(paths[name])) for name in sound[1:])
        comparisons = tuple(gates.compare(sound[0], reference, name, trace) for name, trace in others)
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
            native={name: arrived[name]["native"] for name in sound},
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
    """The framework's own default execution: the certificate is about the network, not about a timing."""
    return config.framework.execution
