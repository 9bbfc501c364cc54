"""Weight formats by name, and a linear layer that can be used on arrays by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from marlin import _C, html
from marlin.device import Device
from marlin.formats import FORMATS, group_count, row_bytes
from marlin.keywords import checked_keywords, nearest
from marlin.tensors import DTYPES, Tensor, host_array, upload
from marlin.trellis import TrellisFormat

SCALE_BYTES: Final = {"f16": 2, "f32": 4, "e8m0": 1, "e4m3": 1}
NV_PEAK: Final = 2688.0  # 6 * 448: the largest weight that fp4 times an e4m3 scale can be, at global scale 1


def parse_format(text: str | WeightFormat | TrellisFormat) -> WeightFormat | TrellisFormat:
    """WeightFormat.parse, and "exl3:4" for EXL3 trellises of 4 bits."""
    if isinstance(text, TrellisFormat):
        return text
    if isinstance(text, str) and text.partition(":")[0] == TrellisFormat.name:
        return TrellisFormat.parse(text)
    return WeightFormat.parse(text)


@dataclass(frozen=True)
class WeightFormat:
    """A weight format with its options, as a checkpoint or a caller wants it.

    group: weights a scale, 0 for the whole row, None for the format's default. scale: the type of the scales,
    None for the format's first. zero: zero points, None for none. `WeightFormat.parse` reads "int4", "int4:64"
    (group 64), "fp8", "mxfp4" … What was given, and not left to a default, is in `asked`.
    """

    name: str
    group: int | None = None
    scale: str | None = None
    zero: bool | None = None
    asked: frozenset[str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        given = frozenset(option for option in ("group", "scale", "zero") if getattr(self, option) is not None)
        object.__setattr__(self, "asked", given)
        object.__setattr__(self, "zero", bool(self.zero))
        row = FORMATS.get(self.name)
        if row is None:
            raise ValueError(f"unknown weight format {self.name!r}{nearest(self.name, [*FORMATS, *ALIASES])}")
        if not row.scales:
            if self.group or self.scale or self.zero:
                raise ValueError(f"weight format {self.name} has no groups, scales or zero points")
            return
        scale = self.scale or row.scales[0]
        if scale not in row.scales:
            raise ValueError(f"weight format {self.name} takes scales of {', '.join(row.scales)}, got {scale!r}")
        if self.zero and not row.zero:
            raise ValueError(f"weight format {self.name} has no zero points")
        object.__setattr__(self, "scale", scale)
        if self.group is None:
            object.__setattr__(self, "group", 16 if scale == "e4m3" else row.default_group)

    @classmethod
    def parse(cls, text: str | WeightFormat) -> WeightFormat:
        """A format of its name, an alias (ALIASES), or either with ":group". ValueError names the nearest."""
        if isinstance(text, WeightFormat):
            return text
        if not isinstance(text, str):
            raise TypeError(f"format must be a name or a WeightFormat, got {type(text).__name__}")
        name, colon, group = text.partition(":")
        if colon and not group.isdecimal():
            raise ValueError(f"format {text!r}: the group behind the colon must be a number")
        base = ALIASES[name] if name in ALIASES else cls(name)
        if not colon:
            return base
        return cls(base.name, int(group), base.scale if "scale" in base.asked else None)

    def accepts(self, stored: WeightFormat) -> bool:
        """Whether weights stored like that are of this format already: what was not asked for may be anything."""
        return stored.name == self.name and all(
            getattr(stored, option) == getattr(self, option) for option in self.asked
        )

    @property
    def bits(self) -> int:
        """Bits of a weight, scales aside."""
        return FORMATS[self.name].bits

    def nbytes(self, n: int, k: int) -> int:
        """Bytes of a matrix (n, k) on the device."""
        total = n * row_bytes(self.name, k)
        if self.scale is not None:
            groups = n * group_count(k, self.group or 0)
            total += groups * (SCALE_BYTES[self.scale] + bool(self.zero))
        return total

    def create(
        self, device: _C.Device, n: int, k: int, *, global_scale: float = 1.0, memory: str = "device"
    ) -> _C.Linear:
        """An empty matrix for the device; memory "host": in host memory, which the device reads."""
        if self.scale is None:
            return _C.Linear(device, n, k, self.name, memory=memory)
        return _C.Linear(
            device,
            n,
            k,
            self.name,
            group=self.group,
            scale=self.scale,
            zero=bool(self.zero),
            global_scale=global_scale,
            memory=memory,
        )

    def __str__(self) -> str:
        if self.scale is None:
            return self.name
        grouping = f"group {self.group}" if self.group else "per channel"
        return f"{self.name}, {grouping}, {self.scale} scales{', zero points' * bool(self.zero)}"


ALIASES: Final[dict[str, WeightFormat]] = {
    "fp8": WeightFormat("fp8_e4m3"),
    "fp4": WeightFormat("fp4_e2m1"),
    "mxfp4": WeightFormat("fp4_e2m1", 32, "e8m0"),
    "nvfp4": WeightFormat("fp4_e2m1", 16, "e4m3"),
}


class Linear:
    """y = x W^T + bias with W (n, k) kept in a weight format. `raw` is the marlin._C.Linear.

    layer = Linear.from_array(w, format="int4", group=128)
    y = layer(x)                      # x (..., k) array or Tensor -> Tensor (..., n)
    """

    __slots__ = ("raw",)

    def __init__(self, raw: _C.Linear) -> None:
        self.raw = raw

    @classmethod
    @checked_keywords
    def from_array(
        cls,
        weight: ArrayLike | Tensor,
        *,
        format: str | WeightFormat = "f16",
        group: int | None = None,
        scale: str | None = None,
        zero: bool | None = None,
        bias: ArrayLike | None = None,
        device: Device | int | str | None = None,
    ) -> Linear:
        """Round a weight (n, k) of f32, f16 or bf16 to a format, on the device. bias: (n).

        Raises ValueError for inf, nan, and options that the format does not have.
        """
        form = WeightFormat.parse(format)
        if group is not None or scale is not None or zero is not None:
            form = WeightFormat(
                form.name,
                form.group if group is None and scale is None else group,
                scale or form.scale,
                form.zero if zero is None else zero,
            )
        w = host_array(weight)
        if w.ndim != 2:
            raise ValueError(f"Linear.from_array: weight must be (n, k), got shape {w.shape}")
        dtype = DTYPES[w.dtype.name]
        if dtype not in ("f32", "f16", "bf16"):
            raise TypeError(f"Linear.from_array: weight must be f32, f16 or bf16, got {dtype}")
        n, k = w.shape
        opened = Device(device).raw
        peak = float(np.abs(w).max()) if form.scale == "e4m3" else 0.0
        raw = form.create(opened, n, k, global_scale=global_scale(form, peak))
        raw.set_rows(w.view(np.uint16) if dtype == "bf16" else w, dtype, n)
        layer = cls(raw)
        if bias is not None:
            values = host_array(bias).astype(np.float32)
            if values.shape != (n,):
                raise ValueError(f"Linear.from_array: bias must be ({n},), got shape {values.shape}")
            raw.set_bias(upload(values, opened))
        return layer

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k): outputs and inputs."""
        return self.raw.n, self.raw.k

    @property
    def format(self) -> str:
        return self.raw.format

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return self.raw.nbytes

    @property
    def device(self) -> _C.Device:
        return self.raw.device

    def __call__(self, x: ArrayLike | Tensor, *, activation: str | None = None) -> Tensor:
        """(..., k) -> (..., n) in the dtype of x, f32 accumulated.

        activation: silu, gelu, gelu_tanh; or swiglu, geglu, geglu_tanh with rows of W alternating gate and up,
        which gives (..., n / 2).
        """
        raw = x.raw if isinstance(x, Tensor) else upload(host_array(x), self.raw.device)
        if raw.shape[-1] != self.raw.k:
            raise ValueError(f"Linear: x must be (..., {self.raw.k}), got shape {raw.shape}")
        y = self.raw(raw.reshape(-1, self.raw.k), activation=activation)
        return Tensor(y.reshape(*raw.shape[:-1], y.shape[-1]))

    def dequantize(self, dtype: str = "f32") -> Tensor:
        """W (n, k) as it multiplies."""
        return Tensor(self.raw.dequantize(dtype))

    def __repr__(self) -> str:
        return f"<Linear ({self.raw.n}, {self.raw.k}) {self._form()}, {html.size(self.nbytes)}>"

    def _repr_html_(self) -> str:
        rows = [(name, f"{shape[0]} × {shape[1]}", dtype) for name, (shape, dtype) in self.raw.planes.items()]
        title = f"Linear {self.raw.n} × {self.raw.k}, {self._form()}, {html.size(self.nbytes)}"
        return html.table(rows, head=("plane", "shape", "type"), title=title)

    def _form(self) -> str:
        raw = self.raw
        return str(WeightFormat(raw.format, raw.group, raw.scale, raw.zero) if raw.scale else WeightFormat(raw.format))


def global_scale(form: WeightFormat, peak: float) -> float:
    """The global scale beside e4m3 scales for weights up to `peak`; 1 for other formats and for zeros."""
    return peak / NV_PEAK if form.scale == "e4m3" and peak > 2.0**-80 else 1.0
