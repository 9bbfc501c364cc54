"""The generator loop over fake steps: programs that only sample from fixed logits."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from marlin import _C

VOCAB = 8


def one_hot(device: _C.Device, tokens: Sequence[int]) -> _C.Tensor:
    """Logits (slots, VOCAB) from which slot i draws tokens[i]."""
    logits = np.zeros((len(tokens), VOCAB), np.float32)
    logits[np.arange(len(tokens)), tokens] = 10
    return _C.tensor(device, logits)


def step(device: _C.Device, state: _C.StepState, tokens: Sequence[int]) -> _C.Program:
    logits = one_hot(device, tokens)
    with device.capture() as program:
        _C.sample(logits, state)
    return program


def make(device: _C.Device, slots: int = 2, bound: int = 1000, depth: int = 4) -> _C.Generator:
    """Slot i draws token i + 1."""
    state = _C.StepState(device, slots, VOCAB)
    return _C.Generator(state, [(bound, step(device, state, range(1, slots + 1)))], depth=depth)


def admit(generator: _C.Generator, slot: int, steps: int, **options: Any) -> None:
    generator.admit(slot, **{"token": 0, "position": 0, "limit": steps, **options})


def drain(generator: _C.Generator) -> Iterator[tuple[int, int, str | None]]:
    while rows := generator.pump():
        for row in rows:
            yield row[:3]


@pytest.mark.parametrize("depth", [1, 2, 7, 64])
def test_steps_ahead(device: _C.Device, depth: int) -> None:
    """Slots of different length, more steps than the ring has; nothing is submitted in vain."""
    generator = make(device, depth=depth)
    assert (generator.depth, generator.running, generator.steps) == (depth, 0, 0)
    assert generator.pump() == []
    admit(generator, 0, 70)
    admit(generator, 1, 3)
    assert generator.running == 2
    rows = list(drain(generator))
    assert rows == [
        (slot, slot + 1, "length" if i == last else None)
        for i in range(70)
        for slot, last in ((0, 69), (1, 2))
        if i <= last
    ]
    assert (generator.running, generator.steps) == (0, 70)


def test_programs_by_bound(device: _C.Device) -> None:
    """Each step takes the first program whose bound is above every position that may come."""
    state = _C.StepState(device, 2, VOCAB)
    programs = [(4, step(device, state, [1, 1])), (8, step(device, state, [2, 2]))]
    generator = _C.Generator(state, programs, depth=3)
    generator.admit(0, token=0, position=1, limit=7)
    assert [row[1] for row in drain(generator)] == [1, 1, 1, 2, 2, 2]
    generator.admit(0, token=0, position=0, limit=8)
    first = [row[1] for row in generator.pump()]
    generator.admit(1, token=0, position=6, limit=8)  # the steps from here on need the larger one
    rows = list(drain(generator))
    assert first == [1] and [row[1] for row in rows if row[0] == 1] == [2, 2]
    assert [row[1] for row in rows if row[0] == 0][-4:] == [2, 2, 2, 2]


def test_release_drops_what_is_in_flight(device: _C.Device) -> None:
    generator = make(device, depth=5)
    admit(generator, 0, 1000)
    admit(generator, 1, 1000)
    assert [row[0] for row in generator.pump()] == [0, 1]
    generator.release(0)
    assert [row[0] for row in generator.pump()] == [1]
    admit(generator, 0, 2)  # the row of an older step must not be taken for its own
    rows = [row for _ in range(8) for row in generator.pump()]
    assert [row[:3] for row in rows if row[0] == 0] == [(0, 1, None), (0, 1, "length")]
    generator.release(1)
    generator.release(1)
    assert generator.pump() == [] and generator.running == 0


def test_kernels_of_a_step(own_device: _C.Device) -> None:
    """Two admissions are one dispatch of edit_slots; a step that only samples is one of sample."""
    generator = make(own_device)
    own_device.profile_start()
    admit(generator, 0, 2)
    admit(generator, 1, 2)
    list(drain(generator))
    names = [str(row["name"]).split("[")[0] for row in own_device.profile_stop()]
    assert (names.count("edit_slots"), names.count("sample")) == (1, 2)


def test_last_word_counts(device: _C.Device) -> None:
    """Admissions and releases between two pumps: what came last stands."""
    generator = make(device)
    admit(generator, 0, 50, stop_ids=[1], bias=[(3, 100.0)], seen=[1], repetition_penalty=2.0)
    generator.release(0)
    admit(generator, 0, 2)
    admit(generator, 1, 2)
    generator.release(1)
    assert list(drain(generator)) == [(0, 1, None), (0, 1, "length")]
    admit(generator, 1, 1, bias=[(7, 100.0)])
    assert list(drain(generator)) == [(1, 7, "length")]


def test_finished_slots_start_again(device: _C.Device) -> None:
    """Positions and what was seen start anew; a device step count moved by others does no harm."""
    state = _C.StepState(device, 1, VOCAB)
    logits = one_hot(device, [5])
    with device.capture() as program:
        _C.sample(logits, state)
    generator = _C.Generator(state, [(100, program)], depth=4)
    for _ in range(3):
        admit(generator, 0, 3, repetition_penalty=100.0)
        assert [row[1] for row in drain(generator)] == [5, 5, 5]
        admit(generator, 0, 9, stop_ids=[5])
        assert list(drain(generator)) == [(0, 5, "stop")]
        _C.sample(logits, state)  # all idle: counts a step, draws nothing
    assert np.frombuffer(state.positions.tobytes(), np.int32).tolist() == [-1]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"token": VOCAB}, "token"),
    ({"token": -1}, "token"),
    ({"position": 5}, "position must be below the limit 5, got 5"),
    ({"position": -1}, "position"),
    ({"limit": 0}, "position must be below the limit"),
    ({"limit": 1001}, "limit must be at most 1000, the largest bound, got 1001"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_p": float("nan")}, "top_p"),
    ({"min_p": -1.0}, "min_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"repetition_penalty": float("nan")}, "repetition_penalty"),
    ({"seed": 2**64}, "seed"),
    ({"seed": -1}, "seed"),
    ({"draws": 2**32}, "draws"),
    ({"logprobs": 21}, "logprobs"),
    ({"stop_ids": [0] * 17}, "at most 16 stop_ids, got 17"),
    ({"stop_ids": [VOCAB]}, "stop_ids"),
    ({"seen": [0, VOCAB]}, "seen"),
    ({"bias": [(VOCAB, 1.0)]}, "bias"),
    ({"bias": [(1, float("nan"))]}, "bias"),
    ({"bias": [(1, float("inf"))]}, "bias"),
    ({"bias": [(1, 1.0), (2, 1.0), (1, 2.0)]}, "bias names token 1 twice"),
    ({"bias": [(i % VOCAB, 0.0) for i in range(1025)]}, "at most 1024 bias, got 1025"),
]


@pytest.mark.parametrize(("options", "text"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_admission(device: _C.Device, options: dict[str, Any], text: str) -> None:
    generator = make(device)
    with pytest.raises(ValueError, match=text):
        admit(generator, 0, 5, **options)
    assert generator.running == 0 and generator.pump() == []
    admit(generator, 0, 1)
    assert list(drain(generator)) == [(0, 1, "length")]


def test_bad_calls(device: _C.Device) -> None:
    generator = make(device)
    with pytest.raises(TypeError, match="limit"):
        generator.admit(0, token=0, position=0)  # type: ignore[call-arg]
    for options in ({"bias": [1]}, {"bias": 3}, {"stop_ids": 3}, {"seen": ["a"]}, {"token": 1.5}):
        with pytest.raises(TypeError, match="admit"):
            admit(generator, 0, 5, **options)
    for slot in (-1, 2):
        with pytest.raises(ValueError, match="slot"):
            admit(generator, slot, 5)
        with pytest.raises(ValueError, match="slot"):
            generator.release(slot)
    admit(generator, 0, 5)
    with pytest.raises(_C.MarlinError, match="slot 0 is running"):
        admit(generator, 0, 5)
    assert len(list(drain(generator))) == 5


def test_bad_creation(device: _C.Device, own_device: _C.Device) -> None:
    state = _C.StepState(device, 1, VOCAB)
    program = step(device, state, [1])
    for programs in (
        [],
        [(0, program)],
        [(5, program), (5, program)],
        [(9, program), (5, program)],
    ):
        with pytest.raises(ValueError, match=r"[gG]enerator"):
            _C.Generator(state, programs)
    for depth in (0, 65):
        with pytest.raises(ValueError, match="depth"):
            _C.Generator(state, [(5, program)], depth=depth)
    for bad in (3, [program], [(5, None)]):
        with pytest.raises(TypeError, match="Generator"):
            _C.Generator(state, bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="StepState"):
        _C.Generator(None, [(5, program)])  # type: ignore[arg-type]
    with pytest.raises(_C.MarlinError, match="not captured"):
        _C.Generator(state, [(5, device.capture())])
    other = _C.StepState(own_device, 1, VOCAB)
    with pytest.raises(ValueError, match="device"):
        _C.Generator(other, [(5, program)])


def test_another_sampler_is_noticed(device: _C.Device) -> None:
    """A state whose slot was ended behind the generator's back is an error, not an endless wait."""
    state = _C.StepState(device, 1, VOCAB)
    generator = _C.Generator(state, [(10, step(device, state, [1]))])
    admit(generator, 0, 5)
    generator.pump()
    device.sync()
    state.positions.write(np.array([-1], np.int32))
    with pytest.raises(_C.MarlinError, match="stopped without a finish"):
        list(drain(generator))
    generator.release(0)
    assert generator.pump() == []


def test_keeps_what_it_needs(device: _C.Device) -> None:
    generator = make(device)
    gc.collect()
    admit(generator, 0, 40)
    assert len(generator.pump()) == 1
    assert len(list(drain(generator))) == 39
    admit(generator, 0, 40)
    generator.pump()
    del generator  # steps in flight run on
    device.sync()


def test_lost_device(own_device: _C.Device) -> None:
    generator = make(own_device)
    admit(generator, 0, 40)
    generator.pump()
    own_device.inject("lost", 1)
    for _ in range(2):
        with pytest.raises(_C.DeviceLostError):
            list(drain(generator))


def slow_generator(device: _C.Device) -> _C.Generator:
    """A step of a second or so on a software device."""
    state = _C.StepState(device, 1, VOCAB)
    x, weight = _C.full(device, (128, 4096)), _C.full(device, (4096,))
    logits = one_hot(device, [1])
    with device.capture() as program:
        for _ in range(40):
            y = _C.rms_norm(x, weight, 1e-6)
            x = y
        _C.sample(logits, state)
    return _C.Generator(state, [(10, program)], depth=2)


def test_interrupt(device: _C.Device) -> None:
    """Ctrl-C ends the wait, not the generator; its steps go on in order."""
    generator = slow_generator(device)
    admit(generator, 0, 4)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            rows = list(drain(generator))
            if rows:  # a fast device was done before
                raise KeyboardInterrupt
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    generator.release(0)
    admit(generator, 0, 1)
    assert list(drain(generator)) == [(0, 1, "length")]


def test_threads_take_turns(device: _C.Device) -> None:
    """One pumps while others admit and release: every row belongs to an admission."""
    slots, rounds = 6, 15
    generator = make(device, slots=slots)
    stop = threading.Event()
    errors: list[BaseException] = []
    rows: list[tuple[int, int, str | None]] = []

    def user(slot: int) -> None:
        try:
            for i in range(rounds):
                admit(generator, slot, 1000)
                time.sleep(0.001 * (i % 3))
                generator.release(slot)
        except BaseException as error:
            errors.append(error)

    def pump() -> None:
        try:
            while not stop.is_set():
                rows.extend(row[:3] for row in generator.pump())
        except BaseException as error:
            errors.append(error)

    pumper = threading.Thread(target=pump)
    users = [threading.Thread(target=user, args=(slot,)) for slot in range(slots)]
    for thread in [pumper, *users]:
        thread.start()
    for thread in users:
        thread.join()
    stop.set()
    pumper.join()
    assert not errors and generator.running == 0
    assert all(token == slot + 1 for slot, token, _ in rows)
