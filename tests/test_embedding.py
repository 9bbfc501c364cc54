"""Rows of a table by id, decoded from every format."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import FormatCase, default_variants
from ref.embedding import embedding
from tolerance import check

from marlin import _C, formats

DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
CASES = [FormatCase(f, 11, k, g, s, z) for f, g, s, z in default_variants() for k in (96, 131)]


def ids_on(device: _C.Device, ids: list[int]) -> _C.Tensor:
    return _C.tensor(device, np.array(ids, np.int32))


def array(tensor: _C.Tensor) -> np.ndarray[Any, Any]:
    return np.frombuffer(tensor.tobytes(), DTYPES[tensor.dtype]).reshape(tensor.shape)


def table(device: _C.Device, case: FormatCase) -> tuple[_C.Linear, np.ndarray[Any, Any]]:
    """The layer and the weights that its planes stand for."""
    packed = formats.pack(case.weights(), case.format, group=case.group, scale=case.scale or "f16", zero=case.zero)
    lin = _C.Linear(
        device, case.n, case.k, case.format, group=case.group, scale=case.scale, zero=case.zero,
        global_scale=packed.global_scale,
    )  # fmt: skip
    lin.set_rows(case.weights(), "f32", case.n)
    return lin, formats.unpack(packed)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows(device: _C.Device, case: FormatCase) -> None:
    lin, w = table(device, case)
    for ids in ([0], [10, 0, 3, 3, 7], list(range(11)) * 9):
        got = array(lin.embed(ids_on(device, ids)))
        check(got, embedding(w, np.array(ids)), "exact")


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_dtypes(device: _C.Device, dtype: str) -> None:
    lin, w = table(device, FormatCase("int4", 5, 300, 32, "f16"))
    got = lin.embed(ids_on(device, [4, 1]), dtype)
    assert got.dtype == dtype
    check(array(got), w[[4, 1]].astype(DTYPES[dtype]), "exact")


def test_ids_outside_are_clamped(device: _C.Device) -> None:
    """Idle slots carry any id: the device must not read beyond the table."""
    lin, w = table(device, FormatCase("int8", 7, 64, 0, "f16"))
    ids = [-1, 7, 2**31 - 1, -(2**31), 6]
    check(array(lin.embed(ids_on(device, ids))), w[[0, 6, 6, 0, 6]], "exact")


def test_captured(device: _C.Device) -> None:
    """A program reads the ids that are there when it is replayed."""
    lin, w = table(device, FormatCase("fp8_e4m3", 9, 128, 0, "f16"))
    ids = ids_on(device, [1, 2, 3])
    with device.capture() as program:
        rows = lin.embed(ids)
    for wanted in ([8, 0, 4], [1, 1, 1]):
        ids.write(np.array(wanted, np.int32))
        program.replay(wait=True)
        check(array(rows), w[wanted], "exact")


def test_bad_arguments(device: _C.Device) -> None:
    lin = _C.Linear(device, 4, 32)
    with pytest.raises(ValueError, match=r"ids must be \(rows\) i32, got \(2, 2\) i32"):
        lin.embed(_C.tensor(device, np.zeros((2, 2), np.int32)))
    with pytest.raises(TypeError, match=r"embedding: ids must be \(3\) i32, got \(3\) f32"):
        lin.embed(_C.tensor(device, np.zeros(3, np.float32)))
    with pytest.raises(TypeError, match=r"embed: ids must be a Tensor"):
        lin.embed([1, 2])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"y must be .* f32\|f16\|bf16"):
        lin.embed(ids_on(device, [1]), "i32")
    with pytest.raises(ValueError, match="dtype must be one of"):
        lin.embed(ids_on(device, [1]), "f8")
