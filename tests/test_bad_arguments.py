"""Every argument of every entry point of _C, given what it must not be.

Wanted are an exception of a documented type, nothing recorded or kept, and that the same call with
good arguments works afterwards. Integers: -1, 0, the largest, one more, and what fits no machine
word. Floats: NaN, infinities, out of range. Objects: of other types, and of another device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marlin import _C

HUGE = (1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 63) - 1, 10**30)
NO_INTEGER = ("1", 1.0, b"1", (1,), {})
NO_TENSOR = (0, "x", b"xxxx", [1.0], np.zeros(4, np.float32), object())
DIM, HEADS, CONTEXT, SLOTS, VOCAB = 64, 2, 32, 3, 100


DELTA = {
    "layers": 2, "slots": 1, "key_heads": 1, "value_heads": 2, "key_dim": 8, "value_dim": 16, "taps": 4,
}  # fmt: skip
DELTA_SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "x": ((1, 80), "f16"), "ba": ((1, 4), "f32"), "conv": ((48, 4), "f32"), "a_log": ((2,), "f32"),
    "dt_bias": ((2,), "f32"), "norm": ((16,), "f32"), "positions": ((1,), "i32"), "slots": ((1,), "i32"),
}  # fmt: skip


@dataclass
class Things:
    """One of each, of a device, with good arguments for everything."""

    device: _C.Device
    other: _C.Device
    path: Path

    def __post_init__(self) -> None:
        device = self.device
        self.tensor = _C.full(device, (4, 6), 0)
        self.linear = _C.Linear(device, 16, 32, "int8")
        self.rows = np.ones((2, 32), np.float32)
        self.path.write_bytes(self.rows.tobytes())
        self.cache = _C.KVCache(device, layers=2, slots=SLOTS, context=CONTEXT, kv_heads=1, dim=DIM)
        self.state = _C.StepState(device, SLOTS, VOCAB)
        with device.capture() as self.program:
            pass
        self.generator = _C.Generator(self.state, [(CONTEXT, self.program)])
        self.qkv = _C.full(device, (1, (HEADS + 2) * DIM), 0, "f16")
        self.ids = _C.full(device, (1,), 0, "i32")
        self.freq = _C.full(device, (DIM // 2,), 0)

    def calls(self) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
        """name -> (callable, good arguments)."""
        device, linear = self.device, self.linear
        plane = {"plane": "quant", "dtype": "u8", "rows": 2}
        heads = {"qkv": self.qkv, "cache": self.cache, "layer": 0, "positions": self.ids}
        heads |= {"slots": self.ids, "freq": self.freq, "heads": HEADS, "eps": 1e-6}
        heads |= {"rope_scale": 1.0}
        return {
            "Device": (_C.Device, {"index": device.index}),
            "empty": (_C.empty, {"device": device, "shape": (2,)}),
            "full": (_C.full, {"device": device, "shape": (2,), "word": 1}),
            "tensor": (_C.tensor, {"device": device, "data": bytes(8), "shape": (8,)}),
            "inject": (device.inject, {"kind": "lost", "nth": 0}),
            "set_debug": (device.set_debug, {"seed": 0}),
            "Linear": (
                _C.Linear,
                {"device": device, "n": 4, "k": 32, "format": "int8", "group": 0},
            ),
            "set_rows": (
                linear.set_rows,
                {"data": self.rows, "dtype": "f32", "rows": 2, "row_start": 0, "row_stride": 1},
            ),
            "load_rows": (
                linear.load_rows,
                {"path": str(self.path), "offset": 0, "nbytes": 256, "dtype": "f32", "rows": 2},
            ),
            "set_plane": (
                linear.set_plane,
                {"data": bytes(64), "row_start": 0, "row_stride": 1, **plane},
            ),
            "load_plane": (
                linear.load_plane,
                {"path": str(self.path), "offset": 0, "nbytes": 64, **plane},
            ),
            "set_bias": (lambda bias: linear.set_bias(bias), {"bias": _C.full(device, (16,))}),
            "linear": (linear, {"x": _C.full(device, (1, 32), 0, "f16"), "eps": 1e-6}),
            "embed": (linear.embed, {"ids": self.ids}),
            "KVCache": (
                _C.KVCache,
                {
                    "device": device,
                    "layers": 1,
                    "slots": 1,
                    "context": 8,
                    "kv_heads": 1,
                    "dim": DIM,
                },
            ),
            "rms_norm": (
                _C.rms_norm,
                {"x": self.tensor, "weight": _C.full(device, (6,)), "eps": 1e-6, "residual": None},
            ),
            "rope": (_C.rope, heads),
            "mla": (
                _C.mla,
                {
                    "q": _C.full(device, (1, 48)),
                    "kv": _C.full(device, (1, 24)),
                    "norm": _C.full(device, (16,)),
                    "kv_b": _C.Linear(device, 64, 16),
                    "cache": _C.KVCache(device, layers=2, slots=1, context=8, kv_heads=1, dim=24, rank=16),
                    "layer": 0,
                    "positions": _C.full(device, (1,), 0, "i32"),
                    "slots": _C.full(device, (1,), 0, "i32"),
                    "freq": _C.full(device, (4,)),
                    "heads": 2,
                    "bound": 8,
                    "scale": 1.0,
                },
            ),
            "attention": (_C.attention, {**heads, "bound": CONTEXT, "scale": 1.0}),
            "DeltaState": (_C.DeltaState, {"device": device, **DELTA}),
            "gated_delta": (
                _C.gated_delta,
                {
                    **{name: _C.full(device, shape, 0, dtype) for name, (shape, dtype) in DELTA_SHAPES.items()},
                    "state": _C.DeltaState(device, **DELTA),
                    "layer": 0,
                },
            ),
            "StepState": (_C.StepState, {"device": device, "slots": 1, "vocab": 8}),
            "sample": (
                _C.sample,
                {"logits": _C.full(device, (SLOTS, VOCAB)), "state": self.state},
            ),
            "Generator": (
                _C.Generator,
                {"state": self.state, "programs": [(CONTEXT, self.program)], "depth": 1},
            ),
            "admit": (
                self.admit,
                {
                    "slot": 0,
                    "token": 1,
                    "position": 0,
                    "limit": CONTEXT,
                    "temperature": 1.0,
                    "top_k": 0,
                    "top_p": 1.0,
                    "min_p": 0.0,
                    "repetition_penalty": 1.0,
                    "seed": 0,
                    "draws": 0,
                    "logprobs": 0,
                    "stop_ids": (),
                    "seen": (),
                    "bias": (),
                },
            ),
        }

    def admit(self, **arguments: Any) -> None:
        self.generator.admit(**arguments)
        self.generator.release(arguments["slot"])


@pytest.fixture(scope="module")
def things(device: _C.Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Things]:
    path = tmp_path_factory.mktemp("rows") / "rows.bin"
    yield Things(device, _C.Device(device.index), path)


def refuse(things: Things, name: str, argument: str, value: Any) -> None:
    """The call raises what is documented, keeps no memory, and works again with good arguments."""
    call, good = things.calls()[name]
    before = things.device.memory()
    with pytest.raises((TypeError, ValueError, IndexError, MemoryError)) as caught:
        call(**{**good, argument: value})
    # The text says what was wrong; interpreters' own messages for str and path arguments do, too.
    assert len(str(caught.value)) > 10
    caught.value.__traceback__ = None
    after = things.device.memory()
    for key in ("device_used", "host_used"):
        assert after[key] <= before[key], key  # less where something of an earlier test was still to be freed


def accept(things: Things, name: str, argument: str, value: Any) -> None:
    call, good = things.calls()[name]
    call(**{**good, argument: value})
    things.device.sync()


def test_good_arguments_work(things: Things) -> None:
    for call, good in things.calls().values():
        call(**good)
        things.device.sync()


# (call, argument, smallest, largest or None, what is refused between or beside them)
INTEGERS: list[tuple[str, str, int, int | None, tuple[int, ...]]] = [
    ("Device", "index", 0, None, (1000,)),
    ("full", "word", 0, (1 << 32) - 1, ()),
    ("inject", "nth", 0, (1 << 63) - 1, ()),
    ("set_debug", "seed", 0, (1 << 64) - 1, ()),
    ("Linear", "n", 1, None, ()),
    ("Linear", "k", 1, None, ()),
    ("Linear", "group", 0, 256, (1, 15, 17, 255)),
    ("set_rows", "rows", 2, 2, (0, 17)),
    ("set_rows", "row_start", 0, 14, ()),
    ("set_rows", "row_stride", 1, 15, (0,)),
    ("load_rows", "offset", 0, 0, ()),
    ("load_rows", "nbytes", 256, 256, (0,)),
    ("load_rows", "rows", 2, 2, (0, 17)),
    ("set_plane", "rows", 2, 2, (0, 17)),
    ("set_plane", "row_start", 0, 14, ()),
    ("set_plane", "row_stride", 1, 15, (0,)),
    ("load_plane", "offset", 0, 192, ()),
    ("load_plane", "nbytes", 64, 64, (0,)),
    ("load_plane", "rows", 2, 2, (0, 17)),
    ("KVCache", "layers", 1, None, (0,)),
    ("KVCache", "slots", 1, None, (0,)),
    ("KVCache", "context", 1, None, (0,)),
    ("KVCache", "kv_heads", 1, None, (0,)),
    ("KVCache", "dim", 64, None, (0,)),
    ("KVCache", "rank", 0, None, ()),
    ("mla", "layer", 0, 1, ()),
    ("mla", "heads", 1, None, (0,)),
    ("mla", "bound", 1, 8, (0,)),
    ("rope", "layer", 0, 1, ()),
    ("rope", "heads", 2, 2, (0,)),
    ("attention", "layer", 0, 1, ()),
    ("attention", "heads", 2, 2, (0,)),
    ("attention", "bound", 1, CONTEXT, (0,)),
    *(("DeltaState", name, 1, None, (0,)) for name in ("layers", "slots", "key_heads")),
    ("DeltaState", "value_heads", 1, None, (0,)),
    ("DeltaState", "key_dim", 8, 256, (0, 12)),
    ("DeltaState", "value_dim", 8, 256, (0, 12)),
    ("DeltaState", "taps", 1, 8, (0,)),
    ("gated_delta", "layer", 0, 1, ()),
    ("StepState", "slots", 1, None, (0,)),
    ("StepState", "vocab", 1, None, (0,)),
    ("Generator", "depth", 1, None, (0,)),
    ("admit", "slot", 0, SLOTS - 1, ()),
    ("admit", "token", 0, VOCAB - 1, ()),
    ("admit", "position", 0, CONTEXT - 1, ()),
    ("admit", "limit", 1, CONTEXT, ()),
    ("admit", "top_k", 0, None, ()),
    ("admit", "seed", 0, (1 << 64) - 1, ()),
    ("admit", "draws", 0, (1 << 32) - 1, ()),
    ("admit", "logprobs", 0, 20, ()),
]


@pytest.mark.parametrize(
    ("name", "argument", "smallest", "largest", "between"),
    INTEGERS,
    ids=[f"{row[0]}-{row[1]}" for row in INTEGERS],
)
def test_integers(
    things: Things,
    name: str,
    argument: str,
    smallest: int,
    largest: int | None,
    between: tuple[int, ...],
) -> None:
    beyond = [value for value in HUGE if largest is None or not smallest <= value <= largest]
    if name == "admit" and argument == "top_k":
        beyond = [value for value in beyond if value >> 32]  # no top_k is too large
    if largest is not None:
        beyond.append(largest + 1)
    for value in (-1, smallest - 1, *between, *beyond, *NO_INTEGER):
        refuse(things, name, argument, value)
    for value in {smallest, smallest if largest is None else largest}:
        accept(things, name, argument, value)
    things.device.inject("lost", 0)
    things.device.set_debug()


@pytest.mark.parametrize("value", [*HUGE, -1, 99, *NO_INTEGER, None], ids=lambda v: f"{type(v).__name__}-{v}"[:24])
def test_integers_given_by_position(things: Things, value: Any) -> None:
    for call in (things.generator.release, things.cache.read, things.linear.read_plane):
        with pytest.raises((TypeError, ValueError)):
            call(value)


@pytest.mark.parametrize("name", ["empty", "full", "tensor"])
@pytest.mark.parametrize("shape", [(), (0,), (-1,), (1, 1, 1, 1, 1), 4, "4", None, {4}, *((n,) for n in HUGE), (1.5,)])
def test_shapes(things: Things, name: str, shape: Any) -> None:
    if (name, shape) != ("tensor", None):
        refuse(things, name, "shape", shape)


# (call, argument, refused, accepted)
FLOATS: list[tuple[str, str, tuple[float, ...], tuple[float, ...]]] = [
    ("Linear", "global_scale", (-1.0, 0.0), (1.0,)),
    ("linear", "eps", (-1.0,), (0.0, 1e-3)),
    ("rms_norm", "eps", (-1.0,), (1e-3,)),
    ("rope", "eps", (-1.0,), (1e-3,)),
    ("rope", "rope_scale", (-1.0,), (1.0,)),
    ("attention", "eps", (-1.0,), (1e-3,)),
    ("attention", "scale", (), (0.125,)),
    ("attention", "rope_scale", (-1.0,), (1.0,)),
    ("gated_delta", "eps", (-1.0,), (0.0, 1e-3)),
    ("admit", "temperature", (-1.0,), (0.0, 100.0)),
    ("admit", "top_p", (-0.1, 1.1), (1.0, 0.5)),
    ("admit", "min_p", (-0.1, 1.1), (0.0, 0.5)),
    ("admit", "repetition_penalty", (-1.0, 0.0), (1.0, 2.0)),
]


@pytest.mark.parametrize(("name", "argument", "bad", "good"), FLOATS, ids=[f"{row[0]}-{row[1]}" for row in FLOATS])
def test_floats(things: Things, name: str, argument: str, bad: tuple[float, ...], good: tuple[float, ...]) -> None:
    for value in (math.nan, math.inf, -math.inf, 1e300, 10**400, *bad, "1.0", (1.0,), object()):
        refuse(things, name, argument, value)
    for value in good:
        accept(things, name, argument, value)


# Arguments that are Tensors; those that may be None.
TENSORS = [
    ("linear", "x", False),
    ("linear", "norm", True),
    ("linear", "residual", True),
    ("linear", "out", True),
    ("set_bias", "bias", True),
    ("embed", "ids", False),
    ("rms_norm", "x", False),
    ("rms_norm", "weight", False),
    ("rms_norm", "residual", True),
    ("sample", "logits", False),
    *(
        (name, argument, optional)
        for name in ("rope", "attention")
        for argument, optional in [
            ("qkv", False),
            ("positions", False),
            ("slots", False),
            ("freq", False),
            ("q_norm", True),
            ("k_norm", True),
        ]
    ),
    *(("gated_delta", argument, False) for argument in DELTA_SHAPES),
]
SHAPES: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {
    ("linear", "x"): ((1, 32), "f16"),
    ("linear", "norm"): ((32,), "f32"),
    ("linear", "residual"): ((1, 16), "f32"),
    ("linear", "out"): ((1, 16), "f16"),
    ("set_bias", "bias"): ((16,), "f32"),
    ("embed", "ids"): ((1,), "i32"),
    ("rms_norm", "x"): ((4, 6), "f32"),
    ("rms_norm", "weight"): ((6,), "f32"),
    ("rms_norm", "residual"): ((4, 6), "f32"),
    ("sample", "logits"): ((SLOTS, VOCAB), "f32"),
}
SHAPES |= {
    (name, argument): row
    for name in ("rope", "attention")
    for argument, row in {
        "qkv": ((1, (HEADS + 2) * DIM), "f16"),
        "positions": ((1,), "i32"),
        "slots": ((1,), "i32"),
        "freq": ((DIM // 2,), "f32"),
        "q_norm": ((DIM,), "f32"),
        "k_norm": ((DIM,), "f32"),
    }.items()
}
SHAPES |= {("gated_delta", argument): row for argument, row in DELTA_SHAPES.items()}


@pytest.mark.parametrize(("name", "argument", "optional"), TENSORS, ids=[f"{row[0]}-{row[1]}" for row in TENSORS])
def test_tensors(things: Things, name: str, argument: str, optional: bool) -> None:
    shape, dtype = SHAPES[name, argument]
    for value in (*NO_TENSOR, things.device, things.cache, *(() if optional else (None,))):
        refuse(things, name, argument, value)
    longer = (*shape[:-1], shape[-1] + 1)
    for wrong_shape in ((7, 9, 3, 2), (*shape, 1), *(() if name == "embed" else (longer,))):
        refuse(things, name, argument, _C.full(things.device, wrong_shape, 0, dtype))
    refuse(things, name, argument, _C.full(things.device, shape, 0, "u8"))
    refuse(things, name, argument, _C.full(things.other, shape, 0, dtype))
    if argument not in ("q_norm", "k_norm"):  # they come together
        accept(things, name, argument, _C.full(things.device, shape, 0, dtype))


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("empty", "device"),
        ("full", "device"),
        ("tensor", "device"),
        ("Linear", "device"),
        ("KVCache", "device"),
        ("StepState", "device"),
        ("rope", "cache"),
        ("attention", "cache"),
        ("DeltaState", "device"),
        ("gated_delta", "state"),
        ("sample", "state"),
        ("Generator", "state"),
    ],
)
def test_objects(things: Things, name: str, argument: str) -> None:
    for value in (None, 0, "x", object(), things.tensor, things.linear, _C.Device):
        refuse(things, name, argument, value)


def test_objects_of_another_device(things: Things) -> None:
    other = things.other
    cache = _C.KVCache(other, layers=1, slots=1, context=8, kv_heads=1, dim=DIM)
    state = _C.StepState(other, SLOTS, VOCAB)
    with other.capture() as program:
        pass
    for name, argument, value in [
        ("rope", "cache", cache),
        ("attention", "cache", cache),
        ("gated_delta", "state", _C.DeltaState(other, **DELTA)),
        ("sample", "state", state),
        ("Generator", "state", state),
        ("Generator", "programs", [(CONTEXT, program)]),
    ]:
        refuse(things, name, argument, value)


@pytest.mark.parametrize(
    "programs",
    [None, 1, "x", [], [1], [()], [(1,)], [(0, None)], [(CONTEXT, None)], [(1, 2, 3)], [None]],
)
def test_programs_of_a_generator(things: Things, programs: Any) -> None:
    refuse(things, "Generator", "programs", programs)
    program = things.program
    for bounds in ((0,), (-1,), (1 << 31,), (1 << 64,), ("1",), (16, 8), (8, 8)):
        refuse(things, "Generator", "programs", [(bound, program) for bound in bounds])
    with pytest.raises(_C.MarlinError, match="not captured"):
        _C.Generator(things.state, [(CONTEXT, things.device.capture())])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("stop_ids", (-1,)),
        ("stop_ids", (VOCAB,)),
        ("stop_ids", (1 << 32,)),
        ("stop_ids", tuple(range(17))),
        ("stop_ids", 3),
        ("stop_ids", ("a",)),
        ("seen", (-1,)),
        ("seen", (VOCAB,)),
        ("seen", 3),
        ("bias", ((-1, 0.0),)),
        ("bias", ((VOCAB, 0.0),)),
        ("bias", ((0, math.nan),)),
        ("bias", ((0, math.inf),)),
        ("bias", ((0,),)),
        ("bias", (0,)),
        ("bias", 3),
        ("bias", tuple((0, 0.0) for _ in range(1025))),
    ],
)
def test_lists_of_admit(things: Things, argument: str, value: Any) -> None:
    refuse(things, "admit", argument, value)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("empty", "dtype"),
        ("full", "dtype"),
        ("tensor", "dtype"),
        ("linear", "dtype"),
        ("embed", "dtype"),
        ("rms_norm", "dtype"),
        ("rope", "dtype"),
        ("attention", "dtype"),
        ("gated_delta", "dtype"),
        ("KVCache", "dtype"),
        ("set_rows", "dtype"),
        ("load_rows", "dtype"),
        ("set_plane", "dtype"),
        ("load_plane", "dtype"),
        ("set_plane", "plane"),
        ("load_plane", "plane"),
        ("Linear", "format"),
        ("Linear", "scale"),
        ("linear", "activation"),
        ("linear", "kernel"),
        ("attention", "kernel"),
        ("inject", "kind"),
    ],
)
def test_names(things: Things, name: str, argument: str) -> None:
    for value in ("", "f64", "F16", "f16\0", "\ud800", "x" * 10_000, 3, b"f16", ("f16",), 1.5):
        refuse(things, name, argument, value)


@pytest.mark.parametrize("name", ["set_rows", "set_plane", "tensor"])
def test_buffers(things: Things, name: str) -> None:
    for value in (None, 3, "text", [1, 2], np.zeros((4, 32), np.float32)[:, ::2], b""):
        refuse(things, name, "data", value)


@pytest.mark.parametrize("name", ["load_rows", "load_plane"])
def test_paths(things: Things, name: str, tmp_path: Path) -> None:
    call, good = things.calls()[name]
    for value, error in [
        (None, TypeError),
        (3, TypeError),
        ("a\0b", ValueError),
        (str(tmp_path / "missing"), OSError),
        (str(tmp_path), (OSError, _C.ModelFormatError)),
        ("", OSError),
    ]:
        with pytest.raises(error):
            call(**{**good, "path": value})


def test_unknown_and_missing_arguments(things: Things) -> None:
    for name, (call, good) in things.calls().items():
        if name == "admit":
            call = things.generator.admit
        with pytest.raises(TypeError, match="keyword"):
            call(**good, colour=3)
        with pytest.raises(TypeError):
            call(*range(40))
        if name not in ("Device", "set_debug"):
            with pytest.raises(TypeError):
                call()
