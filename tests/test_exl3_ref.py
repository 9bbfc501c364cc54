"""tests/ref/exl3.py against tensors and results of ExLlamaV3."""

from __future__ import annotations

import numpy as np
import pytest
from exl3_golden import ALL, LAYERS, Layer, sha256
from ref import exl3
from tolerance import nmse


def test_every_rate_and_codebook_is_among_the_goldens() -> None:
    found = {(exl3.rate_of(layer.trellis), layer.codebook) for layer in LAYERS}
    whole = {(float(k), name) for k in range(1, 9) for name in exl3.MULTIPLIERS}
    assert found == whole | {(k, "mul1") for k in (1.5, 2.5, 3.5)}


@pytest.mark.parametrize("name", exl3.MULTIPLIERS)
def test_codebook(name: str) -> None:
    assert sha256(exl3.codebook(name)) == ALL[f"codebook/{name}"].tobytes()


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer(layer: Layer) -> None:
    q = exl3.inner(layer.trellis, layer.codebook)
    assert sha256(q) == layer.inner_sha256.tobytes()
    assert np.array_equal(exl3.input_transform(layer.x, layer.suh), layer.x_had)
    # The original rounds the rotated x to f16, which costs 2e-4.
    y = exl3.forward(layer.x, q, layer.suh, layer.svh, layer.stored_bias)
    assert nmse(layer.y, y) < 2e-7
    first = exl3.weight(q, layer.suh, layer.svh)[0]
    assert nmse(layer.weight_first_row, first) < 1e-6


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_pack_is_the_inverse(layer: Layer) -> None:
    packed = exl3.pack(exl3.states(layer.trellis), exl3.rate_of(layer.trellis))
    assert np.array_equal(packed, layer.trellis.view(np.uint16))


def test_signs() -> None:
    packed = np.array([0x8001, 0], np.uint16).view(np.int16)
    expected = np.ones(32)
    expected[[0, 15]] = -1
    assert np.array_equal(exl3.signs(packed), expected)
