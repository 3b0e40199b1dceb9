"""Self-attention whose products XLA has fast kernels for, forward and backward.

A small product C = A B is fast where each row of A and of B lies in one piece, and the faster the longer the
rows of B and C are: so keys are held transposed, and of the gradients of keys and values the transposes are
computed. A product whose scores are scaled, compared or summed up in the loop that makes them takes longer
than both by themselves (1.8 times in the backward pass), so they are held apart, and the queries are scaled.

Through a softmax p of scores s with outputs o = p v, the gradient is ds = p (dp - sum(p dp)), and the sum
over a row of p dp is that of do o over the size of a head (Dao et al., arXiv:2205.14135, appendix B.2), which
is shorter.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import Array

from adapters.keras.backends.jax.tuned_layers.barrier import apart, unfused
from adapters.keras.backends.jax.tuned_layers.dense import multiply

Kept = tuple[Array, Array, Array, Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(query: Array, key: Array, value: Array, mask: Array | None, scale: float) -> Array:
    """softmax(scale q k') v for each head: query `[batch, t, heads, size]`, key and value `[batch, s, heads,
    size]`, mask bool, false where not to look, for `[batch, heads, t, s]`."""
    return _forward(query, key, value, mask, scale)[0]


def _forward(query: Array, key: Array, value: Array, mask: Array | None, scale: float) -> tuple[Array, Kept]:
    scaled = query * jnp.asarray(scale, query.dtype)
    q, v = apart((scaled.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)))  # [batch, heads, steps, size]
    k_transposed = apart(key.transpose(0, 2, 3, 1))
    scores = unfused(q @ k_transposed)
    if mask is not None:
        scores = jnp.where(mask, scores, float(np.finfo(scores.dtype).min))
    powers = jnp.exp(scores - scores.max(-1, keepdims=True))
    shares = apart(powers / powers.sum(-1, keepdims=True))
    outputs = apart(shares @ v)
    return outputs.transpose(0, 2, 1, 3), (q, k_transposed, v, shares, outputs)


def _backward(scale: float, kept: Kept, dy: Array) -> tuple[Array, Array, Array, None]:
    q, k_transposed, v, shares, outputs = kept
    dy = apart(apart(dy).transpose(0, 2, 1, 3))
    of_shares = unfused(dy @ apart(v.mT))
    of_scores = apart(shares * (of_shares - (dy * outputs).sum(-1, keepdims=True)))
    of_query = apart(of_scores @ apart(k_transposed.mT)) * jnp.asarray(scale, dy.dtype)
    of_key = apart(apart(q.mT) @ of_scores)
    of_value = apart(apart(dy.mT) @ shares)
    return (
        unfused(of_query.transpose(0, 2, 1, 3)),
        unfused(of_key.transpose(0, 3, 1, 2)),
        unfused(of_value.transpose(0, 3, 1, 2)),
        None,
    )


attend.defvjp(_forward, _backward)


class MultiHeadAttention(keras.layers.MultiHeadAttention):  # type: ignore[misc]
    """What Keras' layer does with biases, without dropout, gates and masks that come with its inputs, and
    without giving the scores out."""

    def call(
        self,
        query: Array,
        value: Array,
        key: Array | None = None,
        attention_mask: Array | None = None,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
    ) -> Array:
        """Query `[batch, t, features]`, value and key `[batch, s, features]`, to the shape of the query; mask
        `[batch or 1, t or 1, s]`."""
        assert not return_attention_scores, "this layer does not give them out"
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
        summed: Array = multiply(joined, kernel.reshape(-1, kernel.shape[-1])) + bias
        return summed


def _into_heads(x: Array, dense: Any) -> Array:
    """`[batch, steps, features]` to `[batch, steps, heads, size]`."""
    kernel, bias = _weights(dense)
    projected = multiply(x, kernel.reshape(len(kernel), -1)) + bias.reshape(-1)
    return projected.reshape(*x.shape[:-1], *bias.shape)


def _weights(dense: Any) -> tuple[Array, Array]:
    kernel, bias = (keras.ops.convert_to_tensor(each) for each in (dense.kernel, dense.bias))
    return kernel, bias
