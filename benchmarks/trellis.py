"""Time TrellisLinear: us, GB/s, 10^12 weights/s, beside the floor, dequantize-then-matmul and torch; JSON out.

    python benchmarks/trellis.py                              # all shapes, K 2 3 4 6, M 1 8 32 128 1024
    python benchmarks/trellis.py --shapes 4096x14336 --bits 4 --m 1 --activations f16 int8
    python benchmarks/trellis.py --shapes 2048x1536 --bits 4 --m 1 --sweep     # all tunings, the best six
    python benchmarks/trellis.py --torch --json out.json
    python benchmarks/trellis.py --rate               # decoding alone, each codebook, each way to multiply

Shapes are k x n. Times are those of benchmarks/kernels.py: a long captured program over enough different weights that
they come from memory. The floor is the bytes of the trellis over the bandwidth of a streaming read. `dequantized` is
the same product in our engine by decoding the matrix to f16 and multiplying with that, and `speedup` the ratio.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from kernels import WEIGHT_BYTES, per_call, random_linear, seconds, stream_bandwidth

from marlin import _C
from marlin.models.base import random_trellis
from marlin.trellis import TrellisFormat

SHAPES = ["2048x1536", "4096x14336", "2048x154880"]


def sweep(m: int) -> list[str]:
    """Every tuning of the kernels that take m rows."""
    found: list[str] = []
    if m <= 16:
        splits, groups = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8)
        found += [f"trellis_gemv@{s},{g},{p}" for s in splits for g in groups for p in (1, 2)]
    if 1 < m <= 64:
        found += [f"trellis_gemv_coopmat@{s},{g}" for s in (1, 2, 4, 8, 16) for g in (1, 2)]
    return (
        found
        if m <= 16
        else found + [f"trellis_gemm_coopmat@{s},{rows}" for s in (1, 2, 4, 8, 16) for rows in (16, 32, 64, 128)]
    )


def dequantized_time(args: argparse.Namespace, trellis: _C.TrellisLinear, dense: _C.Linear, x: _C.Tensor) -> float:
    """Seconds of decoding the matrix to f16 and then multiplying with an f16 matrix of its size."""
    device = trellis.device

    def record() -> None:
        trellis.inner()
        dense(x)

    return per_call(device, 1, record, args.repeat)


def torch_time(args: argparse.Namespace, m: int, k: int, n: int) -> float:
    import torch

    x = torch.randn(m, k, dtype=torch.float16, device="cuda")
    layers = [torch.randn(k, n, dtype=torch.float16, device="cuda") for _ in range(max(1, WEIGHT_BYTES // (2 * k * n)))]

    def run() -> None:
        for _ in range(20):
            for w in layers:
                torch.matmul(x, w)
        torch.cuda.synchronize()

    return seconds(run, args.repeat) / (20 * len(layers))


def bench(args: argparse.Namespace, device: _C.Device, bandwidth: float, shape: str) -> list[dict[str, Any]]:
    k, n = map(int, shape.split("x"))
    rows = []
    dense = random_linear(device, n, k, "f16", None)
    for bits in args.bits:
        form = TrellisFormat(bits, args.codebook)
        first = random_trellis(device, n, k, form)
        copies = max(1, min(64, WEIGHT_BYTES // first.nbytes))
        layers = [first] + [random_trellis(device, n, k, form) for _ in range(copies - 1)]
        for m in args.m:
            x = _C.tensor(device, np.random.default_rng(1).standard_normal((m, k)).astype(np.float16))
            slow = dequantized_time(args, first, dense, x)
            reference = torch_time(args, m, k, n) if args.torch else None
            for activations in args.activations if m <= 16 else ["f16"]:
                found = [
                    timed(args, layers, x, activations, kernel, bandwidth, slow, reference)
                    for kernel in (sweep(m) if args.sweep else args.kernels or [None])
                ]
                found.sort(key=lambda row: row["us"])
                for row in found[:6]:
                    show(row)
                rows += found
    return rows


def timed(
    args: argparse.Namespace,
    layers: list[_C.TrellisLinear],
    x: _C.Tensor,
    activations: str,
    kernel: str | None,
    bandwidth: float,
    slow: float,
    reference: float | None,
) -> dict[str, Any]:
    first, m = layers[0], x.shape[0]
    out = _C.empty(first.device, (m, first.n), "f16")

    def record() -> None:
        for layer in layers:  # out is shared: a barrier stands between any two calls, as in a model
            layer(x, out=out, activations=activations, kernel=kernel)

    t = per_call(first.device, len(layers), record, args.repeat, 0.02 if args.sweep else 0.3)
    return {
        "k": first.k,
        "n": first.n,
        "bits": first.bits,
        "codebook": first.codebook,
        "m": m,
        "activations": activations,
        "kernel": kernel,
        "us": t * 1e6,
        "floor_us": first.nbytes / bandwidth * 1e6,
        "gb_s": first.nbytes / t / 1e9,
        "tw_s": first.k * first.n / t / 1e12,
        "tflops": 2e-12 * m * first.k * first.n / t,
        "dequantized_us": slow * 1e6,
        "speedup": slow / t,
        "torch_us": None if reference is None else reference * 1e6,
    }


def show(row: dict[str, Any]) -> None:
    torch = (
        "" if row["torch_us"] is None else f"  torch f16 {row['torch_us']:.1f} us ({row['torch_us'] / row['us']:.2f})"
    )
    print(
        f"{row['k']}x{row['n']} {row['bits']:g} bits {row['codebook']} {row['activations']:4s} m={row['m']:<4d} "
        f"{row['kernel'] or '':26s} {row['us']:8.2f} us  floor {row['floor_us']:7.2f}  {row['gb_s']:5.0f} GB/s  "
        f"{row['tw_s']:6.2f} Tw/s  {row['speedup']:6.1f} x dequantize ({row['dequantized_us']:.1f} us){torch}",
        flush=True,
    )


RATE_LANES = 132 * 8 * 128  # fills an H200
RATE_ROUNDS = 512


def bench_rate(args: argparse.Namespace, device: _C.Device) -> list[dict[str, Any]]:
    """10^12 weights a second that are decoded from registers, each way a kernel could multiply with them."""
    out, rows = _C.empty(device, (RATE_LANES,), "f32"), []
    for bits in args.bits:
        for codebook in ("mul1",) if bits % 1 else ("3inst", "mcg", "mul1"):
            row: dict[str, Any] = {"bits": bits, "codebook": codebook}
            for way in ("states", "f32", "pairs", "int8" if codebook == "mul1" else "apart"):
                record = partial(_C.trellis_rate, out, bits, codebook, way, RATE_ROUNDS)
                row[way] = 32e-12 * RATE_LANES * RATE_ROUNDS / per_call(device, 1, record, args.repeat)
            rows.append(row)
            cells = "  ".join(f"{name} {value:5.2f}" for name, value in row.items() if isinstance(value, float))
            print(f"{bits:g} bits {codebook:5s}  Tw/s from registers: {cells}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="KxN")
    parser.add_argument("--bits", type=float, nargs="+", default=[2, 3, 4, 6])
    parser.add_argument("--codebook", default="mul1", choices=["3inst", "mcg", "mul1"])
    parser.add_argument("--m", type=int, nargs="+", default=[1, 8, 32, 128, 1024])
    parser.add_argument("--activations", nargs="+", default=["f16"], choices=["f16", "int8"])
    parser.add_argument("--kernels", nargs="+")
    parser.add_argument("--sweep", action="store_true", help="try all tunings, print the best six")
    parser.add_argument("--rate", action="store_true", help="only how fast weights are decoded from registers")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--device", type=int, default=0, help="index of marlin devices")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = _C.Device(args.device)
    if args.rate:
        rates = bench_rate(args, device)
        if args.json:
            args.json.write_text(json.dumps({"device": device.name, "driver": device.driver, "rates": rates}, indent=1))
        return
    bandwidth = stream_bandwidth(device, args.repeat)
    print(f"{device.name}: streaming read {bandwidth / 1e9:.0f} GB/s", flush=True)
    report: dict[str, Any] = {"device": device.name, "driver": device.driver, "bandwidth_gb_s": bandwidth / 1e9}
    report["rows"] = [row for shape in args.shapes for row in bench(args, device, bandwidth, shape)]
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
