"""Weights in host memory, and models whose routed experts partly live there: choice, results, what the plan says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_moe_model
import test_trellis_moe
from conftest import device_row
from numpy.typing import NDArray
from test_cli import cli
from test_moe_model import QWEN
from test_trellis_moe import GLM, Codes
from tolerance import check

import marlin as ml
from marlin import _C
from marlin.errors import DeviceOutOfMemory
from marlin.models.moe import MoE
from marlin.placement import bus_rate
from marlin.tensors import to_numpy

IDS = [5, 99, 3, 64, 17, 17, 80]
F32: dict[str, Any] = {"dtype": "f32", "kv": "f32"}


@pytest.mark.parametrize("format", ["f16", "int4"])
def test_linear_in_host_memory(device: _C.Device, format: str) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((96, 256)).astype(np.float32)
    x = _C.tensor(device, rng.standard_normal((3, 256)).astype(np.float32))
    before = device.memory()["host_used"]
    layers = [_C.Linear(device, 96, 256, format, memory=memory) for memory in ("device", "host")]
    assert device.memory()["host_used"] - before >= layers[1].nbytes
    for layer in layers:
        layer.set_rows(w, "f32", 96)
    assert np.array_equal(to_numpy(layers[0](x)), to_numpy(layers[1](x)))
    with pytest.raises(ValueError, match="memory must be device or host, got 'disk'"):
        _C.Linear(device, 96, 256, memory="disk")


def test_trellis_in_host_memory(device: _C.Device) -> None:
    codes = Codes(256, 384, 3, "mul1", 0)
    before = device.memory()["host_used"]
    layer = _C.TrellisLinear(device, 256, 384, 3, memory="host")
    assert device.memory()["host_used"] - before >= layer.nbytes
    layer.set_trellis(codes.trellis)
    layer.set_scales(codes.suh, codes.svh)
    assert layer.read_trellis() == codes.trellis.tobytes()
    x = np.random.default_rng(1).standard_normal((2, 384)).astype(np.float32)
    check(to_numpy(layer(_C.tensor(device, x))), x @ codes.weight().T, "f32")
    with pytest.raises(ValueError, match="TrellisLinear: memory must be device or host"):
        _C.TrellisLinear(device, 256, 384, 3, memory="")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return test_moe_model.write(tmp_path_factory.mktemp("qwen") / "model", QWEN, test_moe_model.tensors_of(QWEN))


@pytest.fixture(autouse=True)
def quick_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marlin.placement.RATE_SHAPE", (256, 256))


def device_index() -> Any:
    return device_row()["index"]


def plan_of(folder: Path, **options: Any) -> ml.MemoryPlan:
    return ml.plan(folder, slots=1, context=64, device=device_index(), **options)


def one_expert(folder: Path) -> int:
    """Bytes of each expert of QWEN."""
    return plan_of(folder).weights["experts"] // 12


def hosts(model: ml.Model) -> list[int]:
    """Experts in host memory, a number for each layer that has some."""
    mixtures = [module for module in model.layers.modules() if isinstance(module, MoE)]
    return [sum(mixture.gate_up[stack].memory == "host" for stack in mixture.stacks) for mixture in mixtures]


@pytest.mark.parametrize("count", [1, 6, 7, 12])
def test_as_many_as_needed(folder: Path, count: int) -> None:
    """Without a profile those of the last layer go first."""
    whole = plan_of(folder, **F32)
    size = one_expert(folder)
    limit = whole.total - (count - 1) * size - 1
    plan = plan_of(folder, memory_limit=limit, **F32)
    assert plan.fits and plan.host is not None and plan.total == whole.total - count * size
    assert (plan.host.count, plan.host.of, plan.host.nbytes) == (count, 12, count * size)
    assert plan.host.bytes_a_token == pytest.approx(count * size * 2 / 6, abs=1)
    logits = test_moe_model.reference(QWEN, test_moe_model.tensors_of(QWEN)).forward(IDS)
    with ml.Model.load(folder, slots=1, context=64, memory_limit=limit, device=device_index(), **F32) as model:
        np.testing.assert_allclose(model.logits(IDS), logits, atol=2e-4, rtol=2e-4)
        assert hosts(model) == [max(0, count - 6), min(count, 6)]
        assert model.memory.weights == plan.weights
        assert ("in host memory" in repr(model.layers)) and model.expert_usage().counts.sum() == 2 * 2 * len(IDS)
        found = model.generate(IDS, temperature=0, max_tokens=4).tokens
        assert (
            found == test_moe_model.greedy(test_moe_model.reference(QWEN, test_moe_model.tensors_of(QWEN)), IDS, 4)[0]
        )


def usage_of(counts: NDArray[np.int64], layers: list[int]) -> ml.ExpertUsage:
    return ml.ExpertUsage("model", layers, counts)


def test_the_least_used_go_first(folder: Path, tmp_path: Path) -> None:
    counts = np.array([[9, 1, 5, 5, 5, 5], [30, 30, 0, 20, 10, 10]])
    usage = usage_of(counts, [0, 2])
    usage.save(tmp_path / "usage.json")
    whole, size = plan_of(folder), one_expert(folder)
    limit = whole.total - 3 * size
    for given in (usage, tmp_path / "usage.json", str(tmp_path / "usage.json")):
        plan = plan_of(folder, memory_limit=limit, expert_usage=given)
        assert plan.host is not None and plan.host.profiled and plan.host.count == 3
        assert plan.host.bytes_a_token == pytest.approx(2 * size * (1 / 30 + 0 + 10 / 100), abs=1)
    with ml.Model.load(
        folder, slots=1, context=64, memory_limit=limit, expert_usage=usage, device=device_index()
    ) as model:
        first, last = [module for module in model.layers.modules() if isinstance(module, MoE)]
        assert [i for i, stack in enumerate(first.stacks) if first.gate_up[stack].memory == "host"] == [1]
        assert [i for i, stack in enumerate(last.stacks) if last.gate_up[stack].memory == "host"] == [2, 5]


def test_trellises_and_shared_experts(tmp_path: Path) -> None:
    """Stacks of several bits, each split between the memories; shared experts stay on the device."""
    wanted = test_trellis_moe.write(
        tmp_path / "model", GLM, bits=lambda module: 3 if ".experts.1." in module or ".experts.2." in module else 4
    )
    logits = wanted.forward(IDS)
    count = wanted.config.experts.count
    whole = plan_of(tmp_path / "model", **F32)
    profile = np.tile(np.arange(count), (sum(wanted.config.experts.sparse), 1))
    layers = [i for i, sparse in enumerate(wanted.config.experts.sparse) if sparse]
    options = {"memory_limit": whole.total - whole.weights["experts"] // 2, "expert_usage": usage_of(profile, layers)}
    plan = plan_of(tmp_path / "model", **options, **F32)
    assert plan.host is not None and 0 < plan.host.count < plan.host.of
    with ml.Model.load(tmp_path / "model", slots=1, context=64, device=device_index(), **options, **F32) as model:
        assert np.abs(model.logits(IDS) - logits).max() < 2e-4 * np.abs(logits).max()
        mixtures = [module for module in model.layers.modules() if isinstance(module, MoE)]
        assert max(len(mixture.gate_up) for mixture in mixtures) > 2
        for mixture in mixtures:
            assert all(mixture.gate_up[stack].memory == "device" for stack in mixture.stacks[count:])


def test_what_the_plan_says(folder: Path) -> None:
    limit = plan_of(folder).total - 1
    plan = plan_of(folder, memory_limit=limit)
    assert plan.host is not None and plan.host.rate is not None and plan.host.rate > 0
    assert plan.host.seconds_a_token == pytest.approx(plan.host.bytes_a_token / plan.host.rate)
    text = str(plan.host)
    assert text.startswith("1 of 12 experts in host memory, ") and "if all are used alike: " in text
    assert text.endswith("GB/s, measured")
    assert text in repr(plan) and text in plan._repr_html_()
    assert plan.to_dict()["host"]["count"] == 1 and plan_of(folder).to_dict()["host"] is None
    options = ["plan", str(folder), "--slots", "1", "--context", "64", "--memory-limit", str(limit)]
    assert cli(*options).code == 0
    assert cli(*options, "--json").json()["host"]["of"] == 12
    assert "1 of 12 experts in host memory" in cli(*options).out


def test_context_and_slots_shrink_before(folder: Path) -> None:
    smallest = ml.plan(folder, context=64, slots=1, device=device_index())
    plan = ml.plan(folder, context=64, memory_limit=smallest.total, device=device_index())
    assert plan.host is None and plan.slots == 1 and plan.fits
    plan = ml.plan(folder, context=64, memory_limit=smallest.total - 1, device=device_index())
    assert plan.host is not None and plan.slots == 1 and plan.fits


@pytest.mark.parametrize("format", ["int4", "exl3:3"])
def test_random_weights(format: str) -> None:
    options = {"format": format, "slots": 1, "context": 64, "device": device_index()}
    with ml.Model.random(QWEN, **options) as model:
        whole = model.memory
    limit = whole.total - whole.weights["experts"] // 3
    with ml.Model.random(QWEN, memory_limit=limit, **options) as model:
        assert model.memory.host is not None and model.memory.host.count == 4
        assert np.isfinite(model.logits(IDS)).all()


def test_too_small_all_the_same(folder: Path) -> None:
    whole = plan_of(folder)
    limit = whole.total - whole.weights["experts"] - 1
    plan = plan_of(folder, memory_limit=limit)
    assert not plan.fits and plan.host is None and plan.weights == whole.weights
    with pytest.raises(DeviceOutOfMemory, match="does not fit"):
        ml.Model.load(folder, slots=1, context=64, memory_limit=limit, device=device_index())


def test_bad_profiles(folder: Path, tmp_path: Path) -> None:
    limit = plan_of(folder).total - 1
    for usage in (usage_of(np.ones((2, 5), np.int64), [0, 2]), usage_of(np.ones((2, 6), np.int64), [0, 1])):
        with pytest.raises(
            ValueError, match=r"expert_usage is of . experts in layers .*the model has 6 in layers .0, 2"
        ):
            plan_of(folder, memory_limit=limit, expert_usage=usage)
    good = {"model": "m", "layers": [0], "counts": [[1, 2]]}
    for bad in ("", "[]", "{}", *(json.dumps(good | odd) for odd in (
        {"counts": [1]}, {"counts": [[-1]]}, {"counts": [[1], [2]]}, {"counts": [["x"]]}, {"layers": 3},
    ))):  # fmt: skip
        (tmp_path / "usage.json").write_text(bad)
        with pytest.raises(ValueError, match=r"usage\.json: is no expert usage"):
            ml.ExpertUsage.load(tmp_path / "usage.json")
    with pytest.raises(FileNotFoundError):
        plan_of(folder, expert_usage=tmp_path / "none.json")


def test_profile_of_a_model(folder: Path, tmp_path: Path) -> None:
    with ml.Model.load(folder, slots=1, device=device_index()) as model:
        model.logits(IDS)
        usage = model.expert_usage()
    usage.save(tmp_path / "usage.json")
    again = ml.ExpertUsage.load(tmp_path / "usage.json")
    assert (again.model, again.layers) == (usage.model, usage.layers) and np.array_equal(again.counts, usage.counts)


def test_rate(device: _C.Device) -> None:
    assert 1e6 < bus_rate(ml.Device(device_index())) < 1e13
