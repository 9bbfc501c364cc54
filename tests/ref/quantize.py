"""Round-to-nearest quantization, a weight at a time; the nearest code is found by trying all.

The scales are the float32 arithmetic that marlin/formats.py documents; what is independent here is
the rounding, the grouping and the layout.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import formats

Array = NDArray[Any]
F = np.float32

LARGEST = {"int8": 127, "int4": 7, "fp8_e4m3": 448, "fp8_e5m2": 57344, "fp4_e2m1": 6}
NUMBER = {
    "fp8_e4m3": (formats.e4m3, 8),
    "fp8_e5m2": (formats.e5m2, 8),
    "fp4_e2m1": (formats.e2m1, 4),
}


def quantize(
    w: Array, format: str, *, group: int, scale: str, zero: bool = False, global_scale: float = 1.0
) -> tuple[Array, Array, Array | None]:
    """w (n, k) float32 -> (quant (n, row_bytes) uint8, scale plane, zero plane or None)."""
    n, k = w.shape
    size = group or k
    groups = math.ceil(k / size)
    bits = 8 if format in ("int8", "fp8_e4m3", "fp8_e5m2") else 4
    blank = {"int8": 128, "int4": 8}.get(format, 0)
    codes = [[blank] * (math.ceil(k / 128) * 128) for _ in range(n)]
    plane = np.zeros((n, groups), {"f16": np.float16, "f32": np.float32}.get(scale, np.uint8))
    points = np.zeros((n, groups), np.uint8) if zero else None
    for i in range(n):
        for g in range(groups):
            block = w[i, g * size : min(k, (g + 1) * size)]
            low, high = F(min(0, block.min())), F(max(0, block.max()))
            span = F(high - low) if zero else F(max(-low, high))
            steps = 2 * LARGEST[format] + 1 if zero else LARGEST[format]
            plane[i, g], s = _scale(span, steps, scale, F(global_scale))
            inv = F(0) if s == 0 else _reciprocal(s)
            z = blank if inv == 0 else min(max(round(float(-low * inv)), 0), steps)
            if points is not None:
                points[i, g] = z
            for j, weight in enumerate(block):
                codes[i][g * size + j] = _code(weight, inv, format, z if zero else None)
    packed = [[_byte(row, b, bits) for b in range(len(row) * bits // 8)] for row in codes]
    quant = np.array(packed, np.uint8).reshape(n, math.ceil(k / 128) * 16 * bits)
    return quant, plane, points


def _scale(span: Any, steps: int, kind: str, global_scale: Any) -> tuple[Any, Any]:
    """The scale as stored and as float32."""
    if kind == "e8m0":
        exponent = math.frexp(float(span))[1] - 1 - 2 if span else -126
        code = max(exponent, -126) + 127
        return code, F(formats.e8m0(code))
    s = span * (F(1) / F(steps))
    if kind == "e4m3":
        code = _nearest(s * _reciprocal(global_scale), formats.e4m3, 8)
        return code, F(formats.e4m3(code)) * global_scale
    stored = (np.float16 if kind == "f16" else F)(0 if s < F(2.0**-100) else s)
    return stored, F(stored)


def _code(weight: Any, inv: Any, format: str, z: int | None) -> int:
    if format in NUMBER:
        number, bits = NUMBER[format]
        if inv == 0:
            return 0
        magnitude = _nearest(abs(weight * inv), number, bits)
        return magnitude | ((1 << (bits - 1)) if math.copysign(1, weight) < 0 else 0)
    step = round(float(weight * inv))  # Python rounds halves to even
    largest = LARGEST[format]
    if z is None:
        return min(max(step, -largest), largest) + largest + 1
    return min(max(step + z, 0), 2 * largest + 1)


def _nearest(x: Any, number: Any, bits: int) -> int:
    """The code of the finite positive number next to x; of two as near, the even code."""
    values = [(abs(number(c) - float(x)), c % 2, c) for c in range(1 << (bits - 1)) if math.isfinite(number(c))]
    return min(values)[2]


def _reciprocal(x: Any) -> Any:
    """Four Newton steps from an integer guess (marlin.formats.reciprocal)."""
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    y = F(struct.unpack("<f", struct.pack("<I", 0x7EF311C7 - bits))[0])
    for _ in range(4):
        y = y + y * (F(1) - x * y)
    return y


def _byte(row: list[int], b: int, bits: int) -> int:
    return row[b] if bits == 8 else row[2 * b] | row[2 * b + 1] << 4
