"""Rotary position embedding, and the block around it: head norms, rotation, write to the cache.

Source: Su et al., RoFormer, 2021; the half-split pairing is that of transformers, the interleaved
one the paper's. All kinds (linear, llama3, YaRN ...) come as angular frequencies and a factor of
cos and sin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .norm import rms_norm

Array = NDArray[Any]


def rope(
    x: Array, positions: Array, freq: Array, *, scale: float = 1.0, interleaved: bool = False
) -> NDArray[np.float64]:
    """Rotate the first 2 * len(freq) components of each head; the rest passes.

    x (rows, heads, dim), positions (rows), freq (rope_dim / 2). Pair i is (i, i + rope_dim / 2), or
    (2i, 2i + 1) if interleaved. The angle position * freq is a float32 product, as in transformers
    and in the kernels: at position 100000 the rounding of it is worth 0.004 radians.
    """
    out = x.astype(np.float64)
    pairs = len(freq)
    for row, position in enumerate(positions):
        for i in range(pairs):
            angle = float(np.float32(position) * np.float32(freq[i]))
            cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + pairs)
            first, second = x[row, :, a].astype(np.float64), x[row, :, b].astype(np.float64)
            out[row, :, a] = first * cos - second * sin
            out[row, :, b] = second * cos + first * sin
    return out


def rope_block(
    qkv: Array,
    cache_k: Array,
    cache_v: Array,
    positions: Array,
    slots: Array,
    freq: Array,
    *,
    heads: int,
    q_norm: Array | None = None,
    k_norm: Array | None = None,
    eps: float = 1e-6,
    scale: float = 1.0,
    interleaved: bool = False,
) -> NDArray[np.float64]:
    """Rotated q (rows, heads, dim); k and v go to the caches (slots, context, kv_heads, dim), in
    place.

    qkv (rows, (heads + 2 kv_heads) * dim). q_norm, k_norm (dim): RMS norm of each head before
    rotation. A row with a negative position gives zeros and writes nothing.
    """
    kv_heads, dim = cache_k.shape[2:]
    rows = len(qkv)
    parts = qkv.astype(np.float64).reshape(rows, heads + 2 * kv_heads, dim)
    q, k, v = parts[:, :heads], parts[:, heads : heads + kv_heads], parts[:, heads + kv_heads :]
    if q_norm is not None:
        q, _ = rms_norm(q, q_norm, eps)
    if k_norm is not None:
        k, _ = rms_norm(k, k_norm, eps)
    q = rope(q, positions, freq, scale=scale, interleaved=interleaved)
    k = rope(k, positions, freq, scale=scale, interleaved=interleaved)
    for row, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        if position < 0:
            q[row] = 0
        else:
            cache_k[slot, position] = k[row]
            cache_v[slot, position] = v[row]
    return q
