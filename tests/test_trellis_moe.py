"""Experts that are EXL3 trellises: the mixture by itself, and checkpoints written here, against NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_mla_models
import test_moe_model
from conftest import device_row
from numpy.typing import NDArray
from ref import exl3
from ref.model import Model as Reference
from ref.model import greedy
from ref.moe import moe, route
from test_model import weights_of
from test_moe import ints, kernels_of
from tolerance import check, nmse

import marlin as ml
from marlin import _C
from marlin.config import read_config, rope_frequencies
from marlin.loaders import safetensors
from marlin.tensors import to_numpy

Array = NDArray[Any]
NAN_WORD = 0x7FFF7FFF


@dataclass
class Codes:
    """A random trellis of a matrix (n, k), and the weights that it stands for."""

    n: int
    k: int
    bits: float
    codebook: str
    seed: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shape = (-(-self.k // 128) * 8, -(-self.n // 128) * 8, int(16 * self.bits))
        self.trellis = rng.integers(0, 1 << 16, shape, np.uint16)
        size = np.float16(1 / np.sqrt(self.k))
        self.suh = (rng.choice([-1, 1], 16 * shape[0]) * rng.uniform(0.5, 1.5, 16 * shape[0]) * size).astype(np.float16)
        self.svh = (rng.choice([-1, 1], 16 * shape[1]) * rng.uniform(0.5, 1.5, 16 * shape[1])).astype(np.float16)

    def weight(self) -> NDArray[np.float64]:
        """(n, k)."""
        w = exl3.weight(exl3.inner(self.trellis, self.codebook), self.suh, self.svh)
        return np.ascontiguousarray(w[: self.k, : self.n].T)

    def tensors(self, module: str) -> dict[str, Array]:
        """What a checkpoint has."""
        found = {"trellis": self.trellis.view(np.int16), "suh": self.suh, "svh": self.svh}
        if self.codebook != "3inst":
            found[self.codebook] = np.array(1, np.int32)
        return {f"{module}.{name}": array for name, array in found.items()}


def stack(device: _C.Device, experts: list[Codes]) -> tuple[_C.TrellisLinear, Array]:
    """A TrellisLinear of all experts, and their weights (experts, n, k)."""
    first = experts[0]
    layer = _C.TrellisLinear(device, first.n, first.k, first.bits, first.codebook, len(experts))
    for i, codes in enumerate(experts):
        layer.set_trellis(codes.trellis, i)
        layer.set_scales(codes.suh, codes.svh, expert=i)
    return layer, np.stack([codes.weight() for codes in experts])


@dataclass
class Case:
    codebook: str
    bits: tuple[float, float, float]  # gate, up, down
    rows: int
    experts: int = 4
    top_k: int = 2
    hidden: int = 200
    inner: int = 150
    shared: int = 0
    dtype: str = "f16"
    norm: bool = False
    residual: bool = False
    kernel: str | None = None


@dataclass
class Mixture:
    raw: _C.MoE
    router: Array
    weights: list[Array]  # gate, up, down

    def expected(self, x: Array, **options: Any) -> Array:
        """x: what the experts see, normalised."""
        ids, weights = route(x @ self.router.T.astype(np.float64), self.raw.top_k)
        behind = np.tile(np.arange(self.raw.experts, self.raw.experts + self.raw.shared), (len(x), 1))
        ids, weights = np.hstack([ids, behind]), np.hstack([weights, np.ones(behind.shape)])
        return moe(x, *self.weights, ids, weights, **options)

    def check(self, device: _C.Device, case: Any) -> Array:
        """The mixture of random rows as a Case wants them, twice, against NumPy; the rows that the router saw."""
        rng = np.random.default_rng(9)
        given = rng.standard_normal((case.rows, case.hidden)).astype(np.float32 if case.dtype == "f32" else np.float16)
        norm = rng.uniform(0.5, 1.5, case.hidden).astype(np.float32) if case.norm else None
        residual = rng.standard_normal((case.rows, case.hidden)).astype(np.float32) if case.residual else None
        x = given.astype(np.float64)
        if norm is not None:
            x = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-6) * norm
        options = {
            "norm": None if norm is None else _C.tensor(device, norm),
            "residual": None if residual is None else _C.tensor(device, residual),
            "dtype": case.dtype,
            "kernel": case.kernel,
        }
        out = _C.full(device, given.shape, NAN_WORD, "f32")
        self.raw(_C.tensor(device, given), out=out, **options)
        check(to_numpy(out), self.expected(x, residual=residual), case.dtype, products=3)
        first = to_numpy(out).copy()  # once more: the counters are back at 0, sums are added in the same order
        self.raw(_C.tensor(device, given), out=out, **options)
        assert np.array_equal(to_numpy(out), first)
        return x


def mixture(device: _C.Device, case: Case) -> Mixture:
    rng = np.random.default_rng(5)
    router = (rng.standard_normal((case.experts, case.hidden)) * 2 / np.sqrt(case.hidden)).astype(np.float32)
    first = _C.Linear(device, *router.shape, "f32")
    first.set_rows(router, "f32", len(router))
    sizes = [(case.inner, case.hidden)] * 2 + [(case.hidden, case.inner)]
    stacks, weights = zip(
        *(
            stack(device, [Codes(*size, bits, case.codebook, 100 * i + e) for e in range(case.experts + case.shared)])
            for i, (size, bits) in enumerate(zip(sizes, case.bits, strict=True))
        ),
        strict=True,
    )
    raw = _C.MoE(first, stacks[:2], stacks[2], experts=case.experts, top_k=case.top_k, shared=case.shared)
    return Mixture(raw, router, list(weights))


CASES = [
    Case("mul1", (4, 4, 4), 1, norm=True, residual=True),
    Case("mul1", (4, 3, 5), 3, norm=True, residual=True, shared=1),
    Case("mul1", (2.5, 1.5, 3.5), 2, dtype="f32"),
    Case("3inst", (3, 4, 2), 5, top_k=3, experts=6),
    Case("mcg", (6, 8, 1), 2, hidden=400, inner=300, kernel="trellis_moe_gemv@0,2"),
    Case("mul1", (2, 2, 2), 1, hidden=400, inner=300, kernel="trellis_moe_gemv@0,3", norm=True),
    Case("mul1", (4, 3, 2), 7, kernel="trellis_moe_gemv@2", norm=True, residual=True),
    Case("mcg", (4, 4, 4), 9, hidden=400, inner=300, kernel="trellis_moe_gemv@4,2", shared=1),
    Case("mul1", (4, 3, 2), 60, kernel="trellis_moe_gemv@16", norm=True, residual=True, shared=1),
    Case("mul1", (4, 3, 2), 90),
    Case("mul1", (4, 4, 4), 2, top_k=8, experts=10, dtype="f32", residual=True),  # sums of as many as are usual
    Case("mul1", (3.5, 2.5, 1.5), 1, top_k=7, experts=9, shared=1, kernel="trellis_moe_gemv@0,8", residual=True),
    Case("mul1", (4, 4, 4), 1, top_k=10, experts=14, shared=1, kernel="trellis_moe_gemv@0,2", hidden=400),
    Case("mul1", (2, 2, 2), 2, top_k=12, experts=13, dtype="f32", residual=True),
    Case("mul1", (2, 2, 2), 1, top_k=13, experts=14),  # and of more than there may be
    Case("3inst", (3, 4, 2), 29, hidden=400, inner=300, kernel="trellis_moe_gemv@16,2"),
    # More pairs than one walk takes, alone and in tiles.
    Case("mcg", (2, 2, 2), 1030, hidden=128, inner=128, dtype="f32", kernel="trellis_moe_gemv@0"),
    Case("mul1", (2, 2, 2), 16500, hidden=128, inner=128, kernel="trellis_moe_gemv@32"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mixture(device: _C.Device, case: Case) -> None:
    if case.kernel == "trellis_moe_gemv@32" and "coopmat" not in device.features:
        pytest.skip("needs coopmat")
    # Gate, up and down. The fifth case, halves of mcg apart in f16 chains, errs by 1.8e-6 where NumPy rounds likewise.
    mixture(device, case).check(device, case)


@pytest.mark.parametrize("kernel", [f"trellis_moe_gemv@{tile}" for tile in (16, 32, 64)])
@pytest.mark.parametrize("without", [(), ("fragments",)], ids=["fragments", "staged"])
def test_tiles_on_matrices(open_device: Callable[..., _C.Device], without: tuple[str, ...], kernel: str) -> None:
    """Values decoded in the matrices or by way of shared memory; rates from the least to the highest."""
    device = open_device(without)
    if "coopmat" not in device.features:
        pytest.skip("needs coopmat")
    case = Case("mul1", (1.5, 4, 8), 150, top_k=3, hidden=400, inner=300, kernel=kernel, residual=True)
    mixture(device, case).check(device, case)


@pytest.mark.parametrize("rows", [1, 2])
def test_int8_activations(device: _C.Device, rows: int) -> None:
    case = Case("mul1", (4, 3, 2), rows, hidden=400, inner=300, shared=1)
    made = mixture(device, case)
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, case.hidden)).astype(np.float16)
    norm = rng.uniform(0.5, 1.5, case.hidden).astype(np.float32)
    given = _C.tensor(device, x)

    def mix(kind: str) -> Array:
        """With several workgroups for 128 columns, and the norm in the product where there is one row."""
        options = {"norm": _C.tensor(device, norm), "kernel": "trellis_moe_gemv@0,3", "activations": kind}
        return to_numpy(made.raw(given, dtype="f16", **options)).copy()

    exact, rounded = mix("f16"), mix("int8")
    wide = x.astype(np.float64)
    expected = made.expected(wide / np.sqrt(np.mean(wide * wide, axis=1, keepdims=True) + 1e-6) * norm)
    check(rounded, expected, "i8", products=3)
    assert nmse(rounded, expected) > 10 * nmse(exact, expected)  # they are in 8 bits indeed
    with pytest.raises(ValueError, match="mul1"):
        mixture(device, Case("mcg", (2, 2, 2), 1, hidden=400)).raw(given, activations="int8")
    with pytest.raises(ValueError, match="f16 or int8"):
        made.raw(given, activations="int4")


def test_kernels_of_many_pairs(device: _C.Device) -> None:
    """Tiles of 16 pairs go through matrices where the device has them, after a transform of their own."""
    made = mixture(device, CASES[0])
    x = _C.full(device, (60, 200), 0, "f16")
    names = kernels_of(device, lambda: made.raw(x, kernel="trellis_moe_gemv@16"))
    matrices = {"coopmat", "int_dot", "subnormals"} <= set(device.features) and device_row()["subgroup_size"] == 32
    if matrices:
        high = kernels_of(device, lambda: made.raw(x, kernel="trellis_moe_gemv@32"))
        assert ("trellis_moe_gemm_coopmat" in high) == ("fragments" in device.features)
    assert ("trellis_moe_gemv_coopmat" in names) == matrices == ("trellis_moe_hadamard" in names)


def test_dispatches_do_not_depend_on_the_experts(device: _C.Device) -> None:
    made = mixture(device, CASES[0])
    for rows, kernel, before, behind in (
        (1, None, ["moe_router"], []),  # the last product sums up the pairs of a row itself
        (4, "trellis_moe_gemv@2", ["moe_router", "moe_plan"], ["moe_combine"]),
    ):
        x = _C.full(device, (rows, 200), 0, "f16")
        names = kernels_of(device, lambda x=x, kernel=kernel: made.raw(x, kernel=kernel))
        products = [name for name in names if name.startswith("trellis_moe_gemv")]
        assert names == before + products + behind
        assert products in (["trellis_moe_gemv"] * 3, ["trellis_moe_gemv_dot"] * 3)


@pytest.mark.parametrize("kernel", [None, "trellis_moe_gemv@2"])
def test_idle_rows(device: _C.Device, kernel: str | None) -> None:
    made = mixture(device, Case("mul1", (2, 2, 2), 3))
    x = np.random.default_rng(3).standard_normal((3, 200)).astype(np.float32)
    out = _C.full(device, (3, 200), NAN_WORD, "f32")
    made.raw(_C.tensor(device, x), positions=_C.tensor(device, np.array([3, -1, 0], np.int32)), out=out, kernel=kernel)
    y = to_numpy(out)
    assert np.isnan(y[1]).all()
    check(y[[0, 2]], made.expected(x[[0, 2]].astype(np.float64)), "f32")
    assert ints(made.raw.usage).sum() == 4


def test_captured(device: _C.Device) -> None:
    made = mixture(device, Case("mul1", (3, 3, 3), 1))
    x, y = _C.full(device, (1, 200)), _C.full(device, (1, 200))
    made.raw(x, out=y)
    with device.capture() as program:
        made.raw(x, out=y, kernel="trellis_moe_gemv@0,2")
    rng = np.random.default_rng(4)
    for _ in range(3):
        row = rng.standard_normal((1, 200)).astype(np.float32)
        x.write(row)
        program.replay()
        check(to_numpy(y), made.expected(row.astype(np.float64)), "f32")


def test_one_expert_of_a_stack(device: _C.Device) -> None:
    """Codes, decoded matrices and products of each by itself."""
    experts = [Codes(150, 200, 3, "mcg", seed) for seed in range(3)]
    layer, weights = stack(device, experts)
    assert layer.experts == 3
    assert layer.nbytes == 3 * _C.TrellisLinear(device, 150, 200, 3, "mcg").nbytes
    x = np.random.default_rng(1).standard_normal((2, 200)).astype(np.float32)
    for i, codes in enumerate(experts):
        assert layer.read_trellis(i) == codes.trellis.tobytes()
        assert np.array_equal(to_numpy(layer.inner(i)), exl3.inner(codes.trellis, "mcg"))
        check(to_numpy(layer.dequantize("f32", i)), weights[i].T, "f32")
        check(to_numpy(layer(_C.tensor(device, x), expert=i)), x @ weights[i].T, "f32")
    for call in (layer.read_trellis, layer.inner):
        with pytest.raises(ValueError, match="expert must be"):
            call(3)
    with pytest.raises(ValueError, match="experts must be"):
        _C.TrellisLinear(device, 128, 128, 4, "mul1", 0)


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"gate": (128, 256, 4)}, ValueError, "up must be 4 experts of .128, 256., it is 4 of .128, 128"),
        ({"up": (256, 128, 4)}, ValueError, "up must be 4 experts"),
        ({"down": (128, 128, 3)}, ValueError, "down must be 4 experts of .128, 128., it is 3"),
        ({"gate": (128, 128, 1)}, ValueError, "gate must be 4 experts"),
        ({"gate_up": ()}, ValueError, "tuple of 0"),
        ({"gate_up": (None, None)}, TypeError, "MoE: gate must be a TrellisLinear"),
        ({"down": None}, TypeError, "MoE: down must be a TrellisLinear"),
    ],
    ids=str,
)
def test_bad_layers(device: _C.Device, changed: dict[str, Any], error: type[Exception], text: str) -> None:
    def make(name: str) -> Any:
        n, k, experts = changed.get(name, (128, 128, 4))
        return _C.TrellisLinear(device, n, k, 4, "mul1", experts)

    pair = changed.get("gate_up", (make("gate"), make("up")))
    down = changed["down"] if changed.get("down", 0) is None else make("down")
    router = _C.Linear(device, 4, 256 if changed.get("gate", (0, 0))[1] == 256 else 128)
    with pytest.raises(error, match=text):
        _C.MoE(router, pair, down, experts=4, top_k=2)


def test_bias_and_kernel_are_refused(device: _C.Device) -> None:
    layers = [_C.TrellisLinear(device, 128, 128, 4, "mul1", 4) for _ in range(3)]
    router = _C.Linear(device, 4, 128)
    raw = _C.MoE(router, (layers[0], layers[1]), layers[2], experts=4, top_k=2)
    for kernel in ("moe_gemv@2", "rows", "trellis_moe_gemv@0,70000", "trellis_moe_gemv@3", "trellis_moe_gemv@32"):
        with pytest.raises(ValueError, match="no kernel"):
            raw(_C.full(device, (1, 128)), kernel=kernel)
    layers[1].set_bias(_C.full(device, (128,)))
    with pytest.raises(ValueError, match="no bias"):
        _C.MoE(router, (layers[0], layers[1]), layers[2], experts=4, top_k=2)


# ---- checkpoints ----

GLM = test_mla_models.CONFIGS["glm"]
QWEN = test_moe_model.QWEN
MIXTRAL = test_moe_model.MIXTRAL
PLAIN = ("embed_tokens", ".gate", "kv_b_proj", "block_sparse_moe.gate")


def tensors_of(config: dict[str, Any]) -> dict[str, Array]:
    if config["model_type"] == "llama":
        return weights_of(config)
    if "kv_lora_rank" not in config:
        return test_moe_model.tensors_of(config)
    rng = np.random.default_rng(11)
    tensors = {}
    for name, shape in test_mla_models.shapes_of(config).items():
        spread = 0.1 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1])
        tensors[name] = (rng.standard_normal(shape) * spread + name.endswith("norm.weight")).astype(np.float16)
    return tensors


def bits_of(module: str) -> float:
    """K of a projection: the experts' differ by what they are, and the shared expert's from theirs."""
    if "shared_experts" in module:
        return 5
    return {"up_proj": 3, "w3": 3, "down_proj": 2.5, "w2": 2}.get(module.rpartition(".")[2], 4)


def write(folder: Path, config: dict[str, Any], bits: Any = bits_of, plain: tuple[str, ...] = PLAIN) -> Reference:
    """An EXL3 checkpoint of random trellises; returns the NumPy model of the decoded weights."""
    stored: dict[str, Array] = {}
    decoded: dict[str, Array] = {}
    for i, (name, array) in enumerate(tensors_of(config).items()):
        module = name.removesuffix(".weight")
        if array.ndim != 2 or module.endswith(plain):
            stored[name] = array
            decoded[name] = array
            continue
        codes = Codes(*array.shape, bits(module), "mul1", i)
        stored |= codes.tensors(module)
        decoded[name] = codes.weight()
    quantization = {"quantization_config": {"quant_method": "exl3", "bits": 4.0}}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | quantization))
    safetensors.save(folder / "model.safetensors", stored)
    parsed = read_config(config)
    frequencies, scale = rope_frequencies(parsed)
    return Reference(parsed, decoded, frequencies, rope_scale=scale, dtype=np.float64)


@pytest.mark.parametrize("config", [GLM, QWEN, MIXTRAL], ids=["glm", "qwen3_moe", "mixtral"])
def test_checkpoint(tmp_path: Path, config: dict[str, Any]) -> None:
    wanted = write(tmp_path / "model", config)
    ids = [5, 99, 3, 64, 17, 17, 80]
    logits = wanted.forward(ids)
    plan = ml.plan(tmp_path / "model", slots=2)
    with ml.Model.load(tmp_path / "model", dtype="f32", kv="f32", slots=2, device=device_row()["index"]) as model:
        assert np.abs(model.logits(ids) - logits).max() < 2e-4 * np.abs(logits).max()
        tokens, margins = greedy(wanted, ids, 8)
        assert min(margins) > 1e-3
        found = model.generate([ids, ids], temperature=0, max_tokens=8)
        assert [item.tokens for item in found] == [tokens, tokens]
        assert model.memory.weights == plan.weights
        assert "exl3" in repr(model.layers)


def test_int8_of_a_shared_expert_that_lies_apart(tmp_path: Path) -> None:
    """Its bits are others than the routed experts', so that it is an MLP of its own; rounding x shows, and is small."""
    wanted = write(tmp_path / "model", GLM)
    errors = {}
    for dtype in ("f16", "int8"):
        with ml.Model.load(tmp_path / "model", dtype=dtype, slots=1, device=device_row()["index"]) as model:
            assert any(module.name.endswith("shared_experts.gate_up") for module in model.layers.modules())
            for ids in ([7], [7, 8]):
                wanted.reset()
                logits = wanted.forward(ids)
                errors[dtype, len(ids)] = np.linalg.norm(model.logits(ids) - logits) / np.linalg.norm(logits)
    for rows in (1, 2):
        assert 2 * errors["f16", rows] < errors["int8", rows] < 3e-2, errors


def test_trace(tmp_path: Path) -> None:
    """Gate and up are products of their own, and down multiplies them: all three are seen, in f16 with one row too."""
    write(tmp_path / "model", GLM)
    with ml.Model.load(tmp_path / "model", slots=1, device=device_row()["index"]) as model:
        for ids in ([7, 8, 9], [7]):
            trace = model.trace(ids)
            at = "model.layers.0.mlp"
            gate, up = (trace[f"{at}.{name}_proj"].astype(np.float64) for name in ("gate", "up"))
            assert gate.shape == up.shape == (len(ids), GLM["intermediate_size"])
            assert trace[f"{at}.down"].shape == (len(ids), GLM["hidden_size"])
            assert np.array_equal(trace[at], trace[f"{at}.down"])
            assert "model.layers.1.mlp.shared_experts.up_proj" in trace


def test_f16(tmp_path: Path) -> None:
    """As models run: norms in the kernels, activations in f16."""
    wanted = write(tmp_path / "model", GLM)
    logits = wanted.forward([7, 8, 9])
    with ml.Model.load(tmp_path / "model", slots=1, device=device_row()["index"]) as model:
        got = model.logits([7, 8, 9])
    assert np.linalg.norm(got - logits) < 5e-3 * np.linalg.norm(logits)


def test_shared_expert_of_the_same_bits_lies_behind_the_others(tmp_path: Path) -> None:
    wanted = write(tmp_path / "model", GLM, bits=lambda module: 4)
    logits = wanted.forward([1, 2, 3])
    with ml.Model.load(tmp_path / "model", dtype="f32", kv="f32", slots=1, device=device_row()["index"]) as model:
        assert "shared_experts.gate_up" not in {module.name.partition("mlp.")[2] for module in model.layers.modules()}
        assert np.abs(model.logits([1, 2, 3]) - logits).max() < 2e-4 * np.abs(logits).max()


def test_trellis_of_kv_b_is_decoded(tmp_path: Path) -> None:
    """Rounded to f16, which the kernels of latent attention read by rows."""
    wanted = write(tmp_path / "model", GLM, plain=("embed_tokens", ".gate"))
    logits = wanted.forward([1, 2, 3])
    with ml.Model.load(tmp_path / "model", dtype="f32", kv="f32", slots=1, device=device_row()["index"]) as model:
        got = model.logits([1, 2, 3])
    assert np.linalg.norm(got - logits) < 1e-3 * np.linalg.norm(logits)


def test_in_another_format(tmp_path: Path) -> None:
    """Decoded and rounded, whatever the bits of each expert."""
    wanted = write(tmp_path / "model", QWEN, bits=lambda module: 3 if ".experts.2." in module else 4)
    logits = wanted.forward([1, 2, 3])
    with ml.Model.load(
        tmp_path / "model", format="f32", dtype="f32", kv="f32", slots=1, device=device_row()["index"]
    ) as model:
        assert np.abs(model.logits([1, 2, 3]) - logits).max() < 2e-4 * np.abs(logits).max()


def test_random_weights() -> None:
    for config in (GLM, QWEN | {"tie_word_embeddings": True}):
        with ml.Model.random(config, format="exl3:4", slots=1, device=device_row()["index"]) as model:
            assert np.isfinite(model.logits([1, 2, 3])).all()
            assert model.memory.weights["experts"] > 0
