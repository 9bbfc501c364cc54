"""Time kernels: microseconds, GB/s and TFLOP/s beside the device's measured floor; JSON out.

    python benchmarks/kernels.py gemv                 # decode shapes, every 4-bit format
    python benchmarks/kernels.py gemv --sweep         # all tunings of one shape
    python benchmarks/kernels.py gemm --torch         # against torch.matmul f16 in the same run
    python benchmarks/kernels.py delta                # a layer of Qwen3-Next: steps and prompts
    python benchmarks/kernels.py --json out.json all

A time is the median of `--repeat` replays of a captured program of many calls over enough different
weights that they come from memory and not from a cache. The floor is the bytes of the weights over the bandwidth that a
streaming read reaches here, in the same run.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from marlin import _C

GEMV_SHAPES = [
    ("8B qkv", 6144, 4096, None),
    ("8B o", 4096, 4096, None),
    ("8B gate_up", 28672, 4096, "swiglu"),
    ("8B down", 4096, 14336, None),
    ("8B head", 128256, 4096, None),
    ("4B qkv", 6144, 2560, None),
    ("4B o", 2560, 4096, None),
    ("4B gate_up", 19456, 2560, "swiglu"),
    ("4B down", 2560, 9728, None),
]
SWEEP = {
    "rows": [1, 2, 4],
    "split": [1, 2, 4],
    "prefetch": [1, 2, 4],
    "local": [128, 256],
    "workgroups": [264, 528, 1056, 65536],
}
WEIGHT_BYTES = 600 << 20  # of different weights behind one timing
L2_BYTES = 128 << 20


def seconds(run: Callable[[], None], repeat: int, warm: float = 0.3) -> float:
    """Median wall seconds of run(), which waits for the device; warmed up by time."""
    until = time.perf_counter() + warm
    while time.perf_counter() < until:
        run()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def capture(device: _C.Device, record: Callable[[], Any]) -> _C.Program:
    with device.capture() as program:
        record()
    return program


def per_call(device: _C.Device, calls: int, record: Callable[[], Any], repeat: int, warm: float = 0.3) -> float:
    """Seconds a call. The captured program is long (5 ms or more), so that one submission of 35 us is lost in it."""
    short = capture(device, record)
    once = seconds(lambda: short.replay(wait=True), 3, warm)
    rounds = max(1, min(2000 // calls, round(6e-3 / once)))

    def long() -> None:
        for _ in range(rounds):
            record()

    program = capture(device, long)
    return seconds(lambda: program.replay(wait=True), repeat, warm) / (calls * rounds)


def repeat_call(call: Callable[[], Any], times: int) -> None:
    """Record one call several times."""
    for _ in range(times):
        call()


def stream_bandwidth(device: _C.Device, repeat: int) -> float:
    """Bytes a second of a streaming read: a GEMV over f16 weights far larger than any cache."""
    n, k = 32768, 8192  # 512 MiB
    lin = random_linear(device, n, k, "f16", None)
    x = _C.full(device, (1, k), 0x3C003C00, "f16")
    return lin.nbytes / per_call(device, 4, lambda: [lin(x) for _ in range(4)], repeat)


def random_linear(device: _C.Device, n: int, k: int, format: str, group: int | None) -> _C.Linear:
    """A layer of random weights, quantized on the device block by block."""
    lin = _C.Linear(device, n, k, format, group=group)
    block = np.random.default_rng(n + k).standard_normal((min(n, 1024), k)).astype(np.float16)
    for start in range(0, n, 1024):
        rows = min(1024, n - start)
        lin.set_rows(block[:rows], "f16", rows, row_start=start)
    return lin


def bench_gemv(args: argparse.Namespace, device: _C.Device, bandwidth: float) -> list[dict[str, Any]]:
    rows = []
    for format in args.formats:
        for name, n, k, activation in GEMV_SHAPES:
            if args.only and args.only not in name:
                continue
            first = random_linear(device, n, k, format, args.group)
            copies = max(1, min(32, WEIGHT_BYTES // first.nbytes))
            layers = [first] + [random_linear(device, n, k, format, args.group) for _ in range(copies - 1)]
            for m in args.m:
                rows += gemv_rows(args, device, bandwidth, layers, (name, n, k, activation), m)
            del layers, first
    return rows


def gemv_rows(
    args: argparse.Namespace,
    device: _C.Device,
    bandwidth: float,
    layers: list[_C.Linear],
    shape: tuple[str, int, int, str | None],
    m: int,
) -> list[dict[str, Any]]:
    name, n, k, activation = shape
    norm = _C.tensor(device, np.ones(k, np.float32)) if args.norm else None
    x = _C.tensor(
        device, np.random.default_rng(1).standard_normal((m, k)).astype(np.float32 if args.norm else np.float16)
    )
    out = _C.empty(device, (m, n // 2 if activation else n), "f16")
    kernels: list[str | None] = [None]
    if args.sweep:
        kernels = [
            f"gemv@{r},{s},{p},{local},{w}"
            for r in args.rows
            for s in args.split
            for p in args.prefetch
            for local in args.local
            for w in args.workgroups
            if s * 32 <= local and not (activation and r == 1)
        ]
    rows = []
    for kernel in kernels:

        def record(kernel: str | None = kernel) -> None:
            for lin in layers:  # out is shared: a barrier stands between any two calls, as in a model
                lin(x, norm=norm, activation=activation, out=out, kernel=kernel)

        t = per_call(device, len(layers), record, args.repeat, 0.02 if args.sweep else 0.3)
        row = {
            "name": name,
            "format": layers[0].format,
            "m": m,
            "n": n,
            "k": k,
            "kernel": kernel,
            "us": t * 1e6,
            "gb_s": layers[0].nbytes / t / 1e9,
            "floor_us": layers[0].nbytes / bandwidth * 1e6,
            "share": layers[0].nbytes / bandwidth / t,
        }
        rows.append(row)
    rows.sort(key=lambda row: row["us"])
    for row in rows[:6] if args.sweep else rows:
        print(
            f"{row['name']:11s} {row['format']:9s} m={m:<3d} {row['kernel'] or '':18s} {row['us']:8.2f} us  "
            f"floor {row['floor_us']:7.2f} us  {row['gb_s']:7.0f} GB/s  {row['share']:5.1%}",
            flush=True,
        )
    return rows


GEMM_SHAPES = [(4096, 4096, 4096), (512, 14336, 4096)]


def bench_gemm(args: argparse.Namespace, device: _C.Device) -> list[dict[str, Any]]:
    rows = []
    reference = torch_gemm(args) if args.torch else {}
    for m, n, k in GEMM_SHAPES:
        x = _C.tensor(device, np.random.default_rng(1).standard_normal((m, k)).astype(np.float16))
        out = _C.empty(device, (m, n), "f16")
        for format in args.formats:
            lin = random_linear(device, n, k, format, args.group)
            for kernel in args.kernels or [None]:
                call = functools.partial(lin, x, out=out, kernel=kernel)
                t = per_call(device, 8, functools.partial(repeat_call, call, 8), args.repeat)
                row = {
                    "m": m,
                    "n": n,
                    "k": k,
                    "format": format,
                    "kernel": kernel,
                    "us": t * 1e6,
                    "tflops": 2e-12 * m * n * k / t,
                    "torch_us": reference.get((m, n, k)),
                }
                rows.append(row)
                ratio = ""
                if row["torch_us"]:
                    ratio = f"  {row['torch_us'] / row['us']:.3f} of torch f16 ({row['torch_us']:.1f} us)"
                name = f"gemm {m}x{n}x{k} {format:9s} {kernel or 'auto':14s}"
                print(f"{name} {row['us']:8.1f} us {row['tflops']:7.1f} TFLOP/s{ratio}", flush=True)
    return rows


def bench_delta(args: argparse.Namespace, device: _C.Device, bandwidth: float) -> list[dict[str, Any]]:
    """gated_delta of Qwen3-Next-80B-A3B: steps of 1 and 8 slots, prompts of 512 and 2048 tokens."""
    rows, layers, slots = [], 36, 8
    state = _C.DeltaState(
        device, layers=layers, slots=slots, key_heads=16, value_heads=32, key_dim=128, value_dim=128, taps=4
    )
    rng = np.random.default_rng(1)
    shapes = ((8192, 4), (32,), (32,), (128,))
    weights = [_C.tensor(device, rng.standard_normal(shape).astype(np.float32) / 2) for shape in shapes]
    state_bytes = state.nbytes / layers / slots
    for count, sequence in ((1, False), (8, False), (512, True), (2048, True)):
        x, ba = (_C.tensor(device, rng.standard_normal((count, columns)).astype(np.float16)) for columns in (12288, 64))
        slot_ids = np.zeros(count, np.int32) if sequence else np.arange(count, dtype=np.int32)
        positions = np.arange(count, dtype=np.int32) if sequence else np.ones(count, np.int32)
        at = [_C.tensor(device, ids) for ids in (positions, slot_ids)]

        def record(x: Any = x, ba: Any = ba, at: Any = at, sequence: bool = sequence) -> None:
            for layer in range(layers):  # more states than a cache holds
                _C.gated_delta(x, ba, *weights, state, layer, *at, sequence=sequence)

        if not sequence:  # a state to go on from
            first = _C.tensor(device, np.zeros(count, np.int32))
            for layer in range(layers):
                _C.gated_delta(x, ba, *weights, state, layer, first, at[1])
        t = per_call(device, layers, record, args.repeat)
        row = {"rows": count, "sequence": sequence, "us": t * 1e6, "us_a_token": t * 1e6 / count}
        # States read and written, one for a prompt; of a prompt x and y besides (f16), which a step hardly has.
        moved = 2 * state_bytes + count * 2 * (12288 + 4096) if sequence else 2 * state_bytes * count
        row["floor_us"] = 1e6 * moved / bandwidth
        rows.append(row)
        floor = f"  floor {row['floor_us']:.1f} us ({'x, y and ' if sequence else ''}state)"
        kind = "prompt" if sequence else "slots "
        print(f"gated_delta {kind} {count:5d} {row['us']:8.1f} us {row['us_a_token']:8.3f} us/row{floor}", flush=True)
    return rows


def torch_gemm(args: argparse.Namespace) -> dict[tuple[int, int, int], float]:
    import torch

    times = {}
    for m, n, k in GEMM_SHAPES:
        a = torch.randn(m, k, dtype=torch.float16, device="cuda")
        b = torch.randn(n, k, dtype=torch.float16, device="cuda")

        def run(a: Any = a, b: Any = b) -> None:
            for _ in range(20):
                torch.matmul(a, b.T)
            torch.cuda.synchronize()

        times[m, n, k] = seconds(run, args.repeat) / 20 * 1e6
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gemv", "gemm", "delta", "all"])
    parser.add_argument("--formats", nargs="+", default=["int4", "fp4_e2m1", "int8", "f16"])
    parser.add_argument("--group", type=int, default=None)
    parser.add_argument("--m", type=int, nargs="+", default=[1])
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    parser.add_argument("--norm", action="store_true", help="fuse an RMS norm of f32 rows")
    parser.add_argument("--sweep", action="store_true", help="try all tunings, print the best six")
    for name, values in SWEEP.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values)
    parser.add_argument("--kernels", nargs="+")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--device", type=int, default=0, help="index of marlin devices")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    raw = _C.Device(args.device)
    report: dict[str, Any] = {"device": raw.name, "driver": raw.driver, "rows": []}
    if args.what != "gemm":
        bandwidth = stream_bandwidth(raw, args.repeat)
        report["bandwidth_gb_s"] = bandwidth / 1e9
        print(f"{raw.name}: streaming read {bandwidth / 1e9:.0f} GB/s", flush=True)
    if args.what in ("gemv", "all"):
        report["rows"] += bench_gemv(args, raw, bandwidth)
    if args.what in ("delta", "all"):
        report["rows"] += bench_delta(args, raw, bandwidth)
    if args.what in ("gemm", "all"):
        report["rows"] += bench_gemm(args, raw)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
