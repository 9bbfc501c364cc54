"""Multi-head latent attention: one compressed row a position, shared by all heads.

    latent  = rms_norm(kv[:rank]) | rope(kv[rank:])                what the cache holds
    k_h, v_h = W_uk_h latent[:rank] | latent[rank:],  W_uv_h latent[:rank]
    y_h     = softmax(q_h k_h^T * scale) v_h

Absorbed, the same without ever making k and v: W_uk moves to the query and W_uv to the result.
Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; the rotation's pairs (2i, 2i + 1) are the
paper's, half-split ones those of configs with rope_interleave false.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .norm import rms_norm
from .rope import rope

Array = NDArray[Any]
F64 = NDArray[np.float64]


def mla_latent(
    kv: Array, norm: Array, positions: Array, freq: Array, *, eps: float = 1e-6, scale: float = 1.0,
    interleaved: bool = True,
) -> F64:  # fmt: skip
    """Rows of the cache (rows, rank + rope_dim) of kv (rows, rank + rope_dim); norm (rank)."""
    rank = len(norm)
    latent, _ = rms_norm(kv[:, :rank], norm, eps)
    turned = rope(kv[:, None, rank:], positions, freq, scale=scale, interleaved=interleaved)
    return np.concatenate([latent, turned[:, 0]], axis=1)


def mla_split(kv_b: Array, heads: int, nope: int) -> tuple[F64, F64]:
    """W_uk (heads, nope, rank) and W_uv (heads, v_dim, rank) of kv_b (heads * (nope + v_dim), rank)."""
    each = kv_b.astype(np.float64).reshape(heads, -1, kv_b.shape[1])
    return each[:, :nope], each[:, nope:]


def mla_query(q: Array, kv_b: Array, positions: Array, freq: Array, *, heads: int, scale: float = 1.0,
              interleaved: bool = True) -> F64:  # fmt: skip
    """Absorbed queries (rows, heads, rank + rope_dim) of q (rows, heads * (nope + rope_dim))."""
    each = q.astype(np.float64).reshape(len(q), heads, -1)
    nope = each.shape[2] - 2 * len(freq)
    up, _ = mla_split(kv_b, heads, nope)
    turned = rope(each[:, :, nope:], positions, freq, scale=scale, interleaved=interleaved)
    return np.concatenate([np.einsum("rhn,hnc->rhc", each[:, :, :nope], up), turned], axis=2)


def mla_decode(q: Array, cache: Array, positions: Array, slots: Array, *, rank: int, softmax_scale: float) -> F64:
    """Attention of absorbed queries over the cache (slots, context, rank + rope_dim) -> (rows, heads, rank).

    A row with a negative position is idle and gives zeros.
    """
    out = np.zeros((*q.shape[:2], rank))
    for row, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        if position >= 0:
            seen = cache[slot, : position + 1].astype(np.float64)
            scores = q[row] @ seen.T * softmax_scale
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[row] = weights @ seen[:, :rank] / weights.sum(axis=1, keepdims=True)
    return out


def mla_value(latent: Array, kv_b: Array, nope: int) -> F64:
    """(rows, heads, rank) -> (rows, heads * v_dim): each head's W_uv."""
    _, up = mla_split(kv_b, latent.shape[1], nope)
    return np.einsum("rhc,hvc->rhv", latent, up).reshape(len(latent), -1)


def mla_expanded(
    q: Array, kv_b: Array, cache: Array, positions: Array, slots: Array, freq: Array, *, heads: int,
    softmax_scale: float, scale: float = 1.0, interleaved: bool = True,
) -> F64:  # fmt: skip
    """The formula as the paper writes it, keys and values of every head made: (rows, heads * v_dim)."""
    rank = kv_b.shape[1]
    each = q.astype(np.float64).reshape(len(q), heads, -1)
    nope = each.shape[2] - 2 * len(freq)
    up_k, up_v = mla_split(kv_b, heads, nope)
    turned = rope(each[:, :, nope:], positions, freq, scale=scale, interleaved=interleaved)
    out = np.zeros((len(q), heads, up_v.shape[1]))
    for row, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        if position < 0:
            continue
        seen = cache[slot, : position + 1].astype(np.float64)
        for head in range(heads):
            k = seen[:, :rank] @ up_k[head].T
            scores = (k @ each[row, head, :nope] + seen[:, rank:] @ turned[row, head]) * softmax_scale
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ (seen[:, :rank] @ up_v[head].T) / weights.sum()
    return out.reshape(len(q), -1)
