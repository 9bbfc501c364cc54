"""Latent attention against NumPy: the cache rows, the absorbed form, head shapes, chunks, bad input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, Array, array, ints, tensor
from cases import seed_of
from ref.mla import mla_decode, mla_expanded, mla_latent, mla_query, mla_value
from tolerance import check

from marlin import _C


@dataclass(frozen=True)
class Case:
    """heads of (nope + rope) and v over rows of (rank + rope); format of kv_b, dtype of q and kv."""

    heads: int
    nope: int
    rope: int
    v: int
    rank: int
    positions: tuple[int, ...]
    slots: tuple[int, ...] = ()
    format: str = "f16"
    dtype: str = "f16"
    cache: str = "f16"
    interleaved: bool = True

    def __str__(self) -> str:
        rows = "_".join(map(str, self.positions[:4]))
        pairs = "" if self.interleaved else "-half"
        return (
            f"mla-h{self.heads}-{self.nope}+{self.rope}-{self.v}-r{self.rank}-{self.format}-{self.dtype}-"
            f"{self.cache}-at{rows}{pairs}"
        )


class Problem:
    """A case with its numbers, here and on the device. The cache is NaN where no row may look."""

    def __init__(self, device: _C.Device, case: Case, context: int = 0) -> None:
        self.device, self.case = device, case
        rng = np.random.default_rng(seed_of(case))
        rows = len(case.positions)
        self.context = context or max(case.positions) + 3
        self.positions, self.bound = list(case.positions), self.context
        self.slots = list(case.slots) or [(i + 1) % (rows + 1) for i in range(rows)]
        width, row = case.heads * (case.nope + case.rope), case.rank + case.rope
        self.q = rng.standard_normal((rows, width)).astype(DTYPES[case.dtype]).astype(np.float32)
        self.kv = rng.standard_normal((rows, row)).astype(DTYPES[case.dtype]).astype(np.float32)
        self.norm = rng.uniform(0.5, 1.5, case.rank).astype(np.float32)
        self.freq = (10000.0 ** -(np.arange(case.rope // 2) * 2 / case.rope)).astype(np.float32)
        self.kv_b = _C.Linear(device, case.heads * (case.nope + case.v), case.rank, case.format)
        weights = rng.standard_normal((self.kv_b.n, case.rank)).astype(np.float32) / np.sqrt(case.rank)
        self.kv_b.set_rows(weights.astype(np.float32), "f32", self.kv_b.n)
        self.weights = array(self.kv_b.dequantize())
        self.cache = _C.KVCache(
            device, layers=2, slots=max(self.slots) + 1, context=self.context, kv_heads=1, dim=row,
            rank=case.rank, dtype=case.cache,
        )  # fmt: skip
        self.rows = np.full((max(self.slots) + 1, self.context, row), np.nan, DTYPES[case.cache])
        for position, slot in zip(self.positions, self.slots, strict=True):
            if 0 <= position < self.context:
                self.rows[slot, :position] = rng.standard_normal((position, row))
        self.reset()

    def reset(self) -> None:
        self.cache.read(1)[0].write(self.rows)

    def run(self, **options: Any) -> Array:
        case = self.case
        given: dict[str, Any] = {
            "interleaved": case.interleaved,
            "dtype": "f32",
            "eps": 1e-5,
            "rope_scale": 1.1,
            "scale": 0.2,
        }
        given |= {"heads": case.heads, "bound": self.bound}
        y = _C.mla(
            tensor(self.device, self.q, case.dtype), tensor(self.device, self.kv, case.dtype),
            tensor(self.device, self.norm), self.kv_b, self.cache, 1, ints(self.device, self.positions),
            ints(self.device, self.slots), tensor(self.device, self.freq), **(given | options),
        )  # fmt: skip
        return array(y)

    def expected(self) -> tuple[Array, Array]:
        """y, and the cache before rounding; attention reads it rounded."""
        case, positions, slots = self.case, np.array(self.positions), np.array(self.slots)
        turn = {"scale": 1.1, "interleaved": case.interleaved}
        cache = self.rows.astype(np.float64)
        latent = mla_latent(self.kv, self.norm, positions, self.freq, eps=1e-5, **turn)
        for row, (position, slot) in enumerate(zip(positions, slots, strict=True)):
            if position >= 0:
                cache[slot, position] = latent[row]
        rounded = cache.astype(DTYPES[case.cache])
        q = mla_query(self.q, self.weights, positions, self.freq, heads=case.heads, **turn)
        o = mla_decode(q, rounded, positions, slots, rank=case.rank, softmax_scale=0.2)
        return mla_value(o, self.weights, case.nope), cache

    def check(self, y: Array) -> None:
        expected, cache = self.expected()
        check(array(self.cache.read(1)[0])[:, :, 0], cache, self.case.cache, what="cache")
        check(y, expected, "f32" if self.case.cache == "f32" else "f16", what="y")


CASES = [
    *(Case(4, 64, 64, 64, 128, (p,)) for p in (0, 1, 15, 16, 17, 300)),
    *(Case(4, 64, 128, 192, 256, (40, 7, -1), format=f) for f in ("f16", "bf16", "f32", "int8", "int4", "fp8_e4m3")),
    *(Case(3, 24, 16, 40, 72, (33, 2), dtype=d, cache=c) for d in ("f32", "f16", "bf16") for c in ("f16", "f32")),
    Case(1, 8, 8, 8, 8, (5,), dtype="f32", cache="f32"),
    Case(20, 192, 64, 256, 512, (90,)),
    Case(5, 128, 64, 128, 512, (70, 3), cache="f32", dtype="f32", interleaved=False),
    Case(18, 16, 8, 16, 56, (50, 200)),
]


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_mla(device: _C.Device, case: Case, staged: bool) -> None:
    problem = Problem(device, case)
    problem.check(problem.run(staged=staged))


MATRICES = [
    Case(20, 192, 64, 256, 512, (90,)),
    Case(4, 64, 128, 192, 256, (40, 7, -1)),
    Case(33, 16, 16, 16, 128, (0, 15, 16, 31, 32, 63, 64, 200, 2047)),
    Case(16, 32, 48, 24, 384, (500, 2, 33), dtype="bf16", interleaved=False),
    Case(1, 32, 32, 24, 128, (77,), dtype="f32"),
]


def decodes_on_matrices(device: _C.Device, case: Case) -> bool:
    """Whether the device has what mla_decode_coopmat needs: its matrices and its shared memory."""
    info = device.info()
    units = 32 * ((case.rank + case.rope) // 8 + 1) + 4 * 16 * 9 + 16 * 5
    return (
        {"fp16", "coopmat"} <= set(device.features)
        and info["subgroup_min"] == info["subgroup_max"] == 32
        and info["max_workgroup"] >= 256
        and info["shared_bytes"] >= 16 * units + 128
    )


@pytest.mark.parametrize("case", MATRICES, ids=str)
def test_decode_on_matrices(device: _C.Device, case: Case) -> None:
    problem = Problem(device, case)
    if not decodes_on_matrices(device, case):
        with pytest.raises(ValueError, match="mla_decode_coopmat cannot do this"):
            problem.run(kernel="mla_decode_coopmat")
        return
    first = problem.run(kernel="mla_decode_coopmat")
    problem.check(first)
    problem.check(problem.run(kernel="mla_decode"))
    np.testing.assert_array_equal(problem.run(kernel="mla_decode_coopmat"), first)


def test_decode_on_matrices_refuses(device: _C.Device) -> None:
    """A cache in f32 and a rank that eight subgroups cannot share."""
    if not decodes_on_matrices(device, Case(16, 32, 32, 24, 128, (9,))):
        pytest.skip("no mla_decode_coopmat")
    for case in (Case(16, 32, 32, 24, 128, (9,), cache="f32"), Case(16, 32, 32, 24, 64, (9,))):
        with pytest.raises(ValueError, match="mla_decode_coopmat cannot do this"):
            Problem(device, case).run(kernel="mla_decode_coopmat")


@pytest.mark.parametrize("heads", [4, 5])
def test_heads_choose_the_kernel(device: _C.Device, heads: int) -> None:
    """Few heads are not worth the lines of a matrix."""
    case = Case(heads, 32, 32, 24, 128, (9,))
    problem = Problem(device, case)
    device.profile_start()
    problem.run()
    names = {str(row["name"]).partition("[")[0].partition(".")[0] for row in device.profile_stop()}
    matrices = heads > 4 and decodes_on_matrices(device, case)
    assert ("mla_decode_coopmat" in names, "mla_decode" in names) == (matrices, not matrices)


SEQUENCES = [
    Case(3, 32, 16, 64, 64, tuple(range(5, 45)), slots=(1,) * 40),
    Case(2, 32, 16, 64, 64, (*range(7, 47), -1, -1), slots=(1,) * 40 + (9, 7), dtype="f32"),
    Case(2, 192, 64, 256, 128, tuple(range(3, 140)), slots=(0,) * 137, dtype="bf16", format="int8"),
    Case(3, 128, 64, 128, 512, tuple(range(70)), slots=(0,) * 70, interleaved=False),
]


@pytest.mark.parametrize("kernel", [None, "mla_decode", "mla_prefill_coopmat"])
@pytest.mark.parametrize("case", SEQUENCES, ids=str)
def test_prompt(device: _C.Device, case: Case, kernel: str | None) -> None:
    """Keys and values made of the latents (which mla_rows gathers) first, or absorbed, as the device can."""
    problem = Problem(device, case)
    if kernel == "mla_prefill_coopmat" and "coopmat" not in device.features:
        with pytest.raises(ValueError, match="mla_prefill_coopmat cannot do this"):
            problem.run(sequence=True, kernel=kernel)
        return
    problem.check(problem.run(sequence=True, kernel=kernel))
    assert not problem.run(sequence=True, kernel=kernel)[[p < 0 for p in case.positions]].any()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_result_dtype(device: _C.Device, dtype: str) -> None:
    problem = Problem(device, Case(4, 32, 16, 48, 64, (9, 30), dtype="f32", cache="f32"))
    check(problem.run(dtype=dtype), problem.expected()[0], dtype)


@pytest.mark.parametrize("position", [0, 30, 31, 32, 255, 256, 257, 511, 512, 1023, 1999, 2047])
def test_chunk_boundaries(device: _C.Device, position: int) -> None:
    """Split over chunks whose length follows from the position."""
    problem = Problem(device, Case(3, 16, 8, 16, 32, (position, 100), dtype="f32", cache="f32"), context=2048)
    first = problem.run()
    problem.check(first)
    np.testing.assert_array_equal(problem.run(), first)


@pytest.mark.parametrize("bound", [1, 256, 257, 4096])
def test_bound_does_not_matter(device: _C.Device, bound: int) -> None:
    problem = Problem(device, Case(4, 16, 8, 16, 32, (600, 17, -1), dtype="f32", cache="f32"), context=4096)
    problem.bound = bound
    problem.check(problem.run())


def test_rows_of_one_slot(device: _C.Device) -> None:
    """A sequence: every row sees the rows before it, which are written in the same call."""
    case = Case(4, 32, 16, 48, 64, tuple(range(21)), slots=(1,) * 21, dtype="f32", cache="f32")
    problem = Problem(device, case, context=32)
    problem.rows[:] = np.nan
    problem.reset()
    y = problem.run()
    problem.check(y)
    pos, slots = np.array(problem.positions), np.array(problem.slots)
    _, cache = problem.expected()
    wanted = mla_expanded(
        problem.q, problem.weights, cache, pos, slots, problem.freq, heads=4, softmax_scale=0.2, scale=1.1
    )
    check(y, wanted, "f32")


def test_rows_outside_of_the_cache(device: _C.Device) -> None:
    problem = Problem(device, Case(2, 16, 8, 16, 32, (5, 3, 4, 2)), context=8)
    problem.positions, problem.slots = [5, 8, 2**30, 2], [3, 2, 1, 5]
    y = problem.run()
    assert not y[1:].any() and y[0].all()
    got = array(problem.cache.read(1)[0])[:, :, 0]
    same = (got == problem.rows) | (np.isnan(got) & np.isnan(problem.rows))
    assert same[:3].all() and same[4:].all() and not same[3, 5].any() and same[3, :5].all() and same[3, 6:].all()


def test_default_scale(device: _C.Device) -> None:
    problem = Problem(device, Case(2, 24, 8, 16, 32, (9,), dtype="f32", cache="f32"))
    np.testing.assert_array_equal(problem.run(scale=None), problem.run(scale=1 / np.sqrt(32)))


def test_large_scores(device: _C.Device) -> None:
    """Scores of a few thousand: the maximum is taken before exp, across chunks too."""
    problem = Problem(device, Case(2, 32, 16, 32, 64, (1500,), dtype="f32", cache="f32"), context=2000)
    problem.q *= 300
    expected, _ = problem.expected()
    y = problem.run()
    assert np.isfinite(y).all()
    assert np.square(y - expected).sum() / np.square(expected).sum() < 1e-7


def test_bad_values_stay_in_their_row(device: _C.Device) -> None:
    problem = Problem(device, Case(2, 16, 8, 16, 32, (40, 41, 42), dtype="f32", cache="f32"))
    good = problem.run()
    problem.reset()
    problem.q[1, 3] = np.nan  # head 0 of the second row
    y = problem.run()
    assert np.isnan(y[1, :16]).all()
    np.testing.assert_array_equal(y[[0, 2]], good[[0, 2]])
    np.testing.assert_array_equal(y[1, 16:], good[1, 16:])


def test_replay(device: _C.Device) -> None:
    """A captured step follows the positions in memory, from one chunk to several."""
    problem = Problem(device, Case(4, 32, 16, 32, 64, (0, 0), dtype="f32", cache="f32"), context=1200)
    problem.rows = np.random.default_rng(3).standard_normal((3, 1200, 80)).astype(np.float32)
    q, kv, norm, freq = (tensor(device, x) for x in (problem.q, problem.kv, problem.norm, problem.freq))
    positions, slots = ints(device, [0, 0]), ints(device, [1, 0])
    with device.capture() as program:
        y = _C.mla(
            q, kv, norm, problem.kv_b, problem.cache, 1, positions, slots, freq, heads=4, bound=1200, eps=1e-5,
            scale=0.2, rope_scale=1.1,
        )  # fmt: skip
    assert program.stats["dispatches"] == 4
    for step in ([0, 1], [31, 32], [600, 599], [1199, -1], [33, 1024]):
        positions.write(np.array(step, np.int32))
        problem.reset()
        program.replay(wait=True)
        problem.positions, problem.slots = step, [1, 0]
        check(array(y), problem.expected()[0], "f32", what=str(step))


def test_latent_cache(device: _C.Device) -> None:
    cache = _C.KVCache(device, layers=3, slots=2, context=10, kv_heads=1, dim=576, rank=512)
    assert cache.rank == 512 and cache.nbytes == 3 * 2 * 10 * 576 * 2
    k, v = cache.read(2)
    assert k.shape == v.shape == (2, 10, 1, 576)
    for options, text in (
        ({"rank": 576}, "rank that is a multiple of 8 below dim"),
        ({"rank": 12}, "rank that is a multiple of 8"),
        ({"kv_heads": 2}, "kv_heads 1"),
        ({"dim": 1032}, "up to 1024"),
        ({"rank": -1}, "rank"),
    ):
        good = {"layers": 1, "slots": 1, "context": 8, "kv_heads": 1, "dim": 576, "rank": 512}
        with pytest.raises(ValueError, match=text):
            _C.KVCache(device, **(good | options))


def test_errors(device: _C.Device) -> None:
    problem = Problem(device, Case(2, 16, 8, 16, 32, (5, 6)))
    plain = _C.KVCache(device, layers=2, slots=3, context=9, kv_heads=1, dim=40)
    with pytest.raises(ValueError, match="it needs one with a rank"):
        latent, problem.cache = problem.cache, plain
        problem.run()
    problem.cache = latent
    with pytest.raises(ValueError, match="latent rows"):
        x = tensor(device, np.zeros((2, 120)))
        _C.attention(x, latent, 0, ints(device, [0, 0]), ints(device, [0, 1]), tensor(device, [1.0]), heads=1, bound=1)
    with pytest.raises(ValueError, match="q must be"):
        problem.run(heads=5)
    with pytest.raises(ValueError, match="bound"):
        problem.run(bound=10)
    with pytest.raises(ValueError, match=r"kv must be \(2, 40\)"):
        replaced(problem, kv=np.zeros((2, 32), np.float32)).run()
    with pytest.raises(ValueError, match=r"norm must be \(32\)"):
        replaced(problem, norm=np.zeros(31, np.float32)).run()
    with pytest.raises(ValueError, match=r"freq must be \(4\)"):
        replaced(problem, freq=np.zeros(5, np.float32)).run()
    with pytest.raises(ValueError, match="positions must be"):
        replaced(problem, positions=[1]).run()
    with pytest.raises(ValueError, match="kv_b must be"):
        replaced(problem, kv_b=_C.Linear(device, 64, 40)).run()
    with pytest.raises(ValueError, match="kv_b must be"):
        replaced(problem, kv_b=_C.Linear(device, 32, 32)).run()
    with pytest.raises(TypeError, match="kv_b must be a Linear"):
        replaced(problem, kv_b=None).run()
    with pytest.raises(TypeError, match="q must be a Tensor"):
        _C.mla(*[problem.cache] * 9, heads=1, bound=1)  # type: ignore[arg-type]


def replaced(problem: Problem, **changes: Any) -> Problem:
    other = object.__new__(Problem)
    other.__dict__.update(problem.__dict__ | changes)
    return other
