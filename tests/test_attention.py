"""Attention against NumPy: both kernels, head shapes, chunk boundaries, idle rows, cache dtypes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, Array, array, ints, tensor
from cases import ATTENTION_CASES, AttentionCase, seed_of
from ref.attention import attention
from ref.rope import rope_block
from tolerance import check

from marlin import _C


@dataclass
class Problem:
    """A case with its numbers, here and on the device. The cache is NaN where no row may look."""

    device: _C.Device
    case: AttentionCase
    cache_dtype: str = "f16"
    context: int = 0
    bound: int = 0

    def __post_init__(self) -> None:
        case, rng = self.case, np.random.default_rng(seed_of(self.case))
        self.sequence = case.rows > 1
        last = max(case.positions)
        self.context = self.context or last + 3
        self.bound = self.bound or self.context
        count = len(case.positions)
        if self.sequence:
            self.positions = list(range(last - case.rows + 1, last + 1))
            self.slots, slots = [1] * case.rows, 2
        else:
            self.positions, slots = list(case.positions), count
            self.slots = list(range(count))[::-1]
        width = (case.heads + 2 * case.kv_heads) * case.dim
        self.qkv = rng.standard_normal((len(self.positions), width)).astype(DTYPES[case.dtype])
        rope_dim = case.rope_dim or case.dim
        self.freq = (10000.0 ** -(np.arange(rope_dim // 2) * 2 / rope_dim)).astype(np.float32)
        self.norms = (None, None)
        if case.qk_norm:
            self.norms = tuple(rng.uniform(0.5, 1.5, (2, case.dim)).astype(np.float32))
        shape = (2, slots, self.context, case.kv_heads, case.dim)
        self.kv = rng.standard_normal(shape).astype(DTYPES[self.cache_dtype])
        for slot in range(slots):
            mine = [p for p, s in zip(self.positions, self.slots, strict=True) if s == slot]
            self.kv[:, slot, max(0, min(mine)) if mine else 0 :] = np.nan
        self.cache = _C.KVCache(
            self.device,
            layers=2,
            slots=slots,
            context=self.context,
            kv_heads=case.kv_heads,
            dim=case.dim,
            dtype=self.cache_dtype,
        )
        self.reset()

    def reset(self) -> None:
        for t, values in zip(self.cache.read(1), self.kv, strict=True):
            t.write(values)

    def run(self, qkv: Array | None = None, **options: Any) -> Array:
        case = self.case
        nothing = (len(self.positions), case.heads * case.dim)
        _C.full(self.device, nothing, 0x7FFF7FFF, "f32")  # whose memory the result may get
        y = _C.attention(
            tensor(self.device, self.qkv if qkv is None else qkv, case.dtype),
            self.cache,
            1,
            ints(self.device, self.positions),
            ints(self.device, self.slots),
            tensor(self.device, self.freq),
            heads=case.heads,
            bound=self.bound,
            q_norm=None if self.norms[0] is None else tensor(self.device, self.norms[0]),
            k_norm=None if self.norms[1] is None else tensor(self.device, self.norms[1]),
            interleaved=case.interleaved,
            sequence=self.sequence,
            **options,
        )
        return array(y)

    def expected(self) -> tuple[Array, Array]:
        """y and the caches, before rounding; attention reads them rounded to the cache's dtype."""
        case, rows = self.case, len(self.positions)
        k, v = self.kv.astype(np.float64)
        positions, slots = np.array(self.positions), np.array(self.slots)
        q = rope_block(
            self.qkv, k, v, positions, slots, self.freq, heads=case.heads, q_norm=self.norms[0],
            k_norm=self.norms[1], interleaved=case.interleaved,
        )  # fmt: skip
        caches = np.stack([k, v])
        k, v = caches.astype(DTYPES[self.cache_dtype])
        return attention(q, k, v, positions, slots).reshape(rows, -1), caches

    def check(self, y: Array, narrowest: str) -> None:
        expected, caches = self.expected()
        check(y, expected, narrowest, what="y")
        for name, got, want in zip("kv", self.cache.read(1), caches, strict=True):
            check(array(got), want, self.cache_dtype, what=name)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_attention(device: _C.Device, case: AttentionCase) -> None:
    problem = Problem(device, case, cache_dtype="f32" if case.dtype == "f32" else "f16")
    problem.check(problem.run(), case.dtype)


HEADS = [
    AttentionCase(heads, kv_heads, dim, positions=(37, 4), dtype="f32")
    for heads, kv_heads, dim in [
        (1, 1, 8), (2, 1, 16), (3, 3, 24), (5, 1, 40), (14, 2, 64), (6, 1, 96), (16, 1, 128),
        (40, 2, 32), (8, 1, 256),
    ]
]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 21])
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_head_shapes(device: _C.Device, case: AttentionCase, rows: int) -> None:
    cache_dtype = ("f16", "f32")[HEADS.index(case) % 2]
    case = replace(case, rows=rows, positions=case.positions if rows == 1 else (37,))
    problem = Problem(device, case, cache_dtype=cache_dtype)
    # The prefill kernel rounds q and the weights to the cache's dtype; the decode kernel nothing.
    problem.check(problem.run(), "f16" if cache_dtype == "f16" else "f32")


GATED = [
    AttentionCase(4, 2, 64, positions=(37, 4, -1), rope_dim=16, qk_norm=True),
    AttentionCase(4, 2, 64, rows=21, positions=(37,), rope_dim=16, qk_norm=True),
    AttentionCase(8, 1, 256, positions=(700, 600), rope_dim=64, dtype="f32"),
    AttentionCase(16, 2, 256, rows=37, positions=(90,), rope_dim=64),
    AttentionCase(4, 2, 128, rows=130, positions=(300,), dtype="bf16"),
    AttentionCase(3, 3, 24, rows=5, positions=(4,), dtype="bf16"),
    AttentionCase(5, 1, 40, rows=70, positions=(90,), dtype="f32"),
    AttentionCase(1, 1, 8, positions=(0,), dtype="f32"),
]


@pytest.mark.parametrize("case", GATED, ids=str)
def test_output_gate(device: _C.Device, case: AttentionCase) -> None:
    """A gate behind each head of q multiplies what the head gives, and changes nothing else."""
    problem = Problem(device, case, cache_dtype="f32" if case.dtype == "f32" else "f16")
    rows, size = len(problem.qkv), case.heads * case.dim
    gate = np.random.default_rng(5).standard_normal((rows, size)).astype(problem.qkv.dtype) * 3
    heads = [part.reshape(rows, case.heads, case.dim) for part in (problem.qkv[:, :size], gate)]
    wide = np.concatenate([np.concatenate(heads, axis=2).reshape(rows, -1), problem.qkv[:, size:]], axis=1)
    y = problem.run(wide, gated=True)
    expected, caches = problem.expected()
    check(y, expected / (1 + np.exp(-gate.astype(np.float64))), case.dtype, what="y")
    for name, got, want in zip("kv", problem.cache.read(1), caches, strict=True):
        check(array(got), want, problem.cache_dtype, what=name)


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("kernel", ["attention_prefill", "attention_prefill_coopmat"])
def test_output_gate_of_a_padded_sequence(device: _C.Device, kernel: str, dtype: str) -> None:
    """Idle rows give zeros, whatever their gates are."""
    if "coopmat" in kernel and "coopmat" not in device.features:
        pytest.skip("needs coopmat")
    case = AttentionCase(4, 2, 64, rows=70, positions=(69,), dtype=dtype)
    problem = Problem(device, case)
    size = case.heads * case.dim
    expected, _ = problem.expected()
    gate = np.random.default_rng(5).standard_normal((70, size)).astype(problem.qkv.dtype)
    factor = 1 / (1 + np.exp(-gate.astype(np.float64)))
    gate[50:] = np.nan
    heads = [part.reshape(70, case.heads, case.dim) for part in (problem.qkv[:, :size], gate)]
    wide = np.concatenate([np.concatenate(heads, axis=2).reshape(70, -1), problem.qkv[:, size:]], axis=1)
    problem.positions[50:], problem.slots[50:] = [-1] * 20, [9] * 20
    y = problem.run(wide, gated=True, kernel=kernel)
    check(y[:50], (expected * factor)[:50], "f16")
    assert not y[50:].any()


def test_output_gate_needs_wide_rows(device: _C.Device) -> None:
    problem = Problem(device, AttentionCase(4, 2, 64))
    with pytest.raises(ValueError, match=r"qkv must be \(1, 768\)"):
        problem.run(gated=True)


@pytest.mark.parametrize("position", [0, 30, 31, 32, 33, 63, 64, 511, 512, 513, 1023, 1999, 2047])
def test_chunk_boundaries(device: _C.Device, position: int) -> None:
    """Split over chunks whose length follows from the position; twice: the counters are zero."""
    case = AttentionCase(3, 1, 64, positions=(position, 100), dtype="f32")
    problem = Problem(device, case, cache_dtype="f32", context=2048)
    first = problem.run()
    problem.check(first, "f32")
    np.testing.assert_array_equal(problem.run(), first)


@pytest.mark.parametrize("bound", [1, 512, 513, 4096])
def test_bound_does_not_matter(device: _C.Device, bound: int) -> None:
    """It sizes the grid; a position beyond it is only slower."""
    case = AttentionCase(4, 2, 64, positions=(600, 17, -1), dtype="f32")
    problem = Problem(device, case, cache_dtype="f32", context=4096, bound=bound)
    problem.check(problem.run(), "f32")


@pytest.mark.parametrize("rows", [2, 33, 130])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 1, 16), (5, 1, 80), (8, 1, 128), (3, 3, 192), (2, 1, 256)])
def test_prefill_on_matrix_units(device: _C.Device, heads: int, kv_heads: int, dim: int, rows: int) -> None:
    """Scores of different sizes, so that maxima grow late: sums take their detour through shared memory."""
    if "coopmat" not in device.features:
        pytest.skip("needs coopmat")
    for scale in (1, 20):
        case = AttentionCase(heads, kv_heads, dim, rows=rows, positions=(rows + 60,), dtype="f16")
        problem = Problem(device, case)
        problem.qkv[:, : (heads + kv_heads) * dim] *= scale
        expected, _ = problem.expected()
        y = problem.run(kernel="attention_prefill_coopmat", dtype="f32")
        problem.reset()
        plain = problem.run(kernel="attention_prefill", dtype="f32")
        # Both round q and the weights to f16; of large scores that is much. They must not differ more than that.
        error, other = (np.square(z - expected).sum() / np.square(expected).sum() for z in (y, plain))
        assert error < max(1e-6, 1.5 * other), (scale, error, other)


def test_rows_outside_of_the_cache(device: _C.Device) -> None:
    problem = Problem(device, AttentionCase(2, 1, 32, positions=(5, 3, -1, 2)), context=8)
    problem.positions, problem.slots = [5, 8, 2**30, 2], [3, 2, 1, 4]
    y = problem.run(dtype="f32")
    assert not y[1:].any() and y[0].all()
    kv = problem.kv.copy()
    for got, old in zip(cache_of(problem), kv, strict=True):
        same = (got == old) | (np.isnan(got) & np.isnan(old))
        assert same[:3].all() and same[3, :5].all() and same[3, 6:].all()


def cache_of(problem: Problem) -> list[Array]:
    return [array(t) for t in problem.cache.read(1)]


@pytest.mark.parametrize("pieces", [(1, 1, 1), (5, 1, 30), (16, 16, 1), (40, 2)])
def test_prefill_in_pieces(device: _C.Device, pieces: tuple[int, ...]) -> None:
    """Chunked prefill from position 0 on, single rows by the decode kernel, is prefill at once."""
    rows = sum(pieces)
    case = AttentionCase(4, 2, 64, rows=rows, positions=(rows - 1,), dtype="f32")
    whole = Problem(device, case, cache_dtype="f32")
    expected, caches = whole.expected()
    got, start, qkv = [], 0, whole.qkv
    for piece in pieces:
        whole.positions, whole.slots = list(range(start, start + piece)), [1] * piece
        whole.qkv = qkv[start : start + piece]
        got.append(whole.run())
        start += piece
    check(np.concatenate(got), expected, "f32")
    check(np.stack(cache_of(whole)), caches, "f32")


def test_padded_sequence(device: _C.Device) -> None:
    """Rows beyond the prompt carry position -1 and any slot."""
    case = AttentionCase(4, 1, 64, rows=20, positions=(19,), dtype="f32")
    problem = Problem(device, case, cache_dtype="f32")
    expected, _ = problem.expected()
    problem.positions[13:], problem.slots[13:] = [-1] * 7, [9] * 7
    y = problem.run()
    check(y[:13], expected[:13], "f32")
    assert not y[13:].any()
    problem.positions = [-1] * 20
    assert not problem.run().any()


def test_one_row_by_the_prefill_kernel(device: _C.Device) -> None:
    problem = Problem(device, AttentionCase(4, 2, 64, positions=(50,)))
    problem.sequence = True
    problem.check(problem.run(kernel="attention_prefill", dtype="f32"), "f16")


def test_the_decode_kernel_by_name(device: _C.Device) -> None:
    problem = Problem(device, AttentionCase(4, 2, 64, positions=(50, 4), dtype="f32"), cache_dtype="f32")
    problem.check(problem.run(kernel="attention_decode"), "f32")
    problem.sequence = True
    with pytest.raises(ValueError, match="attention_decode does not take rows of one slot"):
        problem.run(kernel="attention_decode")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [1, 3])
def test_bad_values_stay_in_their_row(device: _C.Device, bad: float, rows: int) -> None:
    positions = (40, 41, 42) if rows == 1 else (42,)
    case = AttentionCase(2, 2, 64, rows=rows, positions=positions, dtype="f32")
    problem = Problem(device, case, cache_dtype="f32")
    good = problem.run()
    problem.reset()
    problem.qkv[1, 64 * 4 + 5] = bad  # v of the second row, first kv head
    y = problem.run()
    changed = y != good
    # What sees that v: element 5 of head 0, in the row itself and, in a sequence, in the rows
    # behind it; those before it may (0 * nan): a prompt is of use only as a whole.
    seeing = np.zeros_like(changed)
    seeing[1 if rows == 1 else slice(None), 5] = True
    assert changed[1, 5] and not changed[~seeing].any()
    problem.reset()
    problem.qkv[0, 3] = bad  # q of the first row
    y = problem.run()
    assert np.isnan(y[0, :64]).all() and np.isfinite(y[0, 64:]).all()


def test_large_scores(device: _C.Device) -> None:
    """Scores of a few thousand: the maximum is taken before exp, across chunks too."""
    for case in (
        AttentionCase(2, 1, 64, positions=(1500,), dtype="f32"),
        AttentionCase(2, 1, 64, rows=40, positions=(60,), dtype="f32"),
    ):
        problem = Problem(device, case, cache_dtype="f32", context=2000)
        problem.qkv *= 100
        expected, _ = problem.expected()
        y = problem.run()
        assert np.isfinite(y).all()
        error = np.square(y - expected).sum() / np.square(expected).sum()
        assert error < 1e-7  # scores of 5000 carry 3e-4 of rounding


def test_replay(device: _C.Device) -> None:
    """A captured step follows the positions in memory, from one chunk to several."""
    case = AttentionCase(4, 2, 64, positions=(0, 0), dtype="f32")
    problem = Problem(device, case, cache_dtype="f32", context=1200)
    k, v = np.random.default_rng(3).standard_normal((2, 2, 1200, 2, 64)).astype(np.float32)
    problem.kv = np.stack([k, v])
    problem.reset()
    qkv, freq = tensor(device, problem.qkv), tensor(device, problem.freq)
    positions, slots = ints(device, [0, 0]), ints(device, [1, 0])
    with device.capture() as program:
        y = _C.attention(qkv, problem.cache, 1, positions, slots, freq, heads=4, bound=1200, dtype="f32")
    for step in ([0, 1], [31, 32], [600, 599], [1199, -1], [33, 1024]):
        positions.write(np.array(step, np.int32))
        problem.reset()
        program.replay(wait=True)
        problem.positions, problem.slots = step, [1, 0]
        check(array(y), problem.expected()[0], "f32", what=str(step))


def test_errors(device: _C.Device) -> None:
    problem = Problem(device, AttentionCase(4, 2, 64, positions=(5, 6)))
    with pytest.raises(ValueError, match="heads must be a multiple"):
        replace_case(problem, heads=3).run()
    with pytest.raises(ValueError, match=r"qkv must be \(2, 640\)"):
        replace_case(problem, heads=6).run()
    with pytest.raises(ValueError, match="bound"):
        problem.bound = problem.context + 1
        problem.run()
    problem.bound = problem.context
    with pytest.raises(ValueError, match="does not take rows of several slots"):
        problem.run(kernel="attention_prefill")
    if "coopmat" not in device.features:
        problem.sequence, problem.slots = True, [1, 1]
        with pytest.raises(ValueError, match="attention_prefill_coopmat cannot do heads of"):
            problem.run(kernel="attention_prefill_coopmat")
    with pytest.raises(ValueError, match="kernel must be"):
        problem.run(kernel="gemv")
    with pytest.raises(TypeError, match="missing required keyword-only argument: 'heads'"):
        _C.attention(*[problem.cache] * 6, bound=1)  # type: ignore[call-arg, arg-type]
    problem.positions = [1]
    with pytest.raises(ValueError, match="positions must be"):
        problem.run()
    for options, text in (
        ({"dim": 12}, "multiple of 8"),
        ({"dim": 264}, "multiple of 8"),
        ({"slots": 0}, "slots"),
        ({"slots": 2**20, "context": 2**20}, "too large"),
        ({"dtype": "bf16"}, "f16 or f32"),
    ):
        good = {"layers": 1, "slots": 1, "context": 8, "kv_heads": 1, "dim": 16}
        with pytest.raises((ValueError, TypeError), match=text):
            _C.KVCache(device, **(good | options))
    with pytest.raises(ValueError, match="layer"):
        problem.cache.read(2)
    assert (problem.cache.layers, problem.cache.slots, problem.cache.dtype) == (2, 2, "f16")
    assert problem.cache.nbytes == 2 * 2 * 2 * problem.context * 2 * 64 * 2


def replace_case(problem: Problem, **changes: Any) -> Problem:
    other = object.__new__(Problem)
    other.__dict__.update(problem.__dict__)
    other.case = replace(problem.case, **changes)
    return other
