"""The rope block against NumPy: rotation, head norms, what it writes to the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, array, ints, tensor
from ref.rope import rope, rope_block
from tolerance import check

from marlin import _C


def frequencies(rope_dim: int, base: float = 10000.0) -> np.ndarray[Any, Any]:
    return (base ** -(np.arange(rope_dim // 2) * 2 / rope_dim)).astype(np.float32)


@pytest.mark.parametrize("cache_dtype", ["f16", "f32"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rope_dim", "interleaved", "norm"),
    [
        (4, 2, 64, 64, False, False),
        (4, 2, 64, 32, False, True),
        (3, 1, 80, 20, True, True),
        (2, 2, 8, 2, False, False),
        (5, 1, 256, 256, True, False),
    ],
)
def test_rope(
    device: _C.Device,
    heads: int,
    kv_heads: int,
    dim: int,
    rope_dim: int,
    interleaved: bool,
    norm: bool,
    dtype: str,
    cache_dtype: str,
) -> None:
    rng = np.random.default_rng(heads * dim)
    slots, context = 3, 20
    positions, in_slots = [7, -1, 0, 19, 20, 3, 2], [2, 1, 0, 1, 0, 3, -1]  # 3 outside
    qkv = rng.standard_normal((7, (heads + 2 * kv_heads) * dim)).astype(DTYPES[dtype])
    freq = frequencies(rope_dim)
    weights = rng.uniform(0.5, 1.5, (2, dim)).astype(np.float32) if norm else (None, None)
    cache = _C.KVCache(device, layers=2, slots=slots, context=context, kv_heads=kv_heads, dim=dim, dtype=cache_dtype)
    before = rng.standard_normal((2, slots, context, kv_heads, dim)).astype(DTYPES[cache_dtype])
    for t, values in zip(cache.read(1), before, strict=True):
        t.write(values)
    y = _C.rope(
        tensor(device, qkv, dtype),
        cache,
        1,
        ints(device, positions),
        ints(device, in_slots),
        tensor(device, freq),
        heads=heads,
        q_norm=None if weights[0] is None else tensor(device, weights[0]),
        k_norm=None if weights[1] is None else tensor(device, weights[1]),
        eps=1e-5,
        rope_scale=1.25,
        interleaved=interleaved,
        dtype="f32",
    )
    k, v = before.astype(np.float64)
    valid = [p if i < 4 else -1 for i, p in enumerate(positions)]
    q = rope_block(
        qkv, k, v, np.array(valid), np.array(in_slots), freq, heads=heads, q_norm=weights[0],
        k_norm=weights[1], eps=1e-5, scale=1.25, interleaved=interleaved,
    )  # fmt: skip
    assert y.shape == (7, heads * dim) and y.dtype == "f32"
    check(array(y), q.reshape(7, -1), "f32", what="q")
    written = np.zeros((slots, context), bool)
    written[[2, 0, 1], [7, 0, 19]] = True
    for name, got, expected, old in zip("kv", cache.read(1), (k, v), before, strict=True):
        check(array(got)[written], expected[written], cache_dtype, what=name)
        check(array(got)[~written], old[~written], "exact", what=f"{name} elsewhere")


@pytest.mark.parametrize("positions", [[0, 1, 2, 100], [4095, 32768, 65535, 131071]])
def test_angles(device: _C.Device, positions: list[int]) -> None:
    """cos and sin of large angles, to the last bits: no device function is that good there."""
    freq = np.concatenate([frequencies(64, 10000.0), frequencies(64, 5e5), [0, 1e-9]]).astype(np.float32)
    dim = 2 * len(freq) + 4
    x = np.zeros((len(positions), 3, dim), np.float32)
    x[:, :, : len(freq)] = 1
    cache = _C.KVCache(device, layers=1, slots=1, context=131072, kv_heads=1, dim=dim, dtype="f32")
    y = _C.rope(
        tensor(device, x.reshape(len(positions), -1)),
        cache,
        0,
        ints(device, positions),
        ints(device, [0] * len(positions)),
        tensor(device, freq),
        heads=1,
    )
    expected = rope(x[:, :1], np.array(positions), freq)
    np.testing.assert_allclose(array(y), expected[:, 0], atol=4e-7)


def test_what_the_cache_cannot_hold(device: _C.Device) -> None:
    """Finite values beyond f16 are clamped; inf and nan stay."""
    qkv = np.zeros((1, 3 * 8), np.float32)
    qkv[0, 16:22] = 1e6, -70000, np.inf, -np.inf, np.nan, 65519
    cache = _C.KVCache(device, layers=1, slots=1, context=1, kv_heads=1, dim=8)
    zero = ints(device, [0])
    _C.rope(tensor(device, qkv), cache, 0, zero, zero, tensor(device, [1.0]), heads=1)
    v = array(cache.read(0)[1]).ravel()
    expected = [65504, -65504, np.inf, -np.inf, np.nan, 65504, 0, 0]
    np.testing.assert_array_equal(v, expected)
