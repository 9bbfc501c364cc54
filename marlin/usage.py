"""How often the experts of a model were chosen, as numbers and as a layer × expert heat-map."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marlin import html

CELL: Final = 10  # pixels of a square of the heat-map


@dataclass(frozen=True)
class ExpertUsage:
    """counts (layers, experts): tokens that chose each expert; `layers` are the numbers of the layers with experts."""

    model: str
    layers: list[int]
    counts: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """counts as shares of their layer; each row adds up to 1, or is 0 where nothing was counted."""
        total = self.counts.sum(axis=1, keepdims=True)
        return self.counts / np.maximum(total, 1)

    @property
    def balance(self) -> NDArray[np.float64]:
        """(layers) the effective share of experts in use: exp(entropy) / experts, 1 when all are chosen alike."""
        p = self.shares
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)
        used: NDArray[np.float64] = np.where(p.sum(axis=1) > 0, np.exp(entropy) / p.shape[1], 0.0)
        return used

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {"model": self.model, "layers": list(self.layers), "counts": self.counts.tolist()}

    def __repr__(self) -> str:
        rows = [
            (str(layer), str(int(row.sum())), str(int((row == 0).sum())), f"{row.max()}", f"{balance:.2f}")
            for layer, row, balance in zip(self.layers, self.counts, self.balance, strict=True)
        ]
        return f"{self._title()}\n{html.lined_up(rows, ('layer', 'choices', 'unused', 'most', 'balance'))}"

    def _repr_html_(self) -> str:
        peak = max(float(self.shares.max(initial=0)), 1e-12)
        lines = []
        for layer, shares, counts in zip(self.layers, self.shares, self.counts, strict=True):
            cells = "".join(
                f'<td title="layer {layer}, expert {i}: {count}" style="padding:0;width:{CELL}px;height:{CELL}px;'
                f'background:rgba(31,119,180,{share / peak:.3f})"></td>'
                for i, (share, count) in enumerate(zip(shares, counts, strict=True))
            )
            lines.append(f'<tr><th style="font-weight:normal;padding:0 4px">{layer}</th>{cells}</tr>')
        return (
            f"<div>{html.text(self._title())}: layers downwards, experts to the right, the darker the more often"
            f'<table style="border-collapse:collapse">{"".join(lines)}</table></div>'
        )

    def plot(self, axes: Any = None) -> Any:
        """The heat-map as matplotlib Axes (needs the extra `plot`)."""
        import matplotlib.pyplot

        if axes is None:
            size = self.counts.shape[1] / 8 + 2, self.counts.shape[0] / 8 + 1
            _, axes = matplotlib.pyplot.subplots(figsize=size)
        image = axes.imshow(self.shares, aspect="auto", vmin=0, cmap="viridis", interpolation="nearest")
        axes.figure.colorbar(image, ax=axes, label="share of the layer's choices")
        step = max(1, len(self.layers) // 16)
        axes.set_yticks(range(0, len(self.layers), step), [str(layer) for layer in self.layers[::step]])
        axes.set_xlabel("expert")
        axes.set_ylabel("layer")
        axes.set_title(self._title())
        return axes

    def save(self, path: str | Path) -> None:
        """Write the picture to a file, SVG or PNG by its name; to one called .json the numbers, for `load`."""
        if Path(path).suffix == ".json":
            Path(path).write_text(json.dumps(self.to_dict()))
            return
        self.plot().figure.savefig(path, bbox_inches="tight")

    @classmethod
    def load(cls, path: str | Path) -> ExpertUsage:
        """The numbers of a file that `save` wrote. Raises OSError, and ValueError for a file of another kind."""
        try:
            stored = json.loads(Path(path).read_text())
            counts = np.array(stored["counts"], np.int64)
            layers = [int(layer) for layer in stored["layers"]]
            if counts.ndim != 2 or len(counts) != len(layers) or counts.min(initial=0) < 0:
                raise ValueError("counts must be numbers for every layer and expert")
            return cls(str(stored["model"]), layers, counts)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"{path}: is no expert usage as ExpertUsage.save writes it: {error}") from error

    def _title(self) -> str:
        return f"{self.model}, {int(self.counts.sum())} choices of {self.counts.shape[1]} experts a layer"
