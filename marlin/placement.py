"""Routed experts in host memory, where a model does not fit the device: which ones, and what reading them costs.

Kernels reach weights by address, so those in host memory are read over the bus by the same ones; experts of both
places are a stack each (docs/moe.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from marlin import _C
from marlin.device import Device
from marlin.memory import HostExperts
from marlin.models.base import CausalLM
from marlin.models.moe import MoE
from marlin.usage import ExpertUsage

RATE_SHAPE: Final = (8192, 4096)  # of the f16 matrix in host memory whose product is timed: 64 MiB
RATE_ROUNDS: Final = 4


def read_usage(usage: ExpertUsage | str | Path | None) -> ExpertUsage | None:
    """A profile, or the file of one (ExpertUsage.load)."""
    return ExpertUsage.load(usage) if isinstance(usage, str | Path) else usage


def bus_rate(device: Device) -> float:
    """Bytes a second at which a kernel reads weights in host memory: the best of a few products with one row."""
    n, k = RATE_SHAPE
    weight = _C.Linear(device.raw, n, k, "f16", memory="host")
    x, y = _C.full(device.raw, (1, k), 0, "f16"), _C.full(device.raw, (1, n), 0, "f16")
    best = np.inf
    for _ in range(RATE_ROUNDS + 1):  # the first one makes the pipeline
        device.sync()
        start = time.perf_counter()
        weight(x, out=y)
        device.sync()
        best = min(best, time.perf_counter() - start)
    return weight.nbytes / best


def move_experts(
    network: CausalLM, short: int, usage: ExpertUsage | None, rate: Callable[[], float] | None
) -> HostExperts | None:
    """Move routed experts of at least `short` bytes to host memory; None, and nothing moved, if there are not so many.

    The least used go first, of equally used ones those of later layers, so that without a profile whole layers go.
    rate measures the bus. Raises ValueError for a profile of other layers or experts.
    """
    mixtures = [module for module in network.modules() if isinstance(module, MoE)]
    if not mixtures:
        return None
    shares = _shares(mixtures, network, usage)
    sizes = [mixture.expert_bytes() for mixture in mixtures]
    order = sorted(
        (shares[layer, expert], -layer, -expert) for layer in range(len(mixtures)) for expert in range(shares.shape[1])
    )
    moved: list[set[int]] = [set() for _ in mixtures]
    total, a_token = 0, 0.0
    for share, layer, expert in order:
        if total >= short:
            break
        moved[-layer].add(-expert)
        total += sizes[-layer][-expert]
        a_token += share * mixtures[-layer].config.top_k * sizes[-layer][-expert]
    if total < short:
        return None
    for mixture, experts in zip(mixtures, moved, strict=True):
        mixture.place(experts)
    return HostExperts(
        sum(map(len, moved)), shares.size, total, int(a_token), usage is not None, rate() if rate else None
    )


def _shares(mixtures: list[MoE], network: CausalLM, usage: ExpertUsage | None) -> NDArray[np.float64]:
    """(layers, experts): the share of a layer's choices that falls on each."""
    experts = network.config.experts
    assert experts is not None
    layers = [index for index, sparse in enumerate(experts.sparse) if sparse]
    shape = (len(mixtures), experts.count)
    if usage is None:
        return np.full(shape, 1 / experts.count)
    if usage.layers != layers or usage.counts.shape != shape:
        raise ValueError(
            f"expert_usage is of {usage.counts.shape[1]} experts in layers {usage.layers}, the model has "
            f"{experts.count} in layers {layers}"
        )
    return usage.shares
