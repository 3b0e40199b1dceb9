"""What holds for PyTorch beyond the contract: its native optimizers are the rules, to rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapters import torch as torch_adapter
from harness import weights as canonical
from harness.adapter import AdapterOptions
from harness.parse import ConfigError
from tests.lab import Lab, frameworks
from tests.tasks import BOUND, RULES, expected, make_run, make_task


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("execution", frameworks()["torch"].executions)
def test_native_optimizers_are_the_rules(name: str, execution: str, lab: Callable[[str, str], Lab]) -> None:
    """Catches: a number that is not passed on to torch.optim or under another name, a fused kernel that
    computes something else, an optimizer that keeps the first step's learning rate."""
    task, rule = make_task(execution), {"name": name} | RULES[name]
    run = make_run(task, rule["learning_rate"])
    (result,) = lab("torch", "float64").call("tests.cases:train", task=task, rule=rule, runs=[run])
    assert canonical.compare(result["weights"], expected(task, rule, run)[1]).largest <= BOUND


@pytest.mark.parametrize(
    ("name", "fused"), [("sgd", True), ("adam", True), ("adamw", True), ("rmsprop", False)]
)
def test_settings_say_what_runs(name: str, fused: bool, lab: Callable[[str, str], Lab]) -> None:
    """Catches: a result recorded under settings that were asked for rather than those that ran."""
    for execution in frameworks()["torch"].executions:
        arguments = {"task": make_task(execution), "rule": {"name": name} | RULES[name]}
        settings = lab("torch", "float64").call("tests.cases:description", **arguments)["settings"]
        assert settings["fused"] == (fused and execution != "idiomatic")
        assert bool(settings["compiled"]) == (execution == "compiled")


def test_xla_is_refused(lab: Callable[[str, str], Lab]) -> None:
    """Catches: a result recorded as compiled by XLA, which torch does not use."""
    arguments = {"task": make_task("eager", xla=True), "rule": {"name": "sgd"} | RULES["sgd"]}
    assert "framework.xla" in lab("torch", "float64").call("tests.cases:refusal", **arguments)


def test_a_device_that_is_not_there_is_refused(lab: Callable[[str, str], Lab]) -> None:
    """Catches: a run on a GPU that torch does not see, which ends in a traceback from within torch."""
    message = lab("torch", "float64").call("tests.test_torch:refused_device", device="cuda:7")
    assert "device: " in message and "'cuda:7'" in message and "allowed: cpu" in message


def refused_device(adapter: object, device: str) -> str:
    """The case: ask for another adapter in this process, with a device that the lab has not."""
    try:
        torch_adapter.adapter(AdapterOptions("torch", "float64", 1, device))
    except ConfigError as error:
        return str(error)
    return ""
