"""Drawing on the device against tests/ref/sample.py: every filter alone and together, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from marlin import _C
from tests.cases import SAMPLE_CASES, SampleCase
from tests.ref import sample as ref

Row = tuple[int, int, str | None, float, list[tuple[int, float]]]


def generate(
    device: _C.Device,
    logits: NDArray[np.float32],
    slots: Mapping[int, Mapping[str, Any]],
    steps: int = 1,
) -> dict[int, list[Row]]:
    """The rows of each slot from `steps` steps that all sample from logits (slots, vocab)."""
    state = _C.StepState(device, *logits.shape)
    # Behind a row of NaN: the kernel must start at its offset.
    padded = np.concatenate([np.full((1, logits.shape[1]), np.nan, np.float32), logits])
    rows = _C.tensor(device, padded)[1:]
    with device.capture() as program:
        _C.sample(rows, state)
    generator = _C.Generator(state, [(steps, program)], depth=3)
    for slot, options in slots.items():
        generator.admit(slot, **{"token": 0, "position": 0, "limit": steps, **options})
    found: dict[int, list[Row]] = {slot: [] for slot in slots}
    while got := generator.pump():
        for row in got:
            found[row[0]].append(row)
    assert np.frombuffer(state.positions.tobytes(), np.int32).tolist() == [-1] * len(logits)
    return found


def check_draw(row: Row, want: ref.Drawn, finish: str | None) -> None:
    if want.token < 0:
        assert row[1:3] == (-1, "nan") and np.isnan(row[3]) and row[4] == []
        return
    assert row[2] == finish
    if want.margin > 2e-6:
        assert row[1] == want.token
        np.testing.assert_allclose(row[3], want.logprob, atol=2e-5)
    else:
        assert row[1] in want.kept


def check_tops(row: Row, logits: NDArray[np.float32], count: int) -> None:
    best = np.lexsort((np.arange(len(logits)), -logits))[:count]
    assert [top[0] for top in row[4]] == best.tolist()
    logprobs = ref.log_softmax(logits)[best]
    np.testing.assert_allclose([top[1] for top in row[4]], logprobs, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("case", SAMPLE_CASES, ids=str)
def test_case(device: _C.Device, case: SampleCase) -> None:
    logits = case.logits()
    options: dict[str, Any] = {
        "temperature": case.temperature,
        "top_k": case.top_k,
        "top_p": case.top_p,
        "min_p": case.min_p,
        "repetition_penalty": case.repetition_penalty,
        "seed": case.seed,
    }
    spot = case.vocab // 3
    bias = {case.vocab - 1: 1.5, spot: -np.inf, 0: -2.0, int(logits.argmax()): -3.0} if case.bias else {}
    seen = sorted({spot, int(logits.argmax()), int(logits.argmin())})
    rows = np.full((3, case.vocab), np.nan, np.float32)
    rows[1] = logits
    slot = {**options, "seen": seen, "bias": list(bias.items()), "logprobs": 5}
    (row,) = generate(device, rows, {1: slot})[1]
    check_draw(row, ref.sample(logits, seen=seen, bias=bias, **options), "length")
    if row[1] >= 0:
        check_tops(row, logits, min(5, case.vocab))


@pytest.mark.parametrize("vocab", [7, 300, 4096, 50257])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"top_k": 100, "top_p": 0.5},
        {"top_p": 0.999, "temperature": 30.0},
        {"top_k": 3000, "top_p": 0.97, "temperature": 20.0},
        {"top_k": 50, "top_p": 0.95, "min_p": 0.02, "temperature": 0.8},
    ],
    ids=lambda o: "-".join(f"{k}{v}" for k, v in o.items()) or "plain",
)
def test_sequences(device: _C.Device, vocab: int, options: dict[str, Any]) -> None:
    """Draw after draw, three slots with seeds of their own: none sees the others."""
    rng = np.random.default_rng(vocab)
    logits = (rng.standard_normal((3, vocab)) * 3).astype(np.float32)
    options = {"temperature": 1.0, **options}
    seeds = [0, 12345, 2**64 - 1]
    slots = {i: {**options, "seed": seed} for i, seed in enumerate(seeds)}
    found = generate(device, logits, slots, steps=8)
    for slot, seed in enumerate(seeds):
        assert len(found[slot]) == 8
        for draw, row in enumerate(found[slot]):
            want = ref.sample(logits[slot], seed=seed, draw=draw, **options)
            check_draw(row, want, "length" if draw == 7 else None)


def test_large_vocabulary(device: _C.Device) -> None:
    """All filters, over more tokens than fit a small workgroup of a software device."""
    logits = np.random.default_rng(0).standard_normal((1, 262144)).astype(np.float32)
    options: dict[str, Any] = {"temperature": 2.0, "top_k": 5000, "top_p": 0.8, "min_p": 0.01}
    seen = list(range(0, 262144, 1000))
    penalty: dict[str, Any] = {"repetition_penalty": 1.5, "seen": seen}
    (row,) = generate(device, logits, {0: {**options, **penalty, "seed": 6, "logprobs": 20}})[0]
    check_draw(row, ref.sample(logits[0], seed=6, **options, **penalty), "length")
    check_tops(row, logits[0], 20)


def test_frequencies(device: _C.Device) -> None:
    """Past the end of the ring many times; counts within five standard deviations."""
    p = np.array([0.05, 0.3, 0.0, 0.2, 0.45])
    with np.errstate(divide="ignore"):
        logits = np.log(p).astype(np.float32)[None]
    draws = 400
    rows = generate(device, logits, {0: {"temperature": 1.0, "seed": 3}}, steps=draws)[0]
    counts = np.bincount([row[1] for row in rows], minlength=5)
    assert np.all(np.abs(counts - p * draws) <= 5 * np.sqrt(p * (1 - p) * draws))
    for row in rows[:: draws // 10]:
        np.testing.assert_allclose(row[3], np.log(p[row[1]]), atol=1e-5)


@pytest.mark.parametrize(
    ("vocab", "options", "kept"),
    [
        (8, {"top_k": 3}, 3),
        (8, {"top_p": 0.5}, 4),
        (8, {"top_p": 0.51}, 5),
        (8, {"top_k": 6, "top_p": 0.5}, 3),
        (8, {"top_p": 0.0}, 1),
        (8, {"min_p": 1.0}, 8),
        (5000, {"top_k": 4}, 4),
        (5000, {"top_p": 5 / 5000}, 5),
    ],
)
def test_lowest_ids_among_equals(device: _C.Device, vocab: int, options: dict[str, Any], kept: int) -> None:
    logits = np.full((1, vocab), -1.25, np.float32)
    rows = generate(device, logits, {0: {"temperature": 0.7, "seed": 1, **options}}, steps=100)[0]
    assert {row[1] for row in rows} == set(range(kept))


def test_signed_zeros_are_equal(device: _C.Device) -> None:
    logits = np.array([[-1.0, -0.0, 0.0, -0.0]], np.float32)
    (row,) = generate(device, logits, {0: {"logprobs": 4}})[0]
    assert row[1] == 1 and [top[0] for top in row[4]] == [1, 2, 3, 0]


def test_draws_continue(device: _C.Device) -> None:
    """A request that goes on elsewhere names the draws done: the same tokens come."""
    logits = np.random.default_rng(1).standard_normal((1, 300)).astype(np.float32)
    options = {"temperature": 1.0, "seed": 5}
    whole = generate(device, logits, {0: options}, steps=12)[0]
    rest = generate(device, logits, {0: {**options, "draws": 7}}, steps=5)[0]
    assert [row[1] for row in rest] == [row[1] for row in whole[7:]]


def test_drawn_tokens_are_seen(device: _C.Device) -> None:
    """The penalty pushes each drawn token down, and knows the ids that it was given."""
    logits = np.array([[4.0, 3.0, -1.0, 3.5, -1.1]], np.float32)
    seen = [3, 3]
    rows = generate(device, logits, {0: {"repetition_penalty": 4.0, "seen": seen}}, steps=5)[0]
    for row in rows:
        want = ref.sample(logits[0], seen=seen, repetition_penalty=4.0, temperature=0.0)
        assert row[1] == want.token
        np.testing.assert_allclose(row[3], want.logprob, atol=1e-5)
        seen.append(row[1])
    assert [row[1] for row in rows[:3]] == [0, 1, 0]


def test_bias(device: _C.Device) -> None:
    """As many as there may be, in any order; all banned ends the slot."""
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((1, 4096)).astype(np.float32)
    ids = rng.permutation(4096)[:1024]
    bias = {int(i): float(rng.standard_normal()) * 4 for i in ids}
    for temperature in (0.0, 0.9):
        options: dict[str, Any] = {"temperature": temperature, "seed": 8}
        (row,) = generate(device, logits, {0: {**options, "bias": list(bias.items())}})[0]
        check_draw(row, ref.sample(logits[0], bias=bias, **options), "length")
    banned = [(i, -np.inf) for i in range(7)]
    (row,) = generate(device, logits[:, :7], {0: {"bias": banned}})[0]
    assert row[1:3] == (-1, "nan")


def test_stop_ids(device: _C.Device) -> None:
    logits = np.log(np.array([[0.3, 0.4, 0.2, 0.1]], np.float32))
    options = {"temperature": 1.0, "seed": 4, "stop_ids": (2, 3)}
    rows = generate(device, logits, {0: options}, steps=60)[0]
    assert [row[2] for row in rows] == [None] * (len(rows) - 1) + ["stop"]
    assert rows[-1][1] in (2, 3) and not {row[1] for row in rows[:-1]} & {2, 3}
    stops = [*[0] * 15, 1]  # the last of the most that there may be; and it goes before the limit
    (row,) = generate(device, logits, {0: {"stop_ids": stops}})[0]
    assert row[1:3] == (1, "stop")


def test_one_slot_fails_alone(device: _C.Device) -> None:
    logits = np.zeros((3, 10), np.float32)
    logits[1, 4] = np.nan
    logits[:, 6] = 1
    found = generate(device, logits, {0: {}, 1: {}, 2: {}}, steps=3)
    assert [row[1:3] for row in found[1]] == [(-1, "nan")]
    for slot in (0, 2):
        assert [row[1:3] for row in found[slot]] == [(6, None), (6, None), (6, "length")]


@pytest.mark.parametrize("count", [1, 20])
def test_top_logprobs(device: _C.Device, count: int) -> None:
    """Of the logits as they came, whatever the filters do; equal ones by id; -inf at the end."""
    rng = np.random.default_rng(3)
    logits = np.rint(rng.standard_normal((1, 300)) * 3).astype(np.float32)
    options = {"temperature": 1.0, "top_k": 2, "bias": [(0, 50.0)], "logprobs": count}
    (row,) = generate(device, logits, {0: options})[0]
    assert row[1] == 0
    check_tops(row, logits[0], count)
    few = np.array([[0.0, -np.inf, 1.0]], np.float32)
    (row,) = generate(device, few, {0: {"logprobs": count}})[0]
    check_tops(row, few[0], min(count, 3))


def test_bad_arguments(device: _C.Device) -> None:
    state = _C.StepState(device, 2, 10)
    assert (state.slots, state.vocab) == (2, 10)
    assert np.frombuffer(state.slot_ids.tobytes(), np.int32).tolist() == [0, 1]
    assert np.frombuffer(state.positions.tobytes(), np.int32).tolist() == [-1, -1]
    for shape in ((2, 11), (3, 10), (20,)):
        with pytest.raises(ValueError, match=r"sample: logits must be \(2, 10\) f32"):
            _C.sample(_C.empty(device, shape), state)
    with pytest.raises(TypeError, match=r"sample: logits must be \(2, 10\) f32"):
        _C.sample(_C.empty(device, (2, 10), "f16"), state)
    with pytest.raises(TypeError, match="StepState"):
        _C.sample(_C.empty(device, (2, 10)), None)  # type: ignore[arg-type]
    for slots, vocab in ((0, 10), (4097, 10), (1, 0), (1, 2**21 + 1), (4096, 2**20)):
        with pytest.raises(ValueError, match=r"StepState|step state"):
            _C.StepState(device, slots, vocab)
