"""Faults to plant into real adapters, one at a time, and the gate that must be the first to catch each.

A fault is a function in `tests/support/planted/torch_faults.py`, `tests/support/planted/training_faults.py`
(torch too) or `tests/support/planted/keras_faults.py` that changes the adapter as a mistake in it would. The
networks are small and contain the layer in question; the correct side is always torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest

from harness.core.adapter import Adapter, Execution
from harness.core.certificates import gates as parity
from harness.core.certificates.cases import STEPS, Case
from harness.core.certificates.gates import NativeOptimizerCheck, Trace
from harness.core.network import Input
from harness.core.training import schedules
from harness.core.training.optimizers import SGD, Adam, AdamW, Momentum, Nesterov, RMSprop, Rule
from harness.core.training.schedules import Cosine
from harness.core.validation import parse, to_plain
from harness.shell.certificates.certify import STEPS_PER_EPOCH
from harness.worker.program_cache import Programs
from harness.worker.trace import _Tracer
from tests.support.adapter_process import AdapterProcess, Adapters

Gate = Literal["parameters", "logits", "gradients", "losses", "weights", "evaluation", "own optimizer"]
OWN: Gate = "own optimizer"
"""The comparison, within one framework, of its own optimizer with the shared rule, and with the rule that has
the deviations that its adapter names."""

TANH = {"kind": "activation", "function": "tanh"}
OUTPUT = {"kind": "output"}
FLAT = {"kind": "flatten"}
SEQUENCE, PADDED, IMAGE = Input((7, 4)), Input((7, 4), lengths=True), Input((6, 5, 2))
TOKENS = Input((7,), vocabulary=6, lengths=True)


def _block(function: str, **more: float) -> list[dict[str, Any]]:
    return [{"kind": "dense", "units": 5}, {"kind": "activation", "function": function, **more}, OUTPUT]


NETWORKS: dict[str, tuple[list[dict[str, Any]], Input]] = {
    "dense": (_block("tanh"), Input((4,))),
    "leaky ReLU": (_block("leaky_relu"), Input((4,))),
    "GELU": (_block("gelu"), Input((4,))),
    "dropout": ([*_block("tanh")[:2], {"kind": "dropout", "rate": 0.3}, OUTPUT], Input((4,))),
    "residual": ([{"kind": "residual", "body": [{"kind": "dense", "units": 4}, TANH]}, OUTPUT], Input((4,))),
    "convolution": ([{"kind": "conv2d", "filters": 3}, TANH, {"kind": "pool"}, FLAT, OUTPUT], IMAGE),
    "convolution in time": (
        [{"kind": "conv1d", "filters": 3, "kernel_size": 2, "padding": "causal"}, TANH, FLAT, OUTPUT],
        SEQUENCE,
    ),
    "batch norm": (
        [{"kind": "conv2d", "filters": 3, "use_bias": False}, {"kind": "batch_norm"}, TANH, FLAT, OUTPUT],
        IMAGE,
    ),
    "layer norm": ([{"kind": "dense", "units": 5}, TANH, {"kind": "layer_norm"}, OUTPUT], Input((4,))),
    "upsampling": ([{"kind": "conv2d", "filters": 3}, TANH, {"kind": "upsample"}, FLAT, OUTPUT], IMAGE),
    "RNN": ([{"kind": "rnn", "units": 3, "returns": "last"}, OUTPUT], SEQUENCE),
    "LSTM": ([{"kind": "lstm", "units": 3, "returns": "last"}, OUTPUT], SEQUENCE),
    "LSTM, padded": ([{"kind": "lstm", "units": 3, "returns": "last"}, OUTPUT], PADDED),
    "LSTM, both ways, padded": (
        [{"kind": "lstm", "units": 3, "returns": "last", "bidirectional": True}, OUTPUT],
        PADDED,
    ),
    "GRU": ([{"kind": "gru", "units": 3, "returns": "last"}, OUTPUT], SEQUENCE),
    "attention, padded": (
        [{"kind": "positions"}, {"kind": "attention", "heads": 2}, {"kind": "global_pool"}, OUTPUT],
        PADDED,
    ),
    "causal attention": (
        [
            {"kind": "positions", "encoding": "sinusoidal"},
            {"kind": "attention", "heads": 2, "causal": True},
            FLAT,
            OUTPUT,
        ],
        SEQUENCE,
    ),
    "tokens": ([{"kind": "embedding", "units": 4}, {"kind": "global_pool"}, OUTPUT], TOKENS),
    "regression": (_block("tanh"), Input((4,))),
}
RULES: dict[str, Rule] = {
    "sgd": SGD(0.1, weight_decay=0.02),
    "momentum": Momentum(0.05),
    "nesterov": Nesterov(0.05),
    "adam": Adam(0.01),
    "adamw": AdamW(0.01, weight_decay=0.1),
    "rmsprop": RMSprop(0.01),
}


@dataclass(frozen=True)
class Fault:
    """A fault: the function that plants it, its description, the network and the rule to train, the gate that
    must be the first to catch it, and the framework to plant it into."""

    plant: str
    what: str
    network: str
    gate: Gate
    rule: str = "sgd"
    framework: str = "torch"


def _keras(framework: str, plant: str, what: str, network: str, gate: Gate, rule: str = "sgd") -> Fault:
    return Fault(plant, what, network, gate, rule, framework)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "reports_second_bias",
        "LSTM: reports torch's second bias as a weight of its own",
        "LSTM",
        "parameters",
    ),
    Fault("swaps_lstm_gates", "LSTM: input and forget gates exchanged", "LSTM", "logits"),
    Fault("lstm_forgets_less", "LSTM: one more added to the forget bias", "LSTM", "logits"),
    Fault("lstm_bias_dropped", "LSTM: the bias is never trained", "LSTM", "gradients"),
    Fault("second_bias_trained", "LSTM: torch's second bias left trainable", "LSTM", "losses", "adam"),
    Fault("swaps_gru_gates", "GRU: reset and update gates exchanged", "GRU", "logits"),
    Fault("gru_one_bias", "GRU: the recurrent bias is never trained", "GRU", "gradients"),
    Fault("rnn_relu", "RNN: ReLU in place of tanh", "RNN", "logits"),
    Fault("last_step", "LSTM: state at the last step, not at the last valid one", "LSTM, padded", "logits"),
    Fault(
        "reverses_padding", "LSTM: padding reversed with the sequence", "LSTM, both ways, padded", "logits"
    ),
    Fault("dense_bias_dropped", "Dense: the bias is left out", "dense", "gradients"),
    Fault("frozen_kernel", "Dense: a kernel is frozen", "dense", "gradients"),
    Fault("extra_relu", "Dense: one more ReLU behind it", "dense", "logits"),
    Fault("float32_layer", "Dense: computed in float32", "dense", "logits"),
    Fault("leaky_slope", "Leaky ReLU: the slope of Keras' default, 0.3", "leaky ReLU", "logits"),
    Fault("gelu_tanh", "GELU: the approximation by tanh", "GELU", "logits"),
    Fault("dropout_in_evaluation", "Dropout: left on in evaluation", "dropout", "evaluation"),
    Fault("dropout_scales_late", "Dropout: scales in evaluation, not in training", "dropout", "evaluation"),
    Fault("no_shortcut", "Residual: the shortcut is left out", "residual", "logits"),
    Fault("edges_repeated", "Convolution: padded with its edge in place of zeros", "convolution", "logits"),
    Fault("kernel_turned", "Convolution: height and width of the kernel exchanged", "convolution", "logits"),
    Fault("chw_flatten", "Flatten: channels first", "convolution", "logits"),
    Fault("pools_by_mean", "Pooling: the mean in place of the maximum", "convolution", "logits"),
    Fault(
        "pads_behind",
        "Convolution in time: padded behind, so that it sees a later step",
        "convolution in time",
        "logits",
    ),
    Fault("upsamples_smoothly", "Upsampling: bilinear in place of nearest", "upsampling", "logits"),
    Fault("bn_momentum", "BatchNorm: momentum the other way round", "batch norm", "gradients"),
    Fault("bn_unbiased", "BatchNorm: unbiased running variance", "batch norm", "gradients"),
    Fault("bn_epsilon", "BatchNorm: torch's epsilon, 1e-5", "batch norm", "logits"),
    Fault("bn_of_batch", "BatchNorm: evaluated with the batch's statistics", "batch norm", "logits"),
    Fault("bn_running", "BatchNorm: trained with the running statistics", "batch norm", "gradients"),
    Fault("stays_in_training", "BatchNorm: never switched to evaluation", "batch norm", "logits"),
    Fault("ln_epsilon", "LayerNorm: Keras' epsilon, 1e-3", "layer norm", "logits"),
    Fault(
        "attention_unscaled",
        "Attention: scores not divided by the root of the width",
        "attention, padded",
        "logits",
    ),
    Fault("attention_unmasked", "Attention: padding not masked", "attention, padded", "logits"),
    Fault("not_causal", "Attention: causal mask missing", "causal attention", "logits"),
    Fault("positions_shifted", "Positions: one step late", "causal attention", "logits"),
    Fault("mean_over_padding", "Pooling: mean over the padding too", "attention, padded", "logits"),
    Fault("tokens_count_once", "Embedding: gradient of a repeated token counted once", "tokens", "gradients"),
    Fault(
        "tokens_squared",
        "Embedding: each occurrence of a token squared by itself",
        "tokens",
        "losses",
        "adam",
    ),
    Fault("double_softmax", "Loss: softmax twice", "dense", "gradients"),
    Fault("sum_of_losses", "Loss: the sum over the batch in place of the mean", "dense", "gradients"),
    Fault("sum_of_squares", "Loss: squares summed over the targets", "regression", "gradients"),
    Fault("loss_after_update", "Loss: of the step after, not before the update", "dense", "losses"),
    Fault("batch_out_of_order", "Loop: one batch trained twice, the next one left out", "dense", "losses"),
    Fault("rate_one_late", "Loop: the learning rate of the step before", "dense", "losses"),
    Fault("gradients_add_up", "Loop: gradients not set to zero", "dense", "losses"),
    Fault("gradients_clipped", "Loop: gradients clipped at 0.1", "dense", "gradients"),
    Fault("rate_in_float32", "Loop: learning rate rounded to float32", "dense", "losses"),
    Fault("late_decay", "Loop: the rate halved after step 15", "dense", "losses"),
    Fault("weights_are_views", "Weights: handed out as views that later steps change", "dense", "weights"),
    Fault("decay_forgotten", "SGD: no weight decay", "dense", "losses"),
    Fault(
        "velocity_carries_rate",
        "Momentum: the velocity carries the learning rate",
        "dense",
        "losses",
        "momentum",
    ),
    Fault(
        "velocity_dampened", "Momentum: the gradient dampened by 1 - momentum", "dense", "losses", "momentum"
    ),
    Fault("nesterov_is_momentum", "Nesterov: plain momentum", "dense", "losses", "nesterov"),
    Fault("adam_epsilon_hat", "Adam: epsilon before the bias correction", "dense", "losses", "adam"),
    Fault("adam_epsilon_default", "Adam: Keras' epsilon, 1e-7", "dense", "losses", "adam"),
    Fault("adam_uncorrected", "Adam: no bias correction", "dense", "losses", "adam"),
    Fault("adam_counts_from_two", "Adam: steps counted from 2", "dense", "losses", "adam"),
    Fault("decay_coupled", "AdamW: coupled weight decay", "dense", "losses", "adamw"),
    Fault("rmsprop_epsilon_inside", "RMSprop: epsilon inside the root", "dense", "losses", "rmsprop"),
    Fault("own_adam_default_epsilon", "torch.optim.Adam given another epsilon", "dense", OWN, "adam"),
    Fault("own_nesterov_forgotten", "torch.optim.SGD without nesterov=True", "dense", OWN, "nesterov"),
    Fault("own_adamw_coupled", "torch.optim.Adam, coupled, in place of AdamW", "dense", OWN, "adamw"),
    _keras("keras", "own_adam_beta", "keras.optimizers.Adam given another beta_2", "dense", OWN, "adam"),
    _keras(
        "keras",
        "own_numbers_in_float32",
        "keras.optimizers.RMSprop: its numbers rounded to float32",
        "dense",
        OWN,
        "rmsprop",
    ),
    _keras(
        "keras_jax",
        "own_adamw_decays_late",
        "keras.optimizers.AdamW: its weight decay after the update",
        "dense",
        OWN,
        "adamw",
    ),
    _keras(
        "keras_torch",
        "own_nesterov_forgotten",
        "keras.optimizers.SGD without nesterov=True",
        "dense",
        OWN,
        "nesterov",
    ),
    _keras("keras", "hard_sigmoid", "LSTM: hard sigmoid as its gates' function", "LSTM", "logits"),
    _keras(
        "keras",
        "last_step",
        "LSTM: state at the last step, not at the last valid one",
        "LSTM, padded",
        "logits",
    ),
    _keras("keras", "bn_momentum", "BatchNorm: Keras' default momentum, 0.99", "batch norm", "gradients"),
    _keras("keras", "double_softmax", "Loss: softmax twice", "dense", "gradients"),
    _keras(
        "keras",
        "gelu_of_keras",
        "GELU: TensorFlow's own, which rounds a constant to float32",
        "GELU",
        "logits",
    ),
    _keras(
        "keras",
        "attention_in_float32",
        "Attention: its scale rounded to float32",
        "attention, padded",
        "logits",
    ),
    _keras("keras", "counts_from_zero", "Adam: steps counted from 0", "dense", "losses", "adam"),
    _keras("keras", "rate_in_float32", "Loop: learning rate rounded to float32", "dense", "losses"),
    _keras(
        "keras_jax",
        "float64_demoted",
        "Keras: float64 demoted to float32, as it is by default",
        "dense",
        "logits",
    ),
    _keras(
        "keras_jax",
        "attention_in_float32",
        "Attention: JAX's own, its softmax in float32",
        "attention, padded",
        "logits",
    ),
    _keras(
        "keras_torch",
        "float64_demoted",
        "Keras: float64 demoted to float32, as it is by default",
        "LSTM",
        "logits",
    ),
    _keras("keras_torch", "dropout_in_evaluation", "Dropout: left on in evaluation", "dropout", "evaluation"),
    _keras("keras_torch", "ln_epsilon", "LayerNorm: Keras' epsilon, 1e-3", "layer norm", "logits"),
    _keras(
        "keras_torch", "attention_unmasked", "Attention: padding not masked", "attention, padded", "logits"
    ),
)

EXECUTIONS: dict[str, Execution] = {
    "torch": "eager",
    "keras": "compiled",
    "keras_jax": "epoch",
    "keras_torch": "eager",
}


@dataclass(frozen=True)
class Caught:
    """The first gate that caught a fault, "" if none did, and the deviation there."""

    gate: str
    deviation: float


@cache
def case(network: str, rule: str) -> Case:
    """The training to compare."""
    layers, shape = NETWORKS[network]
    optimizer = replace(RULES[rule], impl="shared")
    rates = schedules.learning_rates(
        Cosine(), optimizer.learning_rate, STEPS // STEPS_PER_EPOCH, STEPS_PER_EPOCH
    )
    loss: Any = "mse" if network == "regression" else "cross_entropy"
    return Case(network, tuple(layers), shape, 3, loss, optimizer, tuple(map(float, rates.ravel())))


def trace(process: AdapterProcess, traced: Case, plant: str = "") -> Trace:
    """A framework's trace of a case, with a fault in its adapter."""
    traces: Trace = process.call(
        "tests.support.planted.faults:trace_in_process", **_arguments(process, traced, plant)
    )
    return traces


def own(
    process: AdapterProcess, traced: Case, plant: str = "", execution: Execution | None = None
) -> NativeOptimizerCheck:
    """The check of a framework's own optimizer, with a fault in its adapter."""
    arguments = _arguments(process, traced, plant, execution)
    return parse(
        NativeOptimizerCheck, process.call("tests.support.planted.faults:native_in_process", **arguments)
    )


def caught(fault: Fault, adapters: Adapters) -> Caught:
    """Plant a fault and report the first gate that catches it."""
    traced = case(fault.network, fault.rule)
    if fault.gate == OWN:
        check = own(adapters(fault.framework, "float64"), traced, fault.plant)
        deviation = check.deviation if check.remainder is None else check.remainder
        return Caught(OWN if check.verdict == "fails" else "", deviation)
    correct = trace(adapters("torch", "float64"), traced)
    faulty = trace(adapters(fault.framework, "float64"), traced, fault.plant)
    gates = parity.compare("torch", correct, fault.framework, faulty).gates
    failed = [Caught(gate.name, gate.deviation) for gate in gates if not gate.passed]
    return failed[0] if failed else Caught("", max(gate.deviation for gate in gates))


def trace_in_process(
    adapter: Adapter, training: dict[str, Any], modules: list[str], plant: str, execution: Execution
) -> dict[str, Any]:
    """Trace a case in the adapter's process, and remove the fault again."""
    with _planted(modules, plant):
        traces = _tracer(adapter, training, execution).trace()
    return {name: np.array(array) for name, array in traces.items()}


def native_in_process(
    adapter: Adapter, training: dict[str, Any], modules: list[str], plant: str, execution: Execution
) -> dict[str, Any]:
    """Check the own optimizer in the adapter's process. The shared rule is traced without the fault, which
    earlier gates would catch."""
    tracer = _tracer(adapter, training, execution)
    shared = tracer.trace()
    with _planted(modules, plant):
        return to_plain(tracer.native(shared))  # type: ignore[no-any-return]


def _arguments(
    process: AdapterProcess, traced: Case, plant: str, execution: Execution | None = None
) -> dict[str, Any]:
    name = process.framework.name
    modules = ["torch_faults", "training_faults"] if name == "torch" else ["keras_faults"]
    options = {"modules": modules, "plant": plant, "execution": execution or EXECUTIONS[name]}
    return {"training": to_plain(traced), **options}


def _tracer(adapter: Adapter, training: dict[str, Any], execution: Execution) -> _Tracer:
    return _Tracer(parse(Case, training), Programs(adapter), execution, False, "float64")


@contextmanager
def _planted(modules: list[str], plant: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if plant:
            functions = [
                vars(importlib.import_module(f"tests.support.planted.{name}")).get(plant) for name in modules
            ]
            (function,) = filter(None, functions)
            function(patch)
        yield
