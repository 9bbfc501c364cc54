"""Rows rounded to a format on the device give the very bytes of marlin.formats.pack."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import FORMAT_CASES, FormatCase, seed_of
from ref.quantize import quantize

from marlin import _C, formats

CASES = [case for case in FORMAT_CASES if case.n]
QUANTIZED = [case for case in CASES if case.scale]
DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def every_combination() -> list[FormatCase]:
    """All formats, groups, scales and zero points, at a k that ends inside a group and a tile."""
    cases = []
    for row in _C.formats():
        scales = [] if row["scale"] == "NONE" else [s.strip() for s in row["scale"].split("|")]
        for scale in scales:
            for group in (0, *formats.GROUPS):
                for zero in (False, True)[: row["zero"] + 1]:
                    cases.append(FormatCase(row["name"], 3, 667, group, scale.lower(), zero))
        if not scales:
            cases.append(FormatCase(row["name"], 3, 667))
    return cases


def linear(device: _C.Device, case: FormatCase, global_scale: float = 1.0) -> _C.Linear:
    return _C.Linear(
        device, case.n, case.k, case.format, group=case.group, scale=case.scale, zero=case.zero,
        global_scale=global_scale,
    )  # fmt: skip


def pack(case: FormatCase, w: np.ndarray[Any, Any], global_scale: float | None) -> formats.Packed:
    return formats.pack(
        w, case.format, group=case.group, scale=case.scale or "f16", zero=case.zero,
        global_scale=global_scale,
    )  # fmt: skip


def planes_of(lin: _C.Linear) -> dict[str, bytes]:
    return {name: lin.read_plane(name) for name in lin.planes}


def check_bytes(device: _C.Device, case: FormatCase, w: np.ndarray[Any, Any], dtype: str) -> None:
    packed = pack(case, np.asarray(w, np.float32), None)
    lin = linear(device, case, packed.global_scale)
    lin.set_rows(w.view(np.uint16) if dtype == "bf16" else w, dtype, case.n)
    planes = {"quant": packed.quant, "scale": packed.scale, "zero": packed.zero}
    expected = {name: plane for name, plane in planes.items() if plane is not None}
    assert set(lin.planes) == set(expected)
    for name, plane in expected.items():
        got = np.frombuffer(lin.read_plane(name), plane.dtype).reshape(plane.shape)
        wrong = np.argwhere(got != plane)
        assert not len(wrong), f"{name}{tuple(wrong[0])}: {got[tuple(wrong[0])]}, " + str(plane[tuple(wrong[0])])
    assert lin.nbytes == packed.nbytes


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes(device: _C.Device, case: FormatCase) -> None:
    check_bytes(device, case, case.weights(), "f32")


@pytest.mark.parametrize("case", every_combination(), ids=str)
def test_every_combination(device: _C.Device, case: FormatCase) -> None:
    w = case.weights() * np.exp2(np.arange(case.n, dtype=np.float32) * 3 - 8)[:, None]
    check_bytes(device, case, w, "f32")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("name", sorted(formats.FORMATS))
def test_sources(device: _C.Device, name: str, dtype: str) -> None:
    scale = next(iter(formats.FORMATS[name].scales), None)
    case = FormatCase(name, 5, 203, 64 if scale else None, scale)
    check_bytes(device, case, case.weights().astype(DTYPES[dtype]), dtype)


@pytest.mark.parametrize("case", QUANTIZED[:24], ids=str)
def test_reference(device: _C.Device, case: FormatCase) -> None:
    """Against the reference that tries every code, which shares no code with the package."""
    w = case.weights()
    global_scale = 0.01 if case.scale == "e4m3" else 1.0
    lin = linear(device, case, global_scale)
    lin.set_rows(w, "f32", case.n)
    quant, scale, zero = quantize(
        w, case.format, group=case.group or 0, scale=case.scale or "f16", zero=case.zero,
        global_scale=np.float32(global_scale),
    )  # fmt: skip
    assert lin.read_plane("scale") == scale.tobytes()
    assert lin.read_plane("quant") == quant.tobytes()
    if zero is not None:
        assert lin.read_plane("zero") == zero.tobytes()


@pytest.mark.parametrize("scale", ["f16", "f32"])
@pytest.mark.parametrize("name", ["int8", "int4", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1"])
def test_extremes(device: _C.Device, name: str, scale: str) -> None:
    """Ties, signed zeros, one-sided groups, tiny and huge scales, subnormals of f16."""
    zeros = [False, True] if formats.FORMATS[name].zero else [False]
    ladder = np.concatenate([np.arange(-8, 8) / 2, np.exp2(np.arange(-32.0, 0))]).astype(np.float32)
    rows = [
        ladder,
        np.abs(ladder),
        -np.abs(ladder) - 1,
        np.full(48, -0.0, np.float32),
        ladder * np.float32(2.0**-24),
        ladder * np.float32(1e-33),
        ladder * np.float32(3e4),
        np.where(np.arange(48) == 47, np.float32(5), np.float32(2.0**-120)),
    ]
    w = np.stack(rows).astype(np.float32)
    for zero in zeros:
        check_bytes(device, FormatCase(name, len(w), 48, 16, scale, zero), w, "f32")


def test_f16_subnormals_and_halfway(device: _C.Device) -> None:
    """Conversion to f16 and bf16 is to the nearest even, below 2^-14 as well."""
    bits = np.random.default_rng(1).integers(0, 2**32, 4096, np.uint32)
    values = bits.view(np.float32)
    halves = np.arange(0, 0x7C00, 7, np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    w = np.concatenate([values[np.abs(values) < 60000], halves, ties, -ties])[None]
    assert np.isfinite(w).all()
    for name in ("f16", "bf16"):
        check_bytes(device, FormatCase(name, 1, w.shape[1]), np.ascontiguousarray(w), "f32")


def test_interleaved(device: _C.Device) -> None:
    """Two sources into the even and the odd rows, as gate and up are."""
    case = FormatCase("int4", 6, 130, 32, "f16", True)
    gate, up = (np.random.default_rng(i).standard_normal((3, 130)).astype(np.float32) for i in range(2))
    lin = linear(device, case)
    lin.set_rows(gate, "f32", 3, row_stride=2)
    lin.set_rows(up, "f32", 3, row_start=1, row_stride=2)
    packed = pack(case, np.stack([gate, up], 1).reshape(6, 130), None)
    assert planes_of(lin) == {
        "quant": packed.quant.tobytes(),
        "scale": packed.scale.tobytes() if packed.scale is not None else b"",
        "zero": packed.zero.tobytes() if packed.zero is not None else b"",
    }


@pytest.mark.parametrize("name", sorted(formats.FORMATS))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(device: _C.Device, name: str, value: float) -> None:
    w = np.ones((4, 300), np.float32)
    w[2, 299] = value
    lin = _C.Linear(device, 4, 300, name)
    with pytest.raises(ValueError, match=r"row 2 holds inf or nan"):
        lin.set_rows(w, "f32", 4)
    lin.set_rows(np.ones((4, 300), np.float32), "f32", 4)  # and it goes on
    assert np.abs(np.asarray(lin.dequantize("f32")) - 1).max() < 2e-3


def test_too_large(device: _C.Device) -> None:
    w = np.ones((3, 20), np.float32)
    w[1, 3] = 65520
    lin = _C.Linear(device, 3, 20, "f16")
    with pytest.raises(ValueError, match="row 1 holds values too large for f16"):
        lin.set_rows(w, "f32", 3)
    w[1, 3] = 65519
    lin.set_rows(w, "f32", 3)
    w[1, 3] = 3.4e38
    with pytest.raises(ValueError, match="row 1 holds values too large for bf16"):
        _C.Linear(device, 3, 20, "bf16").set_rows(w, "f32", 3)
    with pytest.raises(ValueError, match="too large for int4 with scales of f16"):
        _C.Linear(device, 3, 20, "int4").set_rows(w, "f32", 3)
    _C.Linear(device, 3, 20, "int4", scale="f32").set_rows(w, "f32", 3)


def test_seeded_noise(device: _C.Device) -> None:
    """A larger matrix of every format, with weights of any magnitude."""
    for name, spec in formats.FORMATS.items():
        scale = next(iter(spec.scales), None)
        case = FormatCase(name, 9, 1100, 128 if scale else None, scale)
        rng = np.random.default_rng(seed_of(case))
        w = rng.standard_normal((9, 1100)) * np.exp2(rng.integers(-20, 10, (9, 1)))
        check_bytes(device, case, w.astype(np.float32), "f32")
