"""Arrays to tensors and back, in the dtypes of activations."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from marlin import _C

DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
Array = np.ndarray[Any, Any]


def tensor(device: _C.Device, values: Any, dtype: str = "f32") -> _C.Tensor:
    rounded = np.ascontiguousarray(np.asarray(values).astype(DTYPES[dtype]))
    bits = rounded.view(np.uint16) if dtype == "bf16" else rounded
    return _C.tensor(device, bits, dtype=dtype, shape=rounded.shape)


def ints(device: _C.Device, values: Any) -> _C.Tensor:
    return _C.tensor(device, np.asarray(values, np.int32))


def array(t: _C.Tensor) -> Array:
    return np.frombuffer(t.tobytes(), DTYPES[t.dtype]).reshape(t.shape).astype(np.float64)
