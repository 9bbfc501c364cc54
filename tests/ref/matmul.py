"""y = epilogue(norm(x) W^T): the linear layer with all that its kernels fuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .norm import rms_norm

Array = NDArray[Any]


def silu(x: Array) -> Array:
    """x * sigmoid(x), without overflow for large -x."""
    return x * np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


def gelu(x: Array) -> Array:
    """x * Phi(x) with the error function. Source: Hendrycks and Gimpel, 2016."""
    erf = np.array([math.erf(v / math.sqrt(2)) for v in x.ravel()]).reshape(x.shape)
    return 0.5 * x * (1 + erf)


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of gelu, same source."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


PLAIN: dict[str, Callable[[Array], Array]] = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}
GATED: dict[str, Callable[[Array], Array]] = {
    "swiglu": silu,
    "geglu": gelu,
    "geglu_tanh": gelu_tanh,
}


def linear(
    x: Array,
    w: Array,
    *,
    norm: Array | None = None,
    eps: float = 1e-6,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
) -> NDArray[np.float64]:
    """x (m, k), w (n, k) -> (m, n), or (m, n / 2) for gated activations, in float64.

    In order: RMS norm of x with weights norm (k); product; bias (n); activation; residual (m,
    n_out) added. Gated: the rows of w are gate0 up0 gate1 up1 ..., y = act(gate) * up.
    """
    rows = x.astype(np.float64)
    if norm is not None:
        rows, _ = rms_norm(rows, norm, eps)
    y: NDArray[np.float64] = np.einsum("mk,nk->mn", rows, w.astype(np.float64))
    if bias is not None:
        y = y + bias.astype(np.float64)
    if activation in PLAIN:
        y = PLAIN[activation](y)
    elif activation in GATED:
        y = GATED[activation](y[:, 0::2]) * y[:, 1::2]
    elif activation is not None:
        raise ValueError(f"activation {activation!r}")
    return y if residual is None else y + residual.astype(np.float64)
