"""Weight formats in NumPy: `pack` (round to nearest) and `unpack`, in kernel layout.

csrc/formats.def draws the layout. The quantize kernel of the device produces the same bytes, so
everything here is float32 addition, multiplication, `rint` and integer work, which GPUs do
exactly; division is not, hence `reciprocal`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

ROW_ALIGN: Final = 128  # rows of the quant plane are padded to a multiple of this many weights
GROUPS: Final = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Minifloat:
    """A small float with gradual underflow; `largest` is the code of its maximum."""

    mantissa: int
    bias: int
    largest: int
    sign: int

    def encode(self, values: F32, signs: F32) -> NDArray[np.uint8]:
        """Codes of |values| rounded to nearest even, saturated, with the sign bits of `signs`.

        The signs are those of the weights, not of products with them: a device may lose the sign
        of a product that underflows.
        """
        magnitude = np.abs(values)
        bits = magnitude.view(np.uint32)
        drop = np.uint32(23 - self.mantissa)
        half = np.uint32((1 << (22 - self.mantissa)) - 1)
        normal = ((bits + half + ((bits >> drop) & np.uint32(1))) >> drop).astype(np.int64)
        normal -= (127 - self.bias) << self.mantissa
        step = np.float32(2.0 ** (self.bias - 1 + self.mantissa))
        smallest = np.float32(2.0 ** (1 - self.bias))
        tiny = np.rint(np.minimum(magnitude, smallest) * step).astype(np.int64)
        code = np.minimum(np.where(magnitude < smallest, tiny, normal), self.largest)
        return (code | np.where(np.signbit(signs), self.sign, 0)).astype(np.uint8)

    def values(self) -> F32:
        """The value of each code; those past `largest` as if they were numbers."""
        code = np.arange(self.sign)
        exponent, mantissa = code >> self.mantissa, code & ((1 << self.mantissa) - 1)
        fraction = mantissa / (1 << self.mantissa) + (exponent > 0)
        positive = fraction * 2.0 ** (np.maximum(exponent, 1) - self.bias)
        return np.concatenate([positive, -positive]).astype(np.float32)


E4M3: Final = Minifloat(mantissa=3, bias=7, largest=0x7E, sign=0x80)
E5M2: Final = Minifloat(mantissa=2, bias=15, largest=0x7B, sign=0x80)
E2M1: Final = Minifloat(mantissa=1, bias=1, largest=0x7, sign=0x8)


@dataclass(frozen=True)
class Format:
    """A row of csrc/formats.def; integers have `largest` besides, small floats `number`."""

    bits: int
    scales: tuple[str, ...] = ()
    zero: bool = False
    default_group: int = 0
    largest: int = 0  # symmetric codes reach from -largest to largest
    number: Minifloat | None = None


FORMATS: Final[dict[str, Format]] = {
    "f32": Format(32),
    "f16": Format(16),
    "bf16": Format(16),
    "int8": Format(8, ("f16", "f32"), zero=True, largest=127),
    "fp8_e4m3": Format(8, ("f16", "f32"), number=E4M3),
    "fp8_e5m2": Format(8, ("f16", "f32"), number=E5M2),
    "int4": Format(4, ("f16", "f32"), zero=True, default_group=128, largest=7),
    "fp4_e2m1": Format(4, ("f16", "f32", "e8m0", "e4m3"), default_group=32, number=E2M1),
}

_SCALE_DTYPES: Final[dict[str, Any]] = {
    "f16": np.float16,
    "f32": np.float32,
    "e8m0": np.uint8,
    "e4m3": np.uint8,
}


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight matrix (n, k) in kernel layout.

    quant (n, row_bytes) uint8; scale (n, groups) float16, float32 or the uint8 codes of e8m0 and
    e4m3; zero (n, groups) uint8; group = weights a scale, 0 = the whole row.
    """

    format: str
    k: int
    quant: NDArray[np.uint8]
    scale: NDArray[Any] | None = None
    zero: NDArray[np.uint8] | None = None
    group: int = 0
    scale_type: str | None = None
    global_scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.quant), self.k

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return sum(plane.nbytes for plane in (self.quant, self.scale, self.zero) if plane is not None)


def row_bytes(format: str, k: int) -> int:
    """Bytes of a row of the quant plane."""
    return -(-k // ROW_ALIGN) * ROW_ALIGN * FORMATS[format].bits // 8


def group_count(k: int, group: int) -> int:
    """Scales a row; group 0 is the whole row, and the last group of a row may be short."""
    return -(-k // group) if group else 1


def reciprocal(x: F32) -> F32:
    """1 / x for 2^-126 <= x < 2^100: exact for powers of two, else to one unit in the last place.

    The same bits on every device, which a division is not (Vulkan allows it 2.5 units): Newton's
    iteration from an integer guess, whose sums and products all devices round alike as long as
    they are not contracted (`precise` in GLSL). Kept as y + y * (1 - x * y): with y * (2 - x * y)
    powers of two end one unit short, and ties of weights in bf16 would round the wrong way.
    """
    y = (np.uint32(0x7EF311C7) - x.astype(np.float32).view(np.uint32)).view(np.float32)
    for _ in range(4):
        y = y + y * (np.float32(1) - x * y)
    return y


def pack(
    weights: NDArray[Any],
    format: str,
    *,
    group: int | None = None,
    zero: bool = False,
    scale: str = "f16",
    global_scale: float | None = None,
) -> Packed:
    """Round weights (n, k) to the nearest numbers of a format.

    With a = the largest |w| of a group, s its scale as stored, inv = reciprocal(s), all in float32:
      int8, int4     s = a * (1 / L), L = 127, 7;  q = clip(rint(w * inv), -L, L) + L + 1
      with zero      lo = min(w, 0), hi = max(w, 0), s = (hi - lo) * (1 / T), T = 255, 15;
                     z = clip(rint(-lo * inv), 0, T);  q = clip(rint(w * inv) + z, 0, T)
      fp8, fp4       s = a * (1 / 448 | 1 / 57344 | 1 / 6);  nearest even of w * inv, saturated
      fp4 e8m0       s = 2^(floor(log2 a) - 2), at least 2^-126 (OCP MX v1.0, section 6.3)
      fp4 e4m3       s = e4m3(a * (1 / 6) * reciprocal(global)) * global, where global is
                     nv_global_scale(weights) unless given
    f16 scales are rounded to nearest even. A scale that is 0 or below 2^-100 is stored as 0 and
    its weights as zeros (code zero point, or +0). Padding is the zero code too. f16 and bf16 are
    rounded to nearest even. Weights below 2^-126 may count as 0 on a device with e8m0 scales.

    group: weights a scale (16 .. 256), 0 for the whole row, None for the format's default (16 with
    e4m3 scales). Raises ValueError for inf and nan (naming the first), for weights too large for
    the format or its scale, and for a group, scale or zero that the format does not have;
    TypeError if weights are not floats.
    """
    spec = _format(format)
    w = _weights(weights, format)
    if not spec.scales:
        if zero or group:
            raise ValueError(f"pack: {format} has no groups and no zero points")
        return Packed(format, w.shape[1], _pack_dense(w, format))
    group = _check_options(format, spec, group, zero, scale, global_scale)
    if global_scale is None:
        global_scale = nv_global_scale(w) if scale == "e4m3" else 1.0

    g = _grouped(w, group)
    low, high = np.maximum(-g.min(2), 0), np.maximum(g.max(2), 0)
    stored, s = _scales(low, high, spec, scale, zero, np.float32(global_scale))
    inv = reciprocal(np.where(s > 0, s, np.float32(1)))
    inv[s == 0] = 0
    if spec.number:
        blank, points = 0, None
        code = np.where(inv[:, :, None] > 0, spec.number.encode(g * inv[:, :, None], g), 0)
    else:
        blank = spec.largest + 1
        code, points = _integers(g, inv, low if zero else None, spec.largest)
    quant = _lay_out(code, w.shape, spec.bits, blank)
    return Packed(format, w.shape[1], quant, stored, points, group, scale, global_scale)


def nv_global_scale(weights: F32) -> float:
    """The global scale of NVFP4 that brings the largest block scale of a matrix to 448."""
    peak = np.abs(weights).max(initial=0)
    return float(peak * (np.float32(1) / np.float32(2688))) if peak >= 2.0**-80 else 1.0


def unpack(packed: Packed) -> F32:
    """The weights (n, k) as float32: value * scale (e4m3 scales times the global one, rounded)."""
    spec = _format(packed.format)
    n, k = packed.shape
    if packed.format == "f32":
        return packed.quant.view("<f4")[:, :k].copy()
    if packed.format == "f16":
        return packed.quant.view("<f2")[:, :k].astype(np.float32)
    if packed.format == "bf16":
        return (packed.quant.view("<u2")[:, :k].astype(np.uint32) << np.uint32(16)).view(np.float32)

    codes = packed.quant
    if spec.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(n, 2 * codes.shape[1])
    codes = codes[:, :k]
    if spec.number:
        values = spec.number.values()[codes]
        values[(codes & (spec.number.sign - 1)) > spec.number.largest] = np.nan
        if spec.number is E5M2:
            values[(codes & 0x7F) == 0x7C] = np.inf
            values[codes == 0xFC] = -np.inf
    elif packed.zero is None:
        values = codes.astype(np.float32) - np.float32(spec.largest + 1)
    else:
        values = codes.astype(np.float32) - _spread(packed.zero, packed.group, k)
    return values * _spread(scale_values(packed), packed.group, k)


def scale_values(packed: Packed) -> F32:
    """The scales (n, groups) as float32, the global scale multiplied in."""
    if packed.scale is None or packed.scale_type is None:
        raise ValueError(f"scale_values: {packed.format} has no scales")
    if packed.scale_type == "e8m0":
        return _e8m0_value(packed.scale)
    if packed.scale_type == "e4m3":
        return E4M3.values()[packed.scale] * np.float32(packed.global_scale)
    return packed.scale.astype(np.float32)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"unknown weight format {name!r}; known are {', '.join(FORMATS)}")
    return FORMATS[name]


def _weights(weights: NDArray[Any], format: str) -> F32:
    array = np.asarray(weights)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"pack: weights must be floats, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"pack: weights must be (n, k) with k at least 1, got {array.shape}")
    with np.errstate(over="ignore"):
        w: F32 = np.ascontiguousarray(array, np.float32)
    bad = np.argwhere(~np.isfinite(w))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"pack: weights[{row}, {column}] is {w[row, column]}; {format} takes finite numbers "
            f"({len(bad)} of {w.size} are not)"
        )
    return w


def _pack_dense(w: F32, format: str) -> NDArray[np.uint8]:
    n, k = w.shape
    wide = np.zeros((n, -(-k // ROW_ALIGN) * ROW_ALIGN), np.float32)
    wide[:, :k] = w
    if format == "f32":
        return wide.astype("<f4").view(np.uint8)
    if format == "f16":
        with np.errstate(over="ignore"):
            half = wide.astype("<f2")
        _refuse_overflow(half, w, "f16")
        return half.view(np.uint8)
    bits = wide.view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    _refuse_overflow(bits.view(np.float32), w, "bf16")
    return (bits >> np.uint32(16)).astype("<u2").view(np.uint8)


def _refuse_overflow(rounded: NDArray[Any], w: F32, format: str) -> None:
    bad = np.argwhere(~np.isfinite(rounded))
    if len(bad):
        row, column = bad[0]
        raise ValueError(f"pack: weights[{row}, {column}] = {w[row, column]} is too large for {format}")


def _grouped(w: F32, group: int) -> F32:
    """(n, k) -> (n, groups, group); the last group is filled up with zeros."""
    n, k = w.shape
    size, count = group or k, group_count(k, group)
    wide = np.zeros((n, count * size), np.float32)
    wide[:, :k] = w
    return wide.reshape(n, count, size)


def _spread(plane: NDArray[Any], group: int, k: int) -> F32:
    return np.repeat(plane.astype(np.float32), group or k, axis=1)[:, :k]


def _check_options(
    format: str,
    spec: Format,
    group: int | None,
    zero: bool,
    scale: str,
    global_scale: float | None,
) -> int:
    """The group; raises ValueError for what the format does not have."""
    if scale not in spec.scales:
        known = ", ".join(spec.scales)
        raise ValueError(f"pack: {format} takes scales of {known}, got {scale!r}")
    if zero and not spec.zero:
        raise ValueError(f"pack: {format} has no zero points")
    if group is None:
        group = 16 if scale == "e4m3" else spec.default_group
    if group not in (0, *GROUPS):
        known = ", ".join(map(str, GROUPS))
        raise ValueError(f"pack: group must be one of 0, {known}, got {group}")
    if global_scale is not None and (scale != "e4m3" or not 2.0**-100 < global_scale < 2.0**100):
        raise ValueError(f"pack: global_scale belongs to e4m3 scales and is positive, got {global_scale} with {scale}")
    return group


def _scales(
    low: F32, high: F32, spec: Format, kind: str, zero: bool, global_scale: np.float32
) -> tuple[NDArray[Any], F32]:
    """Scales as stored, and as float32, of groups whose weights reach from -low to high."""
    peak = np.maximum(low, high)
    if kind == "e8m0":
        exponent = (peak.view(np.uint32) >> np.uint32(23)).astype(np.int64) - 2
        stored = np.maximum(exponent, 1).astype(np.uint8)
        return stored, _e8m0_value(stored)
    if zero:
        span, largest = low + high, np.float32(2 * spec.largest + 1)
    else:
        number = spec.number
        span = peak
        largest = number.values()[number.largest] if number else np.float32(spec.largest)
    s = (span * (np.float32(1) / largest)).astype(np.float32)
    if kind == "e4m3":
        stored = E4M3.encode(s * reciprocal(np.atleast_1d(global_scale)), s)
        return stored, E4M3.values()[stored] * global_scale
    with np.errstate(over="ignore"):
        kept = np.where(s < np.float32(2.0**-100), np.float32(0), s).astype(_SCALE_DTYPES[kind])
    bad = np.argwhere(~np.isfinite(kept))
    if len(bad):
        row, column = bad[0]
        raise ValueError(f"pack: the scale {s[row, column]} of row {row}, group {column} is too large for {kind}")
    return kept, kept.astype(np.float32)


def _integers(g: F32, inv: F32, low: F32 | None, largest: int) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Codes and, where the groups' lower ends are given, zero points."""
    steps = np.rint(g * inv[:, :, None])
    if low is None:
        return np.clip(steps, -largest, largest) + (largest + 1), None
    top = 2 * largest + 1
    points = np.where(inv > 0, np.clip(np.rint(low * inv), 0, top), largest + 1).astype(np.uint8)
    return np.clip(steps + points[:, :, None], 0, top), points


def _lay_out(code: NDArray[Any], shape: tuple[int, ...], bits: int, blank: int) -> NDArray[np.uint8]:
    """Codes (n, groups, group) -> quant plane of a matrix (n, k), padded with `blank`."""
    n, k = shape
    rows = np.full((n, -(-k // ROW_ALIGN) * ROW_ALIGN), blank, np.uint8)
    rows[:, :k] = code.reshape(n, code.shape[1] * code.shape[2])[:, :k].astype(np.uint8)
    return rows if bits == 8 else rows[:, 0::2] | rows[:, 1::2] << np.uint8(4)


def _e8m0_value(codes: NDArray[np.uint8]) -> F32:
    """2^(code - 127); 0 is the subnormal 2^-127 and 255 is NaN (OCP MX v1.0)."""
    value = np.ldexp(np.float32(1), np.minimum(codes, 254).astype(np.int32) - 127)
    return np.where(codes == 255, np.float32(np.nan), value)
