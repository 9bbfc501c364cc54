"""EXL3 trellis weights: packed codes to states to values to weights, and the layer y = x W.

W (k, n) = diag(suh) P Q P diag(svh): Q is decoded from the trellis, P is a block diagonal of 128 x 128 Hadamard
matrices. Source: the EXL3 format of ExLlamaV3, after QTIP (Tseng et al. 2024, arXiv 2406.11235).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TILE: Final = 16
BLOCK: Final = 128
CODES: Final = TILE * TILE
RATES: Final = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)
MULTIPLIERS: Final = {"3inst": 89226354, "mcg": 0xCBAC1FED, "mul1": 0x83DCD12D}


def rate_of(trellis: Array) -> float:
    """Bits a weight of packed codes (k / 16, n / 16, 16 * bits)."""
    bits = trellis.shape[2] / 16
    if bits not in RATES:
        raise ValueError(f"{trellis.shape[2]} words a tile are no rate of the format")
    return bits


def code_ends(bits: float) -> NDArray[np.int64]:
    """(256) stream bits that have been read when code i is complete: 16 of them end there are its state."""
    return np.array([math.floor((i + 1) * bits) for i in range(CODES)])


def positions() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column in the tile of each of the 256 codes, in code order."""
    t, j = np.divmod(np.arange(CODES), 8)
    row = 2 * (t % 4) + (j & 1) + 8 * (j >> 1 & 1)
    column = t // 4 + 8 * (j >> 2)
    return row, column


def states(trellis: Array) -> NDArray[np.uint16]:
    """(k / 16, n / 16, words) u16 -> (k / 16, n / 16, 256) states in code order.

    The tile is a ring of bits: u32 words, each with its highest bit first. Every state is 16 bits of it.
    """
    bits = rate_of(trellis)
    words = np.ascontiguousarray(trellis).view(np.uint16).astype(np.uint32)
    words = words[..., 0::2] | words[..., 1::2] << np.uint32(16)
    stream = (words[..., None] >> np.arange(31, -1, -1, dtype=np.uint32)) & np.uint32(1)
    stream = stream.reshape(*trellis.shape[:2], -1)
    window = code_ends(bits)[:, None] + np.arange(-16, 0)
    found = stream[..., window % stream.shape[-1]]
    return (found << np.arange(15, -1, -1, dtype=np.uint32)).sum(-1, dtype=np.uint32).astype(np.uint16)


def pack(found: NDArray[np.uint16], bits: float) -> NDArray[np.uint16]:
    """The inverse of `states`: (.., .., 256) -> (.., .., 16 * bits). Only the new bits of each code are kept."""
    ends = code_ends(bits)
    stream = np.zeros((*found.shape[:2], int(CODES * bits)), np.uint32)
    for i, end in enumerate(ends):
        for back in range(end - (ends[i - 1] if i else 0)):
            stream[..., end - 1 - back] = found[..., i] >> np.uint16(back) & np.uint16(1)
    words = stream.reshape(*found.shape[:2], -1, 32) << np.arange(31, -1, -1, dtype=np.uint32)
    return np.ascontiguousarray(words.sum(-1, dtype=np.uint32)).view(np.uint16)


def codebook(name: str) -> NDArray[np.float16]:
    """(65536) values of the states."""
    x = np.arange(65536, dtype=np.uint32) * np.uint32(MULTIPLIERS[name])
    if name == "mul1":
        total = sum((x >> np.uint32(shift) & np.uint32(255)) for shift in (0, 8, 16, 24))
        scale, offset = np.array([0x1EEE, 0xC931], np.uint16).view(np.float16).astype(np.float64)
        return ((1024.0 + total) * scale + offset).astype(np.float16)
    if name == "3inst":
        x += np.uint32(64248484)
    x = (x & np.uint32(0x8FFF8FFF)) ^ np.uint32(0x3B603B60)
    low, high = (x & np.uint32(0xFFFF)).astype(np.uint16), (x >> np.uint32(16)).astype(np.uint16)
    return low.view(np.float16) + high.view(np.float16)


def inner(trellis: Array, name: str) -> NDArray[np.float16]:
    """Q (k, n): the decoded matrix between the two transforms."""
    values = codebook(name)[states(trellis)]
    rows, columns = positions()
    tiles = np.empty((*trellis.shape[:2], TILE, TILE), np.float16)
    tiles[..., rows, columns] = values
    a, b = trellis.shape[:2]
    return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3)).reshape(a * TILE, b * TILE)


def embedding(words: Array, signs: Array) -> NDArray[np.float64]:
    """Rows that are coded one by one, (rows, groups * (1 + 16 * bits)) u16 -> (rows, groups * 256).

    signs (groups, 256). A ring for each group: a scale, f16, then 256 codes, the lowest bits first. A state is the
    code with those before it above.
    """
    values = codebook("mul1").astype(np.float64)
    found = np.empty((len(words), *signs.shape))
    for row, stored in enumerate(words.view(np.uint16).reshape(len(words), len(signs), -1)):
        for group, ring in enumerate(stored):
            bits = (len(ring) - 1) // 16
            stream = sum(int(word) << 16 * i for i, word in enumerate(ring[1:]))
            codes = [stream >> i * bits & (1 << bits) - 1 for i in range(CODES)]
            states = [sum(codes[i - back] << back * bits for back in range(16)) & 0xFFFF for i in range(CODES)]
            found[row, group] = values[states] * float(ring[:1].view(np.float16)[0])
    for stride in 1 << np.arange(8):
        pairs = found.reshape(-1, 2, stride)
        found = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1)
    return (found.reshape(len(words), *signs.shape) / 16 * signs).reshape(len(words), -1)


def hadamard(x: Array, dtype: Any = np.float64) -> Array:
    """x P along the last axis, in blocks of 128: butterflies of stride 1, 2, .. 64, then one multiplication."""
    y = x.astype(dtype).reshape(-1, BLOCK)
    for stride in (1, 2, 4, 8, 16, 32, 64):
        pairs = y.reshape(-1, BLOCK // (2 * stride), 2, stride)
        y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(-1, BLOCK)
    return (y * np.dtype(dtype).type(0.088388347648318447)).reshape(x.shape)


def signs(packed: Array) -> NDArray[np.float16]:
    """The older form of suh and svh: (k / 16) words, bit b of word i is the sign of channel 16 i + b, 1 for -1."""
    bits = packed.view(np.uint16)[:, None] >> np.arange(16, dtype=np.uint16) & np.uint16(1)
    return np.where(bits == 1, np.float16(-1), np.float16(1)).reshape(-1)


def input_transform(x: Array, suh: Array) -> NDArray[np.float16]:
    """(rows, k) -> (rows, k) as the original rounds: the product to f16, butterflies in f32, the result to f16."""
    scaled = x.astype(np.float16) * suh.astype(np.float16)
    return hadamard(scaled, np.float32).astype(np.float16)


def weight(q: Array, suh: Array, svh: Array) -> NDArray[np.float64]:
    """W (k, n), exact."""
    left = hadamard(q.astype(np.float64).T).T * suh.astype(np.float64)[:, None]
    return hadamard(left) * svh.astype(np.float64)


def forward(x: Array, q: Array, suh: Array, svh: Array, bias: Array | None = None) -> NDArray[np.float64]:
    """y (rows, n) = x W + bias, exact: nothing is rounded on the way.

    x (rows, k) or fewer columns than Q has rows: those are zeros. n: as many as svh has.
    """
    rows = np.zeros((len(x), len(q)))
    rows[:, : x.shape[1]] = x
    y = hadamard(hadamard(rows * suh.astype(np.float64)) @ q.astype(np.float64)) * svh.astype(np.float64)
    return y if bias is None else y + bias.astype(np.float64)
