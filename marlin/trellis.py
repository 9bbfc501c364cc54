"""EXL3 trellis weights: the format by name, and a linear layer that can be used on arrays by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marlin import _C, html
from marlin.device import Device
from marlin.keywords import checked_keywords
from marlin.tensors import Tensor, host_array, upload

CODEBOOKS: Final = ("3inst", "mcg", "mul1")
HALF_RATES: Final = (1.5, 2.5, 3.5)  # with mul1 only
RATES: Final = (*map(float, range(1, 9)), *HALF_RATES)
BLOCK: Final = 128  # both sizes of a trellis are multiples of it


def padded(size: int) -> int:
    """A size of a layer as the trellis has it."""
    return -(-size // BLOCK) * BLOCK


def trellis_bytes(n: int, k: int, bits: float) -> int:
    """Bytes of a layer's codes and scales."""
    return int(padded(n) * padded(k) * bits) // 8 + 2 * (padded(n) + padded(k))


@dataclass(frozen=True)
class TrellisFormat:
    """EXL3 with a codebook; bits: a weight, of several matrices the mean."""

    bits: float
    codebook: str = "mul1"

    name = "exl3"

    @classmethod
    def parse(cls, text: str) -> TrellisFormat:
        """ "exl3:4" or "exl3:2.5"; ValueError for bits that the format does not have."""
        try:
            bits = float(text.partition(":")[2])
        except ValueError:
            bits = 0.0
        if bits not in RATES:
            raise ValueError(f"format {text!r}: exl3 takes :1 to :8, :1.5, :2.5 or :3.5 bits")
        return cls(bits)

    def __str__(self) -> str:
        return f"exl3 {self.bits:.3g} bits, {self.codebook}"


def unpack_signs(words: NDArray[Any]) -> NDArray[np.float16]:
    """The older form of scales, (channels / 16) words: bit b of word i set is -1 for channel 16 i + b, else 1."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")
    return np.where(bits == 1, np.float16(-1), np.float16(1))


def decode_rows(words: NDArray[np.uint16], signs: NDArray[Any]) -> NDArray[np.float32]:
    """Rows of an embedding: (rows, groups * (1 + 16 * bits)) and signs (groups, 256) -> (rows, groups * 256).

    Each 256 columns are a ring of codes behind their scale, an f16. Code i is `bits` bits of the stream at i * bits,
    words and bits with the lowest first; the state of column i has it in its lowest bits, above it the code of
    column i - 1, and so on around the ring. Column = sign * 256-point orthonormal Hadamard of (mul1 value * scale).
    Raises ValueError for scales that are inf or nan.
    """
    rings = words.reshape(len(words) * len(signs), -1)
    bits = (rings.shape[1] - 1) // 16
    scales = np.ascontiguousarray(rings[:, :1]).view(np.float16).astype(np.float32)
    if not np.isfinite(scales).all():
        raise ValueError("holds scales that are inf or nan")
    stream = np.unpackbits(np.ascontiguousarray(rings[:, 1:]).view(np.uint8), axis=1, bitorder="little")
    codes = np.packbits(stream.reshape(len(rings), 256, bits), axis=2, bitorder="little")[:, :, 0].astype(np.uint16)
    states = codes.copy()
    for back in range(1, -(-16 // bits)):
        states |= np.roll(codes, back, axis=1) << np.uint16(back * bits)
    transform = np.ones((1, 1), np.float32)
    for _ in range(8):
        transform = np.block([[transform, transform], [transform, -transform]])
    values = (_mul1_values()[states] * scales) @ (transform / np.float32(16))
    return (values.reshape(len(words), len(signs), 256) * signs.astype(np.float32)).reshape(len(words), -1)


def _mul1_values() -> NDArray[np.float32]:
    """The numbers that the 65536 states stand for: the byte sum of a product, affine, rounded to f16 once."""
    product = np.arange(1 << 16, dtype=np.uint32) * np.uint32(0x83DCD12D)
    total = product.view(np.uint8).reshape(-1, 4).sum(axis=1)
    scale, offset = np.array([0x1EEE, 0xC931], np.uint16).view(np.float16).astype(np.float64)
    return ((1024 + total) * scale + offset).astype(np.float16).astype(np.float32)


class TrellisLinear:
    """y = x W + bias with W (in, out) an EXL3 trellis. `raw` is the marlin._C.TrellisLinear.

    W = diag(suh) P Q P diag(svh): Q is decoded from the trellis, P is a block diagonal of orthonormal 128 x 128
    Hadamard matrices. Source: the EXL3 format of ExLlamaV3, after QTIP (arXiv 2406.11235).

    layer = TrellisLinear.from_arrays(trellis, suh, svh)
    y = layer(x)                      # x (..., in) array or Tensor -> Tensor (..., out)
    """

    __slots__ = ("raw",)

    def __init__(self, raw: _C.TrellisLinear) -> None:
        self.raw = raw

    @classmethod
    @checked_keywords
    def from_arrays(
        cls,
        trellis: ArrayLike,
        suh: ArrayLike,
        svh: ArrayLike,
        codebook: str = "mul1",
        bias: ArrayLike | None = None,
        *,
        device: Device | int | str | None = None,
    ) -> TrellisLinear:
        """A layer of the tensors of an EXL3 checkpoint.

        trellis (in / 16, out / 16, 16 * bits) int16 or uint16; suh (in), svh (out) float16, or their packed signs
        (in / 16), (out / 16) int16; codebook "3inst", "mcg" or "mul1"; bias (out). in and out are multiples of 128.
        Raises TypeError for other dtypes, ValueError for other shapes, bits, codebooks, and inf or nan in scales.
        """
        codes = np.asarray(trellis)
        if codes.dtype not in (np.int16, np.uint16):
            raise TypeError(f"TrellisLinear: trellis must be int16 or uint16, got {codes.dtype}")
        if codes.ndim != 3 or codes.shape[0] % 8 or codes.shape[1] % 8 or 0 in codes.shape:
            raise ValueError(
                "TrellisLinear: trellis must be (in / 16, out / 16, 16 * bits) with in and out multiples of 128, "
                f"got shape {codes.shape}"
            )
        bits = codes.shape[2] / 16
        if bits not in RATES:
            raise ValueError(f"TrellisLinear: trellis has {codes.shape[2]} words a tile, which is no rate of EXL3")
        k, n = 16 * codes.shape[0], 16 * codes.shape[1]
        scales = [_scales(name, given, size) for name, given, size in (("suh", suh, k), ("svh", svh, n))]
        opened = Device(device).raw
        raw = _C.TrellisLinear(opened, n, k, bits, codebook)
        raw.set_trellis(np.ascontiguousarray(codes))
        raw.set_scales(scales[0], scales[1])
        if bias is not None:
            values = host_array(bias).astype(np.float32)
            if values.shape != (n,):
                raise ValueError(f"TrellisLinear: bias must be ({n},), got shape {values.shape}")
            raw.set_bias(upload(values, opened))
        return cls(raw)

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        return self.raw.k, self.raw.n

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return self.raw.bits

    @property
    def codebook(self) -> str:
        """What turns states into numbers: "3inst", "mcg" or "mul1"."""
        return self.raw.codebook

    @property
    def nbytes(self) -> int:
        """Bytes of the trellis and the scales."""
        return self.raw.nbytes

    @property
    def device(self) -> _C.Device:
        """Where the weights are."""
        return self.raw.device

    @checked_keywords
    def __call__(self, x: ArrayLike | Tensor, *, activation: str | None = None, activations: str = "f16") -> Tensor:
        """(..., in) -> (..., out) in the dtype of x, f32 accumulated.

        activation: silu, gelu or gelu_tanh. activations="int8": x is rounded to 8 bits after its transform, with a
        scale for each 128 (mul1 only, at most 16 rows): quicker where a device has packed integer products, with
        an error of about 0.6 % of y.
        """
        raw = x.raw if isinstance(x, Tensor) else upload(host_array(x), self.raw.device)
        if raw.shape[-1] != self.raw.k:
            raise ValueError(f"TrellisLinear: x must be (..., {self.raw.k}), got shape {raw.shape}")
        y = self.raw(raw.reshape(-1, self.raw.k), activation=activation, activations=activations)
        return Tensor(y.reshape(*raw.shape[:-1], self.raw.n))

    def inner(self) -> Tensor:
        """Q: the decoded matrix (in, out) f16 between the two transforms, exact."""
        return Tensor(self.raw.inner())

    def dequantize(self, dtype: str = "f32") -> Tensor:
        """W (in, out) as it multiplies."""
        return Tensor(self.raw.dequantize(dtype))

    def __repr__(self) -> str:
        form = TrellisFormat(self.bits, self.codebook)
        return f"<TrellisLinear ({self.raw.k}, {self.raw.n}) {form}, {html.size(self.nbytes)}>"

    def _repr_html_(self) -> str:
        k, n, bits = self.raw.k, self.raw.n, self.bits
        rows = [("trellis", f"{k // 16} × {n // 16} × {int(16 * bits)}", "u16"), ("suh", k, "f16"), ("svh", n, "f16")]
        title = f"TrellisLinear {k} × {n}, {TrellisFormat(bits, self.codebook)}, {html.size(self.nbytes)}"
        return html.table(rows, head=("tensor", "shape", "type"), title=title)


def _scales(name: str, given: ArrayLike, size: int) -> NDArray[np.float16]:
    values = np.asarray(given)
    if values.dtype in (np.int16, np.uint16) and values.shape == (size // 16,):
        return unpack_signs(values)
    if values.dtype != np.float16:
        raise TypeError(f"TrellisLinear: {name} must be ({size},) float16, got {values.shape} {values.dtype}")
    if values.shape != (size,):
        raise ValueError(f"TrellisLinear: {name} must be ({size},) float16, got shape {values.shape}")
    return np.ascontiguousarray(values)
