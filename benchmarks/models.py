"""Decode and prefill speed of whole models with random weights of real shapes; JSON out.

    python benchmarks/models.py                      # all shapes of CONFIGS, int4 and fp4
    python benchmarks/models.py --model 8b --format int4 --profile
    python benchmarks/models.py --model glm-4.7-flash --format int4 --depth 2048 --prompt 2048

Beside each decode rate stands its floor: the bytes that a token must read (weights, scales and cache) over the
bandwidth of a streaming read in the same run; and the dispatches and barriers of the captured step. --profile adds the
time by kernel of a decode step and of each prefill.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from kernels import stream_bandwidth

import marlin as ml
from marlin import bench
from marlin.memory import state_bytes

CONFIGS: dict[str, dict[str, Any]] = {
    "8b": {  # Llama-3.1-8B
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 14336,
        "vocab_size": 128256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 131072,
        "tie_word_embeddings": False, "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
    },
    "4b": {  # Qwen3-4B
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 2560, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9728,
        "vocab_size": 151936, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 40960,
        "tie_word_embeddings": True, "rope_theta": 1000000.0, "rope_scaling": None,
    },
    "glm-4.7-flash": {  # 30B, of which 3.6B work on a token; kv_b, routers and embedding stay f16
        "model_type": "glm4_moe_lite", "architectures": ["Glm4MoeLiteForCausalLM"], "hidden_size": 2048,
        "num_hidden_layers": 47, "num_attention_heads": 20, "num_key_value_heads": 20, "intermediate_size": 10240,
        "moe_intermediate_size": 1536, "n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 4,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.8,
        "first_k_dense_replace": 1, "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64, "v_head_dim": 256, "vocab_size": 154880, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "max_position_embeddings": 202752, "tie_word_embeddings": False, "rope_theta": 1000000.0,
        "rope_scaling": None, "attention_bias": False,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 151936,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 40960, "tie_word_embeddings": False,
        "rope_theta": 1000000.0, "rope_scaling": None,
    },
    "qwen3-next-80b-a3b": {
        "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "hidden_size": 2048,
        "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
        "intermediate_size": 5120, "moe_intermediate_size": 512, "num_experts": 512, "num_experts_per_tok": 10,
        "shared_expert_intermediate_size": 512, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128,
        "partial_rotary_factor": 0.25, "vocab_size": 151936, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "max_position_embeddings": 262144, "tie_word_embeddings": False, "rope_theta": 10000000.0,
        "rope_scaling": None,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
        "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "max_position_embeddings": 32768, "sliding_window": None,
        "tie_word_embeddings": False, "rope_theta": 1000000.0, "rope_scaling": None,
    },
}  # fmt: skip


def token_bytes(model: ml.Model, positions: float) -> tuple[float, float]:
    """Bytes of weights, and of cache and state, that a token moves behind so many positions: of experts only the
    chosen ones are read, a state is read and written."""
    config, weights = model.config, dict(model.memory.weights)
    if not config.tie_embeddings:
        weights.pop("embedding")
    if config.experts is not None:
        weights["experts"] = round(weights["experts"] * config.experts.share)
    cache = 2 * config.cache_layers * config.cache_row * positions
    return sum(weights.values()), cache + 2 * state_bytes(config, 1)


def measure(args: argparse.Namespace, name: str, format: str) -> dict[str, Any]:
    config = CONFIGS[name]
    model = ml.Model.random(config, format=format, context=args.context, slots=1, dtype=args.dtype)
    engine = model._open_engine()
    bandwidth = stream_bandwidth(engine.device, 10)
    bench.warm_up(lambda: bench.decode_time(engine, args.tokens, args.depth))
    times = [bench.decode_time(engine, args.tokens, args.depth) for _ in range(args.repeat)]
    seconds = statistics.median(times) / args.tokens
    stats = engine._programs[1][-1][1].stats
    weights, cache = token_bytes(model, args.depth + args.tokens / 2)
    row = {
        "model": name, "format": format, "dtype": args.dtype, "depth": args.depth,
        "tok_s": 1 / seconds, "us": seconds * 1e6,
        "floor_us": (weights + cache) / bandwidth * 1e6, "weight_gb": weights / 1e9, "bandwidth_gb_s": bandwidth / 1e9,
        "dispatches": stats["dispatches"], "barriers": stats["barriers"],
    }  # fmt: skip
    print(
        f"{name} {format} {args.dtype} tg{args.tokens} @ d{args.depth}: {row['tok_s']:.1f} tok/s  "
        f"{row['us']:.0f} us a token, floor {row['floor_us']:.0f} us ({row['floor_us'] / row['us']:.1%}; "
        f"{row['weight_gb']:.2f} GB at {row['bandwidth_gb_s']:.0f} GB/s), "
        f"{row['dispatches']} dispatches, {row['barriers']} barriers",
        flush=True,
    )
    for count in args.prompt:
        row[f"pp{count}"] = prefill_rate(engine, count, args.repeat)
        print(f"{name} {format} {args.dtype} pp{count}: {row[f'pp{count}']:.0f} tok/s", flush=True)
    if args.profile:
        row["profile"] = {f"tg @ d{args.depth}": bench.profile(engine, depth=args.depth)}
        row["profile"] |= {f"pp{count}": bench.profile_prefill(engine, count) for count in args.prompt}
        for title, entries in row["profile"].items():
            print_profile(f"{name} {format} {title}", entries)
    model.close()
    return row


def prefill_rate(engine: Any, count: int, repeat: int) -> float:
    """Tokens a second."""
    bench.warm_up(lambda: bench.prefill_time(engine, count))
    return count / statistics.median(bench.prefill_time(engine, count) for _ in range(repeat))


def print_profile(title: str, entries: list[dict[str, Any]]) -> None:
    total = sum(entry["us"] for entry in entries)
    print(f"{title} by kernel: {total:.0f} us")
    for entry in entries:
        print(
            f"  {entry['calls']:5d} x {entry['us'] / entry['calls']:9.2f} us  {entry['us'] / total:6.1%}  "
            f"{entry['gb_per_s']:7.0f} GB/s  {entry['tflop_per_s']:7.2f} TFLOP/s  {entry['name']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted(CONFIGS), default=sorted(CONFIGS, reverse=True))
    parser.add_argument("--format", nargs="+", default=["int4", "fp4_e2m1"])
    parser.add_argument("--dtype", default="f16", help="of activations: f16, bf16, f32; int8 for exl3")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--prompt", type=int, nargs="*", default=[512])
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [measure(args, name, format) for name in args.model for format in args.format]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
