"""What holds for PyTorch beyond the contract: its native optimizers are the rules, to rounding, and recurrent
layers are its fused ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adapters import torch as torch_adapter
from harness import weights as canonical
from harness.adapter import AdapterOptions
from harness.parse import ConfigError
from tests import cases
from tests.lab import Lab, frameworks
from tests.tasks import BOUND, RULES, Run, Task, expected, make_run, make_task


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


CELLS = {"rnn": "rnn_tanh", "lstm": "lstm", "gru": "gru"}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_recurrent_layers_take_the_fused_kernels(
    kind: str, padded: bool, lab: Callable[[str, str], Lab]
) -> None:
    """Catches: a loop over steps in Python, or packed sequences, where torch has one call; and a second bias
    that is trained: it must stay zero, or the network has more freedom than the spec gives it."""
    layers = [{"kind": kind, "units": 3, "bidirectional": True, "returns": "last"}, {"kind": "output"}]
    task = make_task("eager", layers=layers, in_shape=[5, 4], padded=padded)
    rule = {"name": "adamw", "learning_rate": 0.02, "weight_decay": 0.1}
    run = make_run(task, 0.02)
    found = lab("torch", "float64").call("tests.test_torch:recurrent_kernels", task=task, rule=rule, run=run)
    assert found["settings"]["recurrent"] == "fused"
    assert found["kernels"].get(f"aten::{CELLS[kind]}") == (2 if padded else 1)
    assert found["second_biases"] == [kind == "gru"] * 2


def recurrent_kernels(adapter: Any, task: Task, rule: dict[str, Any], run: Run) -> dict[str, Any]:
    """The case: train, and profile one forward pass. `second_biases`: whether each is other than zero."""
    from torch.profiler import profile

    program = adapter.build(cases.plan(task, rule))
    trainer = program.trainer(cases.examples(task), cases.rule(rule), 0)
    trainer.load(run["weights"])
    trainer.train_epoch(run["orders"][0], run["rates"][0])
    with profile() as profiled:
        trainer.predict("test")
    seconds = [p for name, p in program.model.module.named_parameters() if "bias_hh" in name]
    return {
        "kernels": {event.key: event.count for event in profiled.key_averages()},
        "settings": program.settings(),
        "second_biases": [bool(p.detach().abs().max() > 0) for p in seconds],
    }


def test_lstm_in_float32_takes_the_kernel_of_onednn(lab: Callable[[str, str], Lab]) -> None:
    """Catches: a frozen bias, or a way to cut out batches, that makes torch fall back to its slower loop."""
    layers = [{"kind": "lstm", "units": 3, "returns": "last"}, {"kind": "output"}]
    task = make_task("eager", layers=layers, in_shape=[5, 4], precision="float32")
    rule = {"name": "sgd", "learning_rate": 0.1}
    run = make_run(task, 0.1)
    found = lab("torch", "float32").call("tests.test_torch:recurrent_kernels", task=task, rule=rule, run=run)
    assert "aten::mkldnn_rnn_layer" in found["kernels"]


def test_a_long_recurrence_is_refused_where_it_would_be_unrolled(lab: Callable[[str, str], Lab]) -> None:
    """Catches: a run that compiles for many minutes before anything is trained."""
    layers = [{"kind": "lstm", "units": 3, "bidirectional": True}, {"kind": "flatten"}, {"kind": "output"}]
    rule = {"name": "sgd", "learning_rate": 0.1}

    def refusal(execution: str, steps: int) -> str:
        task = make_task(execution, layers=layers, in_shape=[steps, 2])
        message: str = lab("torch", "float64").call("tests.cases:refusal", task=task, rule=rule)
        return message

    assert "66 steps" in refusal("compiled", 33) and "eager" in refusal("compiled", 33)
    assert not refusal("eager", 33)
    assert not refusal("compiled", 32)
