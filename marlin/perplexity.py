"""How well a model predicts a text: log-probabilities of its tokens, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marlin import html


@dataclass(frozen=True)
class Score:
    """Log-probabilities of tokens 1 .. n-1 of a text, each given those before it.

    top: for each position the (id, log-probability) of the likeliest tokens, when asked for.
    """

    tokens: list[int]
    logprobs: NDArray[np.float32]
    top: list[list[tuple[int, float]]] | None = None

    @property
    def total(self) -> float:
        """Log-probability of the whole text after its first token."""
        return float(self.logprobs.sum(dtype=np.float64))

    def __len__(self) -> int:
        return len(self.logprobs)


class Perplexity(float):
    """exp(mean negative log-likelihood), a number that remembers how it came about.

    nll: summed over `count` predicted tokens; windows: the perplexity of each window.
    """

    nll: float
    count: int
    stride: int
    windows: list[float]

    def __new__(cls, nlls: list[float], counts: list[int], stride: int) -> Perplexity:
        total, count = math.fsum(nlls), sum(counts)
        value = super().__new__(cls, math.exp(total / count))
        value.nll, value.count, value.stride = total, count, stride
        value.windows = [math.exp(nll / n) for nll, n in zip(nlls, counts, strict=True)]
        return value

    def __repr__(self) -> str:
        return f"{float(self):.4f}"

    def _repr_html_(self) -> str:
        rows = [
            ("perplexity", f"{self:.4f}"),
            ("tokens predicted", self.count),
            ("windows", len(self.windows)),
        ]
        return html.table(rows)

    def plot(self, axes: Any = None) -> Any:
        """Perplexity by window as matplotlib Axes (needs the extra `plot`)."""
        import matplotlib.pyplot

        if axes is None:
            _, axes = matplotlib.pyplot.subplots()
        axes.plot(self.windows, marker=".")
        axes.axhline(float(self), linestyle="--", color="gray")
        axes.set_xlabel(f"window of {self.stride} tokens")
        axes.set_ylabel("perplexity")
        return axes

    def save(self, path: str | Path) -> None:
        """Write the picture to a file, SVG or PNG by its name."""
        self.plot().figure.savefig(path, bbox_inches="tight")


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis, exponentials summed in f64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    result: NDArray[np.float32] = (shifted - np.log(total)).astype(np.float32)
    return result


def picked(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The log-probability of ids (rows) under logits (rows, vocab)."""
    top = logits.max(axis=-1)
    total = np.exp(logits - top[:, None]).sum(axis=-1, dtype=np.float64)
    result: NDArray[np.float32] = (logits[np.arange(len(ids)), ids] - top - np.log(total)).astype(np.float32)
    return result


def windows(count: int, stride: int) -> Iterator[slice]:
    """Windows of `stride` tokens side by side; the last may be shorter, a single token predicts nothing."""
    for first in range(0, count, stride):
        if min(first + stride, count) - first >= 2:
            yield slice(first, min(first + stride, count))
