"""Shapes, formats and edge cases, one list for tests and benchmarks; ids paste into `pytest -k`."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

DENSE: Final = ("f32", "f16", "bf16")

# Per quantized format: (group, scale, zero); group 0 is one scale a row. Formats x groups x scales
# x zeros in full belong to the tests of decoding, which are cheap; the first of each is what other
# tests use.
VARIANTS: Final[dict[str, list[tuple[int, str, bool]]]] = {
    "int8": [
        (0, "f16", False),
        (32, "f16", False),
        (128, "f32", False),
        (0, "f32", True),
        (64, "f16", True),
    ],
    "fp8_e4m3": [(0, "f16", False), (128, "f32", False), (16, "f16", False)],
    "fp8_e5m2": [(0, "f16", False), (256, "f32", False)],
    "int4": [
        (128, "f16", False),
        (32, "f16", False),
        (16, "f32", False),
        (256, "f16", False),
        (0, "f16", False),
        (128, "f16", True),
        (64, "f32", True),
        (0, "f16", True),
    ],
    "fp4_e2m1": [
        (32, "e8m0", False),
        (16, "e4m3", False),
        (32, "f16", False),
        (128, "f32", False),
        (0, "f16", False),
        (64, "e8m0", False),
        (32, "e4m3", False),
    ],
}


def seed_of(case: object) -> int:
    """A seed made of the case's id only: a case pasted back sees the same numbers."""
    return zlib.crc32(str(case).encode())


@dataclass(frozen=True)
class FormatCase:
    """Weights (n, k) in a format: pack, unpack, dequantize, quantize, embedding."""

    format: str
    n: int
    k: int
    group: int | None = None  # None: the format has no scales
    scale: str | None = None
    zero: bool = False

    def __str__(self) -> str:
        return f"{weight_id(self.format, self.group, self.scale, self.zero)}-n{self.n}-k{self.k}"

    def weights(self) -> NDArray[np.float32]:
        """(n, k) normal, with an all-zero group, a large value and exact zeros among them."""
        w = np.random.default_rng(seed_of(self)).standard_normal((self.n, self.k)).astype(np.float32)
        if self.n:
            w[0, : min(self.k, self.group or 16)] = 0
            w[-1, -1] = 12.0
            w[:, self.k // 2] = 0
        return w


@dataclass(frozen=True)
class MatmulCase:
    """y (m, n) = epilogue(norm(x) (m, k) . W^T) by a row of kernels.def; dtype is that of x."""

    kernel: str
    format: str
    m: int
    n: int
    k: int
    dtype: str = "f16"
    group: int | None = None
    scale: str | None = None
    zero: bool = False
    activation: str | None = None
    bias: bool = False
    residual: bool = False
    norm: bool = False

    def __str__(self) -> str:
        extras = [
            self.activation,
            *(name for name in ("bias", "residual", "norm") if getattr(self, name)),
        ]
        weight = weight_id(self.format, self.group, self.scale, self.zero)
        return "-".join(
            [
                self.kernel,
                weight,
                f"m{self.m}-n{self.n}-k{self.k}-{self.dtype}",
                *filter(None, extras),
            ]
        )


@dataclass(frozen=True)
class MoeCase:
    """rows of x through a router and experts of a weight format; kernel None: the engine chooses. dtype: that of x."""

    kernel: str | None
    format: str
    rows: int
    experts: int
    top_k: int
    hidden: int
    inner: int
    dtype: str = "f32"
    group: int | None = None
    scale: str | None = None
    zero: bool = False
    shared: int = 0
    norm: bool = False
    residual: bool = False
    one_expert: bool = False  # the router sends all rows to the same experts

    def __str__(self) -> str:
        weight = weight_id(self.format, self.group, self.scale, self.zero)
        extras = [f"shared{self.shared}" if self.shared else None]
        extras += [name for name in ("norm", "residual", "one_expert") if getattr(self, name)]
        shape = f"r{self.rows}-e{self.top_k}of{self.experts}-h{self.hidden}-i{self.inner}-{self.dtype}"
        return "-".join(["moe", self.kernel or "auto", weight, shape, *filter(None, extras)])


@dataclass(frozen=True)
class AttentionCase:
    """Rows that attend: `positions` of the last row of each slot, `rows` of them consecutive."""

    heads: int
    kv_heads: int
    dim: int
    rows: int = 1
    positions: tuple[int, ...] = (0,)
    rope_dim: int | None = None  # None: the whole head
    interleaved: bool = False
    qk_norm: bool = False
    dtype: str = "f16"

    def __str__(self) -> str:
        extras = [
            f"rope{self.rope_dim}" if self.rope_dim is not None else None,
            "interleaved" if self.interleaved else None,
            "qknorm" if self.qk_norm else None,
        ]
        where = "_".join(map(str, self.positions))
        heads = f"attention-h{self.heads}-kv{self.kv_heads}-d{self.dim}"
        shape = f"{heads}-r{self.rows}-p{where}-{self.dtype}"
        return "-".join([shape, *filter(None, extras)])


@dataclass(frozen=True)
class RowsCase:
    """A row-wise op (norm, embedding, copy) over (rows, columns)."""

    op: str
    rows: int
    columns: int
    dtype: str = "f16"
    residual: bool = False

    def __str__(self) -> str:
        return f"{self.op}-r{self.rows}-c{self.columns}-{self.dtype}" + ("-residual" if self.residual else "")


@dataclass(frozen=True)
class SampleCase:
    """One draw from logits of `vocab` entries; `kind` names the logits (see `logits`)."""

    vocab: int
    kind: str = "normal"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    bias: bool = False
    seed: int = 1

    def __str__(self) -> str:
        extras = [
            f"k{self.top_k}" if self.top_k else None,
            f"p{self.top_p:g}" if self.top_p < 1 else None,
            f"minp{self.min_p:g}" if self.min_p else None,
            f"rep{self.repetition_penalty:g}" if self.repetition_penalty != 1 else None,
            "bias" if self.bias else None,
        ]
        return "-".join(
            [
                f"sample-{self.kind}-v{self.vocab}-t{self.temperature:g}-s{self.seed}",
                *filter(None, extras),
            ]
        )

    def logits(self) -> NDArray[np.float32]:
        """normal, equal, peak (one far ahead), ties, masked (-inf but for 3 ids), nan or inf."""
        rng = np.random.default_rng(seed_of(f"{self.kind}-{self.vocab}"))
        x = (rng.standard_normal(self.vocab) * 3).astype(np.float32)
        spot = self.vocab // 3
        if self.kind == "equal":
            x[:] = 0.5
        elif self.kind == "peak":
            x[spot] = 60
        elif self.kind == "ties":
            x = np.rint(x)
        elif self.kind == "masked":
            x[~np.isin(np.arange(self.vocab), [0, spot, self.vocab - 1])] = -np.inf
        elif self.kind in ("nan", "inf"):
            x[spot] = np.nan if self.kind == "nan" else np.inf
        return x


def weight_id(format: str, group: int | None, scale: str | None, zero: bool) -> str:
    parts = [format]
    if scale is not None:
        parts += [f"g{group}" if group else "channel", scale]
    return "-".join(parts) + ("-zero" if zero else "")


def weight_variants() -> Iterator[tuple[str, int | None, str | None, bool]]:
    """(format, group, scale, zero) of every format, in full."""
    for name in DENSE:
        yield name, None, None, False
    for name, variants in VARIANTS.items():
        for group, scale, zero in variants:
            yield name, group, scale, zero


def default_variants() -> Iterator[tuple[str, int | None, str | None, bool]]:
    """One of each format, and one with zero points of those that have them."""
    seen = set()
    for format, group, scale, zero in weight_variants():
        if (format, zero) not in seen:
            seen.add((format, zero))
            yield format, group, scale, zero


def _format_cases() -> list[FormatCase]:
    shapes = [(3, 256), (5, 100), (1, 1), (0, 64), (2, 129)]
    every = [FormatCase(f, 3, 256, g, s, z) for f, g, s, z in weight_variants()]
    edges = [FormatCase(f, n, k, g, s, z) for n, k in shapes[1:] for f, g, s, z in default_variants()]
    return every + edges


def _matmul_cases() -> list[MatmulCase]:
    cases = [MatmulCase("gemv", f, 1, 24, 256, "f16", g, s, z) for f, g, s, z in weight_variants()]
    defaults = list(default_variants())
    for f, g, s, z in defaults:
        # k: one block, one off it, no multiple of a unit; n odd and 1
        for m, n, k in [
            (1, 33, 128),
            (2, 7, 127),
            (3, 1, 640),
            (5, 17, 129),
        ]:
            cases.append(MatmulCase("gemv", f, m, n, k, "f32", g, s, z))
    # Many rows of x and large n, which choose other tunings; pipelines of these compile slowly on a CPU.
    for f, group, scale in [("int4", 128, "f16"), ("f16", None, None)]:
        for m, n, k in [(8, 24, 96), (16, 40, 384), (1, 300, 384), (1, 5000, 128)]:
            cases.append(MatmulCase("gemv", f, m, n, k, "f16", group, scale))
    for f, g, s, z in defaults:
        for m, n, k in [(17, 33, 128), (64, 64, 256), (65, 129, 160), (33, 1, 31)]:
            cases.append(MatmulCase("gemm", f, m, n, k, "f16", g, s, z))
            cases.append(MatmulCase("gemm_broadcast", f, m, n, k, "f16", g, s, z))
            cases.append(MatmulCase("gemm_coopmat", f, m, n, k, "f16", g, s, z))
        cases.append(MatmulCase("gemm@2", f, 65, 129, 160, "f16", g, s, z))
    tiled = [("gemm", 40), ("gemm@2", 40), ("gemm_broadcast", 3), ("gemm_coopmat", 40)]
    for kernel, m in [("gemv", 1), ("gemv", 4), *tiled]:
        for dtype in ("f16", "bf16", "f32"):
            if kernel != "gemm_coopmat" or dtype == "f16":
                cases.append(MatmulCase(kernel, "int4", m, 48, 256, dtype, 128, "f16", bias=True))
        for activation in ("silu", "gelu", "gelu_tanh", "swiglu", "geglu", "geglu_tanh"):
            cases.append(MatmulCase(kernel, "f16", m, 48, 128, activation=activation))
        cases.append(MatmulCase(kernel, "f16", m, 48, 128, residual=True))
        cases.append(MatmulCase(kernel, "int8", m, 50, 130, group=0, scale="f16", bias=True, residual=True))
        cases.append(MatmulCase(kernel, "int4", m, 48, 192, group=32, scale="f16", norm=True, activation="swiglu"))
    return cases


def _moe_cases() -> list[MoeCase]:
    kernels = [None, "rows", "moe_gemv@2", "moe_gemm", "moe_gemm_coopmat@32"]
    cases = [MoeCase(None, f, 2, 4, 2, 64, 32, "f32", g, s, z) for f, g, s, z in default_variants()]
    # Scales of a row differ between the experts that moe_down adds up.
    cases += [MoeCase(r, f, 1, 4, 3, 160, 130, "f32", 0, "f16") for f in ("int4", "int8") for r in (None, "rows")]
    for kernel in kernels:
        cases.append(MoeCase(kernel, "int4", 5, 8, 2, 256, 64, "f16", 32, "f16", norm=True, residual=True))
        # Odd sizes, shared experts, more rows than a tile, and all of them with the same experts.
        cases.append(MoeCase(kernel, "int8", 9, 3, 2, 72, 40, "f16", 0, "f16", shared=2))
        cases.append(MoeCase(kernel, "f16", 70, 4, 1, 64, 32, "f16", one_expert=True, residual=True))
    cases += [MoeCase(kernel, "f16", 1, 4, 2, 63, 31, "f32", residual=True) for kernel in (None, "rows")]
    cases.append(MoeCase("moe_gemm", "f16", 17, 4, 2, 63, 31, "f32", residual=True))
    cases.append(MoeCase("rows", "int4", 1, 2, 2, 128, 8192, "f16", 128, "f16"))  # staged in parts
    cases.append(MoeCase("rows@2,1,4/1,2,1,64,3", "int4", 2, 4, 2, 256, 96, "f16", 32, "f16", norm=True))
    cases.append(MoeCase("rows/2,1,1", "f16", 1, 4, 2, 256, 96, "f16", residual=True))
    cases.append(MoeCase("moe_gemm_coopmat@64", "int4", 200, 8, 2, 256, 128, "f16", 128, "f16", norm=True))
    cases.append(MoeCase("moe_gemm_coopmat@64,2", "int8", 230, 4, 2, 72, 40, "f16", 0, "f16", residual=True))
    cases.append(MoeCase("moe_gemm_coopmat@128,2", "int4", 300, 4, 2, 256, 304, "f16", 128, "f16", residual=True))
    cases.append(MoeCase("moe_gemm_coopmat@256", "int4", 600, 4, 2, 256, 136, "f16", 128, "f16", norm=True))
    cases.append(MoeCase("moe_gemm_coopmat@256,1", "f16", 300, 2, 1, 64, 136, "f16"))
    cases.append(MoeCase("moe_gemm_coopmat@128", "int4", 300, 4, 2, 256, 128, "f16", 128, "f16", norm=True))
    return cases


FORMAT_CASES: Final = _format_cases()
MATMUL_CASES: Final = _matmul_cases()
MOE_CASES: Final = _moe_cases()
ATTENTION_CASES: Final = [
    *(AttentionCase(4, kv, 64, positions=(p,)) for kv in (1, 2, 4) for p in (0, 1, 15, 16, 17, 300)),
    AttentionCase(8, 2, 128, positions=(5, 0, 63, 64, 65)),
    AttentionCase(3, 1, 32, positions=(40,), dtype="f32"),
    AttentionCase(4, 2, 64, positions=(7, -1, 90), qk_norm=True),  # -1: an idle row
    AttentionCase(4, 2, 64, positions=(33,), rope_dim=32),
    AttentionCase(4, 2, 64, positions=(33,), interleaved=True),
    AttentionCase(2, 2, 80, positions=(33,), interleaved=True, rope_dim=20, dtype="bf16"),
    *(
        AttentionCase(4, 2, 64, rows=r, positions=(p,))
        for r, p in [(2, 1), (16, 15), (17, 16), (31, 62), (64, 63), (65, 100)]
    ),
    AttentionCase(6, 2, 128, rows=33, positions=(70,), qk_norm=True, dtype="f32"),
]
ROWS_CASES: Final = [
    RowsCase(op, rows, columns, dtype, residual)
    for op in ("rms_norm",)
    for dtype in ("f32", "f16", "bf16")
    for residual in (False, True)
    for rows, columns in [(1, 1), (1, 64), (3, 100), (2, 1025), (5, 4096), (0, 64)]
]
SAMPLE_CASES: Final = [
    SampleCase(1),
    SampleCase(7),
    SampleCase(1000),
    SampleCase(4097),
    SampleCase(50257, seed=2**40 + 5),
    *(SampleCase(1000, kind) for kind in ("equal", "peak", "ties", "masked", "nan", "inf")),
    *(SampleCase(1000, kind, temperature=0.0) for kind in ("normal", "equal", "ties", "nan", "inf")),
    *(SampleCase(1000, top_k=k) for k in (1, 2, 40, 999, 1000, 5000)),
    *(SampleCase(1000, top_p=p) for p in (0.0, 1e-6, 0.5, 0.95)),
    *(SampleCase(1000, min_p=p) for p in (0.05, 0.5, 1.0)),
    *(SampleCase(1000, "ties", top_k=k, top_p=0.9) for k in (1, 40)),
    SampleCase(1000, temperature=0.1),
    SampleCase(1000, temperature=5.0),
    SampleCase(1000, repetition_penalty=1.3),
    SampleCase(1000, repetition_penalty=0.5, temperature=0.0),
    SampleCase(1000, bias=True),
    SampleCase(1000, bias=True, temperature=0.0),
    SampleCase(
        4097,
        temperature=0.7,
        top_k=40,
        top_p=0.95,
        min_p=0.02,
        repetition_penalty=1.1,
        bias=True,
        seed=99,
    ),
]
