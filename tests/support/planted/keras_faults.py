"""Faults in the Keras adapter; each function plants one until `patch` is undone."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from adapters.keras import activations, attention, losses, optimizers, recurrent, spatial
from harness.core.network import BatchNorm, LayerNorm

Patch = pytest.MonkeyPatch


def hard_sigmoid(patch: Patch) -> None:
    real = keras.layers.LSTM.__init__

    def init(self: Any, units: int, **named: Any) -> None:
        real(self, units, recurrent_activation="hard_sigmoid", **named)

    patch.setattr(keras.layers.LSTM, "__init__", init)


def last_step(patch: Patch) -> None:
    patch.setattr(recurrent.LastValid, "call", lambda self, states, lengths: states[:, -1])


def bn_momentum(patch: Patch) -> None:
    real = spatial.batch_norm
    patch.setattr(spatial, "batch_norm", lambda node, layer: real(node, BatchNorm(layer.epsilon, 0.99)))


def double_softmax(patch: Patch) -> None:
    """By operations: Keras on TensorFlow removes a softmax layer before a loss from logits."""

    def mean(loss: str, y: Any, outputs: Any) -> Any:
        powers = ops.exp(outputs)
        probabilities = powers / ops.sum(powers, axis=-1, keepdims=True)
        return ops.mean(ops.sparse_categorical_crossentropy(y, probabilities, from_logits=True))

    patch.setattr(losses, "mean", mean)


def gelu_of_keras(patch: Patch) -> None:
    patch.setattr(activations, "_exact_gelu", activations._gelu)


def attention_in_float32(patch: Patch) -> None:
    real = attention.self_attention

    def self_attention(node: Any, layer: Any, setting: Any) -> Any:
        return real(node, layer, dataclasses.replace(setting, precision="float32"))

    patch.setattr(attention, "self_attention", self_attention)
    if keras.backend.backend() == "jax":
        own = importlib.import_module("adapters.keras.backends.jax.tuned_layers.attention")
        attend = own.attend

        def narrow(query: Any, key: Any, value: Any, mask: Any, scale: float) -> Any:
            each = (array.astype("float32") for array in (query, key, value))
            return attend(*each, mask, scale).astype(query.dtype)

        patch.setattr(own, "attend", narrow)


def counts_from_zero(patch: Patch) -> None:
    real = optimizers.SharedOptimizer._backend_update_step

    def update(self: Any, grads: Any, variables: Any, rate: Any) -> None:
        rule = self.rule
        self.rule = _Earlier(rule)
        real(self, grads, variables, rate)
        self.rule = rule

    patch.setattr(optimizers.SharedOptimizer, "_backend_update_step", update)


class _Earlier:
    """A rule that gets the number of the previous step."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def update(self, w: Any, g: Any, slots: Any, h: Any, lr: Any, t: Any) -> Any:
        return self.rule.update(w, g, slots, h, lr, t - 1)


def rate_in_float32(patch: Patch) -> None:
    real = optimizers.Optimizer.set_rates

    def set_rates(self: Any, rates: Any) -> None:
        real(self, rates.astype(np.float32).astype(np.float64))

    patch.setattr(optimizers.Optimizer, "set_rates", set_rates)


def float64_demoted(patch: Patch) -> None:
    from keras.src.backend.common import dtypes

    patch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float32")


def dropout_in_evaluation(patch: Patch) -> None:
    real = keras.layers.Dropout.call
    patch.setattr(keras.layers.Dropout, "call", lambda self, x, training=False: real(self, x, training=True))


def ln_epsilon(patch: Patch) -> None:
    real = attention.layer_norm
    patch.setattr(attention, "layer_norm", lambda layer, setting: real(LayerNorm(1e-3), setting))


def attention_unmasked(patch: Patch) -> None:
    def all_valid(padding: Any) -> Any:
        return padding._replace(valid=ops.ones_like(padding.valid))

    patch.setattr(attention, "require_padding", all_valid)


def own_adam_beta(patch: Patch) -> None:
    def change(optimizer: Any) -> None:
        optimizer.beta_2 = np.float64(0.99)

    _with_own(patch, change)


def own_numbers_in_float32(patch: Patch) -> None:
    """As TensorFlow converts Python's numbers."""

    def change(optimizer: Any) -> None:
        optimizer.rho, optimizer.epsilon = (
            np.float64(np.float32(n)) for n in (optimizer.rho, optimizer.epsilon)
        )

    _with_own(patch, change)


def own_adamw_decays_late(patch: Patch) -> None:
    def change(optimizer: Any) -> None:
        decay, update = optimizer._apply_weight_decay, optimizer._backend_update_step

        def update_and_decay(grads: Any, variables: Any, rate: Any) -> None:
            update(grads, variables, rate)
            decay(variables)

        optimizer._apply_weight_decay = lambda variables: None
        optimizer._backend_update_step = update_and_decay

    _with_own(patch, change)


def own_nesterov_forgotten(patch: Patch) -> None:
    def change(optimizer: Any) -> None:
        optimizer.nesterov = False

    _with_own(patch, change)


def _with_own(patch: Patch, change: Callable[[Any], None]) -> None:
    """Change Keras' own optimizer, before it is built."""
    real = optimizers._native

    def native(*arguments: Any) -> Any:
        optimizer = real(*arguments)
        change(optimizer)
        return optimizer

    patch.setattr(optimizers, "_native", native)
