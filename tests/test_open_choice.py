"""Choices that the router leaves open: gate and up choose the experts of a row by themselves, by the same rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import MoeCase
from ref.moe import moe
from test_matmul import array
from test_moe import Mixture, ints, mixture
from test_trellis_moe import Case
from test_trellis_moe import mixture as trellis_mixture
from tolerance import check

from marlin import _C

TELL = 2  # MRL_ROUTER_TELL

RULES: list[dict[str, Any]] = [
    {},
    {"normalise": False, "scale": 2.5},
    {"scoring": "sigmoid", "scale": 1.8},
    {"scoring": "sigmoid", "bias": True, "normalise": False},
]


def router_work(device: _C.Device, call: Any) -> int:
    """What the router was specialised for in a call: the sixth constant."""
    device.profile_start()
    call()
    name = next(str(entry["name"]) for entry in device.profile_stop() if str(entry["name"]).startswith("moe_router"))
    return int(name.partition("[")[2].split(",")[5])


def stays_open(device: _C.Device, experts: int) -> bool:
    info = device.info()
    size = info["subgroup_size"]
    return info["subgroup_min"] == info["subgroup_max"] and size <= 64 and experts <= 16 * size


def one_row(device: _C.Device, case: MoeCase, options: dict[str, Any], gate: bool = False) -> Mixture:
    options = dict(options)
    if "bias" in options:
        options["bias"] = np.random.default_rng(4).standard_normal(case.experts).astype(np.float32)
    return mixture(device, case, gate=gate, **options)


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize(
    ("experts", "top_k", "shared", "gate"),
    [(1, 1, 0, False), (5, 5, 1, False), (8, 3, 2, True), (9, 2, 0, False), (64, 4, 1, False), (128, 8, 1, True)],
)
def test_rules(device: _C.Device, options: dict[str, Any], experts: int, top_k: int, shared: int, gate: bool) -> None:
    made = one_row(device, MoeCase("rows", "f16", 1, experts, top_k, 64, 16, shared=shared), options, gate)
    x = np.random.default_rng(6).standard_normal((1, 64)).astype(np.float32)
    ids, weights = made.route(x.astype(np.float64))
    given = _C.tensor(device, x)
    y = array(made.raw(given, kernel="rows"))
    check(y, moe(x, made.gate, made.up, made.down, ids, weights), "f32")
    assert np.array_equal(array(made.raw(given, kernel="rows")), y)
    used = np.bincount(ids[ids < experts].ravel(), minlength=experts)
    assert (ints(made.raw.usage) == 2 * used).all()
    made.raw.reset_usage()
    assert (ints(made.raw.usage) == 0).all()
    assert made.raw.open_choice == (stays_open(device, experts) and device.kind != "software")
    assert np.array_equal(array(made.raw(given, kernel="rows")), y)  # what was told is not in what was reset
    assert (router_work(device, lambda: made.raw(given, kernel="rows")) == TELL) == stays_open(device, experts)


@pytest.mark.parametrize("kernel", ["rows", "trellis_moe_gemv@0"])
def test_idle_and_nan_rows(device: _C.Device, kernel: str) -> None:
    if kernel == "rows":
        raw: _C.MoE = one_row(device, MoeCase("rows", "f16", 1, 20, 3, 64, 16, shared=1), {}).raw
    else:
        raw = trellis_mixture(device, Case("mul1", (4, 4, 4), 1, experts=20, top_k=3, shared=1)).raw
    x = _C.tensor(device, np.random.default_rng(1).standard_normal((1, raw.hidden)).astype(np.float32))
    out = _C.full(device, x.shape)
    raw(x, positions=_C.tensor(device, np.array([-1], np.int32)), kernel=kernel, out=out)
    assert not ints(raw.usage).any()
    assert (router_work(device, lambda: raw(x, kernel=kernel)) == TELL) == stays_open(device, 20)
    raw.reset_usage()
    raw(x, positions=_C.tensor(device, np.array([3], np.int32)), kernel=kernel, out=out)
    assert np.isfinite(array(out)).all()
    assert ints(raw.usage).sum() == 3
    nan = _C.tensor(device, np.full((1, raw.hidden), np.nan, np.float32))
    raw.reset_usage()
    assert np.isnan(array(raw(nan, kernel=kernel))).all()
    assert ints(raw.usage).tolist() == [1, 1, 1] + 17 * [0]  # valid experts, the first ones


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_equal_scores_go_to_the_first_experts(device: _C.Device, scoring: str) -> None:
    made = mixture(device, MoeCase("rows", "f16", 1, 20, 5, 32, 16, one_expert=True), scoring=scoring)
    made.raw(_C.full(device, (1, 32)), kernel="rows")
    assert ints(made.raw.usage).tolist() == 5 * [1] + 15 * [0]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_one_logit_that_is_nan(device: _C.Device, scoring: str) -> None:
    """Not the chosen ones' scores alone count: NaN anywhere makes the row NaN."""
    router = np.zeros((8, 64), np.float32)
    router[3] = np.inf
    first = _C.Linear(device, 8, 64, "f32")
    first.set_plane("quant", router.view(np.uint8), "u8", 8)
    linears = _C.Linear(device, 8 * 64, 64), _C.Linear(device, 8 * 64, 32)
    raw = _C.MoE(first, *linears, experts=8, top_k=2, scoring=scoring)
    x = np.zeros((1, 64), np.float32)
    x[0, :2] = 1, -1
    assert np.isnan(array(raw(_C.tensor(device, x), kernel="rows"))).all()
    assert ints(raw.usage).tolist() == [1, 1] + 6 * [0]


def test_where_it_is_not_left_open(device: _C.Device) -> None:
    """Groups, several rows, and experts beyond what a subgroup's lanes hold are chosen by the router."""
    for case, options in (
        (MoeCase("rows", "f16", 2, 8, 2, 64, 16), {}),
        (MoeCase("rows", "f16", 1, 8, 2, 64, 16), {"groups": 2}),
        (MoeCase("rows", "f16", 1, 1023, 2, 32, 8), {}),
    ):
        made = mixture(device, case, **options)
        x = np.random.default_rng(8).standard_normal((case.rows, case.hidden)).astype(np.float32)
        given = _C.tensor(device, x)
        y = array(made.raw(given, kernel="rows"))
        check(y, moe(x, made.gate, made.up, made.down, *made.route(x.astype(np.float64))), "f32")
        if case.rows == 1 and not options and stays_open(device, case.experts):
            continue
        assert router_work(device, lambda raw=made.raw, given=given: raw(given, kernel="rows")) != TELL
        assert case.rows > 1 or not made.raw.open_choice
