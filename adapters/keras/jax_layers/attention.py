"""Attention whose gradient takes its sums over a row of scores from where they are short.

Through a softmax p of scores s with outputs o = p v, the gradient is ds = p (dp - sum(p dp)), and the sum
over a row of p dp is that of do o over the size of a head (Dao et al., arXiv:2205.14135, appendix B.2). XLA
took a tenth of a transformer's step for the sums over the scores, and would compute ds twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import Array

from adapters.keras.jax_layers.barrier import apart

Kept = tuple[Array, Array, Array, Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(query: Array, key: Array, value: Array, mask: Array | None, scale: float) -> Array:
    """softmax(scale q k') v for each head: query `[batch, t, heads, size]`, key and value `[batch, s, heads,
    size]`, mask bool, false where not to look, for `[batch, heads, t, s]`."""
    return _forward(query, key, value, mask, scale)[0]


def _forward(
    query: Array, key: Array, value: Array, mask: Array | None, scale: float
) -> tuple[Array, tuple[Array, ...]]:
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) * jnp.asarray(scale, query.dtype)
    if mask is not None:
        scores = jnp.where(mask, scores, float(np.finfo(scores.dtype).min))
    powers = jnp.exp(scores - scores.max(-1, keepdims=True))
    shares = powers / powers.sum(-1, keepdims=True)
    outputs = jnp.einsum("bnts,bsnh->btnh", shares, value)
    return outputs, (query, key, value, shares, outputs)


def _backward(scale: float, kept: Kept, dy: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, shares, outputs = kept
    dy = apart(dy)
    of_shares = jnp.einsum("btnh,bsnh->bnts", dy, value)
    row_sums = (dy * outputs).sum(-1).swapaxes(1, 2)[..., None]
    of_scores = shares * (of_shares - row_sums) * jnp.asarray(scale, query.dtype)
    of_scores = apart(of_scores)
    return (
        jnp.einsum("bnts,bsnh->btnh", of_scores, key),
        jnp.einsum("bnts,btnh->bsnh", of_scores, query),
        jnp.einsum("bnts,btnh->bsnh", shares, dy),
        None,
    )


attend.defvjp(_forward, _backward)


class MultiHeadAttention(keras.layers.MultiHeadAttention):  # type: ignore[misc]
    """What Keras' layer does, without dropout, and without giving the scores out."""

    def _compute_attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        attention_mask: Array | None = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
    ) -> tuple[Any, None]:
        mask = None if attention_mask is None else attention_mask[:, None]
        return attend(query, key, value, mask, self._inverse_sqrt_key_dim), None
