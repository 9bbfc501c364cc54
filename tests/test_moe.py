"""Routers and experts against NumPy: every kernel row, scoring, ties, NaN, idle rows, usage, captures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cases import MOE_CASES, MoeCase, seed_of
from numpy.typing import NDArray
from ref.moe import moe, route
from test_matmul import NAN_WORD, array, tensor
from tolerance import check

from marlin import _C, formats

Array = NDArray[Any]


def make_linear(device: _C.Device, w: Array, case: MoeCase) -> tuple[_C.Linear, Array]:
    """A matrix in the format of a case, and the weights that its planes stand for."""
    packed = formats.pack(w, case.format, group=case.group, zero=case.zero, scale=case.scale or "f16")
    options = {"group": case.group, "scale": case.scale, "zero": case.zero, "global_scale": packed.global_scale}
    lin = _C.Linear(device, *w.shape, case.format, **options)
    lin.set_rows(np.ascontiguousarray(w), "f32", len(w))
    return lin, formats.unpack(packed)


@dataclass
class Mixture:
    """A MoE of random weights with what a reference needs of it."""

    raw: _C.MoE
    router: Array
    gate: Array
    up: Array
    down: Array
    options: dict[str, Any] = field(default_factory=dict)

    def route(self, x: Array) -> tuple[Array, Array]:
        """ids and weights of the reference, shared experts behind the others, for normalised rows."""
        ids, weights = route(x @ self.router[: self.raw.experts].T.astype(np.float64), self.raw.top_k, **self.options)
        shared = np.tile(np.arange(self.raw.experts, self.raw.experts + self.raw.shared), (len(x), 1))
        gate = np.ones(shared.shape)
        if len(self.router) > self.raw.experts:
            gate *= 1 / (1 + np.exp(-(x @ self.router[-1:].T.astype(np.float64))))
        return np.hstack([ids, shared]), np.hstack([weights, gate])


def mixture(device: _C.Device, case: MoeCase, *, gate: bool = False, **options: Any) -> Mixture:
    rng = np.random.default_rng(seed_of(case))
    count, hidden, inner = case.experts + case.shared, case.hidden, case.inner
    gate_up = (rng.standard_normal((count * 2 * inner, hidden)) / np.sqrt(hidden)).astype(np.float32)
    down = (rng.standard_normal((count * hidden, inner)) / np.sqrt(inner)).astype(np.float32)
    router = (rng.standard_normal((case.experts + gate, hidden)) * 2 / np.sqrt(hidden)).astype(np.float32)
    if case.one_expert:
        router[:] = 0
    linears, matrices = zip(*(make_linear(device, w, case) for w in (gate_up, down)), strict=True)
    first = _C.Linear(device, *router.shape, "f32")
    first.set_rows(router, "f32", len(router))
    bias = options.pop("bias", None)
    given = {"bias": _C.tensor(device, bias)} if bias is not None else {}
    raw = _C.MoE(first, *linears, experts=case.experts, top_k=case.top_k, shared=case.shared, **given, **options)
    both = matrices[0].reshape(count, inner, 2, hidden)
    if bias is not None:
        options["bias"] = bias
    return Mixture(raw, router, both[:, :, 0], both[:, :, 1], matrices[1].reshape(count, hidden, inner), options)


def ints(t: _C.Tensor) -> Array:
    return np.frombuffer(t.tobytes(), np.int32 if t.dtype == "i32" else np.uint32).reshape(t.shape)


@pytest.mark.parametrize("case", MOE_CASES, ids=str)
def test_moe(device: _C.Device, case: MoeCase) -> None:
    if case.kernel and "coopmat" in case.kernel and "coopmat" not in device.features:
        pytest.skip("needs coopmat")
    rng = np.random.default_rng(seed_of(case) + 1)
    made = mixture(device, case)
    x = array(tensor(device, rng.standard_normal((case.rows, case.hidden)), case.dtype))
    norm = rng.uniform(0.5, 1.5, case.hidden).astype(np.float32) if case.norm else None
    residual = rng.standard_normal((case.rows, case.hidden)).astype(np.float32) if case.residual else None
    normed = x if norm is None else x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-6) * norm
    out = _C.full(device, (case.rows, case.hidden), NAN_WORD, "f32")
    made.raw(
        tensor(device, x, case.dtype),
        norm=None if norm is None else _C.tensor(device, norm),
        residual=None if residual is None else _C.tensor(device, residual),
        dtype=case.dtype,
        out=out,
        kernel=case.kernel,
    )
    ids, weights = made.route(normed)
    expected = moe(x, made.gate, made.up, made.down, ids, weights, norm=norm, residual=residual)
    check(array(out), expected, case.dtype)
    usage = np.bincount(ids[:, : case.top_k].ravel(), minlength=case.experts)
    assert (ints(made.raw.usage) == usage).all()


def kernels_of(device: _C.Device, call: Callable[[], Any]) -> list[str]:
    """The kernel families that a call dispatches, in order."""
    device.profile_start()
    call()
    return [str(entry["name"]).partition("[")[0].partition(".")[0] for entry in device.profile_stop()]


def test_a_row_takes_three_dispatches(device: _C.Device) -> None:
    made = mixture(device, MOE_CASES[0])
    x = _C.full(device, (1, MOE_CASES[0].hidden), 0, "f16")
    assert kernels_of(device, lambda: made.raw(x)) == ["moe_router", "moe_gemv", "moe_down"]


def test_many_rows_are_sorted_by_expert(device: _C.Device) -> None:
    made = mixture(device, MOE_CASES[0])
    x = _C.full(device, (100, MOE_CASES[0].hidden), 0, "f16")
    found = set(kernels_of(device, lambda: made.raw(x, kernel="moe_gemm")))
    assert {"moe_plan", "moe_gemm", "moe_combine"} <= found


ROUTERS: list[dict[str, Any]] = [
    {},
    {"normalise": False, "scale": 2.5},
    {"scoring": "sigmoid", "scale": 1.8},
    {"scoring": "sigmoid", "bias": True, "normalise": False},
    {"scoring": "sigmoid", "bias": True, "groups": 4, "top_groups": 2},
    {"groups": 4, "top_groups": 1, "group_best": 1, "normalise": False, "scale": 16.0},
]


@pytest.mark.parametrize("options", ROUTERS, ids=str)
@pytest.mark.parametrize(("rows", "experts", "top_k"), [(1, 16, 4), (40, 64, 4), (3, 160, 3), (70, 516, 10)])
def test_router(device: _C.Device, options: dict[str, Any], rows: int, experts: int, top_k: int) -> None:
    rng = np.random.default_rng(7)
    options = dict(options)
    if "bias" in options:
        options["bias"] = rng.standard_normal(experts).astype(np.float32)
    made = mixture(device, MoeCase(None, "f16", rows, experts, top_k, 96, 16), **options)
    x = rng.standard_normal((rows, 96)).astype(np.float32)
    ids, weights = made.raw.route(_C.tensor(device, x))
    wanted, factors = made.route(x.astype(np.float64))
    check(ints(ids), wanted, "exact")
    check(array(weights), factors, "f32")


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_equal_scores_go_to_the_first_experts(device: _C.Device, scoring: str) -> None:
    made = mixture(device, MoeCase(None, "f16", 3, 20, 5, 32, 16, one_expert=True), scoring=scoring)
    ids, weights = made.raw.route(_C.full(device, (3, 32)))
    assert (ints(ids) == np.arange(5)).all()
    check(array(weights), np.full((3, 5), 0.2), "f32")
    # Pairs of equal experts, the second pair better: its own order, then the first pair.
    made = mixture(device, MoeCase(None, "f16", 1, 4, 4, 32, 16))
    router = np.repeat(np.array([0.5, 0.75], np.float32), 2)[:, None] * np.ones(32, np.float32)
    first = _C.Linear(device, 4, 32, "f32")
    first.set_rows(router, "f32", 4)
    gate_up, down = _C.Linear(device, 4 * 32, 32), _C.Linear(device, 4 * 32, 16)
    raw = _C.MoE(first, gate_up, down, experts=4, top_k=3, scoring=scoring)
    ids, _ = raw.route(_C.tensor(device, np.ones((1, 32), np.float32)))
    assert ints(ids).tolist() == [[2, 3, 0]]


@pytest.mark.parametrize(("experts", "top_k"), [(129, 1), (160, 3), (333, 4), (512, 10), (512, 32)])
def test_many_experts_with_equal_scores(device: _C.Device, experts: int, top_k: int) -> None:
    """A few scores, each of many experts: the best, and of equal ones the first; a NaN row gets the first of all."""
    kinds = np.random.default_rng(experts).integers(0, 5, experts)
    router = (kinds[:, None] * np.ones((1, 32))).astype(np.float32)
    first = _C.Linear(device, experts, 32, "f32")
    first.set_rows(router, "f32", experts)
    gate_up, down = _C.Linear(device, experts * 16, 32), _C.Linear(device, experts * 32, 8)
    raw = _C.MoE(first, gate_up, down, experts=experts, top_k=top_k)
    for rows in (2, 40):
        x = np.full((rows, 32), 1 / 32, np.float32)
        x[1] = np.nan
        found = ints(raw.route(_C.tensor(device, x))[0])
        wanted = np.argsort(-kinds, kind="stable")[:top_k]
        assert (found[0] == wanted).all() and (found[2:] == wanted).all()
        assert (found[1] == np.arange(top_k)).all()


@pytest.mark.parametrize("options", [{}, {"scoring": "sigmoid"}, {"scoring": "sigmoid", "groups": 2}], ids=str)
def test_nan_rows_get_valid_experts_and_nan(device: _C.Device, options: dict[str, Any]) -> None:
    """A row that is NaN, or whose router gives NaN for one expert: NaN comes out, of that row alone."""
    case = MoeCase(None, "f16", 3, 8, 2, 64, 32)
    made = mixture(device, case, **options)
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    x[1] = np.nan
    ids, weights = made.raw.route(_C.tensor(device, x))
    assert ints(ids)[1].tolist() == [0, 1]
    assert np.isnan(array(weights)[1]).all()
    assert np.isfinite(array(weights)[[0, 2]]).all()
    y = array(made.raw(_C.tensor(device, x)))
    assert np.isnan(y[1]).all()
    clean = [0, 2]
    expected = moe(x[clean], made.gate, made.up, made.down, *made.route(x[clean].astype(np.float64)))
    check(y[clean], expected, "f32")
    made.router[3] = np.inf  # inf times a negative element and a positive one
    router = _C.Linear(device, 8, 64, "f32")
    router.set_plane("quant", made.router.view(np.uint8), "u8", 8)
    linears = [_C.Linear(device, 8 * 64, 64), _C.Linear(device, 8 * 64, 32)]
    ids, weights = _C.MoE(router, *linears, experts=8, top_k=2, **options).route(_C.tensor(device, x[:1]))
    assert 3 not in ints(ids)
    assert np.isnan(array(weights)).all()


def test_shared_expert_with_a_gate(device: _C.Device) -> None:
    case = MoeCase(None, "f16", 4, 6, 2, 96, 48, shared=1)
    made = mixture(device, case, gate=True)
    x = np.random.default_rng(2).standard_normal((4, 96)).astype(np.float32)
    y = array(made.raw(_C.tensor(device, x)))
    check(y, moe(x, made.gate, made.up, made.down, *made.route(x.astype(np.float64))), "f32")


@pytest.mark.parametrize("kernel", [None, "rows", "moe_gemv@2", "moe_gemm"])
def test_idle_rows_choose_nothing(device: _C.Device, kernel: str | None) -> None:
    case = MoeCase(None, "f16", 5, 6, 2, 64, 32)
    made = mixture(device, case)
    x = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    positions = np.array([4, -1, 0, -1, 9], np.int32)
    live = positions >= 0
    where = _C.tensor(device, positions)
    ids, _ = made.raw.route(_C.tensor(device, x), positions=where)
    assert ((ints(ids) >= 0).all(axis=1) == live).all()
    made.raw.reset_usage()
    y = array(made.raw(_C.tensor(device, x), positions=where, kernel=kernel))
    ids, weights = made.route(x[live].astype(np.float64))
    check(y[live], moe(x[live], made.gate, made.up, made.down, ids, weights), "f32")
    assert (ints(made.raw.usage) == np.bincount(ids.ravel(), minlength=6)).all()


def test_captured_calls_see_new_rows(device: _C.Device) -> None:
    case = MoeCase(None, "f16", 2, 6, 2, 64, 32)
    made = mixture(device, case)
    x = _C.full(device, (2, 64))
    y = _C.full(device, (2, 64))
    made.raw(x, out=y)  # pipelines
    made.raw.reset_usage()
    with device.capture() as program:
        made.raw(x, out=y)
    rng = np.random.default_rng(4)
    for _ in range(3):
        rows = rng.standard_normal((2, 64)).astype(np.float32)
        x.write(rows)
        program.replay()
        check(array(y), moe(rows, made.gate, made.up, made.down, *made.route(rows.astype(np.float64))), "f32")
    assert ints(made.raw.usage).sum() == 3 * 2 * 2


def test_results_do_not_change_between_runs(device: _C.Device) -> None:
    made = mixture(device, MoeCase(None, "int4", 9, 8, 2, 128, 64, group=32, scale="f16"))
    x = tensor(device, np.random.default_rng(5).standard_normal((9, 128)), "f16")
    for kernel in ("rows", "moe_gemv@4"):
        first = made.raw(x, kernel=kernel).tobytes()
        assert all(made.raw(x, kernel=kernel).tobytes() == first for _ in range(4))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"experts": 0}, "experts must be"),
        ({"experts": 2000}, "experts must be"),
        ({"top_k": 0}, "top_k must be 1 to 4"),
        ({"top_k": 5}, "top_k must be 1 to 4"),
        ({"experts": 3}, "router must be"),
        ({"shared": 1}, "gate_up must have"),
        ({"groups": 3}, "groups must divide"),
        ({"groups": 4, "top_groups": 1}, "top_groups must be"),
        ({"groups": 2, "top_groups": 3}, "top_groups must be"),
        ({"group_best": 3}, "group_best"),
        ({"scoring": "tanh"}, "scoring must be"),
        ({"activation": "silu"}, "gated"),
        ({"down": (4 * 64, 31)}, "gate_up must have"),
        ({"down": (3 * 64, 32)}, "down must have"),
        ({"router": (4, 65)}, "router must be"),
        ({"bias": (5,)}, "bias must be"),
    ],
    ids=str,
)
def test_bad_layers(device: _C.Device, options: dict[str, Any], text: str) -> None:
    shapes = {"router": (4, 64), "gate_up": (4 * 2 * 32, 64), "down": (4 * 64, 32)}
    linears = [_C.Linear(device, *options.get(name, shape)) for name, shape in shapes.items()]
    given: dict[str, Any] = {"experts": 4, "top_k": 2} | {k: v for k, v in options.items() if k not in shapes}
    if "bias" in given:
        given["bias"] = _C.full(device, given["bias"])
    with pytest.raises(ValueError, match=text):
        _C.MoE(*linears, **given)


def test_bad_types(device: _C.Device) -> None:
    router, gate_up, down = _C.Linear(device, 4, 64), _C.Linear(device, 256, 64), _C.Linear(device, 256, 32)
    with pytest.raises(TypeError, match="experts"):
        _C.MoE(router, gate_up, down, top_k=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="MoE: down"):
        _C.MoE(router, gate_up, None, experts=4, top_k=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="router must be f32"):
        _C.MoE(_C.Linear(device, 4, 64, "int8"), gate_up, down, experts=4, top_k=2)
    router.set_bias(_C.full(device, (4,)))
    with pytest.raises(ValueError, match="bias"):
        _C.MoE(router, gate_up, down, experts=4, top_k=2)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"x": (2, 63)}, ValueError, "x must be"),
        ({"norm": (63,)}, ValueError, "norm must be"),
        ({"residual": (2, 63)}, ValueError, "residual must be"),
        ({"out": (3, 64)}, ValueError, "out must be"),
        ({"positions": (2,)}, TypeError, "positions must be"),
        ({"kernel": "nonsense"}, ValueError, "nonsense"),
        ({"kernel": "moe_gemv@3"}, ValueError, "tile"),
        ({"kernel": "moe_gemm@32"}, ValueError, "tile"),
        ({"dtype": "i32"}, TypeError, "dtype"),
    ],
    ids=str,
)
def test_bad_calls(device: _C.Device, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    linears = [_C.Linear(device, *shape) for shape in ((4, 64), (256, 64), (256, 32))]
    raw = _C.MoE(*linears, experts=4, top_k=2)
    given = {name: _C.full(device, value) if isinstance(value, tuple) else value for name, value in arguments.items()}
    with pytest.raises(error, match=text):
        raw(given.pop("x", _C.full(device, (2, 64))), **given)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("kernel", ["rows", "moe_gemv@2", "moe_gemm"])
def test_parts_of_vectors(device: _C.Device, kernel: str, dtype: str) -> None:
    """x and norm that begin anywhere in memory, not where vectors of four are loaded from."""
    made = mixture(device, MoeCase(None, "f16", 3, 6, 2, 64, 32))
    rng = np.random.default_rng(6)
    x, norm = rng.standard_normal(1 + 3 * 64), rng.uniform(0.5, 1.5, 65).astype(np.float32)
    shifted = tensor(device, x, dtype)[1:].reshape(3, 64)
    straight = tensor(device, x[1:].reshape(3, 64), dtype)
    given, expected = _C.tensor(device, norm)[1:], _C.tensor(device, norm[1:])
    y = made.raw(shifted, norm=given, kernel=kernel)
    assert y.tobytes() == made.raw(straight, norm=expected, kernel=kernel).tobytes()
    assert np.isfinite(array(y)).all()
    for a, b in zip(made.raw.route(shifted, norm=given), made.raw.route(straight, norm=expected), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kernel", ["rows", "moe_gemv@2", "moe_gemm"])
def test_out_over_inputs(device: _C.Device, kernel: str) -> None:
    """x and the residual may be the very memory of out; nothing else may share it."""
    made = mixture(device, MoeCase(None, "f16", 3, 6, 2, 64, 32))
    values = np.random.default_rng(7).standard_normal((3, 64)).astype(np.float32)
    h = _C.tensor(device, values)
    expected = made.raw(h, residual=h, kernel=kernel).tobytes()
    assert made.raw(h, residual=h, out=h, kernel=kernel).tobytes() == expected
    memory = _C.full(device, (5, 64))
    x = _C.tensor(device, values)
    for name, other in (("x", memory[1:4]), ("residual", memory[1:4]), ("norm", memory[2])):
        given = {"x": x, name: other}
        with pytest.raises(ValueError, match=f"share memory with {name}"):
            made.raw(given.pop("x"), **given, out=memory[:3], kernel=kernel)


def test_nothing_is_made_while_capturing(device: _C.Device) -> None:
    linears = [_C.Linear(device, *shape) for shape in ((4, 64), (256, 64), (256, 32))]
    with pytest.raises(_C.MarlinError, match="capturing"), device.capture():
        _C.MoE(*linears, experts=4, top_k=2)


@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        ("rows@3", "cannot be tuned"),
        ("rows@1/16", "cannot be tuned"),
        ("moe_gemv@16", "a tile that there is not"),
        ("moe_gemm_coopmat@512", "a tile that there is not"),
        ("moe_gemm_coopmat@256,2", "a tile that there is not"),
        ("moe_gemv@2,1", "a tile that there is not"),
        ("columns", "no kernel called"),
    ],
)
def test_tunings_that_there_are_not(device: _C.Device, kernel: str, text: str) -> None:
    made = mixture(device, MoeCase(None, "f16", 2, 4, 2, 64, 32, "f16"))
    with pytest.raises(ValueError, match=text):
        made.raw(_C.tensor(device, np.zeros((2, 64), np.float16)), kernel=kernel)
