"""Weights decoded on the device are the numbers of marlin.formats.unpack and of the reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import FORMAT_CASES, FormatCase
from ref import formats as reference
from tolerance import check

from marlin import _C, formats

CASES = [case for case in FORMAT_CASES if case.n]
DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def array(tensor: _C.Tensor) -> np.ndarray[Any, Any]:
    return np.frombuffer(tensor.tobytes(), DTYPES[tensor.dtype]).reshape(tensor.shape)


def load(device: _C.Device, packed: formats.Packed) -> _C.Linear:
    n, k = packed.shape
    lin = _C.Linear(
        device, n, k, packed.format, group=packed.group, scale=packed.scale_type,
        zero=packed.zero is not None, global_scale=packed.global_scale,
    )  # fmt: skip
    lin.set_plane("quant", np.ascontiguousarray(packed.quant[:, : row_bytes(packed)]), "u8", n)
    if packed.scale is not None:
        lin.set_plane("scale", packed.scale, str(packed.scale_type), n)
    if packed.zero is not None:
        lin.set_plane("zero", packed.zero, "u8", n)
    return lin


def row_bytes(packed: formats.Packed) -> int:
    """Bytes of a row without its padding."""
    return -(-packed.k * formats.FORMATS[packed.format].bits // 8)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unpack(device: _C.Device, case: FormatCase) -> None:
    packed = formats.pack(case.weights(), case.format, group=case.group, scale=case.scale or "f16", zero=case.zero)
    lin = load(device, packed)
    check(array(lin.dequantize()), formats.unpack(packed), "exact")
    extra: dict[str, Any] = {}
    if packed.scale is not None:
        extra = {
            "scale": reference.scales(packed.scale, str(case.scale), packed.global_scale),
            "group": packed.group,
        } | ({"zero": packed.zero} if packed.zero is not None else {})
    expected = reference.UNPACK[case.format](packed.quant, case.k, **extra)
    check(array(lin.dequantize()), expected, "exact")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("case", [c for c in CASES if (c.n, c.k) == (2, 129)], ids=str)
def test_narrow_results(device: _C.Device, case: FormatCase, dtype: str) -> None:
    """Rounded to nearest even; f16 overflows to infinity."""
    w = case.weights()
    packed = formats.pack(w, case.format, group=case.group, scale=case.scale or "f16", zero=case.zero)
    expected = formats.unpack(packed).astype(DTYPES[dtype])
    got = array(load(device, packed).dequantize(dtype))
    check(got.view(np.uint16), expected.view(np.uint16), "exact")


@pytest.mark.parametrize("name", ["int8", "int4", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1"])
def test_every_code(device: _C.Device, name: str) -> None:
    """All codes at every place of a unit, with two scales and with zero points."""
    spec = formats.FORMATS[name]
    codes = np.arange(1 << spec.bits, dtype=np.uint8)
    if spec.number:  # inf and nan are never packed
        codes = codes[(codes & (spec.number.sign - 1)) <= spec.number.largest]
    codes = np.stack([np.roll(np.resize(codes, 256), i) for i in range(32)])
    quant = codes if spec.bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4
    scale = np.resize(np.array([1, 0.375], np.float32), (32, 8))
    points: list[np.ndarray[Any, Any] | None] = [None]
    if spec.zero:
        points.append(np.resize(np.arange(1 << spec.bits, dtype=np.uint8), (32, 8)))
    for zero in points:
        packed = formats.Packed(name, 256, quant, scale, zero, 32, "f32")
        check(array(load(device, packed).dequantize()), formats.unpack(packed), "exact")


@pytest.mark.parametrize("kind", ["e8m0", "e4m3", "f16"])
def test_every_scale(device: _C.Device, kind: str) -> None:
    """All scales that are numbers and no f32 subnormals, times 6 and the global scale."""
    if kind == "f16":
        scale: np.ndarray[Any, Any] = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16)
    else:
        scale = np.arange(1, 253 if kind == "e8m0" else 0x7F, dtype=np.uint8)
    scale = np.ascontiguousarray(scale[: len(scale) // 4 * 4].reshape(-1, 4))
    quant = np.full((len(scale), 64), 0x77, np.uint8)
    global_scale = 0.3 if kind == "e4m3" else 1.0
    packed = formats.Packed("fp4_e2m1", 128, quant, scale, None, 32, kind, global_scale)
    check(array(load(device, packed).dequantize()), formats.unpack(packed), "exact")


def test_new_linear_is_zero(device: _C.Device) -> None:
    for name, spec in formats.FORMATS.items():
        for zero in (False, True)[: spec.zero + 1]:
            for scale in spec.scales or (None,):
                lin = _C.Linear(device, 3, 70, name, scale=scale, zero=zero)
                assert not array(lin.dequantize()).any(), lin


def test_padding_is_zero_weight(device: _C.Device) -> None:
    """Kernels read whole units: beyond k there is the code of 0, however rows were loaded."""
    for name, blank in (("int4", 0x88), ("int8", 0x80), ("fp4_e2m1", 0), ("f16", 0)):
        lin = _C.Linear(device, 2, 130, name)
        tail = slice(-(-130 * formats.FORMATS[name].bits // 8), None)
        lin.set_rows(np.ones((2, 130), np.float32), "f32", 2)
        quant = np.frombuffer(lin.read_plane("quant"), np.uint8).reshape(2, -1)
        assert (quant[:, tail] == blank).all(), name
        lin.set_plane("quant", quant[:, : tail.start].copy(), "u8", 2)
        again = np.frombuffer(lin.read_plane("quant"), np.uint8).reshape(2, -1)
        assert (again == quant).all(), name
