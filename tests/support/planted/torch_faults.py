"""Plausible mistakes in the torch adapter's layers; each function plants one, which `patch` undoes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.torch import attention, layers, model, recurrent, spatial

Patch = pytest.MonkeyPatch


def _change_result(patch: Patch, owner: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Apply `change` to the results of the function `owner.name`."""
    real = getattr(owner, name)
    patch.setattr(owner, name, lambda *arguments, **named: change(real(*arguments, **named)))


# recurrent layers


def reports_second_bias(patch: Patch) -> None:
    real = model.Model.weights

    def weights(self: model.Model) -> dict[str, Any]:
        return real(self) | {
            "0.recurrent_bias": self.module.layers[0].forward_cells.bias_hh_l0.detach().numpy().copy()
        }

    patch.setattr(model.Model, "weights", weights)


def swaps_lstm_gates(patch: Patch) -> None:
    def swapped(gates: Tensor) -> Tensor:
        i, f, g, o = gates.chunk(4)
        return torch.cat((f, i, g, o))

    patch.setattr(recurrent, "as_is", swapped)


def lstm_forgets_less(patch: Patch) -> None:
    def change(module: nn.LSTM) -> nn.LSTM:
        units = module.hidden_size
        module.bias_hh_l0.data[units : 2 * units] = 1.0
        return module

    _change_result(patch, recurrent, "_fused_module", change)


def lstm_bias_dropped(patch: Patch) -> None:
    def change(module: nn.LSTM) -> nn.LSTM:
        module.bias_ih_l0.requires_grad_(False)
        return module

    _change_result(patch, recurrent, "_fused_module", change)


def second_bias_trained(patch: Patch) -> None:
    def change(module: nn.LSTM) -> nn.LSTM:
        module.bias_hh_l0.requires_grad_(True)
        return module

    _change_result(patch, recurrent, "_fused_module", change)


def swaps_gru_gates(patch: Patch) -> None:
    patch.setattr(recurrent, "_swap_first_two", lambda gates: gates)


def gru_one_bias(patch: Patch) -> None:
    def change(module: nn.GRU) -> nn.GRU:
        module.bias_hh_l0.requires_grad_(False)
        return module

    _change_result(patch, recurrent, "_fused_module", change)


def rnn_relu(patch: Patch) -> None:
    def change(module: nn.RNN) -> nn.RNN:
        module.mode = "RNN_RELU"
        return module

    _change_result(patch, recurrent, "_fused_module", change)


def last_step(patch: Patch) -> None:
    patch.setattr(recurrent, "_last_valid", lambda states, padding: states[:, -1])


def reverses_padding(patch: Patch) -> None:
    patch.setattr(recurrent, "_reverse_valid", lambda x, padding: x.flip(1))


# dense layers and activations


def dense_bias_dropped(patch: Patch) -> None:
    patch.setattr(nn.Linear, "forward", lambda self, x: F.linear(x, self.weight, 0.0 * self.bias))


def frozen_kernel(patch: Patch) -> None:
    def change(built: Any) -> Any:
        built.module.weight.requires_grad_(built.module.out_features != 5)
        return built

    _change_result(patch, layers, "_dense", change)


def extra_relu(patch: Patch) -> None:
    _change_result(
        patch, layers, "_dense", lambda built: built._replace(module=nn.Sequential(built.module, nn.ReLU()))
    )


def float32_layer(patch: Patch) -> None:
    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float()).double()

    patch.setattr(nn.Linear, "forward", forward)


def leaky_slope(patch: Patch) -> None:
    patch.setattr(nn.LeakyReLU, "forward", lambda self, x: F.leaky_relu(x, 0.3))


def gelu_tanh(patch: Patch) -> None:
    patch.setattr(nn.GELU, "forward", lambda self, x: F.gelu(x, approximate="tanh"))


def dropout_in_evaluation(patch: Patch) -> None:
    patch.setattr(nn.Dropout, "forward", lambda self, x: F.dropout(x, self.p, training=True))


def dropout_scales_late(patch: Patch) -> None:
    def forward(self: nn.Dropout, x: Tensor) -> Tensor:
        return F.dropout(x, self.p) * (1 - self.p) if self.training else x * (1 - self.p)

    patch.setattr(nn.Dropout, "forward", forward)


def no_shortcut(patch: Patch) -> None:
    patch.setattr(model.Block, "forward", lambda self, x, padding: self.body(x, padding))


# spatial layers


def edges_repeated(patch: Patch) -> None:
    def change(built: Any) -> Any:
        built.module.padding_mode = "replicate"
        return built

    _change_result(patch, spatial, "convolution", change)


def kernel_turned(patch: Patch) -> None:
    real = spatial.bind

    def bind(name: str, tensor: Tensor, to_native: Any, to_canonical: Any) -> Any:
        def turned(weight: Tensor) -> Tensor:
            return to_native(weight).transpose(2, 3)

        return real(name, tensor, turned, lambda weight: to_canonical(weight.transpose(2, 3)))

    patch.setattr(spatial, "bind", lambda *args: bind(*args) if len(args) == 4 else real(*args))


def chw_flatten(patch: Patch) -> None:
    real = layers.wants_channels_first
    patch.setattr(
        layers, "wants_channels_first", lambda node: None if node.layer.kind == "flatten" else real(node)
    )


def pools_by_mean(patch: Patch) -> None:
    patch.setattr(nn.MaxPool2d, "forward", lambda self, x: F.avg_pool2d(x, self.kernel_size))


def pads_behind(patch: Patch) -> None:
    def forward(self: nn.Conv1d, x: Tensor) -> Tensor:
        return nn.Conv1d.forward(self, F.pad(x, (0, self.kernel_size[0] - 1)))

    patch.setattr(spatial.CausalConv1d, "forward", forward)


def upsamples_smoothly(patch: Patch) -> None:
    patch.setattr(nn.Upsample, "forward", lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear"))


# normalisation


def _batch_norm(patch: Patch, change: Callable[[spatial.BiasedBatchNorm], None]) -> None:
    real = spatial.BiasedBatchNorm.__init__

    def init(self: spatial.BiasedBatchNorm, *arguments: Any) -> None:
        real(self, *arguments)
        change(self)

    patch.setattr(spatial.BiasedBatchNorm, "__init__", init)


def bn_momentum(patch: Patch) -> None:
    def change(module: spatial.BiasedBatchNorm) -> None:
        module.update_rate = 1.0 - module.update_rate

    _batch_norm(patch, change)


def bn_unbiased(patch: Patch) -> None:
    def forward(self: spatial.BiasedBatchNorm, x: Tensor) -> Tensor:
        running = self.moving_mean, self.moving_variance, self.gamma, self.beta
        return F.batch_norm(x, *running, self.training, self.update_rate, self.epsilon)

    patch.setattr(spatial.BiasedBatchNorm, "forward", forward)


def bn_epsilon(patch: Patch) -> None:
    def change(module: spatial.BiasedBatchNorm) -> None:
        module.epsilon = 1e-5

    _batch_norm(patch, change)


def bn_of_batch(patch: Patch) -> None:
    def forward(self: spatial.BiasedBatchNorm, x: Tensor) -> Tensor:
        if self.training:
            return real(self, x)
        return F.batch_norm(x, None, None, self.gamma, self.beta, True, 0.0, self.epsilon)

    real = spatial.BiasedBatchNorm.forward
    patch.setattr(spatial.BiasedBatchNorm, "forward", forward)


def bn_running(patch: Patch) -> None:
    def forward(self: spatial.BiasedBatchNorm, x: Tensor) -> Tensor:
        running = self.moving_mean, self.moving_variance, self.gamma, self.beta
        return F.batch_norm(x, *running, False, 0.0, self.epsilon)

    patch.setattr(spatial.BiasedBatchNorm, "forward", forward)


def stays_in_training(patch: Patch) -> None:
    patch.setattr(nn.Module, "eval", lambda self: self)


def ln_epsilon(patch: Patch) -> None:
    patch.setattr(
        nn.LayerNorm,
        "forward",
        lambda self, x: F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-3),
    )


# attention and embeddings


def _attending(patch: Patch, **changed: Any) -> None:
    real = F.scaled_dot_product_attention

    def attend(key: Tensor, query: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        return real(key, query, value, **({"attn_mask": mask, "is_causal": is_causal} | changed))

    patch.setattr(attention.F, "scaled_dot_product_attention", attend)


def attention_unscaled(patch: Patch) -> None:
    _attending(patch, scale=1.0)


def attention_unmasked(patch: Patch) -> None:
    _attending(patch, attn_mask=None)


def not_causal(patch: Patch) -> None:
    _attending(patch, is_causal=False)


def positions_shifted(patch: Patch) -> None:
    patch.setattr(attention.AddTable, "forward", lambda self, x: x + self.table.roll(1, 0))


def mean_over_padding(patch: Patch) -> None:
    patch.setattr(spatial.MaskedMeanPool, "forward", lambda self, x, padding: x.mean(1))


def tokens_count_once(patch: Patch) -> None:
    def forward(self: nn.Embedding, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight, scale_grad_by_freq=True)

    patch.setattr(nn.Embedding, "forward", forward)
