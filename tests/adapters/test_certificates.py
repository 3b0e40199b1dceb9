"""The certificate: frameworks that agree pass every gate, and each planted fault is caught by a gate.

NumPy (the framework of tests/support/faulty) and torch train the same cases; NumPy keeps no optimizer state
between epochs, so the rule is plain descent. Faults are planted in NumPy's side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.torch import adapter as torch_adapter
from harness.core.adapter import AdapterOptions
from harness.core.certificates import cases
from harness.core.certificates import gates as parity
from harness.core.certificates.cases import Case
from harness.core.certificates.gates import Comparison, Gate, NativeOptimizerCheck
from harness.core.network import Input
from harness.core.training.optimizers import SGD
from harness.core.validation import to_plain
from harness.shell.certificates.store import Certificate, CertificateStore, named_deviations
from harness.worker.program_cache import Programs
from harness.worker.trace import _Tracer
from tests.support.paths import FAULTY
from tests.support.workspace import Workspace, cleanup, end

sys.path.insert(0, str(FAULTY))
from faulty_adapter import adapter as numpy_adapter

OPTIONS = AdapterOptions(backend="", precision="float64", threads=1, device="cpu")
LAYERS: tuple[dict[str, Any], ...] = (
    {"kind": "dense", "units": 5},
    {"kind": "activation", "function": "tanh"},
    {"kind": "dropout", "rate": 0.3},
    {"kind": "output"},
)
CASE = Case("small", LAYERS, Input((4,)), 3, "cross_entropy", SGD(0.1, impl="shared"), (0.1,) * cases.STEPS)

# the gate that must be the first to notice
CAUGHT_BY = {
    "softmax": "logits",
    "relu": "logits",
    "rows": "gradients",
    "bias": "gradients",
    "rate": "gradients",
    "decay": "gradients",
    "float32": "gradients",
}


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says what NumPy suffers from."""
    path = tmp_path / "faults.json"
    path.write_text("{}")
    monkeypatch.setenv("FAULTS", str(path))
    return path


@pytest.fixture(scope="module")
def of_torch() -> dict[str, Any]:
    """Torch's trace of the case."""
    return _Tracer(CASE, Programs(torch_adapter(OPTIONS)), "eager", False, "float64").trace()


def of_numpy() -> dict[str, Any]:
    """NumPy's trace of the case, with the fault that is planted."""
    return _Tracer(CASE, Programs(numpy_adapter(OPTIONS)), "eager", False, "float64").trace()


def test_two_sound_frameworks_pass_every_gate(fault: Path, of_torch: dict[str, Any]) -> None:
    """Catches: a gate that fails equal traces."""
    comparison = parity.compare("torch", of_torch, "numpy", of_numpy())
    assert comparison.passed, comparison
    assert [gate.name for gate in comparison.gates] == list(parity.GATES)
    assert max(gate.deviation for gate in comparison.gates) < 1e-14


@pytest.mark.parametrize("planted", CAUGHT_BY)
def test_a_planted_fault_is_caught(planted: str, fault: Path, of_torch: dict[str, Any]) -> None:
    """Catches: a gate that cannot fail, or looks at one side only."""
    fault.write_text(json.dumps({"*": planted}))
    comparison = parity.compare("torch", of_torch, "numpy", of_numpy())
    assert _first_refusal(comparison) == CAUGHT_BY[planted], comparison


def test_a_trace_has_all_of_its_steps(fault: Path) -> None:
    """Catches: two traces of an adapter that stops early, which would agree on their few steps."""
    fault.write_text(json.dumps({"*": "stop"}))
    with pytest.raises(RuntimeError, match="stopped before it had trained all epochs"):
        of_numpy()


@pytest.mark.parametrize("name", ["losses", "weights/7/0.kernel", "evaluation"])
@pytest.mark.parametrize("wrong", [2e-10, np.nan])
def test_a_deviation_late_in_the_training_is_caught(
    name: str, wrong: float, of_torch: dict[str, Any]
) -> None:
    """Catches: a gate that checks only the first or last step, or that treats NaN as a small number."""
    other = {key: value.copy() for key, value in of_torch.items()}
    other[name].flat[-1] += wrong
    comparison = parity.compare("torch", of_torch, "other", other)
    assert _first_refusal(comparison) == name.partition("/")[0]
    assert not comparison.passed


def test_parameters_that_differ_are_caught(of_torch: dict[str, Any]) -> None:
    """Catches: a missing parameter, or one of another shape, that is silently skipped."""
    missing = {name: value for name, value in of_torch.items() if name != "initial/3.bias"}
    assert _first_refusal(parity.compare("torch", of_torch, "other", missing)) == "parameters"
    turned = of_torch | {"initial/0.kernel": of_torch["initial/0.kernel"].T}
    assert _first_refusal(parity.compare("other", turned, "torch", of_torch)) == "parameters"
    fewer = {name: value for name, value in of_torch.items() if name != "weights/3/0.bias"}
    assert _first_refusal(parity.compare("torch", of_torch, "other", fewer)) == "weights"


NAMES = ("epsilon_inside_root",)
SOUND = to_plain(NativeOptimizerCheck(0.0, 1e-10))
OWN: dict[str, tuple[NativeOptimizerCheck, str, str]] = {
    "sound": (NativeOptimizerCheck(1e-11, 1e-10), "exact", ""),
    "nameless": (NativeOptimizerCheck(2e-10, 1e-10), "fails", ""),
    "named": (NativeOptimizerCheck(0.1, 1e-10, NAMES, 1e-11), "deviates", "proven"),
    "two at once": (NativeOptimizerCheck(0.1, 1e-10, NAMES, 2e-10), "fails", "REFUTED"),
    "not finite": (NativeOptimizerCheck(np.inf, 1e-10, NAMES, np.inf), "fails", "REFUTED"),
    "without a rule": (
        NativeOptimizerCheck(0.1, 1e-10, (*NAMES, "another"), unproven=True),
        "deviates",
        "unproven",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_the_verdicts_on_a_native_optimizer(name: str, tmp_path: Path) -> None:
    """Catches: a second fault that hides behind the name of the first, an unnamed deviation that passes, one
    that is reported as proven and is not; a certificate that can't be read again because it contains
    infinity."""
    native, verdict, proof = OWN[name]
    gates = tuple(Gate(gate, np.inf if name == "not finite" else 0.0, 1e-10) for gate in parity.GATES)
    comparison = Comparison("a", "b", gates)
    certificate = Certificate(
        name, "m", "o", {}, 20, 0, {"a": {}, "b": {}}, (comparison,), {"b": to_plain(native), "a": SOUND}
    )
    shelf = CertificateStore(tmp_path)
    shelf.put(certificate)
    stored = shelf.get(name)
    assert stored is not None and to_plain(stored) == to_plain(certificate)
    assert stored.native_check("b") == native and native.verdict == verdict
    assert [named.proof for named in named_deviations([stored])] == ([proof] if proof else [])
    if name != "not finite":
        assert stored.verdict("b", "native") == verdict and stored.verdict("b", "shared") == "exact"


def test_large_networks_keep_fewer_steps() -> None:
    """Catches: a certificate of a large network that fills the disk, or drops its first or last step."""
    wide = Case("wide", ({"kind": "dense", "units": 2000}, *LAYERS), Input((2000,)), 3, *_rest())
    steps = cases.recorded_steps(wide.network())
    assert steps[0] == 1 and steps[-1] == cases.STEPS and len(steps) < cases.STEPS
    assert cases.recorded_steps(CASE.network()) == tuple(range(1, cases.STEPS + 1))


def _rest() -> tuple[Any, ...]:
    return CASE.loss, CASE.optimizer, CASE.rates


def _first_refusal(comparison: Comparison) -> str:
    return next(gate.name for gate in comparison.gates if not gate.passed)


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Iterator[Workspace]:
    with cleanup(Workspace(tmp_path, template)) as workspace:
        yield workspace


def test_the_command(workspace: Workspace) -> None:
    """Catches: a broken bound with exit status 0, a table without it, an equal pair that fails, a certificate
    that is made twice or not stored, runs without it."""
    request = ("framework=torch,faulty", "model=fnn", "optimizer=sgd", "data=iris")
    status, printed = end(workspace.start("certify", *request))
    assert status == 0 and "fnn sgd: agrees" in printed, printed
    (path,) = (workspace.results / "certificates").glob("*.json")
    stored = json.loads(path.read_text())
    assert stored["passed"] and stored["verdicts"]["faulty"] == {"shared": "exact", "native": "exact"}
    status, printed = end(workspace.start("-m", *request, "train.epochs=1"))
    assert status == 0 and "certifying" not in printed, printed
    assert [run.result["certificate"] for run in workspace.runs()] == [
        {"status": "exact", "id": path.stem}
    ] * 2
    assert all((run.folder.path / "certificate.json").exists() for run in workspace.runs())
    assert [tracked.tags["certificate"] for tracked in workspace.tracked()] == ["exact"] * 2
    workspace.plant({"*": "rate"})
    status, printed = end(workspace.start("certify", "--again", *request))
    assert status == 1 and "FAILS" in printed and "gradients" in printed, printed
    status, printed = end(workspace.start("certify", "framework=torch", *request[1:]))
    assert status == 2 and "nothing to agree with" in printed, printed
