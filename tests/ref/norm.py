"""RMS norm. Source: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rms_norm(
    x: NDArray[Any], weight: NDArray[Any], eps: float, residual: NDArray[Any] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(rows, columns) -> (sum / sqrt(mean(sum^2) + eps) * weight, sum), sum = x + residual."""
    total = x.astype(np.float64)
    if residual is not None:
        total = total + residual.astype(np.float64)
    square = (total * total).mean(axis=-1, keepdims=True)
    return total / np.sqrt(square + eps) * weight.astype(np.float64), total
