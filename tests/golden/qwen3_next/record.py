#!/usr/bin/env python3
"""Make the tiny Qwen3-Next checkpoint beside this file, and what transformers computes from it.

    python record.py        # needs torch, transformers and safetensors

The weights are random, in bf16, larger than a fresh network's so that every part shows in the logits. golden.npz:

    ids            int32 [40]             a text, the next two entries are about it
    logits         float32 [40, vocab]    by the chunked form of the delta rule
    hidden         float32 [layers + 1, hidden]   of the last position: the embedding, then the output of each layer
                                          (the last one after the final norm)
    prompt, greedy int32 [5], [24]        greedy continuation, token by token with a cache: the recurrent form
    margin         float32 [24]           best logit minus second best at each of those steps
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
CONFIG = {
    "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "vocab_size": 128, "hidden_size": 32,
    "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "intermediate_size": 40,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [3],
    "hidden_act": "silu", "tie_word_embeddings": False, "max_position_embeddings": 128, "bos_token_id": None,
    "eos_token_id": None, "dtype": "bfloat16",
}  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint."""
    c = CONFIG
    hidden, vocab, dim = c["hidden_size"], c["vocab_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    heads = c["linear_num_value_heads"]
    keys, values = c["linear_num_key_heads"] * c["linear_key_head_dim"], heads * c["linear_value_head_dim"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden), "model.norm.weight": (hidden,)
    }  # fmt: skip

    def mlp(at: str, inner: int) -> None:
        found.update({f"{at}.{leaf}_proj.weight": (inner, hidden) for leaf in ("gate", "up")})
        found[f"{at}.down_proj.weight"] = (hidden, inner)

    for i, kind in enumerate(c["layer_types"]):
        at = f"model.layers.{i}"
        found |= {f"{at}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        if kind == "linear_attention":
            leaves = {
                "in_proj_qkvz.weight": (2 * keys + 2 * values, hidden), "in_proj_ba.weight": (2 * heads, hidden),
                "conv1d.weight": (2 * keys + values, 1, c["linear_conv_kernel_dim"]), "A_log": (heads,),
                "dt_bias": (heads,), "norm.weight": (c["linear_value_head_dim"],), "out_proj.weight": (hidden, values),
            }  # fmt: skip
            found |= {f"{at}.linear_attn.{leaf}": shape for leaf, shape in leaves.items()}
        else:
            leaves = {
                "q_proj.weight": (2 * q, hidden), "k_proj.weight": (kv, hidden), "v_proj.weight": (kv, hidden),
                "o_proj.weight": (hidden, q), "q_norm.weight": (dim,), "k_norm.weight": (dim,),
            }  # fmt: skip
            found |= {f"{at}.self_attn.{leaf}": shape for leaf, shape in leaves.items()}
        if i in c["mlp_only_layers"]:
            mlp(f"{at}.mlp", c["intermediate_size"])
            continue
        found[f"{at}.mlp.gate.weight"] = (c["num_experts"], hidden)
        found[f"{at}.mlp.shared_expert_gate.weight"] = (1, hidden)
        for expert in range(c["num_experts"]):
            mlp(f"{at}.mlp.experts.{expert}", c["moe_intermediate_size"])
        mlp(f"{at}.mlp.shared_expert", c["shared_expert_intermediate_size"])
    return found


def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random weights of a tensor."""
    if name.endswith("A_log"):
        return rng.uniform(-3, 1.5, shape)
    if name.endswith("linear_attn.norm.weight"):
        return rng.uniform(0.5, 1.5, shape)
    spread = 0.3 if name.endswith("norm.weight") else 1.0 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1])
    return rng.standard_normal(shape) * spread


def main() -> None:
    """Write config.json, model.safetensors and golden.npz."""
    rng = np.random.default_rng(2)
    tensors = {name: torch.tensor(draw(rng, name, shape)).bfloat16() for name, shape in shapes().items()}
    (HERE / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    save_file(tensors, HERE / "model.safetensors", metadata={"format": "pt"})
    net = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32, attn_implementation="eager").eval()
    ids = rng.integers(0, CONFIG["vocab_size"], 40)
    with torch.no_grad():
        out = net(input_ids=torch.tensor(ids)[None], use_cache=False, output_hidden_states=True)
        golden = {
            "ids": ids.astype(np.int32),
            "logits": out.logits[0].numpy(),
            "hidden": torch.stack([state[0, -1] for state in out.hidden_states]).numpy(),
        }
        cache, step, greedy, margin = None, torch.tensor(ids[:5])[None], [], []
        for _ in range(24):
            out = net(input_ids=step, past_key_values=cache, use_cache=True)
            cache, top = out.past_key_values, out.logits[0, -1].topk(2)
            greedy.append(int(top.indices[0]))
            margin.append(float(top.values[0] - top.values[1]))
            step = torch.tensor([[greedy[-1]]])
    golden |= {
        "prompt": golden["ids"][:5],
        "greedy": np.array(greedy, np.int32),
        "margin": np.array(margin, np.float32),
    }
    np.savez_compressed(HERE / "golden.npz", **golden)
    print(f"smallest margin {min(margin):.4f}, largest logit {np.abs(golden['logits']).max():.2f}")


if __name__ == "__main__":
    main()
