"""Models with experts and ml.MoE: tensors by every name, results against the NumPy model, usage, bad checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import device_row
from ref.model import Model as Reference
from ref.model import greedy
from ref.moe import moe, route
from test_model import weights_of

import marlin as ml
from marlin.config import read_config, rope_frequencies
from marlin.loaders import safetensors
from marlin.loaders.compressed_tensors import save_quantized

COMMON: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "max_position_embeddings": 64, "tie_word_embeddings": False, "eos_token_id": None, "bos_token_id": None,
    "num_experts_per_tok": 2,
}  # fmt: skip
MIXTRAL = COMMON | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 5}
QWEN = COMMON | {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 6, "head_dim": 32,
    "moe_intermediate_size": 48, "norm_topk_prob": True, "mlp_only_layers": [1],
}  # fmt: skip


def tensors_of(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random tensors of a config, one an expert and matrix; layer 1 of QWEN stays dense."""
    tensors = weights_of(config)
    rng = np.random.default_rng(8)
    mixtral = config["model_type"] == "mixtral"
    hidden = config["hidden_size"]
    inner = config["intermediate_size"] if mixtral else config["moe_intermediate_size"]
    count = config["num_local_experts"] if mixtral else config["num_experts"]
    leaves = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    for i in range(config["num_hidden_layers"]):
        if not mixtral:
            for norm in ("q_norm", "k_norm"):
                tensors[f"model.layers.{i}.self_attn.{norm}.weight"] = np.ones(config["head_dim"], np.float16)
        if i in config.get("mlp_only_layers", []):
            continue
        for name in [name for name in tensors if name.startswith(f"model.layers.{i}.mlp.")]:
            del tensors[name]
        at = f"model.layers.{i}.{'block_sparse_moe' if mixtral else 'mlp'}"
        tensors[f"{at}.gate.weight"] = (rng.standard_normal((count, hidden)) / 4).astype(np.float16)
        for j in range(count):
            for leaf, shape in zip(leaves, shapes, strict=True):
                tensors[f"{at}.experts.{j}.{leaf}.weight"] = (rng.standard_normal(shape) / 8).astype(np.float16)
    return tensors


def fuse(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> dict[str, np.ndarray]:
    """The same with all experts of a layer in two tensors, as transformers 5 keeps them."""
    fused = {name: array for name, array in tensors.items() if ".experts." not in name}
    gate, up, down = ("w1", "w3", "w2") if config["model_type"] == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    for name in [name for name in tensors if name.endswith(f".experts.0.{gate}.weight")]:
        at = name.removesuffix(f".0.{gate}.weight")
        count = sum(other.startswith(at + ".") and other.endswith(f".{gate}.weight") for other in tensors)
        parts = [[tensors[f"{at}.{j}.{leaf}.weight"] for leaf in (gate, up, down)] for j in range(count)]
        fused[f"{at}.gate_up_proj"] = np.stack([np.concatenate(part[:2]) for part in parts])
        fused[f"{at}.down_proj"] = np.stack([part[2] for part in parts])
    return fused


def write(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.save(folder / "model.safetensors", tensors)
    return folder


def reference(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Reference:
    parsed = read_config(config)
    frequencies, scale = rope_frequencies(parsed)
    return Reference(parsed, tensors, frequencies, rope_scale=scale, dtype=np.float64)


@pytest.mark.parametrize("fused", [False, True], ids=["single", "fused"])
@pytest.mark.parametrize("config", [MIXTRAL, QWEN], ids=["mixtral", "qwen3_moe"])
def test_logits_and_greedy_tokens(tmp_path: Path, config: dict[str, Any], fused: bool) -> None:
    tensors = tensors_of(config)
    folder = write(tmp_path / "model", config, fuse(tensors, config) if fused else tensors)
    ids = [5, 99, 3, 64, 17, 17, 80]
    model = reference(config, tensors)
    with ml.Model.load(folder, dtype="f32", kv="f32", slots=2) as loaded:
        np.testing.assert_allclose(loaded.logits(ids), model.forward(ids), atol=2e-4, rtol=2e-4)
        wanted, margins = greedy(model, ids, 12)
        assert min(margins) > 1e-3
        found = loaded.generate([ids, ids], temperature=0, max_tokens=12)
        assert [item.tokens for item in found] == [wanted, wanted]


def test_usage_counts_every_token(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", QWEN, tensors_of(QWEN))
    with ml.Model.load(folder, slots=4) as model:
        assert model.expert_usage().counts.sum() == 0
        model.logits([1, 2, 3, 4, 5])
        usage = model.expert_usage(reset=True)
        assert usage.layers == [0, 2]
        assert usage.counts.shape == (2, 6)
        assert (usage.counts.sum(axis=1) == 5 * 2).all()
        np.testing.assert_allclose(usage.shares.sum(axis=1), 1)
        assert ((usage.balance > 0) & (usage.balance <= 1)).all()
        assert "balance" in repr(usage)
        assert usage._repr_html_().count("<td") == 12
        assert model.expert_usage().counts.sum() == 0
        model.generate([1, 2, 3], max_tokens=4, temperature=0)
        # A step in flight behind the last token may be counted or not; idle slots never are.
        assert 2 * 6 <= model.expert_usage().counts.sum(axis=1).min() <= 2 * 12
        plan = model.memory.weights
        assert plan["experts"] == 2 * 6 * (2 * 48 + 64) * 128 * 2  # rows of 64 and 48 are padded to 128, f16


def test_usage_of_a_dense_model_is_refused() -> None:
    folder = Path(__file__).parents[1] / "models" / "fix-llama"
    with (
        ml.Model.load(folder, slots=1) as model,
        pytest.raises(ml.UnsupportedModelError, match="no experts"),
    ):
        model.expert_usage()


def test_quantized_experts(tmp_path: Path) -> None:
    """A compressed-tensors checkpoint is what rounding on the device gives."""
    config = QWEN | {"moe_intermediate_size": 64}
    folder = write(tmp_path / "model", config, tensors_of(config))
    save_quantized(folder, tmp_path / "int8", "int8", group=0, ignore=["model.embed_tokens"])
    with ml.Model.load(tmp_path / "int8", slots=1, dtype="f32") as stored:
        logits = stored.logits([1, 2, 3])
    with ml.Model.load(folder, slots=1, dtype="f32") as model:
        exact = model.logits([1, 2, 3])
    assert 0 < np.abs(logits - exact).max() < 0.2 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_experts": 0}, "num_experts must be"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok must be 1 to 6"),
        ({"moe_intermediate_size": 47}, "expected shape"),
        ({"num_experts": 5}, "expected shape"),
        ({"mlp_only_layers": [0]}, "has no tensor"),
        ({"mlp_only_layers": "all"}, "mlp_only_layers must be"),
    ],
    ids=str,
)
def test_bad_checkpoints(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    folder = write(tmp_path / "model", QWEN | change, tensors_of(QWEN))
    with pytest.raises(ml.ModelFormatError, match=text):
        ml.plan(folder)


def test_an_expert_of_another_shape(tmp_path: Path) -> None:
    tensors = tensors_of(QWEN)
    tensors["model.layers.0.mlp.experts.4.up_proj.weight"] = np.ones((47, 64), np.float16)
    with pytest.raises(ml.ModelFormatError, match=r"experts\.4\.up_proj"):
        ml.plan(write(tmp_path / "model", QWEN, tensors))


def matrices(count: int = 5, hidden: int = 48, inner: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    shapes = {"router": (count, hidden), "gate": (count, inner, hidden), "up": (count, inner, hidden),
              "down": (count, hidden, inner)}  # fmt: skip
    return {name: (rng.standard_normal(shape) / 6).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("shared", [0, 2])
def test_moe_on_arrays(shared: int) -> None:
    given = matrices()
    given["router"] = given["router"][: 5 - shared]
    layer = ml.MoE.from_arrays(*given.values(), top_k=2, shared=shared, format="f32")
    x = np.random.default_rng(5).standard_normal((2, 3, 48)).astype(np.float32)
    rows = x.reshape(6, 48)
    ids, weights = route(rows @ given["router"].T, 2)
    ids = np.hstack([ids, np.tile(np.arange(5 - shared, 5), (6, 1))])
    weights = np.hstack([weights, np.ones((6, shared))])
    wanted = moe(rows, given["gate"], given["up"], given["down"], ids, weights)
    np.testing.assert_allclose(layer(x).numpy().reshape(6, 48), wanted, atol=1e-5)
    found, factors = layer.route(x)
    assert (found == ids).all()
    np.testing.assert_allclose(factors, weights, rtol=1e-5)
    assert layer.usage.sum() == 2 * 6 * 2
    assert "experts" in repr(layer)
    assert "experts" in layer._repr_html_()


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_balance_loss(scoring: str) -> None:
    rng = np.random.default_rng(4)
    router = rng.standard_normal((6, 32)).astype(np.float32)
    gate, up, down = (rng.standard_normal((6, *size)).astype(np.float32) for size in ((16, 32), (16, 32), (32, 16)))

    def layer(router: np.ndarray, **options: Any) -> ml.MoE:
        where = {"top_k": 2, "scoring": scoring, "device": device_row()["index"]}
        return ml.MoE.from_arrays(router, gate, up, down, **(where | options))

    x = rng.standard_normal((50, 32)).astype(np.float32)
    bias = 3 * rng.standard_normal(6)
    made = layer(router, bias=bias if scoring == "sigmoid" else None)
    logits = x.astype(np.float64) @ router.T
    scores = np.exp(logits) if scoring == "softmax" else 1 / (1 + np.exp(-logits))
    share = np.bincount(made.route(x)[0].ravel(), minlength=6) / 100
    expected = 6 * sum(f * p for f, p in zip(share, (scores / scores.sum(1, keepdims=True)).mean(0), strict=True))
    assert made.balance_loss(x.reshape(5, 10, 32)) == pytest.approx(expected, rel=1e-5)
    assert layer(np.zeros((6, 32), np.float32)).balance_loss(x) == pytest.approx(1)  # probabilities are even
    one = np.zeros((6, 32), np.float32)
    one[:2] = 40 if scoring == "softmax" else 1
    one[2:] = 0 if scoring == "softmax" else -40
    assert layer(one).balance_loss(np.ones((3, 32))) == pytest.approx(3)  # all rows go to the same two
    with pytest.raises(ValueError, match="at least one row"):
        made.balance_loss(np.zeros((0, 32)))


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        ({"gate": np.zeros((0, 32, 48))}, {}, "at least one expert"),
        ({}, {"top_k": 6}, "top_k must be 1 to 5"),
        ({}, {"shared": 5}, "at least one expert"),
        ({"up": np.zeros((4, 32, 48))}, {}, "up 4"),
        ({"down": np.zeros((5, 47, 32))}, {}, "down of expert 0"),
        ({"gate": [np.zeros((32, 48))] * 4 + [np.zeros((31, 48))]}, {}, "gate of expert 4"),
        ({"router": np.zeros((4, 48))}, {}, "router must be"),
        ({"up": np.full((5, 32, 48), np.nan)}, {}, "inf or nan"),
        ({}, {"scoring": "tanh"}, "scoring"),
    ],
    ids=str,
)
def test_moe_on_bad_arrays(change: dict[str, Any], options: dict[str, Any], text: str) -> None:
    given = matrices() | change
    with pytest.raises(ValueError, match=text):
        ml.MoE.from_arrays(*given.values(), **({"top_k": 2} | options))


def test_an_empty_batch_is_refused() -> None:
    layer = ml.MoE.from_arrays(*matrices().values(), top_k=2)
    with pytest.raises(ValueError, match="at least one row"):
        layer(np.zeros((0, 48), np.float32))
    with pytest.raises(ValueError, match="x must be"):
        layer(np.zeros((1, 47), np.float32))


def test_random_weights_are_finite() -> None:
    with ml.Model.random(QWEN, format="int4", context=32, slots=1) as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()
