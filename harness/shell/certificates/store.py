"""The certificate: what was compared, how far the frameworks were apart, and what that proves of a run.

The shared rule proves the network: all frameworks, every gate, one bound. The native optimizers are then held
against the shared rule inside their own framework, so that a deviation is the optimizer's and nothing else's.
One that its adapter names (`epsilon_inside_bias_correction`) is measured and told, and the optimizer is held
against a rule that deviates in just that, to the same bound, so that no second one hides behind the name. One
that nobody named, or that the name does not account for, breaks the certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.core.adapter import Execution
from harness.core.certificates.gates import BOUND, Comparison, NativeOptimizerCheck
from harness.core.storage.digest import digest
from harness.core.storage.json_files import read_json, write_json
from harness.core.validation import parse, to_plain

Verdict = Literal["exact", "deviates", "fails", "none"]

PROOF = 2
"""What a certificate proves, counted up when that becomes more: those of before are made again."""


@dataclass(frozen=True)
class CertifiedFramework:
    """A framework as it was when it was certified."""

    execution: Execution
    versions: dict[str, str]


@dataclass(frozen=True)
class Certificate:
    """The proof for one network with one optimizer over several frameworks; `id` is by `certificate_id`."""

    id: str
    model: str
    optimizer: str
    network: dict[str, Any]
    steps: int
    seed: int
    parties: dict[str, Any]
    comparisons: tuple[Comparison, ...] = ()
    native: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    made: str = ""

    def verdict(self, framework: str, impl: str) -> Verdict:
        """What it proves of a run in `framework` with `optimizer.impl`."""
        if framework not in self.parties:
            return "none"
        concerned = [c for c in self.comparisons if framework in (c.reference, c.framework)]
        if framework in self.errors or not all(c.passed for c in concerned):
            return "fails"
        if not concerned:  # no other framework got as far as to be compared
            return "none"
        if impl == "shared":
            return "exact"
        return self.own(framework).verdict

    def own(self, framework: str) -> NativeOptimizerCheck:
        """What was found out about a framework's own optimizer; `framework` is one of `native`."""
        return parse(NativeOptimizerCheck, self.native[framework])

    @property
    def passed(self) -> bool:
        """Whether no bound was broken, in any framework."""
        kinds = ("shared", "native")
        return all(self.verdict(name, impl) != "fails" for name in self.parties for impl in kinds)


@dataclass(frozen=True)
class NamedDeviation:
    """What frameworks name as the deviations of their own optimizer, over all certificates that have it:
    the largest deviation from the shared rule and where it was, and the largest one from the rule that has
    what is named (None: such a rule is not written)."""

    names: tuple[str, ...]
    frameworks: tuple[str, ...]
    deviation: float
    where: str
    remainder: float | None

    @property
    def proof(self) -> str:
        """Whether the names account for all of the deviation."""
        if self.remainder is None:
            return "unproven"
        return "proven" if self.remainder <= BOUND else "REFUTED"


def named_deviations(certificates: Sequence[Certificate]) -> list[NamedDeviation]:
    """Every deviation that has a name and shows, with how its proof went in the worst case."""
    found: dict[tuple[tuple[str, ...], bool], list[tuple[NativeOptimizerCheck, Certificate, str]]] = {}
    for certificate in certificates:
        for framework in certificate.native:
            native = certificate.own(framework)
            if native.known:
                key = (native.known, native.unproven)
                found.setdefault(key, []).append((native, certificate, framework))
    rows = []
    for (names, unproven), cases in sorted(found.items(), key=lambda item: item[0]):
        native, certificate, _ = max(cases, key=lambda case: case[0].deviation)
        rows.append(
            NamedDeviation(
                names,
                tuple(sorted({framework for _, _, framework in cases})),
                native.deviation,
                f"{certificate.model}, {certificate.optimizer}",
                None if unproven else max(own.remainder for own, _, _ in cases if own.remainder is not None),
            )
        )
    return rows


def certificate_id(network: Mapping[str, Any], optimizer: Mapping[str, Any], rates: Sequence[float]) -> str:
    """The identity of what is certified: network with its input, optimizer with its numbers, rates."""
    rule = {key: value for key, value in optimizer.items() if key != "impl"}
    parts = {"network": network, "optimizer": rule, "rates": list(rates), "proof": PROOF}
    return digest(parts)


class CertificateStore:
    """The certificates of a results folder, `<results_dir>/certificates/<id>.json`."""

    def __init__(self, results_dir: Path) -> None:
        self._folder = results_dir / "certificates"

    def path(self, identifier: str) -> Path:
        """Where a certificate lies."""
        return self._folder / f"{identifier}.json"

    def get(self, identifier: str) -> Certificate | None:
        """A stored certificate."""
        plain = read_json(self.path(identifier))
        return None if plain is None else parse(Certificate, plain["certificate"])

    def covers(self, identifier: str, parties: Mapping[str, CertifiedFramework]) -> bool:
        """Whether a stored certificate is of these frameworks in these versions (and perhaps more)."""
        known = self.get(identifier)
        return known is not None and all(known.parties.get(n) == to_plain(p) for n, p in parties.items())

    def put(self, certificate: Certificate) -> None:
        """Store a certificate; its verdicts are written beside it for whoever reads the file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        verdicts = {
            name: {impl: certificate.verdict(name, impl) for impl in ("shared", "native")}
            for name in certificate.parties
        }
        plain = {"certificate": to_plain(certificate), "passed": certificate.passed, "verdicts": verdicts}
        write_json(self.path(certificate.id), plain)

    def copy_to(self, folder: Path, identifier: str | None) -> None:
        """Put a certificate into a run's folder, as `certificate.json`; without one, remove an old copy."""
        target = folder / "certificate.json"
        plain = read_json(self.path(identifier)) if identifier else None
        if plain is None:
            target.unlink(missing_ok=True)
        else:
            write_json(target, plain)
