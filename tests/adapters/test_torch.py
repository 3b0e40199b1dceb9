"""Properties of PyTorch beyond the adapter contract.

Its native optimizers equal the rules to rounding, and recurrent layers use its fused kernels.
"""

from __future__ import annotations

from typing import Any

import pytest

from adapters import torch as torch_adapter
from harness.core.adapter import AdapterOptions, Epoch
from harness.core.training import weights as canonical
from harness.core.validation import ConfigError
from tests.support import adapter_cases
from tests.support.adapter_process import Adapters, frameworks
from tests.support.tasks import BOUND, RULES, Run, Task, expected, make_run, make_task

NON_BLOCKING: list[list[dict[str, Any]]] = [
    [{"kind": "flatten"}, {"kind": "dense", "units": 4}, {"kind": "dropout", "rate": 0.3}],
    [{"kind": "lstm", "units": 4, "returns": "sequence"}, {"kind": "attention", "heads": 2}],
    [{"kind": "conv1d", "filters": 2, "kernel_size": 3}, {"kind": "batch_norm"}],
]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("execution", frameworks()["torch"].executions)
def test_native_optimizers_are_the_rules(name: str, execution: str, adapters: Adapters) -> None:
    """Catches: a number that is not passed to torch.optim or under the wrong name, a fused kernel that
    computes something else, an optimizer that keeps the first step's learning rate."""
    task, rule = make_task(execution), {"name": name} | RULES[name]
    run = make_run(task, rule["learning_rate"])
    (result,) = adapters("torch", "float64").call(
        "tests.support.adapter_cases:train", task=task, rule=rule, runs=[run]
    )
    assert canonical.compare(result["weights"], expected(task, rule, run)[1]).largest <= BOUND


@pytest.mark.parametrize(
    ("name", "fused"), [("sgd", True), ("adam", True), ("adamw", True), ("rmsprop", False)]
)
def test_settings_describe_what_runs(name: str, fused: bool, adapters: Adapters) -> None:
    """Catches: a result recorded under the requested settings rather than those that ran."""
    for execution in frameworks()["torch"].executions:
        arguments = {"task": make_task(execution), "rule": {"name": name} | RULES[name]}
        description = adapters("torch", "float64").call(
            "tests.support.adapter_cases:description", **arguments
        )
        settings = description["settings"]
        assert settings["fused"] == (fused and execution != "idiomatic")
        assert bool(settings["compiled"]) == (execution == "compiled")


def test_xla_is_refused(adapters: Adapters) -> None:
    """Catches: a result recorded as compiled by XLA, which torch does not use."""
    arguments = {"task": make_task("eager", xla=True), "rule": {"name": "sgd"} | RULES["sgd"]}
    assert "framework.xla" in adapters("torch", "float64").call(
        "tests.support.adapter_cases:refusal", **arguments
    )


def test_a_missing_device_is_refused(adapters: Adapters) -> None:
    """Catches: a run on a GPU that torch does not see, which ends in a traceback from inside torch."""
    message = adapters("torch", "float64").call("tests.adapters.test_torch:refused_device", device="cuda:7")
    assert "device: " in message and "'cuda:7'" in message and "allowed: cpu" in message


def refused_device(adapter: object, device: str) -> str:
    """The case: request another adapter in this process, with a device that does not exist."""
    try:
        torch_adapter.adapter(AdapterOptions("torch", "float64", 1, device))
    except ConfigError as error:
        return str(error)
    return ""


CELLS = {"rnn": "rnn_tanh", "lstm": "lstm", "gru": "gru"}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_recurrent_layers_use_the_fused_kernels(kind: str, padded: bool, adapters: Adapters) -> None:
    """Catches: a loop over steps in Python, or packed sequences, where torch has one call; and a second bias
    that is trained: it must stay zero, or the network has more parameters than the spec."""
    layers = [{"kind": kind, "units": 3, "bidirectional": True, "returns": "last"}, {"kind": "output"}]
    task = make_task("eager", layers=layers, in_shape=[5, 4], padded=padded)
    rule = {"name": "adamw", "learning_rate": 0.02, "weight_decay": 0.1}
    run = make_run(task, 0.02)
    profile = adapters("torch", "float64").call(
        "tests.adapters.test_torch:recurrent_kernels", task=task, rule=rule, run=run
    )
    assert profile["settings"]["recurrent"] == "fused"
    assert profile["kernels"].get(f"aten::{CELLS[kind]}") == (2 if padded else 1)
    assert profile["second_biases"] == [kind == "gru"] * 2


def recurrent_kernels(adapter: Any, task: Task, rule: dict[str, Any], run: Run) -> dict[str, Any]:
    """The case: train, and profile one forward pass. `second_biases`: whether each is nonzero."""
    from torch.profiler import profile

    program = adapter.build(adapter_cases.plan(task, rule))
    trainer = program.trainer(adapter_cases.examples(task), adapter_cases.rule(rule), 0)
    trainer.load(run["weights"])
    trainer.train([Epoch(run["orders"][0], run["rates"][0])])
    with profile() as profiled:
        trainer.predict("test")
    second_biases = [p for name, p in program.model.module.named_parameters() if "bias_hh" in name]
    return {
        "kernels": {event.key: event.count for event in profiled.key_averages()},
        "settings": program.settings(),
        "second_biases": [bool(p.detach().abs().max() > 0) for p in second_biases],
    }


def test_lstm_in_float32_uses_the_kernel_of_onednn(adapters: Adapters) -> None:
    """Catches: a frozen bias, or a way of slicing batches, that makes torch fall back to its slower loop."""
    layers = [{"kind": "lstm", "units": 3, "returns": "last"}, {"kind": "output"}]
    task = make_task("eager", layers=layers, in_shape=[5, 4], precision="float32")
    rule = {"name": "sgd", "learning_rate": 0.1}
    run = make_run(task, 0.1)
    profile = adapters("torch", "float32").call(
        "tests.adapters.test_torch:recurrent_kernels", task=task, rule=rule, run=run
    )
    assert "aten::mkldnn_rnn_layer" in profile["kernels"]


def test_a_long_recurrence_is_refused_where_it_would_be_unrolled(adapters: Adapters) -> None:
    """Catches: a run that compiles for many minutes before training starts."""
    layers = [{"kind": "lstm", "units": 3, "bidirectional": True}, {"kind": "flatten"}, {"kind": "output"}]
    rule = {"name": "sgd", "learning_rate": 0.1}

    def refusal(execution: str, steps: int) -> str:
        task = make_task(execution, layers=layers, in_shape=[steps, 2])
        message: str = adapters("torch", "float64").call(
            "tests.support.adapter_cases:refusal", task=task, rule=rule
        )
        return message

    assert "66 steps" in refusal("compiled", 33) and "eager" in refusal("compiled", 33)
    assert not refusal("eager", 33)
    assert not refusal("compiled", 32)


@pytest.mark.parametrize("channels", [1, 2])
def test_kernels_of_images_are_channels_last(channels: int, adapters: Adapters) -> None:
    """Catches: strides of the other order, which values do not reveal: for a single channel both orders have
    the same memory layout, but torch.compile depends on the strides, and is twice as fast with these."""
    layers = [{"kind": "conv2d", "filters": 3}, {"kind": "flatten"}, {"kind": "output"}]
    task = make_task("eager", layers=layers, in_shape=[4, 4, channels])
    kernel_strides = adapters("torch", "float64").call(
        "tests.adapters.test_torch:strides", task=task, run=make_run(task, 0.1)
    )
    assert kernel_strides == [[9 * channels, 1, 3 * channels, channels]]


def strides(adapter: Any, task: Task, run: Run) -> list[list[int]]:
    """The case: the strides of each kernel after weights are loaded."""
    rule = {"name": "sgd", "learning_rate": 0.1}
    program = adapter.build(adapter_cases.plan(task, rule))
    program.trainer(adapter_cases.examples(task), adapter_cases.rule(rule), 0).load(run["weights"])
    return [list(kernel.stride()) for kernel in program.model.parameters.values() if kernel.dim() == 4]


def blocking_read(adapter: object, task: Task, rule: dict[str, Any], mixed: bool) -> str:
    """The case: an epoch on tensors without values. Returns the error of the first read of a value, or ""."""
    import torch
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    from adapters.torch import loops, model, optimizers
    from adapters.torch.layers import BuildOptions

    network, real, cpu = adapter_cases.network(task), adapter_cases.rule(rule), torch.device("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = model.build(network, BuildOptions(torch.float32, cpu, unrolled=False))
        built.module.mixed = mixed
        optimizer = optimizers.make(real, list(built.parameters.values()), fused=True)
        inputs = [torch.zeros(26, *network.input.shape)]
        if network.input.lengths:
            inputs.append(torch.ones(26, dtype=torch.int64))
        y = torch.zeros(26, dtype=torch.int64)
        run = loops.Run(built, model.criterion("cross_entropy"), optimizer, tuple(inputs), y, 4, cpu)
        try:
            losses = loops.eager(run)(torch.zeros(3, 4, dtype=torch.int64), [0.1, 0.2, 0.3])
        except DataDependentOutputException as error:
            return str(error)
        return "" if len(losses) == 3 else "steps are missing"


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("layers", NON_BLOCKING, ids=lambda layers: layers[0]["kind"])
def test_no_step_waits_for_a_value(layers: Any, mixed: bool, adapters: Adapters) -> None:
    """Catches: a value that the host reads in the middle of an epoch (a loss, a length, a step count), which
    makes it wait for a GPU at every step. Tensors without values show this without a GPU."""
    for name in ("adam", "rmsprop", "nesterov"):
        for impl in ("native", "shared"):
            network = [*layers, {"kind": "flatten"}, {"kind": "output"}]
            task = make_task("eager", layers=network, in_shape=[6, 3], padded=layers[0]["kind"] == "lstm")
            arguments = {"task": task, "rule": {"name": name, "impl": impl} | RULES[name], "mixed": mixed}
            assert not adapters("torch", "float64").call(
                "tests.adapters.test_torch:blocking_read", **arguments
            )
