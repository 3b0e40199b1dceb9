"""The certificate: what was compared, how much the frameworks deviated, and what that proves of a run.

The shared rule proves the network: all frameworks, every gate, one bound. Each native optimizer is then
checked against the shared rule inside its own framework, so that a deviation can only be the optimizer's. A
deviation that the adapter names (`epsilon_inside_bias_correction`) is measured and reported, and the
optimizer is checked against a rule with exactly that deviation, to the same bound, so that no second one
hides behind the name. A deviation without a name, or one that the name does not explain, fails the
certificate.
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
"""Version of what a certificate proves; increasing it invalidates stored certificates."""


@dataclass(frozen=True)
class CertifiedFramework:
    """A framework as certified: its execution and versions."""

    execution: Execution
    versions: dict[str, str]


@dataclass(frozen=True)
class Certificate:
    """The proof for one network with one optimizer over several frameworks; `id` is from `certificate_id`.

    The field names are keys of certificate files: `parties` maps frameworks to `CertifiedFramework`s, `made`
    is the date.
    """

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
        """Return what it proves of a run in `framework` with `optimizer.impl`."""
        if framework not in self.parties:
            return "none"
        comparisons = [c for c in self.comparisons if framework in (c.reference, c.framework)]
        if framework in self.errors or not all(c.passed for c in comparisons):
            return "fails"
        if not comparisons:  # no other framework could be compared
            return "none"
        if impl == "shared":
            return "exact"
        return self.native_check(framework).verdict

    def native_check(self, framework: str) -> NativeOptimizerCheck:
        """Return the check of a framework's native optimizer; `framework` is one of `native`."""
        return parse(NativeOptimizerCheck, self.native[framework])

    @property
    def passed(self) -> bool:
        """Whether all frameworks stayed within the bound."""
        kinds = ("shared", "native")
        return all(self.verdict(name, impl) != "fails" for name in self.parties for impl in kinds)


@dataclass(frozen=True)
class NamedDeviation:
    """A named deviation of native optimizers, over all certificates that have it: the largest deviation from
    the shared rule and its location, and the largest one from the rule with the named deviation (None: no
    such rule exists)."""

    names: tuple[str, ...]
    frameworks: tuple[str, ...]
    deviation: float
    where: str
    remainder: float | None

    @property
    def proof(self) -> str:
        """Whether the names explain the whole deviation."""
        if self.remainder is None:
            return "unproven"
        return "proven" if self.remainder <= BOUND else "REFUTED"


def named_deviations(certificates: Sequence[Certificate]) -> list[NamedDeviation]:
    """List the named deviations that were observed, with the worst case of each."""
    groups: dict[tuple[tuple[str, ...], bool], list[tuple[NativeOptimizerCheck, Certificate, str]]] = {}
    for certificate in certificates:
        for framework in certificate.native:
            check = certificate.native_check(framework)
            if check.known:
                key = (check.known, check.unproven)
                groups.setdefault(key, []).append((check, certificate, framework))
    rows = []
    for (names, unproven), cases in sorted(groups.items(), key=lambda item: item[0]):
        worst, certificate, _ = max(cases, key=lambda case: case[0].deviation)
        rows.append(
            NamedDeviation(
                names,
                tuple(sorted({framework for _, _, framework in cases})),
                worst.deviation,
                f"{certificate.model}, {certificate.optimizer}",
                None if unproven else max(c.remainder for c, _, _ in cases if c.remainder is not None),
            )
        )
    return rows


def certificate_id(network: Mapping[str, Any], optimizer: Mapping[str, Any], rates: Sequence[float]) -> str:
    """Identify what is certified: the network with its input, the optimizer with its numbers, the rates."""
    rule = {key: value for key, value in optimizer.items() if key != "impl"}
    parts = {"network": network, "optimizer": rule, "rates": list(rates), "proof": PROOF}
    return digest(parts)


class CertificateStore:
    """The certificates of a results folder, `<results_dir>/certificates/<id>.json`."""

    def __init__(self, results_dir: Path) -> None:
        self._folder = results_dir / "certificates"

    def path(self, identifier: str) -> Path:
        """Return the path of a certificate."""
        return self._folder / f"{identifier}.json"

    def get(self, identifier: str) -> Certificate | None:
        """Read a stored certificate, or None."""
        plain = read_json(self.path(identifier))
        return None if plain is None else parse(Certificate, plain["certificate"])

    def covers(self, identifier: str, parties: Mapping[str, CertifiedFramework]) -> bool:
        """Whether a stored certificate includes these frameworks in these versions."""
        stored = self.get(identifier)
        return stored is not None and all(stored.parties.get(n) == to_plain(p) for n, p in parties.items())

    def put(self, certificate: Certificate) -> None:
        """Store a certificate. The file also has its verdicts, for other readers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        verdicts = {
            name: {impl: certificate.verdict(name, impl) for impl in ("shared", "native")}
            for name in certificate.parties
        }
        plain = {"certificate": to_plain(certificate), "passed": certificate.passed, "verdicts": verdicts}
        write_json(self.path(certificate.id), plain)

    def copy_to(self, folder: Path, identifier: str | None) -> None:
        """Copy a certificate to a run's folder, as `certificate.json`; without one, remove an old copy."""
        target = folder / "certificate.json"
        plain = read_json(self.path(identifier)) if identifier else None
        if plain is None:
            target.unlink(missing_ok=True)
        else:
            write_json(target, plain)
