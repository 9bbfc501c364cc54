"""The gated delta rule against NumPy: decode steps, sequences, both after each other, states of slots, bad input.

The kernels: delta_decode for a token of each slot; delta_conv, delta_scan and delta_norm for a sequence; in place of
delta_scan, with x and y in f16 on matrix units, delta_chunk_coopmat and delta_walk_coopmat.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, Array, array, ints, tensor
from cases import seed_of
from ref.delta import chunked, gated_delta, l2_norm, recurrent
from tolerance import check

import marlin as ml
from marlin import _C


@dataclass(frozen=True)
class Case:
    """key_heads of key_dim, value_heads of value_dim, taps of the convolution, dtype of x."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int = 4
    dtype: str = "f32"

    def __str__(self) -> str:
        return f"delta-{self.key_heads}x{self.key_dim}-{self.value_heads}x{self.value_dim}-t{self.taps}-{self.dtype}"


class Problem:
    """Weights of a case, and a text for each of three slots. Ring and S are NaN where nothing has written them."""

    def __init__(self, device: _C.Device, case: Case, tokens: int = 40, slots: int = 3) -> None:
        self.device, self.case, self.slots = device, case, slots
        rng = np.random.default_rng(seed_of(case))
        channels = 2 * case.key_heads * case.key_dim + case.value_heads * case.value_dim
        width = channels + case.value_heads * case.value_dim

        def rounded(*shape: int) -> Array:
            return rng.standard_normal(shape).astype(DTYPES[case.dtype]).astype(np.float32)

        self.x, self.ba = rounded(slots, tokens, width), rounded(slots, tokens, 2 * case.value_heads)
        self.weights = {
            "conv": rng.standard_normal((channels, case.taps)) / 2,
            "a_log": rng.uniform(-4, 1, case.value_heads),
            "dt_bias": rng.standard_normal(case.value_heads),
            "norm": rng.uniform(0.5, 1.5, case.value_dim),
        }
        self.weights = {name: values.astype(np.float32) for name, values in self.weights.items()}
        self.state = _C.DeltaState(
            device, layers=2, slots=slots, key_heads=case.key_heads, value_heads=case.value_heads,
            key_dim=case.key_dim, value_dim=case.value_dim, taps=case.taps,
        )  # fmt: skip
        self.forget()

    def forget(self) -> None:
        for part in self.state.read(1):
            part.write(np.full(part.shape, np.nan, np.float32))

    def run(self, slots: Any, positions: Any, x: Array | None = None, **options: Any) -> Array:
        """The rows at these positions of these slots' texts."""
        device, case = self.device, self.case
        at = (np.asarray(slots) % self.slots, np.asarray(positions))
        given: dict[str, Any] = {"eps": 1e-5, "dtype": "f32"} | options
        y = _C.gated_delta(
            tensor(device, self.x[at] if x is None else x, case.dtype), tensor(device, self.ba[at], case.dtype),
            *(tensor(device, values) for values in self.weights.values()), self.state, 1,
            ints(device, positions), ints(device, slots), **given,
        )  # fmt: skip
        return array(y)

    def sequence(self, slot: int, first: int, count: int, **options: Any) -> Array:
        return self.run([slot] * count, range(first, first + count), sequence=True, **options)

    def expected(self, slot: int, count: int, size: int = 0) -> tuple[Array, Array, Array]:
        """y of the first tokens of a slot's text, the last rows of the convolution, S."""
        case = self.case
        channels = self.weights["conv"].shape[0]
        return gated_delta(
            self.x[slot, :count], self.ba[slot, :count], *self.weights.values(), np.zeros((case.taps - 1, channels)),
            np.zeros((case.value_heads, case.key_dim, case.value_dim)), key_heads=case.key_heads, eps=1e-5, size=size,
        )  # fmt: skip

    def check_state(self, slot: int, count: int, narrowest: str = "f32") -> None:
        """S and the ring of a slot behind `count` tokens."""
        ring, state = (array(part)[slot] for part in self.state.read(1))
        _, before, wanted = self.expected(slot, count)
        check(state, wanted, narrowest, what="state")
        for back in range(1, min(self.case.taps, count + 1)):
            np.testing.assert_array_equal(ring[(count - back) % self.case.taps], before[len(before) - back])


CASES = [
    Case(1, 1, 8, 8),
    Case(2, 4, 64, 64, dtype="f16"),
    Case(2, 4, 64, 64, dtype="bf16"),
    Case(1, 3, 24, 40),
    Case(3, 3, 40, 24, taps=1),
    Case(2, 6, 16, 8, taps=2),
    Case(1, 2, 128, 128),
    Case(1, 1, 256, 256, taps=8),
    Case(1, 1, 8, 256),
    Case(1, 1, 256, 8),
]
HELD = pytest.mark.parametrize("held", [False, True], ids=["streamed", "held"])


@HELD
@pytest.mark.parametrize("case", CASES, ids=str)
def test_decode(device: _C.Device, case: Case, held: bool) -> None:
    """Three slots side by side, one of them starting later, token by token."""
    problem = Problem(device, case, tokens=9)
    got = []
    for step in range(9):
        got.append(problem.run([2, 0, 1], [step, step, step - 4], held=held))
    for row, slot, late in ((0, 2, 0), (1, 0, 0), (2, 1, 4)):
        wanted, _, _ = problem.expected(slot, 9 - late)
        check(np.stack([y[row] for y in got[late:]]), wanted, "f32", what=f"slot {slot}")
        assert not any(y[row].any() for y in got[:late])
        problem.check_state(slot, 9 - late)


@HELD
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 15, 16, 17, 40])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sequence(device: _C.Device, case: Case, rows: int, held: bool) -> None:
    problem = Problem(device, case)
    check(problem.sequence(1, 0, rows, held=held), problem.expected(1, rows)[0], "f32")
    problem.check_state(1, rows)


@HELD
@pytest.mark.parametrize("cuts", [(1, 2, 3), (3, 4, 30), (16, 32), (39,), (5, 6, 7, 8)], ids=str)
def test_in_pieces(device: _C.Device, cuts: tuple[int, ...], held: bool) -> None:
    """A text in pieces, of one row and of several, is the text: ring and state go on."""
    problem = Problem(device, Case(2, 4, 32, 24))
    bounds = (0, *cuts, 40)
    pieces = [problem.sequence(2, first, last - first, held=held) for first, last in pairwise(bounds)]
    check(np.concatenate(pieces), problem.expected(2, 40)[0], "f32")
    problem.check_state(2, 40)


@HELD
def test_decode_behind_a_prompt(device: _C.Device, held: bool) -> None:
    problem = Problem(device, Case(2, 4, 32, 24, dtype="f16"))
    problem.sequence(0, 0, 17, held=held)
    problem.sequence(1, 0, 2, held=held)
    steps = [problem.run([0, 1, 2], [17 + i, 2 + i, i], held=held) for i in range(5)]
    for slot, before in ((0, 17), (1, 2), (2, 0)):
        wanted = problem.expected(slot, before + 5)[0][before:]
        check(np.stack([y[slot] for y in steps]), wanted, "f32", what=f"slot {slot}")
        problem.check_state(slot, before + 5)


@HELD
def test_a_text_begins_anew(device: _C.Device, held: bool) -> None:
    """Position 0 forgets what the slot held, as a step and as a sequence."""
    problem = Problem(device, Case(1, 2, 16, 16))
    problem.sequence(1, 0, 30, held=held)
    check(problem.run([1], [0], held=held), problem.expected(1, 1)[0], "f32")
    problem.check_state(1, 1)
    problem.sequence(1, 1, 20, held=held)
    check(problem.sequence(1, 0, 6, held=held), problem.expected(1, 6)[0], "f32")
    problem.check_state(1, 6)


def test_slots_and_layers_are_apart(device: _C.Device) -> None:
    problem = Problem(device, Case(1, 2, 16, 16))
    problem.sequence(1, 0, 10)
    for part in problem.state.read(1):
        got = array(part)
        assert np.isnan(got[[0, 2]]).all() and np.isfinite(got[1]).all()
    other = [part.tobytes() for part in problem.state.read(0)]
    problem.sequence(0, 0, 10)
    problem.run([0, 1, 2], [10, 10, 0])
    assert [part.tobytes() for part in problem.state.read(0)] == other


@HELD
def test_idle_rows(device: _C.Device, held: bool) -> None:
    """Negative positions and slots that do not exist write nothing and give zeros."""
    problem = Problem(device, Case(2, 2, 16, 24))
    problem.sequence(0, 0, 7)
    before = [part.tobytes() for part in problem.state.read(1)]
    assert not problem.run([0, 1, 3, -1], [-1, -5, 2, 2], held=held).any()
    assert not problem.run([0] * 4, [-1, 0, 1, 2], sequence=True, held=held).any()
    assert not problem.run([3] * 4, [0, 1, 2, 3], sequence=True, held=held).any()
    assert [part.tobytes() for part in problem.state.read(1)] == before


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_result_dtype(device: _C.Device, dtype: str) -> None:
    problem = Problem(device, Case(1, 2, 16, 16))
    check(problem.sequence(1, 0, 9, dtype=dtype), problem.expected(1, 9)[0], dtype)
    check(problem.run([1], [0], dtype=dtype), problem.expected(1, 1)[0], dtype)


def test_replay(device: _C.Device) -> None:
    """A captured step goes on with the state that is there, at the positions in memory."""
    problem = Problem(device, Case(2, 4, 16, 24))
    case, count = problem.case, 8
    rows = [tensor(device, problem.x[[1, 0], 0]), tensor(device, problem.ba[[1, 0], 0])]
    fixed = [tensor(device, values) for values in problem.weights.values()]
    positions, slots = ints(device, [0, 0]), ints(device, [1, 0])
    with device.capture() as program:
        y = _C.gated_delta(*rows, *fixed, problem.state, 1, positions, slots, eps=1e-5)
    assert program.stats["dispatches"] == 1
    got = []
    for step in range(count):
        rows[0].write(problem.x[[1, 0], step])
        rows[1].write(problem.ba[[1, 0], step])
        positions.write(np.array([step, step if step < 5 else -1], np.int32))
        program.replay(wait=True)
        got.append(array(y))
    check(np.stack([step[0] for step in got]), problem.expected(1, count)[0], "f32")
    check(np.stack([step[1] for step in got[:5]]), problem.expected(0, 5)[0], "f32")
    problem.check_state(0, 5)
    assert case.value_heads * case.value_dim == y.shape[1]


@HELD
@pytest.mark.parametrize("case", [Case(2, 4, 64, 64), Case(1, 1, 256, 256), Case(1, 2, 8, 128)], ids=str)
def test_many_rows(device: _C.Device, case: Case, held: bool) -> None:
    """A chunk of a prompt and more in one call: loops of llvmpipe end after 65535 rounds."""
    problem = Problem(device, case, tokens=1030, slots=1)
    for rows in (511, 1030):
        check(problem.sequence(0, 0, rows, held=held), problem.expected(0, rows)[0], "f32")
        problem.check_state(0, rows)


@HELD
def test_long_text(device: _C.Device, held: bool) -> None:
    """Errors do not grow with the text: what is wrong in S decays."""
    problem = Problem(device, Case(1, 2, 32, 32), tokens=700, slots=1)
    got = np.concatenate([problem.sequence(0, first, 100, held=held) for first in range(0, 700, 100)])
    check(got[-100:], problem.expected(0, 700)[0][-100:], "f32")


@HELD
def test_extreme_gates(device: _C.Device, held: bool) -> None:
    """Decays of 0 and 1, betas of 0 and 1, q and k of zeros: finite, and as the formula says."""
    problem = Problem(device, Case(1, 4, 16, 16))
    problem.ba[1, :, :4] = [-200, 200, 30, -30]  # b
    problem.ba[1, :, 4:] = [-200, 200, 80, -80]  # a
    problem.x[1, 3:9] = 0
    check(problem.sequence(1, 0, 20, held=held), problem.expected(1, 20)[0], "f32")
    problem.forget()
    steps = [problem.run([1], [i], held=held)[0] for i in range(20)]
    check(np.stack(steps), problem.expected(1, 20)[0], "f32")


@HELD
def test_nan_stays_in_its_slot(device: _C.Device, held: bool) -> None:
    problem = Problem(device, Case(1, 2, 16, 16))
    good = [problem.run([0, 1], [i, i], held=held) for i in range(6)]
    problem.x[1, 2, 0] = np.nan
    bad = [problem.run([0, 1], [i, i], held=held) for i in range(6)]
    for i in range(6):
        np.testing.assert_array_equal(bad[i][0], good[i][0])
        assert np.isnan(bad[i][1]).any() == (i >= 2)
    check(problem.run([1], [0], held=held), problem.expected(1, 1)[0], "f32")  # and is gone with the next text


def test_empty(device: _C.Device) -> None:
    """A prompt may be of no rows: PyTorch-like tensors of no rows do not exist here, one row of nothing is idle."""
    problem = Problem(device, Case(1, 1, 8, 8))
    with pytest.raises(ValueError, match="x must be"):
        problem.run([0], [0], x=np.zeros((1, 31), np.float32))
    with pytest.raises(ValueError, match="shape"):
        _C.empty(device, (0, 32), "f32")
    assert not problem.run([0], [-1]).any()


# ---- in chunks, on matrix units -----------------------------------------------------------------------------------


@pytest.fixture
def matrices(device: _C.Device) -> _C.Device:
    info = device.info()
    whole = info["subgroup_min"] == info["subgroup_max"] and 16 <= info["subgroup_size"] <= 64
    if not ({"fp16", "coopmat", "coopmat_f16"} <= set(device.features) and whole and info["shared_bytes"] >= 49152):
        pytest.skip("needs matrix units, and memory for chunks")
    return device


CHUNKED = [
    Case(2, 4, 64, 64, dtype="f16"),
    Case(1, 2, 128, 128, dtype="f16"),
    Case(2, 2, 64, 96, dtype="f16"),
    Case(1, 3, 128, 32, dtype="f16", taps=1),
]


@pytest.mark.parametrize("rows", [64, 65, 127, 128, 333])
@pytest.mark.parametrize("case", CHUNKED, ids=str)
def test_in_chunks(matrices: _C.Device, case: Case, rows: int) -> None:
    problem = Problem(matrices, case, tokens=rows)
    matrices.profile_start()
    got = problem.sequence(1, 0, rows, dtype="f16")
    names = [str(entry["name"]).partition("[")[0].partition(".")[0] for entry in matrices.profile_stop()]
    assert [name for name in names if name.startswith("delta")] == [
        "delta_conv", "delta_chunk_coopmat", "delta_walk_coopmat", "delta_norm",
    ]  # fmt: skip
    check(got, problem.expected(1, rows)[0], "f16")
    problem.check_state(1, rows, "f16")


@pytest.mark.parametrize("cuts", [(64,), (70, 140), (1, 65, 66, 200)], ids=str)
def test_chunks_in_pieces(matrices: _C.Device, cuts: tuple[int, ...]) -> None:
    """Chunks go on from what chunks, rows by themselves and steps have left, and those from chunks."""
    problem = Problem(matrices, Case(2, 4, 64, 64, dtype="f16"), tokens=260)
    bounds = (0, *cuts, 259)
    pieces = [problem.sequence(2, first, last - first, dtype="f16") for first, last in pairwise(bounds)]
    pieces.append(problem.run([2], [259], dtype="f16"))
    check(np.concatenate(pieces), problem.expected(2, 260)[0], "f16")
    problem.check_state(2, 260, "f16")
    check(problem.sequence(2, 0, 64, dtype="f16"), problem.expected(2, 64)[0], "f16")  # a text begins anew
    problem.check_state(2, 64, "f16")


def test_chunks_of_extreme_gates(matrices: _C.Device) -> None:
    problem = Problem(matrices, Case(1, 4, 64, 32, dtype="f16"), tokens=100)
    problem.ba[1, :, :4] = [-200, 200, 30, -30]  # b
    problem.ba[1, :, 4:] = [-200, 200, 80, -80]  # a
    problem.x[1, 3:9] = 0
    check(problem.sequence(1, 0, 100, dtype="f16"), problem.expected(1, 100)[0], "f16")


def test_chunks_of_equal_keys(matrices: _C.Device) -> None:
    """The system of a chunk at its worst: every row writes under the same key, and the error of each of a chunk's 64
    products stays in all that follow."""
    problem = Problem(matrices, Case(1, 1, 64, 32, dtype="f16"), tokens=128)
    problem.x[0, :, 64:128] = 1
    problem.ba[0, :, 0] = 20  # beta 1
    problem.ba[0, :, 1] = -80  # decay 1
    check(problem.sequence(0, 0, 128, dtype="f16"), problem.expected(0, 128)[0], "f16", products=64)


@pytest.mark.parametrize("where", ["q", "v", "decay"])
def test_nan_in_a_chunk(matrices: _C.Device, where: str) -> None:
    """It stays: in what follows, if it came into S, and not in the chunks before."""
    problem = Problem(matrices, Case(1, 1, 64, 32, dtype="f16", taps=1), tokens=200)
    if where == "decay":
        problem.ba[1, 100, 1] = np.nan
    else:
        problem.x[1, 100, {"q": 0, "v": 2 * 64}[where]] = np.nan
    got = problem.sequence(1, 0, 200, dtype="f16")
    assert np.isfinite(got[:64]).all() and np.isnan(got[100]).any()
    state = array(problem.state.read(1)[1])[1]
    assert np.isnan(state).any() == (where != "q")
    assert np.isnan(got[128:]).any() == (where != "q")


def test_idle_chunks(matrices: _C.Device) -> None:
    problem = Problem(matrices, Case(2, 2, 64, 64, dtype="f16"), tokens=64)
    before = [part.tobytes() for part in problem.state.read(1)]
    assert not problem.run([0] * 64, [-1] + [0] * 63, sequence=True, dtype="f16").any()
    assert not problem.run([3] * 64, range(64), sequence=True, dtype="f16").any()
    assert [part.tobytes() for part in problem.state.read(1)] == before


# ---- the reference itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 40, 64])
def test_chunked_is_recurrent(size: int) -> None:
    rng = np.random.default_rng(3)
    q, k = (l2_norm(rng.standard_normal((40, 3, 8))) for _ in range(2))
    v, start = rng.standard_normal((40, 3, 12)), rng.standard_normal((3, 8, 12))
    beta, g = rng.uniform(0, 1, (40, 3)), -rng.uniform(0, 3, (40, 3))
    ones = recurrent(q, k, v, beta, g, start)
    for got, wanted in zip(chunked(q, k, v, beta, g, start, size), ones, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_reference_of_the_delta_rule() -> None:
    """With beta 1, no decay and keys of length 1, S holds what was last written under a key."""
    rng = np.random.default_rng(4)
    k = np.eye(4)[None].repeat(2, axis=0).reshape(8, 1, 4)  # every key twice
    v = rng.standard_normal((8, 1, 5))
    out, state = recurrent(k, k, v, np.ones((8, 1)), np.zeros((8, 1)), np.zeros((1, 4, 5)))
    np.testing.assert_allclose(out, v, atol=1e-12)
    np.testing.assert_allclose(state[0], v[4:, 0], atol=1e-12)


# ---- DeltaState and bad input ------------------------------------------------------------------------------------


def test_delta_state(device: _C.Device) -> None:
    state = _C.DeltaState(
        device, layers=3, slots=2, key_heads=2, value_heads=4, key_dim=16, value_dim=24, taps=4
    )  # fmt: skip
    ring, s = state.read(2)
    assert (state.layers, state.slots) == (3, 2)
    assert ring.shape == (2, 4, 2 * 2 * 16 + 4 * 24) and s.shape == (2, 4, 16, 24)
    assert state.nbytes == 3 * (ring.nbytes + s.nbytes)
    assert "3 layers" in repr(state)
    with pytest.raises(ValueError, match=r"layer must be|layer"):
        state.read(3)


GOOD = {"layers": 1, "slots": 1, "key_heads": 2, "value_heads": 4, "key_dim": 16, "value_dim": 16, "taps": 4}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"value_heads": 3}, "multiple of key_heads 2, got 3"),
        ({"key_dim": 12}, "multiples of 8 up to 256, got 12 and 16"),
        ({"value_dim": 264}, "multiples of 8 up to 256"),
        ({"taps": 9}, "taps must be 1 to 8"),
        ({"taps": 0}, "taps"),
        ({"layers": 0}, "layers"),
        ({"slots": -1}, "slots"),
        ({"slots": 2**31 - 1}, "too many"),
    ],
    ids=str,
)
def test_bad_sizes(device: _C.Device, change: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        _C.DeltaState(device, **(GOOD | change))


def test_missing_and_wrong_arguments(device: _C.Device) -> None:
    with pytest.raises(TypeError, match="taps"):
        _C.DeltaState(device, **{name: value for name, value in GOOD.items() if name != "taps"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="key_dim"):
        _C.DeltaState(device, **(GOOD | {"key_dim": "16"}))  # type: ignore[arg-type]
    with device.capture(), pytest.raises(ml.MarlinError, match="capturing"):
        _C.DeltaState(device, **GOOD)


@pytest.mark.parametrize(
    ("index", "shape", "text"),
    [
        (0, (3, 31), r"x must be \(3, 32\)"),
        (1, (3, 3), r"ba must be \(3, 2\)"),
        (1, (2, 2), r"ba must be \(3, 2\)"),
        (2, (24, 3), r"conv must be \(24, 4\)"),
        (3, (2,), r"a_log must be \(1\)"),
        (4, (2,), r"dt_bias must be \(1\)"),
        (5, (7,), r"norm must be \(8\)"),
    ],
)
def test_bad_shapes(device: _C.Device, index: int, shape: tuple[int, ...], text: str) -> None:
    state = _C.DeltaState(device, layers=1, slots=3, key_heads=1, value_heads=1, key_dim=8, value_dim=8, taps=4)
    shapes: list[tuple[int, ...]] = [(3, 32), (3, 2), (24, 4), (1,), (1,), (8,)]
    shapes[index] = shape
    given = [tensor(device, np.zeros(one)) for one in shapes]
    rows = [ints(device, [0, 0, 0]), ints(device, [0, 1, 2])]
    with pytest.raises(ValueError, match=text):
        _C.gated_delta(*given, state, 0, *rows)


def test_bad_operands(device: _C.Device) -> None:
    problem = Problem(device, Case(1, 1, 8, 8))
    x, ba = tensor(device, np.zeros((2, 32))), tensor(device, np.zeros((2, 2)))
    weights = [tensor(device, values) for values in problem.weights.values()]
    at = [ints(device, [0, 0]), ints(device, [0, 1])]

    def call(*given: Any, **options: Any) -> None:
        _C.gated_delta(*given, **options)

    with pytest.raises(TypeError, match="state must be a DeltaState"):
        call(x, ba, *weights, None, 1, *at)
    with pytest.raises(ValueError, match="layer"):
        call(x, ba, *weights, problem.state, 2, *at)
    with pytest.raises(TypeError, match="x must be a Tensor"):
        call(None, ba, *weights, problem.state, 1, *at)
    with pytest.raises(TypeError, match="norm must be"):
        call(x, ba, *weights[:3], tensor(device, np.zeros(8), "f16"), problem.state, 1, *at)
    with pytest.raises(ValueError, match="positions must be"):
        call(x, ba, *weights, problem.state, 1, ints(device, [0]), at[1])
    with pytest.raises(TypeError, match="slots must be"):
        call(x, ba, *weights, problem.state, 1, at[0], tensor(device, [0, 1]))
    with pytest.raises(ValueError, match="eps"):
        call(x, ba, *weights, problem.state, 1, *at, eps=-1.0)
    with pytest.raises(ValueError, match="dtype"):
        call(x, ba, *weights, problem.state, 1, *at, dtype="f64")
    with pytest.raises(TypeError, match="sequence"):
        call(x, ba, *weights, problem.state, 1, *at, sequense=True)
