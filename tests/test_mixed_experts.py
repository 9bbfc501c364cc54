"""Experts of one layer in several formats: trellises of different bits, quantized and plain matrices, against NumPy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_moe_model
import test_trellis_moe
from conftest import device_row
from ref.moe import moe, route
from test_moe import ints, kernels_of
from test_trellis_moe import GLM, NAN_WORD, QWEN, Array, Codes, Mixture, stack
from tolerance import check

import marlin as ml
from marlin import _C, formats
from marlin.errors import UnsupportedModelError
from marlin.loaders import safetensors
from marlin.loaders.compressed_tensors import save_quantized
from marlin.tensors import to_numpy

Kind = float | str  # bits of trellises, else a weight format
OPTIONS: dict[str, dict[str, Any]] = {"int4": {"group": 32}, "int8": {"group": 32}}


@dataclass
class Case:
    kinds: tuple[Kind, ...]  # of each expert, shared ones last
    rows: int
    top_k: int = 2
    shared: int = 0
    hidden: int = 200
    inner: int = 150
    dtype: str = "f16"
    codebook: str = "mul1"
    norm: bool = False
    residual: bool = False
    kernel: str | None = None


def plain_stack(device: _C.Device, kind: str, matrices: Array) -> tuple[_C.Linear, Array]:
    """A Linear of matrices (experts, n, k) one behind the other, and the weights that its planes stand for."""
    rows = np.ascontiguousarray(matrices.reshape(-1, matrices.shape[2]), np.float32)
    options = OPTIONS.get(kind, {})
    packed = formats.pack(rows, kind, group=options.get("group", 0), zero=False, scale="f16")
    linear = _C.Linear(device, *rows.shape, kind, **options, **({"scale": "f16"} if options else {}))
    linear.set_rows(rows, "f32", len(rows))
    return linear, formats.unpack(packed).reshape(matrices.shape)


def members(kinds: tuple[Kind, ...]) -> dict[Kind, list[int]]:
    """The experts of each kind; the kinds in reverse, so that no stack begins with what the layer begins with."""
    return {kind: [i for i, own in enumerate(kinds) if own == kind] for kind in dict.fromkeys(reversed(kinds))}


def mixture(device: _C.Device, case: Case, router: Array | None = None) -> Mixture:
    rng = np.random.default_rng(6)
    count, hidden, inner = len(case.kinds) - case.shared, case.hidden, case.inner
    if router is None:
        router = (rng.standard_normal((count, hidden)) * 2 / np.sqrt(hidden)).astype(np.float32)
    first = _C.Linear(device, *router.shape, "f32")
    first.set_rows(router, "f32", len(router))
    sizes = [(inner, hidden), (inner, hidden), (hidden, inner)]
    decoded = [np.empty((len(case.kinds), *size)) for size in sizes]
    gate_up: list[Any] = []
    down: list[Any] = []
    for kind, own in members(case.kinds).items():
        if isinstance(kind, str):
            both = rng.standard_normal((len(own), 2 * inner, hidden)) / np.sqrt(hidden)
            linear, both = plain_stack(device, kind, both)
            gate_up.append(linear)
            decoded[0][own], decoded[1][own] = both[:, 0::2], both[:, 1::2]
            linear, decoded[2][own] = plain_stack(device, kind, rng.standard_normal((len(own), hidden, inner)) / 10)
            down.append(linear)
            continue
        made = [
            stack(device, [Codes(*size, kind, case.codebook, 100 * i + expert) for expert in own])
            for i, size in enumerate(sizes)
        ]
        for place, (_, weights) in enumerate(made):
            decoded[place][own] = weights
        gate_up.append((made[0][0], made[1][0]))
        down.append(made[2][0])
    order = list(members(case.kinds))
    raw = _C.MoE(
        first, gate_up, down, stacks=[order.index(kind) for kind in case.kinds],
        experts=count, top_k=case.top_k, shared=case.shared,
    )  # fmt: skip
    return Mixture(raw, router, decoded)


TRELLISES = (4.0, 2.0, 3.0, 4.0, 2.0, 8.0)
PLAIN = ("int4", "int8", "f16", "int4", "int8", "f16")
CASES = [
    Case(TRELLISES, 1, norm=True, residual=True),
    Case((*TRELLISES, 2.0), 3, shared=1, norm=True, residual=True),
    Case(TRELLISES, 5, top_k=3, kernel="trellis_moe_gemv@2", dtype="f32"),
    Case((2.0, 3.0, 4.0, 3.0), 9, codebook="3inst", hidden=400, inner=300, kernel="trellis_moe_gemv@4,2"),
    Case((2.5, 4.0, 1.5, 3.5), 1, hidden=400, inner=300, kernel="trellis_moe_gemv@0,3", norm=True),
    Case((2.0, 3.0, 2.0, 3.0), 600, hidden=128, inner=128),  # more pairs than one walk takes
    Case(PLAIN, 1, norm=True, residual=True),
    Case(("fp8_e4m3", "f32", "bf16", "f32", "int8"), 4, shared=1, norm=True),
    Case(PLAIN, 9, kernel="moe_gemv@4"),
    Case(PLAIN, 70, kernel="moe_gemm", residual=True),
    Case(PLAIN, 70, kernel="moe_gemm_coopmat", hidden=256, inner=128),
    Case((3.0, "int4", 2.0, "f16", "f16", 3.0), 2, norm=True),
    Case((3.0, "int4", 2.0, "f16", "f16", 3.0), 7, kernel="trellis_moe_gemv@4", residual=True, dtype="f32"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mixture(device: _C.Device, case: Case) -> None:
    if case.kernel and "coopmat" in case.kernel and "coopmat" not in device.features:
        pytest.skip("needs coopmat")
    made = mixture(device, case)
    x = made.check(device, case)
    ids, _ = route(x @ made.router.T.astype(np.float64), case.top_k)
    assert (ints(made.raw.usage) == 2 * np.bincount(ids.ravel(), minlength=made.raw.experts)).all()  # of two calls


@pytest.mark.parametrize("kinds", [(2.0, 3.0, 2.0, 4.0), ("int4", "int8", "int4", "f16"), (2.0, "int8", 2.0, "f16")])
@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("only", [0, 1])
def test_all_rows_on_one_expert(device: _C.Device, kinds: tuple[Kind, ...], tiles: bool, only: int) -> None:
    """So that most stacks have nothing to do."""
    router = np.zeros((4, 128), np.float32)
    router[only] = 1
    made = mixture(device, Case(kinds, 6, top_k=1, hidden=128, inner=128), router)
    x = np.random.default_rng(2).uniform(0.1, 1, (6, 128)).astype(np.float32)
    kernel = ("moe_gemv@2" if "int4" in kinds else "trellis_moe_gemv@2") if tiles else None
    check(to_numpy(made.raw(_C.tensor(device, x), kernel=kernel)), made.expected(x.astype(np.float64)), "f32")
    assert ints(made.raw.usage).tolist() == [6 * (i == only) for i in range(4)]


@pytest.mark.parametrize("kernel", [None, "trellis_moe_gemv@2"])
def test_idle_rows(device: _C.Device, kernel: str | None) -> None:
    made = mixture(device, Case((2.0, 3.0, 2.0, "int8"), 3))
    x = np.random.default_rng(3).standard_normal((3, 200)).astype(np.float32)
    out = _C.full(device, (3, 200), NAN_WORD, "f32")
    made.raw(_C.tensor(device, x), positions=_C.tensor(device, np.array([3, -1, 0], np.int32)), out=out, kernel=kernel)
    y = to_numpy(out)
    assert np.isnan(y[1]).all()
    check(y[[0, 2]], made.expected(x[[0, 2]].astype(np.float64)), "f32")


def test_a_dispatch_a_product_and_stack(device: _C.Device) -> None:
    """However many experts there are; and none waits for another stack's."""
    made = mixture(device, Case((2.0, 3.0, "int8", 2.0, "int8", 3.0), 1))
    x = _C.full(device, (1, 200), 0, "f16")
    names = kernels_of(device, lambda: made.raw(x))
    trellis = "trellis_moe_gemv_dot" if "trellis_moe_gemv_dot" in names else "trellis_moe_gemv"
    assert names[0] == "moe_router" and names[-1] == "moe_combine"
    assert names.count(trellis) == 6 and names.count("moe_gemv") == 2 and len(names) == 10
    one = mixture(device, Case((2.0, 2.0, 2.0, 2.0, 2.0, 2.0), 1))
    barriers = []
    for raw in (made.raw, one.raw):
        out = _C.full(device, (1, 200), 0, "f32")
        raw(x, out=out, kernel="trellis_moe_gemv@0,2")
        with device.capture() as program:
            raw(x, out=out, kernel="trellis_moe_gemv@0,2")
        barriers.append(program.stats["barriers"])
    assert barriers[0] == barriers[1] + 1  # one stack sums up the pairs of a row in its last product


@pytest.mark.parametrize("kernel", ["trellis_moe_gemv@0,2", "trellis_moe_gemv@2,2"])
def test_captured(device: _C.Device, kernel: str) -> None:
    made = mixture(device, Case((2.0, 3.0, 2.0, 4.0), 3, hidden=400, inner=300))
    x, y = _C.full(device, (3, 400)), _C.full(device, (3, 400))
    made.raw(x, out=y)
    with device.capture() as program:
        made.raw(x, out=y, kernel=kernel)
    rng = np.random.default_rng(4)
    for _ in range(3):
        rows = rng.standard_normal((3, 400)).astype(np.float32)
        x.write(rows)
        program.replay()
        check(to_numpy(y), made.expected(rows.astype(np.float64)), "f32")


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"stacks": None}, TypeError, "must be lists where stacks is given"),
        ({"stacks": [0, 1, 0]}, ValueError, "each of the 4 experts, got 3"),
        ({"stacks": [0, 1, 0, 2]}, ValueError, "expert 3 must lie in stack 0 to 1, got 2"),
        ({"stacks": [0, 0, 0, 0]}, ValueError, "no expert lies in stack 1"),
        ({"stacks": [0, 0, 0, 1]}, ValueError, "gate must be 3 experts of .128, 128., it is 2"),
        ({"stacks": [0, 1, 0, -1]}, ValueError, "MoE: stacks"),
        ({"stacks": 7}, TypeError, "len"),
        ({"down": 1}, ValueError, "lists of 1 to 32 stacks, got 2 and 1"),
        ({"down": 0}, ValueError, "got 2 and 0"),
        ({"plain": (2, 256)}, ValueError, "gate_up must have 512 rows of 128 for 2 experts of 128, it is .512, 256."),
        ({"plain": (3, 128)}, ValueError, "gate_up must have 512 rows of 128"),
    ],
    ids=str,
)
def test_bad_stacks(device: _C.Device, changed: dict[str, Any], error: type[Exception], text: str) -> None:
    layers = [_C.TrellisLinear(device, 128, 128, 4, "mul1", 2) for _ in range(3)]
    count, hidden = changed.get("plain", (2, 128))
    gate_up = [(layers[0], layers[1]), _C.Linear(device, count * 256, hidden)]
    down = [layers[2], _C.Linear(device, 256, 128)][: changed.get("down", 2)]
    router = _C.Linear(device, 4, 128)
    with pytest.raises(error, match=text):
        _C.MoE(router, gate_up, down, experts=4, top_k=2, stacks=changed.get("stacks", [0, 1, 0, 1]))


def test_from_arrays() -> None:
    rng = np.random.default_rng(3)
    router = rng.standard_normal((4, 64)).astype(np.float32)
    gate, up, down = (rng.standard_normal((5, *size)) / 8 for size in ((32, 64), (32, 64), (64, 32)))
    kinds = ["int8:32", "f32", "int8:32", "bf16", "f32"]
    mixed = ml.MoE.from_arrays(router, gate, up, down, top_k=2, shared=1, format=kinds, device=device_row()["index"])
    assert "several formats" in repr(mixed.raw)
    x = rng.standard_normal((6, 64)).astype(np.float32)
    ids, weights = mixed.route(x)
    rounded = [w.copy() for w in (gate, up, down)]
    for w in rounded:
        for i, kind in enumerate(kinds):
            form = ml.WeightFormat.parse(kind)
            packed = formats.pack(w[i].astype(np.float32), form.name, group=form.group, zero=False, scale="f16")
            w[i] = formats.unpack(packed)
    check(np.asarray(mixed(x)), moe(x, *rounded, ids, weights), "f32")
    with pytest.raises(ValueError, match="5 experts, but 4 formats"):
        ml.MoE.from_arrays(router, gate, up, down, top_k=2, format=kinds[:4], device=device_row()["index"])


# ---- checkpoints ----


def bits_by_expert(module: str) -> float:
    """Three stacks of routed experts; the shared expert has the bits of one of them."""
    number = module.partition(".experts.")[2].partition(".")[0]
    return 3 if "shared_experts" in module else (2, 3, 2.5)[int(number) % 3] if number else 4


@pytest.mark.parametrize("config", [GLM, QWEN], ids=["glm", "qwen3_moe"])
def test_checkpoint_of_trellises(tmp_path: Path, config: dict[str, Any]) -> None:
    wanted = test_trellis_moe.write(tmp_path / "model", config, bits=bits_by_expert)
    ids = [5, 99, 3, 64, 17, 17, 80]
    logits = wanted.forward(ids)
    plan = ml.plan(tmp_path / "model", slots=2)
    with ml.Model.load(tmp_path / "model", dtype="f32", kv="f32", slots=2, device=device_row()["index"]) as model:
        assert np.abs(model.logits(ids) - logits).max() < 2e-4 * np.abs(logits).max()
        found = model.generate([ids, ids[:4]], temperature=0, max_tokens=4)
        tokens = [test_trellis_moe.greedy(wanted, given, 4)[0] for given in (ids, ids[:4])]
        assert [item.tokens for item in found] == tokens
        assert model.memory.weights == plan.weights
        names = {module.name for module in model.layers.modules()}
        assert {f"model.layers.2.mlp.gate_up.{i}" for i in range(3)} <= names
        assert not any("shared_experts" in name for name in names)
        usage = model.expert_usage()
        experts = wanted.config.experts
        assert usage.counts.shape[1] == experts.count
        assert (usage.counts.sum(axis=1) >= experts.top_k * len(ids)).all()


def test_trellises_beside_plain_experts(tmp_path: Path) -> None:
    """As checkpoints are whose converter left some experts out."""
    wanted = test_trellis_moe.write(
        tmp_path / "model",
        QWEN,
        plain=(*test_trellis_moe.PLAIN, *(f"experts.4.{m}_proj" for m in ("gate", "up", "down"))),
    )
    logits = wanted.forward([1, 2, 3])
    with ml.Model.load(tmp_path / "model", dtype="f32", kv="f32", slots=1, device=device_row()["index"]) as model:
        assert np.abs(model.logits([1, 2, 3]) - logits).max() < 1e-3 * np.abs(logits).max()


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        (("experts.4.down_proj",), r"experts\.4\.down_proj: must be a trellis if gate and up are"),
        (("experts.4.up_proj",), r"one weight format, got .*gate_proj \(exl3 .*up_proj \(f16\)"),
    ],
)
def test_half_a_trellis_is_refused(tmp_path: Path, odd: tuple[str, ...], text: str) -> None:
    test_trellis_moe.write(tmp_path / "model", QWEN, plain=(*test_trellis_moe.PLAIN, *odd))
    with pytest.raises(UnsupportedModelError, match=text):
        ml.plan(tmp_path / "model")


def test_half_a_dense_trellis(tmp_path: Path) -> None:
    """In a dense layer gate and up may be plain; down may not where they are trellises, unless all is decoded."""
    gate_up = ("layers.0.mlp.gate_proj", "layers.0.mlp.up_proj")
    options: dict[str, Any] = {"dtype": "f32", "kv": "f32", "slots": 1, "device": device_row()["index"]}
    wanted = test_trellis_moe.write(tmp_path / "plain", GLM, plain=(*test_trellis_moe.PLAIN, *gate_up))
    with ml.Model.load(tmp_path / "plain", **options) as model:
        logits = wanted.forward([1, 2, 3])
        assert np.abs(model.logits([1, 2, 3]) - logits).max() < 2e-4 * np.abs(logits).max()
    down = (*test_trellis_moe.PLAIN, "layers.0.mlp.down_proj")
    wanted = test_trellis_moe.write(tmp_path / "down", GLM, plain=down)
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.mlp\.down_proj: must be a trellis .*format='f16'"):
        ml.plan(tmp_path / "down")
    with ml.Model.load(tmp_path / "down", format="f32", **options) as model:
        logits = wanted.forward([1, 2, 3])
        assert np.abs(model.logits([1, 2, 3]) - logits).max() < 2e-4 * np.abs(logits).max()


def test_too_many_combinations_are_refused(tmp_path: Path) -> None:
    rates = (1, 2, 3, 4, 5, 6)

    def bits(module: str) -> float:
        number = int(module.partition(".experts.")[2].partition(".")[0] or 0)
        return rates[number // 6] if module.endswith("up_proj") else rates[number % 6]

    config = QWEN | {"num_experts": 36, "num_hidden_layers": 1, "mlp_only_layers": []}
    test_trellis_moe.write(tmp_path / "model", config, bits=bits)
    with pytest.raises(UnsupportedModelError, match="36 combinations of formats, at most 32"):
        ml.plan(tmp_path / "model")


def compressed(folder: Path) -> tuple[Path, dict[str, Array]]:
    """QWEN with odd experts in int8 and the rest in int4; and the weights that its tensors stand for."""
    tensors = test_moe_model.tensors_of(QWEN)
    plain = test_moe_model.write(folder / "plain", QWEN, tensors)
    stored: dict[str, Array] = {}
    parts = {}
    for format, odd in (("int4", False), ("int8", True)):
        save_quantized(plain, folder / format, format, group=16, zero=False, scale="f16")
        found, _ = safetensors.read_header(folder / format / "model.safetensors")
        config = json.loads((folder / format / "config.json").read_text())
        (parts[format],) = config["quantization_config"]["config_groups"].values()
        for name, info in found.items():
            number = name.partition(".experts.")[2].partition(".")[0]
            if bool(number and int(number) % 2) == odd:
                stored[name] = info.read()
    parts["int8"]["targets"] = [r"re:.*experts\.[135]\..*"]
    config["quantization_config"]["config_groups"] = {"odd": parts["int8"], "rest": parts["int4"]}
    target = folder / "model"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    safetensors.save(target / "model.safetensors", stored)
    return target, tensors


@pytest.mark.parametrize("format", [None, "f32"])
def test_checkpoint_of_quantized_experts(tmp_path: Path, format: str | None) -> None:
    folder, tensors = compressed(tmp_path)
    checkpoint = ml.loaders.open_checkpoint(folder)
    decoded = dict(tensors)
    for module, stored in checkpoint.quantized.items():
        decoded[f"{module}.weight"] = stored.dequantize()
    assert {stored.format for name, stored in checkpoint.quantized.items() if "experts" in name} == {"int4", "int8"}
    logits = test_moe_model.reference(QWEN, decoded).forward([1, 2, 3])
    with ml.Model.load(folder, format=format, dtype="f32", kv="f32", slots=1, device=device_row()["index"]) as model:
        assert np.abs(model.logits([1, 2, 3]) - logits).max() < 2e-4 * np.abs(logits).max()
