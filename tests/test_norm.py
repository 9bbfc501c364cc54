"""RMS norm against NumPy: dtypes, odd rows, the residual stream, rows that hold inf and nan."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import ROWS_CASES, RowsCase, seed_of
from ref.norm import rms_norm
from tolerance import check

from marlin import _C

DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def tensor(device: _C.Device, values: np.ndarray[Any, Any], dtype: str = "f32") -> _C.Tensor:
    rounded = np.ascontiguousarray(values.astype(DTYPES[dtype]))
    bits = rounded.view(np.uint16) if dtype == "bf16" else rounded
    return _C.tensor(device, bits, dtype=dtype, shape=values.shape)


def array(t: _C.Tensor) -> np.ndarray[Any, Any]:
    return np.frombuffer(t.tobytes(), DTYPES[t.dtype]).reshape(t.shape).astype(np.float64)


@pytest.mark.parametrize("case", [case for case in ROWS_CASES if case.rows], ids=str)
def test_rms_norm(device: _C.Device, case: RowsCase) -> None:
    rng = np.random.default_rng(seed_of(case))
    x = (3 * rng.standard_normal((case.rows, case.columns))).astype(DTYPES[case.dtype])
    residual = rng.standard_normal(x.shape).astype(np.float32) if case.residual else None
    weight = rng.uniform(0.5, 1.5, case.columns).astype(np.float32)
    result: Any = _C.rms_norm(
        tensor(device, x, case.dtype),
        tensor(device, weight),
        1e-5,
        residual=None if residual is None else tensor(device, residual),
    )
    expected, total = rms_norm(x, weight, 1e-5, residual)
    y, s = result if case.residual else (result, None)
    assert y.dtype == case.dtype and y.shape == x.shape
    check(array(y), expected, case.dtype, what="y")
    if s is not None:
        assert s.dtype == "f32"
        check(array(s), total, "f32", what="sum")


@pytest.mark.parametrize("to", ["f32", "f16", "bf16"])
def test_dtypes_and_views(device: _C.Device, to: str) -> None:
    """A view that starts off alignment, three axes, another dtype out and a f16 residual."""
    rng = np.random.default_rng(0)
    x, r = rng.standard_normal((2, 5, 3, 20)).astype(np.float16)
    weight = rng.standard_normal(20).astype(np.float32)
    y, s = _C.rms_norm(
        tensor(device, x, "f16")[1:],
        tensor(device, weight),
        1e-6,
        residual=tensor(device, r, "f16")[1:],
        dtype=to,
    )
    expected, total = rms_norm(x[1:], weight, 1e-6, r[1:])
    assert (y.dtype, s.dtype) == (to, "f16")
    check(array(y), expected, to)
    check(array(s), total, "f16")


def test_bad_values_stay_in_their_row(device: _C.Device) -> None:
    x = np.ones((4, 70), np.float32)
    x[1, 3], x[2, 69] = np.nan, np.inf
    y = array(_C.rms_norm(tensor(device, x), tensor(device, np.ones(70)), 1e-6))
    np.testing.assert_allclose(y[[0, 3]], 1, rtol=1e-5)
    assert np.isnan(y[1]).all() and np.isnan(y[2, 69])


def test_errors(device: _C.Device) -> None:
    x, w = tensor(device, np.ones((3, 8))), tensor(device, np.ones(8))
    with pytest.raises(ValueError, match=r"weight must be \(8\) f32, got \(7\) f32"):
        _C.rms_norm(x, tensor(device, np.ones(7)), 1e-6)
    with pytest.raises(TypeError, match="weight must be"):
        _C.rms_norm(x, tensor(device, np.ones(8), "f16"), 1e-6)
    with pytest.raises(ValueError, match="residual must be"):
        _C.rms_norm(x, w, 1e-6, residual=tensor(device, np.ones((2, 8))))
    with pytest.raises(TypeError):
        _C.rms_norm(x, w, 1e-6, dtype="i32")
    with pytest.raises(ValueError, match="eps"):
        _C.rms_norm(x, w, -1.0)
