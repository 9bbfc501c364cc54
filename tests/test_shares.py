"""Results that stay in shares (shaders/include/shares.glsl): whoever takes them adds up what the others would have."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from arrays import array, ints, tensor
from numpy.typing import NDArray
from ref.moe import moe, route
from test_mla import Case as Latent
from test_mla import Problem
from test_trellis_moe import Case, Codes, mixture, stack
from tolerance import check

from marlin import _C

Array = NDArray[Any]
EPS = 1e-5


def normed(x: Array, weight: Array) -> Array:
    wide = x.astype(np.float64)
    return wide / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + EPS) * weight


def operands(k: int, seed: int) -> tuple[Array, Array]:
    """A row and a norm."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1, k)).astype(np.float32), rng.uniform(0.5, 1.5, k).astype(np.float32)


def linear(
    device: _C.Device, n: int, k: int, bits: float = 4, codebook: str = "mul1"
) -> tuple[_C.TrellisLinear, Array]:
    layer, weights = stack(device, [Codes(n, k, bits, codebook, n + k)])
    return layer, weights[0]


@pytest.mark.parametrize("kernel", ["trellis_gemv@1", "trellis_gemv@2", "trellis_gemv@5", None])
@pytest.mark.parametrize("splits", [2, 3, 7])
@pytest.mark.parametrize("codebook", ["mul1", "3inst"])
def test_experts_to_a_product(device: _C.Device, codebook: str, splits: int, kernel: str | None) -> None:
    case = Case(codebook, (4, 3, 2), 1, hidden=616, inner=904, shared=1, top_k=3, experts=6)
    made = mixture(device, case)
    x, norm = operands(case.hidden, splits)
    base, after = operands(case.hidden, 100 + splits)
    layer, weight = linear(device, 392, case.hidden, 3, codebook)
    shares = made.raw(
        tensor(device, x), norm=tensor(device, norm), eps=EPS, residual=tensor(device, base), dtype="f32",
        kernel=f"trellis_moe_gemv@0,{splits}", shares=True,
    )  # fmt: skip
    assert isinstance(shares, _C.Shares)
    assert shares.shape == (1, case.hidden) and shares.count > case.top_k and "and a base" in repr(shares)
    total, y = _C.full(device, (1, case.hidden), 0x7FFF7FFF), _C.full(device, (1, 392), 0x7FFF7FFF)
    for out in (y, None):  # shares can be taken several times
        found = layer(
            shares, norm=tensor(device, after), eps=EPS, dtype="f32", total=total, kernel=kernel, out=out
        )  # fmt: skip
    sum_expected = made.expected(normed(x, norm), residual=base)
    check(array(total), sum_expected, products=3, what="total")
    check(array(y), normed(sum_expected, after) @ weight.T, products=4, what="y")
    assert np.array_equal(array(found), array(y))


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_product_to_latent_attention(device: _C.Device, interleaved: bool, staged: bool) -> None:
    case = Latent(5, 24, 16, 40, 72, (90,), dtype="f32", interleaved=interleaved)
    problem = Problem(device, case)
    layer, weight = linear(device, problem.q.shape[1], 640)
    x, norm = operands(640, 3)
    problem.q = (normed(x, norm) @ weight.T).astype(np.float32)
    shares = layer(tensor(device, x), norm=tensor(device, norm), eps=EPS, shares=True, kernel="trellis_gemv@5")
    assert isinstance(shares, _C.Shares) and shares.count == 5
    y = _C.mla(
        shares, tensor(device, problem.kv), tensor(device, problem.norm), problem.kv_b, problem.cache, 1,
        ints(device, problem.positions), ints(device, problem.slots), tensor(device, problem.freq), heads=case.heads,
        bound=problem.bound, eps=1e-5, rope_scale=1.1, scale=0.2, interleaved=interleaved, dtype="f32", staged=staged,
    )  # fmt: skip
    problem.check(array(y))


@pytest.mark.parametrize("splits", [2, 3, 7])
@pytest.mark.parametrize("codebook", ["mul1", "3inst"])
def test_a_gated_product_to_another(device: _C.Device, codebook: str, splits: int) -> None:
    """What down of an MLP leaves, with the residual as base."""
    down, downs = linear(device, 392, 904, 2, codebook)
    (up, _), (gate, norm), (residual, _) = operands(904, 1), operands(904, 2), operands(392, 3)
    options: dict[str, Any] = {
        "gate": tensor(device, gate), "activation": "swiglu", "kernel": f"trellis_gemv@{splits}"
    }  # fmt: skip
    left = down(tensor(device, up), residual=tensor(device, residual), shares=True, **options)
    assert isinstance(left, _C.Shares) and 1 < left.count <= splits and "and a base" in repr(left)
    wide = gate.astype(np.float64)
    expected = (wide / (1 + np.exp(-wide)) * up) @ downs.T + residual
    layer, weight = linear(device, 256, 392, 3, codebook)
    total = _C.full(device, (1, 392), 0x7FFF7FFF)
    y = layer(left, norm=tensor(device, norm[:392]), eps=EPS, dtype="f32", total=total)
    check(array(total), expected, products=2, what="total")
    check(array(y), normed(expected, norm[:392]) @ weight.T, products=3, what="y")
    for base in (_C.full(device, (393,), 0)[1:].reshape((1, 392)), _C.full(device, (392,), 0)):
        found = down(tensor(device, up), residual=base, shares=True, **options)
        assert isinstance(found, _C.Tensor if base.ndim == 2 else _C.Shares)  # one at 4 bytes cannot be a base


def test_idle_rows_and_int8(device: _C.Device) -> None:
    """An idle row leaves nothing to add up, and nobody fails; x in 8 bits is near."""
    case = Case("mul1", (4, 4, 4), 1, hidden=640, inner=512)
    made = mixture(device, case)
    x, norm = operands(case.hidden, 5)
    layer, weight = linear(device, 256, case.hidden)
    options: dict[str, Any] = {"residual": tensor(device, x), "kernel": "trellis_moe_gemv@0,2", "shares": True}
    idle = made.raw(tensor(device, x), positions=ints(device, [-1]), **options)
    assert layer(idle, dtype="f32").shape == (1, 256)
    shares = made.raw(tensor(device, x), norm=tensor(device, norm), eps=EPS, activations="int8", **options)
    y = layer(shares, norm=tensor(device, norm), eps=EPS, dtype="f32", activations="int8")
    ids, weights = route(normed(x, norm) @ made.router.T.astype(np.float64), case.top_k)
    wide = moe(normed(x, norm), *made.weights, ids, weights, residual=x)
    check(array(y), normed(wide, norm) @ weight.T, "i8", products=4)


def test_where_nobody_waits_there_are_none(device: _C.Device) -> None:
    layer, _ = linear(device, 256, 128)
    x, norm = (tensor(device, a) for a in operands(128, 1))
    assert isinstance(layer(x, norm=norm, shares=True), _C.Tensor)  # one block of k, one workgroup
    wide, _ = linear(device, 256, 640)
    rows = _C.full(device, (2, 640), 0, "f16")
    assert isinstance(wide(rows, shares=True, kernel="trellis_gemv@5"), _C.Tensor)  # two rows
    one = _C.full(device, (1, 640), 0, "f16")
    wide.set_bias(_C.full(device, (256,), 0))
    assert isinstance(wide(one, shares=True, kernel="trellis_gemv@5"), _C.Tensor)
    wide.set_bias(None)
    assert isinstance(wide(one, shares=True, kernel="trellis_gemv@5"), _C.Shares)
    case = Case("mul1", (4, 4, 4), 3, hidden=640, inner=512)
    made, rows = mixture(device, case), _C.full(device, (3, 640), 0)
    assert isinstance(made.raw(rows, residual=rows, shares=True, kernel="trellis_moe_gemv@0,2"), _C.Tensor)


def test_calls_in_parts_and_residuals_that_cannot_be_a_base(device: _C.Device) -> None:
    """2,048 pairs are a part: the last one has a single row here, but the call has more."""
    case = Case("mul1", (2, 2, 2), 1, hidden=264, inner=264, top_k=3, shared=1)
    made = mixture(device, case)
    x = np.random.default_rng(1).standard_normal((513, case.hidden)).astype(np.float32)
    options: dict[str, Any] = {"kernel": "trellis_moe_gemv@0,2", "shares": True}
    y = made.raw(tensor(device, x), residual=tensor(device, x), **options)
    assert isinstance(y, _C.Tensor)
    check(array(y), made.expected(x.astype(np.float64), residual=x), products=3)
    flat = tensor(device, x[0])
    longer = _C.full(device, (265,), 0)
    for residual in (longer[1:].reshape((1, 264)), None):  # at 4 bytes; none at all
        found = made.raw(flat.reshape((1, 264)), residual=residual, **options)
        assert isinstance(found, _C.Tensor)
    odd = mixture(device, Case("mul1", (2, 2, 2), 1, hidden=268, inner=264))
    one = _C.full(device, (1, 268), 0)
    assert isinstance(odd.raw(one, residual=one, **options), _C.Tensor)


def test_replay(device: _C.Device) -> None:
    case = Case("mul1", (4, 4, 4), 1, hidden=640, inner=512)
    made, (layer, weight) = mixture(device, case), linear(device, 256, 640)
    x, out = tensor(device, np.zeros((1, 640))), _C.full(device, (1, 256))
    with device.capture() as program:
        shares = made.raw(x, residual=x, dtype="f32", kernel="trellis_moe_gemv@0,2", shares=True)
        layer(shares, out=out)
        del shares
    for seed in range(3):
        values, _ = operands(640, seed)
        x.write(values)
        program.replay(wait=True)
        check(array(out), made.expected(values.astype(np.float64), residual=values) @ weight.T, products=4)


def test_errors(device: _C.Device) -> None:
    case = Case("mul1", (4, 4, 4), 1, hidden=640, inner=512)
    made = mixture(device, case)
    layer, _ = linear(device, 256, 640)
    other, _ = linear(device, 256, 512)
    one = _C.full(device, (1, 640), 0)
    norm, total = _C.full(device, (640,), 0), _C.full(device, (1, 640), 0)
    based = made.raw(one, residual=one, shares=True, kernel="trellis_moe_gemv@0,2")
    plain = layer(one, norm=norm, shares=True, kernel="trellis_gemv@5")
    assert isinstance(based, _C.Shares) and isinstance(plain, _C.Shares)
    for match, call in {
        "x must be": lambda: other(based),
        "total is for": lambda: layer(one, norm=norm, total=total),
        "total must be": lambda: layer(based, total=_C.full(device, (1, 512), 0)),
        "total must not share memory": lambda: layer(based, total=one),
        "total must not share": lambda: layer(based, norm=norm, total=norm.reshape((1, 640))),
        "out must not share": lambda: layer(based, out=one),
        "neither residual nor gate": lambda: layer(based, residual=_C.full(device, (1, 256), 0)),
        "takes no x in shares": lambda: layer(based, kernel="trellis_gemm"),
        "with a base are for TrellisLinear": lambda: mla_of(device, based),
        "without a base are for mla": lambda: layer(plain),
        "q must be": lambda: mla_of(device, plain),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="Tensor"):
        _C.rms_norm(based, norm, 1e-6)  # type: ignore[arg-type]
    for bad in (lambda: pickle.dumps(based), lambda: copy.copy(based), lambda: type(based)()):
        with pytest.raises(TypeError):
            bad()
    assert based.device is device


def mla_of(device: _C.Device, q: _C.Shares) -> _C.Tensor:
    problem = Problem(device, Latent(5, 24, 16, 40, 72, (9,)))
    return _C.mla(
        q, tensor(device, problem.kv), tensor(device, problem.norm), problem.kv_b, problem.cache, 1,
        ints(device, [9]), ints(device, [1]), tensor(device, problem.freq), heads=5, bound=12,
    )  # fmt: skip
