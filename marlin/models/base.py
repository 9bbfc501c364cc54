"""What model files are written with: modules that know their weights, and where weights come from.

A network is built twice over: constructing it finds and checks every tensor by name and shape and says how
many bytes it will take (that is all a memory plan needs); `load` then moves the bytes to a device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from marlin import _C
from marlin.config import ModelConfig, rope_frequencies
from marlin.errors import ModelFormatError, UnsupportedModelError
from marlin.linear import WeightFormat, global_scale
from marlin.loaders.base import Checkpoint, QuantizedTensor, RowTrellis, TensorInfo, TrellisTensor, open_file, show
from marlin.tensors import to_numpy, upload
from marlin.trellis import TrellisFormat, padded, trellis_bytes

GATED: Final = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh"}
DENSE: Final = ("f32", "f16", "bf16")
Weight = TensorInfo | QuantizedTensor | TrellisTensor | RowTrellis  # as a checkpoint has it
BLOCK_BYTES: Final = 32 << 20  # of a file held in host memory at a time
FILL_NUMBERS: Final = 1 << 20  # random numbers made on the host for a matrix, and repeated on the device

# Tensors that checkpoints carry and nobody needs: recomputed tables, scales of activations and caches.
UNUSED: Final = (
    "rotary_emb.inv_freq",
    ".input_scale",
    ".input_global_scale",
    ".k_scale",
    ".v_scale",
    ".kv_scale",
)


@dataclass(frozen=True)
class Run:
    """One call of a network: which row stands where, and the cache that it reads and writes.

    positions, slots (rows) i32; bound: more than any position. sequence: all rows are consecutive positions of
    one slot (prefill). dtype: of activations between kernels. state: of the layers without a cache, in networks that
    have some: what a slot remembers there is that of the position before.
    """

    cache: _C.KVCache
    positions: _C.Tensor
    slots: _C.Tensor
    bound: int
    dtype: str = "f16"
    sequence: bool = False
    state: _C.DeltaState | None = None


class Module:
    """A named part of a network; `watch`, when set, sees every result (`Model.trace`)."""

    kind: ClassVar[str] = ""  # the row of the memory plan that its bytes belong to
    memory: str = "device"  # or "host", which is not in those rows

    def __init__(self, name: str) -> None:
        self.name = name
        self.watch: Callable[[str, _C.Tensor], None] | None = None

    @property
    def nbytes(self) -> int:
        """Device bytes of its own weights."""
        return 0

    @property
    def parameters_here(self) -> int:
        """Numbers that training set in it, its children aside."""
        return 0

    def load(self, device: _C.Device) -> None:
        """Move its own weights to the device."""

    def children(self) -> Iterator[Module]:
        """The modules in it, in the order of its attributes; one that it borrows from another is not its child."""
        for value in vars(self).values():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, Module) and (not self.name or item.name.startswith(self.name + ".")):
                    yield item

    def modules(self) -> Iterator[Module]:
        """This module and all in it, each once, in the order of computation."""
        seen: set[int] = set()
        waiting: list[Module] = [self]
        while waiting:
            module = waiting.pop()
            if id(module) not in seen:
                seen.add(id(module))
                yield module
                waiting += reversed(list(module.children()))

    def seen(self, y: _C.Tensor) -> _C.Tensor:
        if self.watch is not None:
            self.watch(self.name, y)
        return y

    def describe(self) -> str:
        """One line for the module tree."""
        return type(self).__name__

    def tree(self, above: str = "", indent: str = "") -> Iterator[str]:
        """The lines of the module tree."""
        label = self.name.removeprefix(above + ".") or "model"
        yield f"{indent}{label}: {self.describe()}"
        for child in self.children():
            yield from child.tree(self.name, indent + "  ")

    def __repr__(self) -> str:
        return "\n".join(self.tree())


class Source:
    """Where a network's weights come from: a checkpoint, or random numbers of the right shapes.

    format: of every linear layer, None for what is stored. exact: norms are not fused into matrices, whose
    kernels round a normalised row to f16. int8: trellises of mul1 take one or two rows in 8 bits. Remembers what was
    asked for; `finish` complains about tensors that nobody wanted.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        format: WeightFormat | TrellisFormat | None = None,
        *,
        exact: bool = False,
        int8: bool = False,
    ) -> None:
        self.checkpoint, self.format, self.exact, self.int8 = checkpoint, format, exact, int8
        self._used: set[str] = set()
        self._unused: tuple[str, ...] = ()  # beginnings of names

    def vector(self, name: str, shape: tuple[int, ...]) -> TensorInfo | None:
        """A norm weight or bias."""
        if self.checkpoint is None:
            return None
        info = self.checkpoint.tensor(name)
        self._check(info.name, info.shape, shape)
        self._check_dense(info)
        self._used.add(name)
        return info

    def matrix(self, module: str, rows: int, columns: int) -> Weight | None:
        """The weight (rows, columns) of a module."""
        if self.checkpoint is None:
            return None
        found = self.checkpoint.linear(module)
        if isinstance(found, TrellisTensor):
            self._check(found.name, found.shape, (padded(rows), padded(columns)))
        elif isinstance(found, RowTrellis):
            self._check(found.name, found.shape, (rows, -(-columns // 256) * 256))
        else:
            self._check(found.name, found.shape, (rows, columns))
        if isinstance(found, TensorInfo):
            self._check_dense(found)
        self._used.add(found.name if isinstance(found, TensorInfo) else module + ".")
        return found

    def kind(self, stored: Weight | None) -> Hashable:
        """What a matrix will be on the device, as far as it decides which others can lie in one with it."""
        as_it_is = self.format is None or isinstance(self.format, TrellisFormat)
        if isinstance(stored, TrellisTensor):
            return (stored.bits, stored.codebook) if as_it_is else self.format
        if isinstance(stored, QuantizedTensor):
            form = stored_format(stored)
            return form if as_it_is or self.format.accepts(form) else self.format  # type: ignore[union-attr]
        return self.format

    def has(self, name: str) -> bool:
        return self.checkpoint is not None and name in self.checkpoint.tensors

    def split(self, name: str, shape: tuple[int, ...], pieces: Mapping[str, int], rows: int) -> None:
        """Let blocks of `rows` rows of the tensor `name` (..., columns) be found by names of their own.

        pieces: name -> first row, the leading axes counted as one.
        """
        assert self.checkpoint is not None
        info = self.checkpoint.tensor(name)
        self._check(name, info.shape, shape)
        self._check_dense(info)
        self._used.add(name)
        row_bytes = info.nbytes // math.prod(shape[:-1])
        for piece, first in pieces.items():
            self.checkpoint.tensors[piece] = dataclasses.replace(
                info, name=piece, shape=(rows, shape[-1]), offset=info.offset + first * row_bytes,
                nbytes=rows * row_bytes,
            )  # fmt: skip

    def ignore(self, name: str) -> None:
        """A tensor that may be there and is not needed."""
        self._used.add(name)

    def ignore_all(self, beginning: str) -> None:
        """Tensors whose names begin so, which may be there and are not needed."""
        self._unused += (beginning,)

    def ignore_layers(self, first: int, count: int) -> None:
        """Layers behind the network's own, which predict further tokens (multi-token prediction)."""
        for i in range(count):
            self.ignore_all(f"model.layers.{first + i}.")

    def finish(self) -> None:
        """ModelFormatError for tensors that no module asked for: the network is not the one of the file."""
        if self.checkpoint is None:
            return
        planes = {name for name in self._used if name.endswith(".")}
        extra = [
            name
            for name in self.checkpoint.tensors
            if name not in self._used
            and not name.endswith(UNUSED)
            and not name.startswith(self._unused)
            and not (name.rpartition(".")[0] + "." in planes and not name.endswith(".bias"))
        ]
        if extra:
            more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
            raise ModelFormatError(
                f"{self.checkpoint.folder.name}: the model has no place for {', '.join(map(show, extra[:3]))}{more}"
            )

    def _check(self, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if shape != expected:
            raise ModelFormatError(f"tensor {show(name)}: expected shape {expected} by config.json, got {shape}")

    def _check_dense(self, info: TensorInfo) -> None:
        if info.dtype not in DENSE:
            raise ModelFormatError(f"tensor {show(info.name)}: expected one of {', '.join(DENSE)}, got {info.dtype}")


class Vector(Module):
    """A vector of f32 weights (size): a norm's, or a bias. `plus`, set before it is loaded, is added to what is stored:
    norms around zero are stored less 1. fill: all values of it without a checkpoint."""

    kind = "norms and biases"

    def __init__(
        self, source: Source, name: str, size: int, *, fill: float = 1.0, shape: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(name)
        self.info, self.size, self.fill = source.vector(name, shape or (size,)), size, fill
        self.plus = 0.0
        self.weight: _C.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return 4 * self.size

    @property
    def parameters_here(self) -> int:
        return self.size

    def read(self) -> NDArray[np.float32]:
        """The values from the file."""
        if self.info is None:
            return np.full(self.size, self.fill, np.float32)
        values = np.ascontiguousarray(self.info.read(), np.float32)
        if not np.isfinite(values).all():
            raise ModelFormatError(f"tensor {show(self.name)}: holds inf or nan")
        return values + np.float32(self.plus) if self.plus else values

    def load(self, device: _C.Device) -> None:
        self.weight = upload(self.read(), device)

    def describe(self) -> str:
        return f"({self.size}) f32"


@dataclass(frozen=True)
class Part:
    """One matrix of the checkpoint within a Linear: its rows go to start, start + stride, ..."""

    module: str
    rows: int
    start: int
    stride: int
    weight: Weight | None
    bias: Vector | None


class Linear(Module):
    """One or several matrices of the checkpoint, multiplied by one kernel.

    parts: (module name, rows). Stacked (q over k over v); with `interleaved` = s, each s parts are dealt out row by
    row before the next s: 2 is how gated activations want gate and up. bias: whether the modules have one.
    EXL3 trellises stay apart, for each has its own scales on x: one kernel a part, with the same result.
    as_stored: not rounded to the source's format; dense: nor kept quantized; whole: always one matrix, in f16 where
    it would be trellises. experts: the parts, or pairs of gate and up, are experts of one kind (Source.kind); their
    trellises lie in one TrellisLinear, or one of gate and one of up. memory: "device" or "host".
    Raises UnsupportedModelError when parts are stored in different weight formats and are not to be rounded to one.
    """

    kind = "layers"

    def __init__(
        self,
        source: Source,
        name: str,
        parts: Sequence[tuple[str, int]],
        k: int,
        *,
        bias: bool = False,
        interleaved: int = 1,
        kind: str = "",
        as_stored: bool = False,
        dense: bool = False,
        whole: bool = False,
        experts: bool = False,
        memory: str = "device",
    ) -> None:
        super().__init__(name)
        self.experts, self.interleaved, self.memory = experts, interleaved, memory
        self.parts: list[Part] = []
        above = 0  # rows of the groups before
        for index, (module, rows) in enumerate(parts):
            weight = source.matrix(module, rows, k)
            vector = Vector(source, module + ".bias", rows, fill=0.0) if bias else None
            place = index % interleaved
            self.parts.append(Part(module, rows, above + place, interleaved, weight, vector))
            above += rows * interleaved if place == interleaved - 1 else 0
        self.n, self.k = sum(rows for _, rows in parts), k
        self.exact = source.exact
        self.part_kind = kind or self.kind
        self.form: WeightFormat | TrellisFormat
        self.global_scale: float
        if dense:
            self.form, self.global_scale = self._exact(), 1.0
        else:
            self.form, self.global_scale = self._choose(None if as_stored else source.format)
            if whole and isinstance(self.form, TrellisFormat):
                self.form = WeightFormat("f16")
        self.int8 = source.int8 and isinstance(self.form, TrellisFormat) and self.form.codebook == "mul1"
        self.weight: _C.Linear | None = None
        self.trellises: list[_C.TrellisLinear] = []

    def _exact(self) -> WeightFormat:
        """The float that all parts are stored in; f32 where they differ or are quantized."""
        stored = {part.weight.dtype if isinstance(part.weight, TensorInfo) else "f32" for part in self.parts}
        return WeightFormat(stored.pop() if len(stored) == 1 else "f32")

    def _choose(self, wanted: WeightFormat | TrellisFormat | None) -> tuple[WeightFormat | TrellisFormat, float]:
        """The format on the device, and the global scale where all parts have the same."""
        trellises = [part.weight for part in self.parts if isinstance(part.weight, TrellisTensor)]
        if trellises and (wanted is None or isinstance(wanted, TrellisFormat)):
            return self._choose_trellis(trellises), 1.0
        if isinstance(wanted, TrellisFormat):
            if any(part.weight is not None for part in self.parts):
                raise UnsupportedModelError(f"{self.name}: weights can be loaded from EXL3, not rounded to it")
            return wanted, 1.0
        stored = [part.weight for part in self.parts if isinstance(part.weight, QuantizedTensor)]
        if not stored:
            if wanted is not None:
                return wanted, 1.0
            dense = {part.weight.dtype for part in self.parts if isinstance(part.weight, TensorInfo)}
            return WeightFormat("f32" if "f32" in dense else "f16"), 1.0
        forms = {stored_format(tensor) for tensor in stored}
        alike = len(forms) == 1 and len(stored) == len(self.parts)
        if not alike and wanted is None:
            raise self._mixed()
        form = forms.pop()
        if wanted is not None and not (alike and wanted.accepts(form)):
            return wanted, 1.0
        scales = {tensor.global_scale for tensor in stored}
        if len(scales) > 1:  # one global scale a matrix: multiply it into scales that can hold the product
            return WeightFormat(form.name, form.group, "f32", form.zero), 1.0
        return form, scales.pop() if form.scale == "e4m3" else 1.0

    def _choose_trellis(self, stored: list[TrellisTensor]) -> TrellisFormat:
        codebooks = {tensor.codebook for tensor in stored}
        if len(stored) < len(self.parts) or len(codebooks) > 1:
            raise self._mixed()
        weights = [tensor.shape[0] for tensor in stored]
        bits = sum(tensor.bits * n for tensor, n in zip(stored, weights, strict=True)) / sum(weights)
        return TrellisFormat(bits, codebooks.pop())

    def _mixed(self) -> UnsupportedModelError:
        kinds = ", ".join(f"{part.module} {_kind_of(part.weight)}" for part in _different(self.parts))
        return UnsupportedModelError(f"{self.name}: its parts must be stored in one weight format, got {kinds}")

    def _bits(self, part: Part) -> float:
        assert isinstance(self.form, TrellisFormat)
        return part.weight.bits if isinstance(part.weight, TrellisTensor) else self.form.bits

    @property
    def nbytes(self) -> int:
        if isinstance(self.form, TrellisFormat):
            weights = sum(trellis_bytes(part.rows, self.k, self._bits(part)) for part in self.parts)
        else:
            weights = self.form.nbytes(self.n, self.k)
        return weights + (4 * self.n if self.parts[0].bias else 0)

    @property
    def parameters_here(self) -> int:
        return self.n * self.k + (self.n if self.parts[0].bias else 0)

    @property
    def note(self) -> str:
        """What the plan says where codes of the file become numbers on the device; empty where they stay codes."""
        coded = [part.weight for part in self.parts if isinstance(part.weight, TrellisTensor | RowTrellis)]
        if not coded or isinstance(self.form, TrellisFormat):
            return ""
        kinds = dict.fromkeys(str(TrellisFormat(weight.bits, weight.codebook)) for weight in coded)
        return f"{self.part_kind}: {'; '.join(kinds)} in the file, {self.form} on the device"

    def load(self, device: _C.Device) -> None:
        if isinstance(self.form, TrellisFormat):
            if self.experts:
                self.trellises = [self._load_experts(device, i) for i in range(self.interleaved)]
            else:
                self.trellises = [self._load_trellis(device, part) for part in self.parts]
            return
        try:
            self.weight = self._load(device, self.form)
        except ValueError as error:
            # bf16 reaches further than f16: what does not fit is kept as it is.
            stored_bf16 = all(isinstance(p.weight, TensorInfo) and p.weight.dtype == "bf16" for p in self.parts)
            if self.form.name != "f16" or not stored_bf16 or isinstance(error, ModelFormatError):
                raise ModelFormatError(f"{self.name}: {error}") from error
            self.form = WeightFormat("bf16")
            self.weight = self._load(device, self.form)
        if self.parts[0].bias is not None:
            bias = np.empty(self.n, np.float32)
            for part in self.parts:
                assert part.bias is not None
                bias[part.start : part.start + (part.rows - 1) * part.stride + 1 : part.stride] = part.bias.read()
            self.weight.set_bias(upload(bias, device))

    def _load(self, device: _C.Device, form: WeightFormat) -> _C.Linear:
        scale = self.global_scale
        if form.scale == "e4m3" and not all(keeps(form, part.weight) for part in self.parts):
            scale = global_scale(form, max(peak(part.weight) for part in self.parts))
        weight = form.create(device, self.n, self.k, global_scale=scale, memory=self.memory)
        if self.parts[0].weight is None:
            fill(weight)
            return weight
        for part in self.parts:
            where = {"row_start": part.start, "row_stride": part.stride}
            stored = part.weight
            assert stored is not None
            if isinstance(stored, TensorInfo):
                weight.load_rows(str(stored.path), stored.offset, stored.nbytes, stored.dtype, part.rows, **where)
            elif isinstance(stored, TrellisTensor):
                decoded = load_trellis(device, stored, part.rows, self.k).dequantize("f32")
                weight.set_rows(np.ascontiguousarray(to_numpy(decoded).T), "f32", part.rows, **where)
            elif isinstance(stored, RowTrellis):
                for first, rows in stored.blocks():
                    at = part.start + first * part.stride
                    mine = np.ascontiguousarray(rows[:, : self.k])
                    weight.set_rows(mine, "f32", len(rows), row_start=at, row_stride=part.stride)
            elif isinstance(stored, QuantizedTensor) and keeps(form, stored):
                load_planes(weight, stored, where)
            else:
                weight.set_rows(stored.dequantize(), "f32", part.rows, **where)
        return weight

    def __call__(
        self,
        x: _C.Tensor | _C.Shares,
        *,
        norm: Vector | None = None,
        eps: float = 1e-6,
        activation: str | None = None,
        residual: _C.Tensor | None = None,
        dtype: str | None = None,
        total: _C.Tensor | None = None,
    ) -> _C.Tensor:
        """activation(norm(x) W^T + bias) + residual. x may be Shares where `takes_shares`, total: for their sum."""
        weight = norm.weight if norm is not None else None
        if not isinstance(x, _C.Tensor):
            assert self.takes_shares and activation is None and residual is None
            first = self.trellises[0]
            return self.seen(first(x, norm=weight, eps=eps, dtype=dtype, activations=self.activations(x), total=total))
        assert total is None
        if weight is not None and self.exact:
            x, weight = _C.rms_norm(x, weight, eps, dtype="f32"), None
        if self.trellises:
            return self.seen(self._call_trellises(x, weight, eps, activation, residual, dtype))
        assert self.weight is not None
        y = self.weight(x, norm=weight, eps=eps, activation=activation, residual=residual, dtype=dtype)
        return self.seen(y)

    def apart(self, x: _C.Tensor, *, norm: Vector | None, eps: float, dtype: str) -> list[_C.Tensor]:
        """norm(x) W^T + bias of each part, of trellises."""
        weight = norm.weight if norm is not None else None
        if weight is not None and self.exact:
            x, weight = _C.rms_norm(x, weight, eps, dtype="f32"), None
        rounded = self.activations(x)
        results = [trellis(x, norm=weight, eps=eps, dtype=dtype, activations=rounded) for trellis in self.trellises]
        if self.watch is not None:
            for part, y in zip(self.parts, results, strict=True):
                self.watch(part.module, y)
        return results

    def gated(
        self,
        x: _C.Tensor,
        gate: _C.Tensor,
        activation: str,
        residual: _C.Tensor,
        *,
        shares: bool,
    ) -> _C.Tensor | _C.Shares:
        """(activation(gate) * x) W^T + bias + residual, of a trellis. shares: of one row it may be Shares."""
        y = self.trellises[0](
            x, gate=gate, activation=activation, residual=residual, activations=self.activations(x),
            shares=shares and self.watch is None,
        )  # fmt: skip
        return self.seen(y) if isinstance(y, _C.Tensor) else y

    @property
    def takes_shares(self) -> bool:
        """Whether x of one row may be Shares with a base."""
        return len(self.trellises) == 1 and not self.exact and self.k % 8 == 0

    def open(
        self, x: _C.Tensor | _C.Shares, *, norm: Vector, eps: float, dtype: str, total: _C.Tensor | None = None
    ) -> _C.Tensor | _C.Shares:
        """norm(x) W^T + bias, or of one row Shares without a base, where that saves a wait."""
        if len(self.trellises) != 1 or self.exact or self.watch is not None:
            return self(x, norm=norm, eps=eps, dtype=dtype, total=total)
        return self.trellises[0](
            x, norm=norm.weight, eps=eps, dtype=dtype, activations=self.activations(x), shares=True, total=total
        )

    def activations(self, x: _C.Tensor | _C.Shares) -> str | None:
        """What a trellis rounds x to: more rows than two are multiplied by other kernels, in f16."""
        return "int8" if self.int8 and x.shape[0] <= 2 else None

    def _call_trellises(
        self,
        x: _C.Tensor,
        norm: _C.Tensor | None,
        eps: float,
        activation: str | None,
        residual: _C.Tensor | None,
        dtype: str | None,
    ) -> _C.Tensor:
        first, rounded = self.trellises[0], self.activations(x)
        if len(self.trellises) == 1:
            return first(
                x, norm=norm, eps=eps, activation=activation, residual=residual, dtype=dtype, activations=rounded
            )
        assert residual is None
        dtype = dtype or ("f16" if norm is not None else x.dtype)
        y = _C.empty(x.device, (x.shape[0], self.n), dtype)
        for part, trellis in zip(self.parts, self.trellises, strict=True):
            trellis(x, norm=norm, eps=eps, activation=activation, out=y, column=part.start, activations=rounded)
        return y

    def _load_trellis(self, device: _C.Device, part: Part) -> _C.TrellisLinear:
        assert isinstance(self.form, TrellisFormat)
        if isinstance(part.weight, TrellisTensor):
            trellis = load_trellis(device, part.weight, part.rows, self.k)
        else:
            trellis = random_trellis(device, part.rows, self.k, self.form)
        if part.bias is not None:
            trellis.set_bias(upload(part.bias.read(), device))
        return trellis

    def _load_experts(self, device: _C.Device, place: int) -> _C.TrellisLinear:
        """The trellises of every expert's part at this place."""
        assert isinstance(self.form, TrellisFormat)
        parts = self.parts[place :: self.interleaved]
        bits = self._bits(parts[0])
        stack = _C.TrellisLinear(
            device, parts[0].rows, self.k, bits, self.form.codebook, len(parts), memory=self.memory
        )
        random = random_codes(stack) if parts[0].weight is None else None
        for expert, part in enumerate(parts):
            if isinstance(part.weight, TrellisTensor):
                read_trellis(stack, part.weight, expert)
            elif random is not None:
                randomise_trellis(stack, np.roll(random, 37 * expert), expert)
        return stack

    def embed(self, ids: _C.Tensor) -> _C.Tensor:
        """Rows of the matrix by id: (rows) i32 -> (rows, k) f32."""
        assert self.weight is not None
        return self.seen(self.weight.embed(ids))

    def describe(self) -> str:
        names = list(dict.fromkeys(part.module.rpartition(".")[2] for part in self.parts))
        times = f"{len(self.parts) // len(names)} × " if len(self.parts) > len(names) else ""
        parts = f" [{times}{' + '.join(names)}]" if len(self.parts) > 1 else ""
        place = ", in host memory" if self.memory == "host" else ""
        return f"({self.n}, {self.k}) {self.form}{parts}{place}"


class Rope(Module):
    """The angular frequencies (rope_dim / 2) f32 of rotary embedding, and the factor on cos and sin."""

    kind = "norms and biases"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__("rope")
        frequencies, self.scale = rope_frequencies(config)
        self.frequencies = np.ascontiguousarray(frequencies, np.float32)
        self.freq: _C.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.frequencies.nbytes

    def load(self, device: _C.Device) -> None:
        self.freq = upload(self.frequencies, device)

    def describe(self) -> str:
        return f"({len(self.frequencies)}) f32"


class Attention(Module):
    """Rotate q and k, write k and v to the cache, and attend: (rows, q + k + v) -> (rows, q). No weights but norms.

    norms: RMS norm of each head of q and k first (Qwen3). gated: each head of q is followed by a gate, whose sigmoid
    multiplies what the head gives (Qwen3-Next): (rows, 2 q + k + v). layer: of the cache.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        layer: int,
        config: ModelConfig,
        rope: Rope,
        *,
        norms: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__(name)
        self.layer, self.heads, self.eps, self.rope = layer, config.heads, config.norm_eps, rope
        self.gated = gated
        self.q_norm = Vector(source, f"{name}.q_norm.weight", config.head_dim) if norms else None
        self.k_norm = Vector(source, f"{name}.k_norm.weight", config.head_dim) if norms else None

    def __call__(self, qkv: _C.Tensor, run: Run) -> _C.Tensor:
        assert self.rope.freq is not None
        return self.seen(
            _C.attention(
                qkv, run.cache, self.layer, run.positions, run.slots, self.rope.freq,
                heads=self.heads, bound=run.bound, sequence=run.sequence, dtype=run.dtype,
                q_norm=self.q_norm.weight if self.q_norm else None,
                k_norm=self.k_norm.weight if self.k_norm else None,
                eps=self.eps, rope_scale=self.rope.scale, gated=self.gated,
            )
        )  # fmt: skip


class CausalLM(Module):
    """What the engine asks of a network. Subclasses set these in __init__ and compute the hidden state."""

    config: ModelConfig
    norm: Vector
    lm_head: Linear

    def __call__(self, ids: _C.Tensor, run: Run) -> _C.Tensor:
        """ids (rows) i32 -> hidden (rows, hidden) f32, before the final norm."""
        raise NotImplementedError

    def logits(self, hidden: _C.Tensor) -> _C.Tensor:
        """(rows, hidden) -> (rows, vocab) f32: the final norm and the head."""
        return self.lm_head(hidden, norm=self.norm, eps=self.config.norm_eps, dtype="f32")

    def final_norm(self, hidden: _C.Tensor) -> _C.Tensor:
        """The final norm by itself, f32; `logits` has it fused."""
        assert self.norm.weight is not None
        normed: _C.Tensor = _C.rms_norm(hidden, self.norm.weight, self.config.norm_eps, dtype="f32")
        return normed

    @property
    def parameters(self) -> int:
        """Weights of all matrices and vectors."""
        return sum(module.parameters_here for module in self.modules())

    def sizes(self) -> dict[str, int]:
        """Device bytes by kind."""
        result: dict[str, int] = {}
        for module in self.modules():
            kind = module.part_kind if isinstance(module, Linear) else module.kind
            if module.nbytes and module.memory == "device":
                result[kind] = result.get(kind, 0) + module.nbytes
        return result


def stored_format(tensor: QuantizedTensor) -> WeightFormat:
    """The format of a quantized tensor as it lies in the file; bf16 scales become f32, which holds them all."""
    scale = {"bf16": "f32", "u8": "e8m0"}.get(tensor.scale.dtype, tensor.scale.dtype)
    return WeightFormat(tensor.format, tensor.group, scale, tensor.zero is not None)


def keeps(form: WeightFormat, stored: Weight | None) -> bool:
    """Whether a matrix of that format takes the planes as they are stored; f32 scales hold those of any type."""
    if not isinstance(stored, QuantizedTensor):
        return False
    have = stored_format(stored)
    same = (have.name, have.group, have.zero) == (form.name, form.group, form.zero)
    return same and form.scale in (have.scale, "f32")


def load_planes(weight: _C.Linear, stored: QuantizedTensor, where: dict[str, int]) -> None:
    """Move the planes of a quantized tensor to its rows of `weight`, streamed from the file where they fit."""
    rows, info = stored.shape[0], stored.weight
    weight.load_plane("quant", str(info.path), info.offset, info.nbytes, info.dtype, rows, **where)
    info = stored.scale
    as_is = info.dtype in DENSE if weight.scale in ("f16", "f32") else True
    if as_is and stored.scale_is_plane and (weight.scale == "e4m3" or stored.global_scale == 1.0):
        dtype = "e8m0" if info.dtype == "u8" else info.dtype
        weight.load_plane("scale", str(info.path), info.offset, info.nbytes, dtype, rows, **where)
    elif weight.scale in ("f16", "f32"):
        scale = stored.read_scale().astype(np.float32)
        if weight.scale == "f32":
            scale *= np.float32(stored.global_scale)
        weight.set_plane("scale", np.ascontiguousarray(scale), "f32", rows, **where)
    else:
        weight.set_plane("scale", np.ascontiguousarray(stored.read_scale()).view(np.uint8), "u8", rows, **where)
    zero = stored.read_zero()
    if zero is not None:
        weight.set_plane("zero", np.ascontiguousarray(zero), "u8", rows, **where)


def load_trellis(device: _C.Device, stored: TrellisTensor, n: int, k: int) -> _C.TrellisLinear:
    """A trellis of a checkpoint, for a layer of n outputs and k inputs."""
    trellis = _C.TrellisLinear(device, n, k, stored.bits, stored.codebook)
    read_trellis(trellis, stored)
    return trellis


def read_trellis(trellis: _C.TrellisLinear, stored: TrellisTensor, expert: int = 0) -> None:
    """Move a trellis of a checkpoint into a layer, or to one of its experts."""
    info = stored.trellis
    try:
        trellis.load_trellis(str(info.path), info.offset, info.nbytes, expert)
        trellis.set_scales(*stored.read_scales(), expert)
    except ModelFormatError:
        raise
    except ValueError as error:
        raise ModelFormatError(f"{stored.name}: {error}") from error


def random_trellis(device: _C.Device, n: int, k: int, form: TrellisFormat) -> _C.TrellisLinear:
    """Random codes, all of which mean something, and weights of the size that `fill` gives."""
    trellis = _C.TrellisLinear(device, n, k, form.bits, form.codebook)
    randomise_trellis(trellis, random_codes(trellis))
    return trellis


def random_codes(trellis: _C.TrellisLinear) -> NDArray[np.uint16]:
    """Codes for a layer, or for one of its experts."""
    words = int(padded(trellis.n) * padded(trellis.k) * trellis.bits) // 16
    block = np.random.default_rng(0).integers(0, 1 << 16, min(words, BLOCK_BYTES // 2), np.uint16)
    return np.resize(block, words)


def randomise_trellis(trellis: _C.TrellisLinear, codes: NDArray[np.uint16], expert: int = 0) -> None:
    """Set codes, and random scales."""
    rng = np.random.default_rng(expert)
    trellis.set_trellis(codes, expert)
    suh = rng.choice([np.float16(-0.016), np.float16(0.016)], padded(trellis.k))
    trellis.set_scales(suh, rng.choice([np.float16(-1), np.float16(1)], padded(trellis.n)), expert)


def fill(weight: _C.Linear) -> None:
    """Random rows, for measuring without a checkpoint: one block of normal numbers, repeated on the device."""
    rows = max(1, min(weight.n, FILL_NUMBERS // weight.k))
    numbers = np.random.default_rng(0).standard_normal((rows, weight.k), np.float32) * np.float32(0.02)
    weight.set_rows(numbers.astype(np.float16), "f16", rows)
    weight.repeat_rows(rows)


def peak(stored: Weight | None) -> float:
    """The largest |w|, read in blocks: e4m3 scales need one number of the whole matrix before its first row."""
    if stored is None:
        return 0.1
    if isinstance(stored, QuantizedTensor):
        return float(np.abs(stored.dequantize()).max())
    if isinstance(stored, RowTrellis):
        return max(float(np.abs(rows).max()) for _, rows in stored.blocks())
    if isinstance(stored, TrellisTensor):
        raise UnsupportedModelError(f"{stored.name}: an EXL3 trellis cannot become e4m3-scaled fp4")
    # The magnitudes of floats order like the integers of their bits.
    wide = stored.dtype == "f32"
    most = 0
    with open_file(stored.path) as file:
        file.seek(stored.offset)
        left = stored.nbytes
        while left:
            data = file.read(min(left, BLOCK_BYTES))
            if not data or (len(data) % 4 and len(data) < left):
                raise ModelFormatError(f"{stored.path.name}: cut short while {show(stored.name)} was read")
            left -= len(data)
            if wide:
                found = int((np.frombuffer(data, np.uint32) & np.uint32(0x7FFFFFFF)).max())
            else:
                found = int((np.frombuffer(data, np.uint16) & np.uint16(0x7FFF)).max())
            most = max(most, found)
    if stored.dtype == "f16":
        return float(np.uint16(most).view(np.float16))
    return float(np.uint32(most if wide else most << 16).view(np.float32))


def _different(parts: Sequence[Part]) -> list[Part]:
    """The first part of each weight format, for messages."""
    found = {_kind_of(part.weight): part for part in reversed(parts)}
    return [part for part in parts if found[_kind_of(part.weight)] is part]


def _kind_of(stored: Weight | None) -> str:
    if isinstance(stored, TrellisTensor | RowTrellis):
        return f"({TrellisFormat(stored.bits, stored.codebook)})"
    if isinstance(stored, QuantizedTensor):
        return f"({stored_format(stored)})"
    return f"({stored.dtype})" if stored else ""
