"""Drawing a token from logits. Equals are in order of ids everywhere. In this order:

    1  repetition penalty     seen tokens: logit / penalty if positive, logit * penalty if not
    2  logit bias             added
       temperature 0          ends here: the largest logit
    3  temperature            divided by
    4  top-k                  the k largest logits stay
    5  top-p                  of those, the shortest run of the largest whose probabilities sum to
                              top_p stays, one at least
    6  min-p                  a token stays if its probability is at least min_p times the largest
    7  draw                   u in [0, 1); the first token whose running sum of probabilities is
                              over u times their total, in the order of (id mod 1024, id)

The order is that of transformers; llama.cpp has the same filters but the temperature last.
u = (word >> 8) * 2^-24 with the first word of Philox4x32-10, key = the seed, counter = the number
of the draw: neither the slot nor what runs beside it changes the tokens of a request.
Log-probabilities are of the logits as the model gave them. NaN, +inf or nothing finite: no token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int = 10) -> tuple[int, int, int, int]:
    """Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & MASK, (left >> 32) ^ c3 ^ k1, left & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def uniform(seed: int, draw: int) -> float:
    """The number in [0, 1) of a request's draw: seed of 64 bits, draw counted from 0."""
    word = philox4x32((draw & MASK, draw >> 32, 0, 0), (seed & MASK, seed >> 32))[0]
    return (word >> 8) * 2.0**-24


@dataclass(frozen=True)
class Drawn:
    """A draw; token -1: the logits cannot be used.

    margin: how far, in probability, u was from another token and the filters from keeping another
    set. A draw whose margin is below the rounding of float32 sums says nothing about a kernel.
    kept: the ids that the filters left.
    """

    token: int
    logprob: float
    margin: float
    kept: NDArray[np.int64]


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """(vocab) -> log-probabilities in float64; -inf stays."""
    x = logits.astype(np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def adjust(
    logits: NDArray[Any],
    *,
    seen: Iterable[int] = (),
    repetition_penalty: float = 1.0,
    bias: Mapping[int, float] | None = None,
) -> NDArray[np.float64]:
    """Steps 1 and 2."""
    x = logits.astype(np.float64)
    for token in set(seen):
        x[token] = x[token] / repetition_penalty if x[token] > 0 else x[token] * repetition_penalty
    for token, value in (bias or {}).items():
        x[token] += value
    return x


def sample(
    logits: NDArray[Any],
    *,
    seed: int = 0,
    draw: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seen: Iterable[int] = (),
    bias: Mapping[int, float] | None = None,
) -> Drawn:
    """One draw from logits (vocab). Temperature 0 is greedy; top_k 0, top_p 1, min_p 0 are off."""
    if np.isnan(logits).any() or np.isposinf(logits).any() or not np.isfinite(logits).any():
        return Drawn(-1, np.nan, np.inf, np.zeros(0, np.int64))
    raw = log_softmax(logits)
    x = adjust(logits, seen=seen, repetition_penalty=repetition_penalty, bias=bias)
    if temperature == 0:
        token = int(x.argmax())
        return Drawn(token, float(raw[token]), np.inf, np.array([token]))
    x = (x - x.max()) / temperature
    ids = np.argsort(-x, kind="stable")  # (logit descending, id ascending)
    if 0 < top_k < len(ids):
        ids = ids[:top_k]
    margins = []
    if top_p < 1:
        before = np.cumsum(_probabilities(x[ids])) - _probabilities(x[ids])
        margins.append(np.abs(before[1:] - top_p).min(initial=np.inf))
        ids = ids[: max(1, int((before < top_p).sum()))]
    if min_p > 0:
        ratio = np.exp(x[ids] - x[ids[0]])
        margins.append(np.abs(ratio[ratio < 1] - min_p).min(initial=np.inf))
        ids = ids[ratio >= min_p]
    ids = ids[np.lexsort((ids, ids % 1024))]
    sums = np.cumsum(_probabilities(x[ids]))
    u = uniform(seed, draw) * sums[-1]
    index = min(int(np.searchsorted(sums, u, side="right")), len(ids) - 1)
    margins.append(np.abs(sums[:-1] - u).min(initial=np.inf))
    token = int(ids[index])
    return Drawn(token, float(raw[token]), float(min(margins)), np.sort(ids))


def _probabilities(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max())
    return e / e.sum()
