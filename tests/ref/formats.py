"""Weight formats, one weight at a time, from their specifications: no bit trick, no speed.

Every `<format>_unpack(quant, k, ...)` takes the quant plane (n, row_bytes) uint8 and gives (n, k)
float32. The keywords are the other planes: scale (n, groups) as numbers, zero (n, groups) uint8,
group = weights a scale, 0 = the whole row.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def f32_unpack(quant: Array, k: int) -> Array:
    """Four bytes a weight, IEEE 754 binary32, little-endian."""
    return _dense(quant, k, 4, lambda raw: struct.unpack("<f", raw)[0])


def f16_unpack(quant: Array, k: int) -> Array:
    """Two bytes a weight, IEEE 754 binary16, little-endian."""
    return _dense(quant, k, 2, lambda raw: struct.unpack("<e", raw)[0])


def bf16_unpack(quant: Array, k: int) -> Array:
    """Two bytes a weight: the upper half of a binary32."""
    return _dense(quant, k, 2, lambda raw: struct.unpack("<f", b"\0\0" + raw)[0])


def int8_unpack(quant: Array, k: int, *, scale: Array, zero: Array | None = None, group: int = 0) -> Array:
    """A byte a weight: w = (q - zero) * scale, zero 128 without a plane."""
    return _scaled(quant, k, 8, lambda code, z: code - (128 if z is None else z), scale, zero, group)


def int4_unpack(quant: Array, k: int, *, scale: Array, zero: Array | None = None, group: int = 0) -> Array:
    """A nibble a weight, the even one lower: w = (q - zero) * scale, zero 8 without a plane."""
    return _scaled(quant, k, 4, lambda code, z: code - (8 if z is None else z), scale, zero, group)


def fp8_e4m3_unpack(quant: Array, k: int, *, scale: Array, group: int = 0) -> Array:
    """A byte a weight: w = e4m3(q) * scale."""
    return _scaled(quant, k, 8, lambda code, _: e4m3(code), scale, None, group)


def fp8_e5m2_unpack(quant: Array, k: int, *, scale: Array, group: int = 0) -> Array:
    """A byte a weight: w = e5m2(q) * scale."""
    return _scaled(quant, k, 8, lambda code, _: e5m2(code), scale, None, group)


def fp4_e2m1_unpack(quant: Array, k: int, *, scale: Array, group: int = 0) -> Array:
    """A nibble a weight, the even one lower: w = e2m1(q) * scale."""
    return _scaled(quant, k, 4, lambda code, _: e2m1(code), scale, None, group)


UNPACK: dict[str, Callable[..., Array]] = {
    "f32": f32_unpack,
    "f16": f16_unpack,
    "bf16": bf16_unpack,
    "int8": int8_unpack,
    "int4": int4_unpack,
    "fp8_e4m3": fp8_e4m3_unpack,
    "fp8_e5m2": fp8_e5m2_unpack,
    "fp4_e2m1": fp4_e2m1_unpack,
}


def scales(plane: Array, kind: str, global_scale: float = 1.0) -> Array:
    """A scale plane as float32; e4m3 blocks times the global scale, rounded (NVFP4)."""
    if kind == "e8m0":
        return np.array([[e8m0(int(c)) for c in row] for row in plane], np.float32).reshape(plane.shape)
    if kind == "e4m3":
        blocks = np.array([[e4m3(int(c)) for c in row] for row in plane], np.float32).reshape(plane.shape)
        return blocks * np.float32(global_scale)
    return plane.astype(np.float32)


def e4m3(code: int) -> float:
    """OCP OFP8 v1.0 E4M3: bias 7, no infinity, S.1111.111 is NaN."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def e5m2(code: int) -> float:
    """OCP OFP8 v1.0 E5M2: bias 15, infinity and NaN as in IEEE 754."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 2 & 31, code & 3
    if exponent == 31:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return sign * mantissa / 4 * 2.0**-14
    return sign * (1 + mantissa / 4) * 2.0 ** (exponent - 15)


def e2m1(code: int) -> float:
    """OCP MX v1.0 FP4 E2M1: bias 1, all codes are numbers."""
    sign, exponent, mantissa = -1.0 if code & 8 else 1.0, code >> 1 & 3, code & 1
    if exponent == 0:
        return sign * mantissa / 2
    return sign * (1 + mantissa / 2) * 2.0 ** (exponent - 1)


def e8m0(code: int) -> float:
    """OCP MX v1.0 E8M0: 2^(code - 127), 255 is NaN."""
    return math.nan if code == 255 else 2.0 ** (code - 127)


def _dense(quant: Array, k: int, size: int, number: Callable[[bytes], float]) -> Array:
    out = np.zeros((len(quant), k), np.float32)
    for i, row in enumerate(quant):
        for j in range(k):
            out[i, j] = number(row[j * size : (j + 1) * size].tobytes())
    return out


def _scaled(
    quant: Array,
    k: int,
    bits: int,
    value: Callable[[int, int | None], float],
    scale: Array,
    zero: Array | None,
    group: int,
) -> Array:
    out = np.zeros((len(quant), k), np.float32)
    for i, row in enumerate(quant):
        for j in range(k):
            byte = int(row[j * bits // 8])
            code = byte if bits == 8 else byte >> (4 * (j % 2)) & 15
            g = j // group if group else 0
            z = None if zero is None else int(zero[i, g])
            out[i, j] = np.float32(value(code, z)) * np.float32(scale[i, g])
    return out
