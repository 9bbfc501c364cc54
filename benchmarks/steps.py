"""Time the parts of a layer with experts or latent attention on their own, with every tuning that can be asked for.

    python benchmarks/steps.py moe --model glm-4.7-flash --rows 1            # a decode step; --sweep for all tunings
    python benchmarks/steps.py moe --model qwen3-30b-a3b --rows 2048 --kernel moe_gemm_coopmat@128,2
    python benchmarks/steps.py mla --depth 2048 --rows 1 2048
    python benchmarks/steps.py attention --model qwen3-30b-a3b --rows 2048

A layer's time is that of a captured program over several layers of different weights, so that they come from memory;
below it the mean time of each kernel by timestamps, which includes the barrier behind it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from kernels import per_call, random_linear

from marlin import _C
from models import CONFIGS

LAYERS = 4
STEP_SWEEP = [  # of gate_up, of down
    ["2,1,2,512,132", "2,1,2,512,264", "2,1,2,512,528", "2,1,2,256,264", "2,1,2,256,528", "2,1,4,256,528",
     "4,1,2,256,264", "2,1,2,1024,132"],
    ["1,1,2,512,264", "1,1,4,512,264", "1,1,8,512,264", "1,1,8,256,264", "1,1,8,1024,264", "1,2,4,512,264",
     "1,4,2,512,264", "2,1,4,512,264"],
]  # fmt: skip
TILE_SWEEP = ["32,1", "32,2", "64,1", "64,2", "128,1", "128,2", "256,1"]


def report(name: str, device: _C.Device, calls: list[Callable[[], Any]], repeat: int) -> None:
    """One line for the mean of the calls and one for each kernel."""

    def record() -> None:
        for call in calls:
            call()

    try:
        us = per_call(device, len(calls), record, repeat) * 1e6
    except ValueError as error:
        print(f"{name}: {error}")
        return
    print(f"{name}: {us:.2f} us")
    device.profile_start()
    record()
    times: dict[str, list[float]] = {}
    for row in device.profile_stop():
        times.setdefault(row["name"], []).append(row["ns"] / 1e3)
    for kernel, each in times.items():
        print(f"    {len(each):4d} x {np.mean(each):9.2f} us  {kernel}", flush=True)


def rows_of(device: _C.Device, rows: int, width: int, dtype: str, seed: int) -> _C.Tensor:
    values = np.random.default_rng(seed).standard_normal((rows, width))
    return _C.tensor(device, values.astype(np.float16 if dtype == "f16" else np.float32))


def bench_moe(args: argparse.Namespace, device: _C.Device) -> None:
    config = CONFIGS[args.model]
    hidden, inner = config["hidden_size"], config.get("moe_intermediate_size", config["intermediate_size"])
    experts = config.get("n_routed_experts") or config.get("num_experts") or config["num_local_experts"]
    shared, top_k = config.get("n_shared_experts", 0), config["num_experts_per_tok"]
    scoring = "sigmoid" if "n_routed_experts" in config else "softmax"
    layers = []
    for _ in range(LAYERS):
        router = random_linear(device, experts, hidden, "f16", None)
        gate_up = random_linear(device, (experts + shared) * 2 * inner, hidden, args.format, None)
        down = random_linear(device, (experts + shared) * hidden, inner, args.format, None)
        layers.append(_C.MoE(router, gate_up, down, experts=experts, top_k=top_k, shared=shared, scoring=scoring))
    norm = _C.tensor(device, np.ones(hidden, np.float32))
    for rows in args.rows:
        xs = [rows_of(device, rows, hidden, "f32", i) for i in range(8 if rows == 1 else 1)]
        kernels: list[str | None] = [None] if args.kernel is None else list(args.kernel)
        if args.sweep and rows == 1:
            kernels += [f"rows@{first}" for first in STEP_SWEEP[0]]
            kernels += [f"rows/{second}" for second in STEP_SWEEP[1]]
        elif args.sweep:
            kernels += [f"moe_gemm_coopmat@{tile}" for tile in TILE_SWEEP]
        for kernel in kernels:
            name = f"moe {args.model} {args.format} rows {rows} {kernel or 'default'}"
            calls = [
                partial(layer, x, norm=norm, residual=x, dtype="f16", kernel=kernel) for x in xs for layer in layers
            ]
            report(name, device, calls, args.repeat)


def bench_mla(args: argparse.Namespace, device: _C.Device) -> None:
    config = CONFIGS["glm-4.7-flash"]
    heads, rank, rope = config["num_attention_heads"], config["kv_lora_rank"], config["qk_rope_head_dim"]
    nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
    freq = _C.tensor(device, (1e6 ** -(np.arange(rope // 2) * 2 / rope)).astype(np.float32))
    norm = _C.tensor(device, np.ones(rank, np.float32))
    weights = [random_linear(device, heads * (nope + v), rank, "f16", None) for _ in range(LAYERS)]
    for rows in args.rows:
        context = args.depth + rows
        cache = _C.KVCache(device, layers=LAYERS, slots=1, context=context, kv_heads=1, dim=rank + rope, rank=rank)
        for layer in range(LAYERS):
            cache.read(layer)[0].write(np.full((1, context, rank + rope), 0.5, np.float16))
        q, kv = rows_of(device, rows, heads * (nope + rope), "f16", 1), rows_of(device, rows, rank + rope, "f16", 2)
        positions = _C.tensor(device, np.arange(args.depth, context, dtype=np.int32))
        slots = _C.tensor(device, np.zeros(rows, np.int32))
        kernels = args.kernel or [None, *(["mla_decode"] if args.sweep and rows > 1 else [])]
        for kernel in kernels:
            calls = [
                partial(_C.mla, q, kv, norm, w, cache, layer, positions, slots, freq, heads=heads, bound=context,
                        sequence=rows > 1, kernel=kernel)
                for layer, w in enumerate(weights)
            ]  # fmt: skip
            report(f"mla rows {rows} behind {args.depth} {kernel or 'default'}", device, calls, args.repeat)


def bench_attention(args: argparse.Namespace, device: _C.Device) -> None:
    config = CONFIGS[args.model]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim", config["hidden_size"] // heads)
    freq = _C.tensor(device, (1e6 ** -(np.arange(dim // 2) * 2 / dim)).astype(np.float32))
    for rows in args.rows:
        context = args.depth + rows
        cache = _C.KVCache(device, layers=LAYERS, slots=1, context=context, kv_heads=kv_heads, dim=dim)
        for layer, part in itertools.product(range(LAYERS), range(2)):
            cache.read(layer)[part].write(np.full((1, context, kv_heads, dim), 0.5, np.float16))
        qkv = rows_of(device, rows, (heads + 2 * kv_heads) * dim, "f16", 1)
        positions = _C.tensor(device, np.arange(args.depth, context, dtype=np.int32))
        slots = _C.tensor(device, np.zeros(rows, np.int32))
        for kernel in args.kernel or [None, *(["attention_prefill"] if args.sweep and rows > 1 else [])]:
            name = f"attention {args.model} rows {rows} behind {args.depth} {kernel or 'default'}"
            calls = [
                partial(_C.attention, qkv, cache, layer, positions, slots, freq, heads=heads, bound=context,
                        sequence=rows > 1, kernel=kernel)
                for layer in range(LAYERS)
            ]  # fmt: skip
            report(name, device, calls, args.repeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["moe", "mla", "attention"])
    parser.add_argument("--model", choices=sorted(CONFIGS), default="glm-4.7-flash")
    parser.add_argument("--format", default="int4")
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--kernel", nargs="+")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    device = _C.Device(0)
    {"moe": bench_moe, "mla": bench_mla, "attention": bench_attention}[args.what](args, device)


if __name__ == "__main__":
    main()
