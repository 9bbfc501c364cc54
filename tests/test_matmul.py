"""Every matmul kernel row against NumPy: formats, shapes, dtypes and epilogues."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import MATMUL_CASES, MatmulCase, seed_of
from ref.matmul import linear
from tolerance import check

from marlin import _C, formats

DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
NAN_WORD = 0x7FFF7FFF  # NaN in f32 and, twice, in f16 and bf16


def tensor(device: _C.Device, array: np.ndarray[Any, Any], dtype: str) -> _C.Tensor:
    values = np.ascontiguousarray(array.astype(DTYPES[dtype]))
    bits = values.view(np.uint16) if dtype == "bf16" else values
    return _C.tensor(device, bits, dtype=dtype, shape=array.shape)


def array(t: _C.Tensor) -> np.ndarray[Any, Any]:
    return np.frombuffer(t.tobytes(), DTYPES[t.dtype]).reshape(t.shape).astype(np.float64)


def make_linear(
    device: _C.Device, case: MatmulCase, weights: np.ndarray[Any, Any]
) -> tuple[_C.Linear, np.ndarray[Any, Any]]:
    """The layer, and the weights that its planes stand for."""
    packed = formats.pack(weights, case.format, group=case.group, zero=case.zero, scale=case.scale or "f16")
    lin = _C.Linear(
        device,
        case.n,
        case.k,
        case.format,
        group=case.group,
        scale=case.scale,
        zero=case.zero,
        global_scale=packed.global_scale,
    )
    lin.set_rows(np.ascontiguousarray(weights), "f32", case.n)
    return lin, formats.unpack(packed)


@pytest.mark.parametrize("case", MATMUL_CASES, ids=str)
def test_matmul(device: _C.Device, case: MatmulCase) -> None:
    if case.kernel == "gemm_coopmat" and (
        "coopmat" not in device.features or case.k % 8 or case.format in ("f32", "bf16")
    ):
        pytest.skip("needs coopmat, k a multiple of 8 and a format of f16 math")
    if case.kernel == "gemm_broadcast":
        info = next(d for d in _C.list_devices() if d["uuid"] == device.uuid)
        if info["subgroup_min"] != info["subgroup_max"]:
            pytest.skip("needs subgroups of one size")
    check_product(device, case, case.kernel)


@pytest.mark.parametrize("case", [case for case in MATMUL_CASES if case.kernel == "gemv" and case.m == 1], ids=str)
def test_one_row_by_the_kernel_of_choice(device: _C.Device, case: MatmulCase) -> None:
    """CPUs have a way of their own, unless a kernel is asked for."""
    check_product(device, case, None)


def check_product(device: _C.Device, case: MatmulCase, kernel: str | None) -> None:
    rng = np.random.default_rng(seed_of(case))
    weights = rng.standard_normal((case.n, case.k)).astype(np.float32) / np.float32(case.k**0.5)
    lin, w = make_linear(device, case, weights)
    x = rng.standard_normal((case.m, case.k)).astype(DTYPES[case.dtype])
    norm = rng.uniform(0.5, 1.5, case.k).astype(np.float32) if case.norm else None
    bias = rng.standard_normal(case.n).astype(np.float32) if case.bias else None
    gated = case.activation in ("swiglu", "geglu", "geglu_tanh")
    columns = case.n // 2 if gated else case.n
    residual = rng.standard_normal((case.m, columns)).astype(np.float32) if case.residual else None
    if bias is not None:
        lin.set_bias(_C.tensor(device, bias))
    y_dtype = "f32" if case.residual or case.dtype == "f32" else case.dtype
    out = _C.full(device, (case.m, columns), NAN_WORD, y_dtype)
    lin(
        tensor(device, x, case.dtype),
        norm=None if norm is None else _C.tensor(device, norm),
        activation=case.activation,
        residual=None if residual is None else _C.tensor(device, residual),
        out=out,
        kernel=kernel,
    )
    expected = linear(x, w, norm=norm, bias=bias, activation=case.activation, residual=residual)
    f16_inside = "fp16" in device.features and (case.dtype == "f16" or case.norm)
    narrowest = "bf16" if case.dtype == "bf16" else "f16" if f16_inside or y_dtype == "f16" else "f32"
    check(array(out), expected, narrowest)


@pytest.mark.parametrize("kernel", ["gemm", "gemm_coopmat"])
@pytest.mark.parametrize(("scale", "group"), [("f16", 32), ("e8m0", 32), ("e4m3", 16)])
@pytest.mark.parametrize("size", [3e-3, 1.0, 400.0])
def test_fp4_is_decoded_exactly(device: _C.Device, kernel: str, scale: str, group: int, size: float) -> None:
    """All codes with small and large scales, against the identity: y is W, in the matrix units rounded to f16 once."""
    if kernel == "gemm_coopmat" and "coopmat" not in device.features:
        pytest.skip("needs coopmat")
    codes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 0.25], np.float32)
    rng = np.random.default_rng(3)
    weights = np.stack([rng.permuted(codes.repeat(8)) for _ in range(16)]) * np.float32(size)
    lin = _C.Linear(device, 16, 128, "fp4_e2m1", group=group, scale=scale)
    lin.set_rows(weights, "f32", 16)
    alone = 1.0 if scale == "e4m3" else None
    packed = formats.pack(weights, "fp4_e2m1", group=group, scale=scale, global_scale=alone)
    nibbles = np.bincount(np.ravel([packed.quant.view(np.uint8) & 15, packed.quant.view(np.uint8) >> 4]), minlength=16)
    assert (nibbles[:8] > 0).all() and (nibbles[9:] > 0).all()  # every code but -0
    expected = formats.unpack(packed)
    y = array(lin(tensor(device, np.eye(128), "f16"), dtype="f32", kernel=kernel)).T
    check(y, expected.astype(np.float16) if kernel == "gemm_coopmat" else expected, "exact")


@pytest.mark.parametrize("format", ["int4", "fp4_e2m1", "f16", "int8"])
def test_large_f16_activations_stay_finite(device: _C.Device, format: str) -> None:
    """f16 chains of 4-bit products must not overflow for any finite f16 activation."""
    case = MatmulCase("gemv", format, 1, 4, 512)
    lin, w = make_linear(device, case, np.ones((4, 512), np.float32))
    x = np.full((1, 512), 60000, np.float16)
    y = array(lin(tensor(device, x, "f16"), dtype="f32"))
    check(y, linear(x, w), "f16")


@pytest.mark.parametrize("kernel", [None, "gemv", "gemm"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_views_may_begin_anywhere(device: _C.Device, dtype: str, kernel: str | None) -> None:
    """Kernels load 16 bytes at once, and parts of a vector begin at any element."""
    rng = np.random.default_rng(5)
    case = MatmulCase(kernel or "gemv", "f32", 1, 10, 64)
    lin, w = make_linear(device, case, rng.standard_normal((10, 64)).astype(np.float32))
    x, norm = rng.standard_normal(70).astype(DTYPES[dtype]), rng.uniform(0.5, 1.5, 70).astype(np.float32)
    whole_x, whole_norm = tensor(device, x, dtype), _C.tensor(device, norm)
    for at in range(1, 6):
        y = lin(whole_x[at : at + 64], norm=whole_norm[at : at + 64], dtype="f32", kernel=kernel)
        expected = linear(x[None, at : at + 64], w, norm=norm[at : at + 64])
        check(array(y)[None], expected, "f32" if dtype == "f32" else dtype)


def test_out_shares_no_memory_with_what_is_read(device: _C.Device) -> None:
    lin = _C.Linear(device, 64, 64, "f32")
    both = _C.full(device, (3, 64))
    x, y = both[:2], both[1:]
    lin.set_bias(both[2])
    with pytest.raises(ValueError, match="x"):
        lin(x, out=y)
    with pytest.raises(ValueError, match="bias"):
        lin(_C.full(device, (2, 64)), out=y)
    lin.set_bias(None)
    with pytest.raises(ValueError, match="norm"):
        lin(_C.full(device, (2, 64)), norm=both[1], out=y)
    with pytest.raises(ValueError, match="residual"):
        lin(_C.full(device, (2, 64)), residual=x, out=y)
    both.write(np.full((3, 64), 7, np.float32))
    assert (array(lin(_C.full(device, (2, 64)), residual=y, out=y)) == 7).all()  # in place is fine


def test_results_do_not_change_between_runs(device: _C.Device) -> None:
    rng = np.random.default_rng(3)
    case = MatmulCase("gemv", "int4", 1, 300, 1024)
    lin, _ = make_linear(device, case, rng.standard_normal((300, 1024)).astype(np.float32))
    x = tensor(device, rng.standard_normal((1, 1024)), "f16")
    first = lin(x, dtype="f32").tobytes()
    assert all(lin(x, dtype="f32").tobytes() == first for _ in range(5))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"x": (2, 63)}, ValueError, "x must be"),
        ({"norm": (63,)}, ValueError, "norm must be"),
        ({"residual": (2, 9)}, ValueError, "residual must be"),
        ({"out": (2, 9)}, ValueError, "out must be"),
        ({"kernel": "nonsense"}, ValueError, "nonsense"),
        ({"kernel": "gemv", "x": (17, 64)}, ValueError, "gemv"),
        ({"activation": "tanh"}, ValueError, "tanh"),
        ({"kernel": "gemv@1,1,1,2"}, ValueError, "gemv"),  # less than a subgroup
        ({"kernel": "gemv@1,32,1,32"}, ValueError, "gemv"),  # more subgroups a row than there are
        ({"kernel": "gemv@1", "activation": "swiglu"}, ValueError, "gated"),  # pairs of rows stay together
        ({"kernel": "gemm_coopmat@2,2,2", "x": (300, 64)}, ValueError, "gemm_coopmat"),
    ],
)
def test_bad_arguments(device: _C.Device, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    lin = _C.Linear(device, 10, 64, "f16")
    given = {name: _C.full(device, value) if isinstance(value, tuple) else value for name, value in arguments.items()}
    x = given.pop("x", _C.full(device, (2, 64)))
    with pytest.raises(error, match=text):
        lin(x, **given)
