"""Self-attention built of matrix products that XLA has fast kernels for, forward and backward.

A small product C = A B is fast if the rows of A and of B are contiguous, and faster the longer the rows of B
and C are. So the keys are stored transposed, and the gradients of keys and values are computed as their
transposes. XLA is slower if it scales, compares or sums the scores in the loop that computes them (1.8 times
the time of the separate operations in the backward pass), so barriers separate the two, and the queries are
scaled instead of the scores.

For a softmax p of scores s with outputs o = p v, the gradient is ds = p (dp - sum(p dp)). The sum of p dp
over a row equals the sum of do o over the head size (Dao et al., arXiv:2205.14135, appendix B.2), which is
shorter.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import Array

from adapters.keras.backends.jax.tuned_layers.barrier import no_fusion, optimization_barrier
from adapters.keras.backends.jax.tuned_layers.dense import multiply

Residuals = tuple[Array, Array, Array, Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(query: Array, key: Array, value: Array, mask: Array | None, scale: float) -> Array:
    """softmax(scale q k') v for each head.

    `query` is `[batch, t, heads, size]`, `key` and `value` are `[batch, s, heads, size]`. `mask` is bool and
    broadcasts to `[batch, heads, t, s]`; false excludes a position.
    """
    return _forward(query, key, value, mask, scale)[0]


def _forward(
    query: Array, key: Array, value: Array, mask: Array | None, scale: float
) -> tuple[Array, Residuals]:
    scaled = query * jnp.asarray(scale, query.dtype)
    by_head = scaled.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    q, v = optimization_barrier(by_head)  # [batch, heads, steps, size]
    k_transposed = optimization_barrier(key.transpose(0, 2, 3, 1))
    scores = no_fusion(q @ k_transposed)
    if mask is not None:
        scores = jnp.where(mask, scores, float(np.finfo(scores.dtype).min))
    powers = jnp.exp(scores - scores.max(-1, keepdims=True))
    probabilities = optimization_barrier(powers / powers.sum(-1, keepdims=True))
    outputs = optimization_barrier(probabilities @ v)
    return outputs.transpose(0, 2, 1, 3), (q, k_transposed, v, probabilities, outputs)


def _backward(scale: float, residuals: Residuals, dy: Array) -> tuple[Array, Array, Array, None]:
    q, k_transposed, v, probabilities, outputs = residuals
    dy = optimization_barrier(optimization_barrier(dy).transpose(0, 2, 1, 3))
    d_probabilities = no_fusion(dy @ optimization_barrier(v.mT))
    d_scores = optimization_barrier(probabilities * (d_probabilities - (dy * outputs).sum(-1, keepdims=True)))
    d_query = optimization_barrier(d_scores @ optimization_barrier(k_transposed.mT))
    d_query = d_query * jnp.asarray(scale, dy.dtype)
    d_key = optimization_barrier(optimization_barrier(q.mT) @ d_scores)
    d_value = optimization_barrier(optimization_barrier(dy.mT) @ probabilities)
    return (
        no_fusion(d_query.transpose(0, 2, 1, 3)),
        no_fusion(d_key.transpose(0, 3, 1, 2)),
        no_fusion(d_value.transpose(0, 3, 1, 2)),
        None,
    )


attend.defvjp(_forward, _backward)


class MultiHeadAttention(keras.layers.MultiHeadAttention):  # type: ignore[misc]
    """Keras' `MultiHeadAttention` with biases. It has no dropout and no gates, ignores masks that come with
    its inputs, and does not return the scores."""

    def call(
        self,
        query: Array,
        value: Array,
        key: Array | None = None,
        attention_mask: Array | None = None,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
    ) -> Array:
        """Attend from `query`, `[batch, t, features]`, to `value` and `key`, `[batch, s, features]`.

        `attention_mask` is `[batch or 1, t or 1, s]`. The result has the shape of `query`.
        """
        assert not return_attention_scores, "this layer does not return its scores"
        mask = self._compute_attention_mask(
            query, value, attention_mask=attention_mask, use_causal_mask=use_causal_mask
        )
        q, k, v = (
            _into_heads(query, self._query_dense),
            _into_heads(value if key is None else key, self._key_dense),
            _into_heads(value, self._value_dense),
        )
        outputs = attend(q, k, v, None if mask is None else mask[:, None], self._inverse_sqrt_key_dim)
        kernel, bias = _weights(self._output_dense)
        joined = outputs.reshape(*outputs.shape[:2], -1)
        projected: Array = multiply(joined, kernel.reshape(-1, kernel.shape[-1])) + bias
        return projected


def _into_heads(x: Array, dense: Any) -> Array:
    """Project `[batch, steps, features]` to `[batch, steps, heads, size]`."""
    kernel, bias = _weights(dense)
    projected = multiply(x, kernel.reshape(len(kernel), -1)) + bias.reshape(-1)
    return projected.reshape(*x.shape[:-1], *bias.shape)


def _weights(dense: Any) -> tuple[Array, Array]:
    kernel, bias = (keras.ops.convert_to_tensor(each) for each in (dense.kernel, dense.bias))
    return kernel, bias
