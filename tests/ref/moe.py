"""A mixture of experts: the router's choice and the weighted sum, in plain formulas.

softmax   Mixtral (Jiang et al. 2024, arXiv 2401.04088), Qwen3-MoE: score = softmax over all logits
sigmoid   DeepSeek-V3 (arXiv 2412.19437 section 2.1.2) and GLM-4.7-Flash: score = sigmoid(logit); a bias is added for
          the choice only; with groups, experts come from the best groups, ranked by their best two sums
Of equal scores the expert with the lower number goes first. A row with NaN among its logits gets valid experts, those
with numbers first, and NaN weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .matmul import GATED, linear
from .norm import rms_norm

Array = NDArray[Any]


def best(values: Array, count: int) -> Array:
    """Places of the largest values, NaN last, of equal ones the first."""
    order = np.lexsort((np.arange(len(values)), -np.where(np.isnan(values), -np.inf, values), np.isnan(values)))
    return order[:count]


def route(
    logits: Array,
    top_k: int,
    *,
    scoring: str = "softmax",
    bias: Array | None = None,
    normalise: bool = True,
    scale: float = 1.0,
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 2,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """logits (rows, experts) -> experts (rows, top_k), the best first, and their weights."""
    ids = np.empty((len(logits), top_k), np.int32)
    weights = np.empty((len(logits), top_k))
    for row, values in enumerate(logits.astype(np.float64)):
        bad = np.isnan(values).any()
        if scoring == "softmax":
            powers = np.exp(values - np.nanmax(values, initial=-np.inf))
            score = powers / powers.sum()
            rating = powers if groups > 1 else values
        else:
            score = 1 / (1 + np.exp(-values))
            rating = score if bias is None else score + bias
        open_experts = np.ones(len(values), bool)
        if groups > 1:
            members = rating.reshape(groups, -1)
            sums = [sum(members[g][best(members[g], group_best)]) for g in range(groups)]
            chosen = best(np.array(sums), top_groups)
            open_experts = np.isin(np.arange(len(values)) // members.shape[1], chosen)
        places = np.flatnonzero(open_experts)
        ids[row] = places[best(rating[places], top_k)]
        picked = score[ids[row]]
        if normalise:
            picked = picked / (picked.sum() + (1e-20 if scoring == "sigmoid" else 0))
        weights[row] = np.nan if bad else picked * scale
    return ids, weights


def moe(
    x: Array,
    gate: Array,
    up: Array,
    down: Array,
    ids: Array,
    weights: Array,
    *,
    norm: Array | None = None,
    eps: float = 1e-6,
    activation: str = "swiglu",
    residual: Array | None = None,
) -> NDArray[np.float64]:
    """residual + sum over the slots s of weights[row, s] * down[e](act(gate[e] x) * up[e] x), e = ids[row, s].

    x (rows, hidden); gate, up (experts, inner, hidden); down (experts, hidden, inner); ids, weights (rows, slots).
    """
    rows = x.astype(np.float64)
    if norm is not None:
        rows, _ = rms_norm(rows, norm, eps)
    y = np.zeros_like(rows) if residual is None else residual.astype(np.float64)
    for row, (experts, factors) in enumerate(zip(ids, weights, strict=True)):
        for expert, factor in zip(experts, factors, strict=True):
            one = rows[row : row + 1]
            m = GATED[activation](linear(one, gate[expert])) * linear(one, up[expert])
            y[row] += factor * linear(m, down[expert])[0]
    return y
