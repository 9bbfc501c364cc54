"""Embedding lookup."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def embedding(table: NDArray[Any], ids: NDArray[Any]) -> NDArray[Any]:
    """table (n, k), ids (rows) -> (rows, k). Ids are clamped to 0 .. n - 1, as in the kernel."""
    return np.stack([table[min(max(int(i), 0), len(table) - 1)] for i in ids]) if len(ids) else table[:0]
