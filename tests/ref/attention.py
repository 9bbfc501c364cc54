"""Causal attention with grouped heads over a cache. Source: Ainslie et al., GQA, 2023."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def attention(
    q: Array,
    cache_k: Array,
    cache_v: Array,
    positions: Array,
    slots: Array,
    *,
    scale: float | None = None,
) -> NDArray[np.float64]:
    """Each row attends over positions 0 .. positions[row] of its slot -> (rows, heads, dim).

    q (rows, heads, dim), rotated; caches (slots, context, kv_heads, dim), the rows' own k and v
    already in them; head h reads cache head h // (heads / kv_heads); scale is 1 / sqrt(dim) unless
    given. A row with a negative position is idle and gives zeros.
    """
    rows, heads, dim = q.shape
    kv_heads = cache_k.shape[2]
    factor = 1 / np.sqrt(dim) if scale is None else scale
    out = np.zeros((rows, heads, dim))
    for row in range(rows):
        seen = int(positions[row]) + 1
        if seen <= 0:
            continue
        for head in range(heads):
            kv = head * kv_heads // heads
            k = cache_k[slots[row], :seen, kv].astype(np.float64)
            v = cache_v[slots[row], :seen, kv].astype(np.float64)
            scores = k @ q[row, head].astype(np.float64) * factor
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ v / weights.sum()
    return out
