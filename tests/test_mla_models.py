"""DeepSeek V2 and V3 and GLM-4.7-Flash in tiny: random checkpoints against the NumPy model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ref.model import Model, greedy, load_weights

import marlin as ml
from marlin.config import read_config, rope_frequencies
from marlin.errors import ModelFormatError, UnsupportedModelError
from marlin.loaders import open_checkpoint, safetensors
from marlin.memory import kv_bytes

BASE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 96, "moe_intermediate_size": 32, "vocab_size": 128, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "max_position_embeddings": 256, "tie_word_embeddings": False, "eos_token_id": None,
    "q_lora_rank": 40, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24,
    "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    "rope_theta": 10000.0, "attention_bias": False,
}  # fmt: skip
YARN = {
    "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 0.8,
    "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "v3": BASE | {"model_type": "deepseek_v3", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5,
                  "rope_scaling": YARN, "num_nextn_predict_layers": 1},
    "v2-lite": BASE | {"model_type": "deepseek_v2", "q_lora_rank": None, "topk_method": "greedy",
                       "n_shared_experts": 2, "norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "glm": BASE | {"model_type": "glm4_moe_lite", "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
                   "mlp_layer_types": ["dense", "sparse", "sparse"], "rope_interleave": False,
                   "attention_bias": True},
}  # fmt: skip


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint."""
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rank, vocab, experts = config["q_lora_rank"], config["vocab_size"], config["n_routed_experts"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    shapes["model.norm.weight"] = (hidden,)

    def mlp(at: str, inner: int) -> dict[str, tuple[int, ...]]:
        pair = {f"{at}.{leaf}_proj.weight": (inner, hidden) for leaf in ("gate", "up")}
        return pair | {f"{at}.down_proj.weight": (hidden, inner)}

    for i in range(config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)):
        at = f"model.layers.{i}"
        attention = f"{at}.self_attn"
        q = {"q_proj": (heads * (nope + rope), hidden)}
        if q_rank:
            q = {"q_a_proj": (q_rank, hidden), "q_b_proj": (heads * (nope + rope), q_rank)}
            shapes[f"{attention}.q_a_layernorm.weight"] = (q_rank,)
        linears = q | {
            "kv_a_proj_with_mqa": (rank + rope, hidden),
            "kv_b_proj": (heads * (nope + v), rank),
            "o_proj": (hidden, heads * v),
        }
        shapes |= {f"{attention}.{name}.weight": shape for name, shape in linears.items()}
        if config["attention_bias"]:
            for name in ("q_a_proj", "kv_a_proj_with_mqa", "o_proj"):
                shapes[f"{attention}.{name}.bias"] = (linears[name][0],)
        shapes[f"{attention}.kv_a_layernorm.weight"] = (rank,)
        shapes |= {f"{at}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        if i < 1:
            shapes |= mlp(f"{at}.mlp", config["intermediate_size"])
            continue
        inner = config["moe_intermediate_size"]
        shapes[f"{at}.mlp.gate.weight"] = (experts, hidden)
        if config["model_type"] != "deepseek_v2":
            shapes[f"{at}.mlp.gate.e_score_correction_bias"] = (experts,)
        for expert in range(experts):
            shapes |= mlp(f"{at}.mlp.experts.{expert}", inner)
        shapes |= mlp(f"{at}.mlp.shared_experts", inner * config["n_shared_experts"])
    return shapes


def write(folder: Path, config: dict[str, Any], *, drop: str = "") -> Path:
    """A checkpoint with random weights; `drop`: a tensor left out."""
    rng = np.random.default_rng(11)
    tensors = {}
    for name, shape in shapes_of(config).items():
        norm = name.endswith("norm.weight")
        spread = 0.1 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1])
        tensors[name] = (rng.standard_normal(shape) * spread + norm).astype(np.float32)
    tensors.pop(drop, None)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.save(folder / "model.safetensors", tensors)
    return folder


def reference(folder: Path) -> Model:
    checkpoint = open_checkpoint(folder)
    config = read_config(checkpoint.config)
    frequencies, scale = rope_frequencies(config)
    return Model(config, load_weights(checkpoint), frequencies, rope_scale=scale, dtype=np.float64)


@pytest.mark.parametrize("name", CONFIGS)
def test_model(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, CONFIGS[name])
    wanted = reference(folder)
    ids = [int(i) for i in np.random.default_rng(5).integers(0, 128, 20)]
    logits = wanted.forward(ids)
    with ml.Model.load(folder, dtype="f32", kv="f32", slots=2) as model:
        got = model.logits(ids)
        assert np.abs(got - logits).max() < 1e-4 * np.abs(logits).max()
        tokens, margins = greedy(wanted, ids[:7], 12)
        assert min(margins) > 1e-3
        assert model.generate(ids[:7], max_tokens=12, temperature=0).tokens == tokens
        both = model.generate([ids[:7], ids[:3]], max_tokens=12, temperature=0)
        assert both[0].tokens == tokens and both[1].tokens == greedy(wanted, ids[:3], 12)[0]
        assert np.allclose(model.score(ids).logprobs, _picked(logits, ids), atol=2e-4)


def _picked(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    shifted = logits[:-1] - logits[:-1].max(axis=1, keepdims=True)
    return shifted[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(shifted).sum(axis=1))


def test_plan_counts_the_latent_cache(tmp_path: Path) -> None:
    folder = write(tmp_path, CONFIGS["v3"])
    plan = ml.plan(folder, context=100, slots=3)
    assert plan.kv == 3 * 100 * 3 * (32 + 8) * 2
    with ml.Model.load(folder, context=100, slots=3) as model:
        assert model._open_engine().cache.nbytes == plan.kv
        assert model.layers.parameters == sum(
            int(np.prod(shape)) for name, shape in shapes_of(CONFIGS["v3"]).items() if "layers.3." not in name
        )


def test_cache_of_the_large_model() -> None:
    """54 KB a token in f16: 47 layers of 576."""
    config = read_config(CONFIGS["glm"] | {"num_hidden_layers": 47, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
                                           "mlp_layer_types": ["dense"] + ["sparse"] * 46})  # fmt: skip
    assert kv_bytes(config, 1, 1, "f16") == 47 * 576 * 2 == 54144


def test_missing_and_unknown_tensors(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="kv_a_layernorm"):
        ml.Model.load(write(tmp_path, CONFIGS["glm"], drop="model.layers.1.self_attn.kv_a_layernorm.weight"))
    write(tmp_path, CONFIGS["v3"])
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["v3"] | {"num_nextn_predict_layers": 0}))
    with pytest.raises(ModelFormatError, match=r"no place for .model\.layers\.3\."):
        ml.Model.load(tmp_path)


def test_trellises_beside_latent_attention() -> None:
    """kv_b is needed as one matrix, whatever the other layers are."""
    config = CONFIGS["v3"] | {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0}
    with ml.Model.random(config, format="exl3:4", context=32, slots=1) as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()
        lines = repr(model.layers).splitlines()
        assert any("q_b_proj" in line and "exl3" in line for line in lines)
        assert all("exl3" not in line for line in lines if "kv_b_proj" in line)


def test_config() -> None:
    latent = read_config(CONFIGS["v3"]).latent
    assert latent is not None and latent.row == 40 and latent.q_dim == 24 and latent.norm_eps == 1e-6
    mscale = 0.1 * 0.8 * np.log(4.0) + 1
    assert np.isclose(latent.softmax_scale, mscale**2 / np.sqrt(24))
    assert read_config(CONFIGS["v2-lite"]).latent.q_rank is None  # type: ignore[union-attr]
    with pytest.raises(UnsupportedModelError, match="kv_lora_rank 36 is not supported"):
        read_config(CONFIGS["v3"] | {"kv_lora_rank": 36})
    with pytest.raises(ModelFormatError, match="v_head_dim"):
        read_config({key: value for key, value in CONFIGS["v3"].items() if key != "v_head_dim"})
