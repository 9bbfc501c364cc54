"""The gated delta rule: a matrix of memory a head, decayed and corrected token by token.

    x_t   = silu(sum_j w_j in_(t - TAPS + 1 + j))          depthwise causal convolution, each channel by itself
    q, k  = x / |x|, q also / sqrt(key_dim)                a head of q and k serves value_heads / key_heads of v
    beta  = sigmoid(b),  g = -exp(A_log) softplus(a + dt_bias)
    S     = exp(g) S                                       (key_dim, value_dim) a value head
    S     = S + k (beta (v - k S))^T
    o     = q S
    y     = o / rms(o) * weight * silu(z)

Chunked, the same for C tokens at once: with G the running sum of g in the chunk, decay[i, j] = exp(G_i - G_j),
the corrections u of all C tokens solve (1 + L) u = beta (v - exp(G) k S0), L[i, j] = beta_i decay[i, j] k_i k_j
for j < i.
Source: Yang et al. 2024, "Gated Delta Networks", arXiv 2412.06464, equations 10 and 8 (chunked, after "Parallelizing
Linear Transformers with the Delta Rule", arXiv 2406.06484); the layout of a Qwen3-Next row as in its checkpoints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
F64 = NDArray[np.float64]
L2_EPS = 1e-6


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


def l2_norm(x: Array) -> Array:
    """x / |x| over the last axis."""
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + L2_EPS)


def split_rows(x: Array, key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> list[Array]:
    """q, k (rows, key_heads, key_dim), v, z (rows, value_heads, value_dim) of the rows of in_proj_qkvz.

    A row is, for each key head, its q, its k, and the v and then the z of the value heads that share it.
    """
    ratio = value_heads // key_heads
    group = x.reshape(len(x), key_heads, 2 * key_dim + 2 * ratio * value_dim)
    q, k, v, z = np.split(group, np.cumsum([key_dim, key_dim, ratio * value_dim]), axis=2)
    return [q, k, *(part.reshape(len(x), value_heads, value_dim) for part in (v, z))]


def split_gates(gates: Array, key_heads: int) -> tuple[Array, Array]:
    """b and a (rows, value_heads) of the rows of in_proj_ba: for each key head the b, then the a of its value heads."""
    group = gates.reshape(len(gates), key_heads, 2, -1)
    return group[:, :, 0].reshape(len(gates), -1), group[:, :, 1].reshape(len(gates), -1)


def causal_conv(x: Array, filter: Array, before: Array) -> Array:
    """silu of the convolution of x (rows, channels) by filter (channels, taps); before (taps - 1, channels)."""
    taps = filter.shape[1]
    line = np.concatenate([before, x])
    return silu(sum(line[j : j + len(x)] * filter[:, j] for j in range(taps)))


def gates_of(a: Array, b: Array, a_log: Array, dt_bias: Array) -> tuple[Array, Array]:
    """beta, and g, the logarithm of the decay: (rows, value_heads) each."""
    return 1 / (1 + np.exp(-b)), -np.exp(a_log) * np.logaddexp(0, a + dt_bias)


def recurrent(q: Array, k: Array, v: Array, beta: Array, g: Array, state: Array) -> tuple[F64, F64]:
    """o (rows, heads, value_dim) and the state behind the rows, token by token. q, k (rows, heads, key_dim), normed
    and scaled; beta, g (rows, heads); state (heads, key_dim, value_dim)."""
    state = state.astype(np.float64)
    out = np.zeros(v.shape)
    for t in range(len(q)):
        state = state * np.exp(g[t])[:, None, None]
        error = v[t] - np.einsum("hk,hkv->hv", k[t], state)
        state = state + np.einsum("hk,hv->hkv", k[t], beta[t][:, None] * error)
        out[t] = np.einsum("hk,hkv->hv", q[t], state)
    return out, state


def chunked(q: Array, k: Array, v: Array, beta: Array, g: Array, state: Array, size: int = 64) -> tuple[F64, F64]:
    """The same as `recurrent`, `size` tokens at a time."""
    state = state.astype(np.float64)
    out = np.zeros(v.shape)
    for first in range(0, len(q), size):
        rows = slice(first, first + size)
        for h in range(q.shape[1]):
            qc, kc, vc, bc = q[rows, h], k[rows, h], v[rows, h], beta[rows, h, None]
            total = np.cumsum(g[rows, h])
            from_start = np.exp(total)[:, None]
            decay = np.tril(np.exp(np.minimum(total[:, None] - total, 0)))
            system = np.eye(len(qc)) + np.tril(bc * decay * (kc @ kc.T), -1)
            u = np.linalg.solve(system, bc * (vc - from_start * (kc @ state[h])))
            out[rows, h] = from_start * (qc @ state[h]) + (decay * (qc @ kc.T)) @ u
            state[h] = from_start[-1] * state[h] + (kc * decay[-1][:, None]).T @ u
    return out, state


def gated_norm(o: Array, z: Array, weight: Array, eps: float) -> Array:
    """o / rms(o) * weight * silu(z) over the last axis."""
    return o / np.sqrt(np.mean(o * o, axis=-1, keepdims=True) + eps) * weight * silu(z)


def gated_delta(
    x: Array, gates: Array, filter: Array, a_log: Array, dt_bias: Array, norm: Array, before: Array, state: Array,
    *, key_heads: int, eps: float, size: int = 0,
) -> tuple[F64, F64, F64]:  # fmt: skip
    """All of it for consecutive rows of one sequence: y (rows, value_heads * value_dim), and what `before` (taps - 1,
    channels) and `state` (value_heads, key_dim, value_dim) are behind them. size: of chunks, 0: token by token."""
    value_heads, key_dim, value_dim = state.shape
    x, gates = x.astype(np.float64), gates.astype(np.float64)
    q, k, v, z = split_rows(x, key_heads, value_heads, key_dim, value_dim)
    line = np.concatenate([part.reshape(len(x), -1) for part in (q, k, v)], axis=1)
    mixed = causal_conv(line, filter, before)
    q, k, v = np.split(mixed, [key_heads * key_dim, 2 * key_heads * key_dim], axis=1)
    q, k = (
        np.repeat(l2_norm(part.reshape(len(x), key_heads, key_dim)), value_heads // key_heads, axis=1)
        for part in (q, k)
    )
    b, a = split_gates(gates, key_heads)
    beta, g = gates_of(a, b, a_log, dt_bias)
    v = v.reshape(len(x), value_heads, value_dim)
    q = q / np.sqrt(key_dim)
    o, state = chunked(q, k, v, beta, g, state, size) if size else recurrent(q, k, v, beta, g, state)
    y = gated_norm(o, z, norm, eps)
    return y.reshape(len(x), -1), np.concatenate([before, line])[len(x) :], state
