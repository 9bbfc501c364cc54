"""What is in a checkpoint, from its headers: nothing is loaded, no device is opened."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from marlin import html
from marlin.loaders import Checkpoint, QuantizedTensor, RowTrellis, TensorInfo, TrellisTensor, open_checkpoint
from marlin.trellis import TrellisFormat

# Part of a tensor's name -> its class; the first that fits.
CLASSES: Final = (
    ("norm", "norms"),
    ("embed_tokens", "embedding"),
    ("lm_head", "head"),
    ("attn", "attention"),
    ("experts.", "experts"),
    ("shared_expert.", "experts"),
    ("mlp.gate.", "router"),
    ("block_sparse_moe.gate.", "router"),
    ("mlp.shared_expert_gate.", "router"),
    ("mlp", "mlp"),
)
# Keys of config.json worth a line.
CONFIG_KEYS: Final = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
    "tie_word_embeddings", "num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts",
    "num_experts_per_tok", "moe_intermediate_size",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor, or a quantized weight with all its planes; `form` is its dtype, or its format."""

    name: str
    kind: str
    form: str
    shape: tuple[int, ...]
    nbytes: int
    file: str
    quantized: bool = False

    @property
    def parameters(self) -> int:
        """Elements of the tensor; of a quantized weight, its weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Total:
    """Sum of the entries of one class or form."""

    name: str
    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """The entries of a checkpoint in the order of their names, and what its JSON files say."""

    name: str
    loader: str
    files: dict[str, int]
    config: dict[str, Any]
    metadata: dict[str, str]
    entries: list[Entry]

    @property
    def parameters(self) -> int:
        return sum(entry.parameters for entry in self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries)

    def by_class(self) -> list[Total]:
        """Totals of embedding, attention and so on, the largest first."""
        return _totals((entry.kind, entry) for entry in self.entries)

    def by_form(self) -> list[Total]:
        """Totals of each dtype and format, the largest first."""
        return _totals((entry.form, entry) for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "model": self.name,
            "loader": self.loader,
            "files": self.files,
            "parameters": self.parameters,
            "nbytes": self.nbytes,
            "config": self.config,
            "metadata": self.metadata,
            "by_class": [asdict(total) for total in self.by_class()],
            "by_form": [asdict(total) for total in self.by_form()],
            "tensors": [asdict(entry) | {"parameters": entry.parameters} for entry in self.entries],
        }

    def __repr__(self) -> str:
        rows = [(t.name, t.tensors, t.parameters, html.size(t.nbytes)) for t in self.by_class()]
        title = f"{self.name}: {self.parameters / 1e6:.1f}M parameters, {html.size(self.nbytes)}"
        return f"{title}\n{html.lined_up(rows, ('class', 'tensors', 'parameters', 'size'))}"


def inspect(source: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Inspection:
    """Look into a model folder, a weight file or a hub name.

    Raises ModelFormatError for broken files, UnsupportedModelError for those without a loader.
    """
    checkpoint = open_checkpoint(source, revision=revision, local_files_only=local_files_only)
    return Inspection(
        name=checkpoint.folder.name,
        loader=checkpoint.loader,
        files={path.name: path.stat().st_size for path in checkpoint.files},
        config={key: checkpoint.config[key] for key in CONFIG_KEYS if key in checkpoint.config},
        metadata=dict(checkpoint.metadata),
        entries=sorted(_entries(checkpoint), key=lambda entry: _natural(entry.name)),
    )


def _entries(checkpoint: Checkpoint) -> Iterable[Entry]:
    trellises = checkpoint.trellis | checkpoint.row_trellis
    quantized = checkpoint.quantized | trellises
    planes: dict[str, list[TensorInfo]] = {module: [] for module in quantized}
    for name, tensor in checkpoint.tensors.items():
        module = name.rpartition(".")[0]
        # X.weight_packed, X.weight_scale, X.weight_shape, X.trellis, X.suh ... are planes of X; X.bias is not.
        if (
            module in planes
            and (module in trellises or name[len(module) + 1 :].startswith("weight"))
            and (not name.endswith(".bias"))
        ):
            planes[module].append(tensor)
        else:
            file = tensor.path.name
            yield Entry(name, _class(name), tensor.dtype, tensor.shape, tensor.nbytes, file)
    for module, weight in quantized.items():
        yield Entry(
            f"{module}.weight",
            _class(module),
            _form(weight),
            weight.shape,
            sum(tensor.nbytes for tensor in planes[module]),
            (weight.weight if isinstance(weight, QuantizedTensor) else weight.trellis).path.name,
            quantized=True,
        )


def _form(weight: QuantizedTensor | TrellisTensor | RowTrellis) -> str:
    if not isinstance(weight, QuantizedTensor):
        return str(TrellisFormat(weight.bits, weight.codebook))
    group = f"group {weight.group}" if weight.group else "per channel"
    zero = ", zero points" if weight.zero else ""
    return f"{weight.format}, {group}, {weight.scale.dtype} scales{zero}"


def _class(name: str) -> str:
    return next((kind for part, kind in CLASSES if part in name), "other")


def _totals(items: Iterable[tuple[str, Entry]]) -> list[Total]:
    groups: dict[str, list[Entry]] = {}
    for name, entry in items:
        groups.setdefault(name, []).append(entry)
    totals = (
        Total(name, len(found), sum(e.parameters for e in found), sum(e.nbytes for e in found))
        for name, found in groups.items()
    )
    return sorted(totals, key=lambda total: -total.nbytes)


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 10 after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
