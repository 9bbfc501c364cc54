"""The layers of golden/exl3/linears.npz (made by its extract.py from outputs of ExLlamaV3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FOLDER: Final = Path(__file__).parent / "golden" / "exl3"
TINY: Final = FOLDER / "tiny"
ALL: Final[dict[str, NDArray[Any]]] = dict(np.load(FOLDER / "linears.npz"))


@dataclass(frozen=True)
class Layer:
    """A stored layer and what ExLlamaV3 computed with it; tensors by name."""

    name: str

    def __getattr__(self, tensor: str) -> NDArray[Any]:
        try:
            return ALL[f"{self.name}/{tensor}"]
        except KeyError:
            raise AttributeError(tensor) from None

    def __str__(self) -> str:
        return self.name

    @property
    def codebook(self) -> str:
        return self.name.split("_")[1]

    @property
    def stored_bias(self) -> NDArray[Any] | None:
        return ALL.get(f"{self.name}/bias")


LAYERS: Final = [Layer(name.removesuffix("/trellis")) for name in ALL if name.endswith("/trellis")]


def sha256(array: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
