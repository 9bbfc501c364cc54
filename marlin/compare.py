"""Results of a network, module by module, beside those of another implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marlin import html
from marlin.errors import MarlinError


@dataclass(frozen=True)
class Difference:
    """One result beside the other's: the largest |a - b|, and |a - b| / |b| in the Euclidean norm (0 for 0 / 0)."""

    name: str
    shape: tuple[int, ...]
    largest: float
    relative: float


class Comparison(list[Difference]):
    """The differences in order of computation; printing it shows a table."""

    def __repr__(self) -> str:
        return html.lined_up(self._rows(), ("module", "shape", "largest", "relative"))

    def _repr_html_(self) -> str:
        return html.table(self._rows(), head=("module", "shape", "largest", "relative"), title="Differences")

    def _rows(self) -> list[tuple[object, ...]]:
        return [(d.name, " × ".join(map(str, d.shape)), f"{d.largest:.2e}", f"{d.relative:.2e}") for d in self]


def differences(ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, ArrayLike]) -> Comparison:
    """Compare the results that have the same names. ValueError when none has, or shapes differ."""
    found = Comparison()
    for name, value in ours.items():
        if name not in theirs:
            continue
        a, b = value.astype(np.float64), np.asarray(theirs[name], np.float64)
        if a.shape != b.shape:
            raise ValueError(f"compare: {name} is {a.shape} here and {b.shape} in the reference")
        error, size = a - b, float(np.linalg.norm(b))
        relative = float(np.linalg.norm(error)) / size if size else float(np.inf if error.any() else 0)
        found.append(Difference(name, a.shape, float(np.abs(error).max(initial=0)), relative))
    if not found:
        raise ValueError(f"compare: the reference has none of {', '.join(ours)}")
    return found


def transformers_trace(source: str | Path | Any, ids: Sequence[int]) -> dict[str, NDArray[np.float32]]:
    """Hidden states and logits of a transformers model for token ids, by the names of `Model.trace`.

    source: a folder or hub name, loaded in f32 on the processor, or a model that transformers has loaded. Its last
    hidden state comes after the final norm, so that the last layer has no row of its own.
    Raises MarlinError where transformers or torch is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MarlinError(f"comparing with transformers needs {error.name}: pip install 'marlin-vulkan[hf]'") from None
    network: Any = source
    if isinstance(source, str | Path):
        network = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    network.eval()
    with torch.no_grad():
        out = network(torch.tensor([list(ids)], device=network.device), output_hidden_states=True)
    layers = [f"model.layers.{i}" for i in range(len(out.hidden_states) - 2)]
    states = zip(["model.embed_tokens", *layers, "model.norm"], out.hidden_states, strict=True)
    return {name: value[0].float().cpu().numpy() for name, value in [*states, ("logits", out.logits)]}
