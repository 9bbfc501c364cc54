"""The decisions before a load: format, context and slots that fit the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from marlin.config import ModelConfig, read_config
from marlin.device import Device, find
from marlin.errors import DeviceError, DeviceOutOfMemory, UnsupportedModelError
from marlin.keywords import checked_keywords
from marlin.linear import WeightFormat, parse_format
from marlin.loaders import Checkpoint, open_checkpoint
from marlin.memory import (
    ACTIVATION_BYTES,
    KV_BYTES,
    HostExperts,
    MemoryPlan,
    chunk_rows,
    kv_bytes,
    kv_dtype,
    scratch_bytes,
    state_bytes,
)
from marlin.models import build
from marlin.models.base import CausalLM, Linear, Source
from marlin.placement import bus_rate, move_experts, read_usage
from marlin.trellis import TrellisFormat
from marlin.usage import ExpertUsage

DEFAULT_CONTEXT: Final = 4096
DEFAULT_SLOTS: Final = 8
SMALLEST_CONTEXT: Final = 512
BUDGET_SHARE: Final = 0.95  # of what the driver says is left: pipelines and fragments want some too


def check_choice(name: str, value: str, known: object) -> str:
    """The value, or ValueError naming what is known."""
    if value not in known:  # type: ignore[operator]
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")  # type: ignore[arg-type]
    return value


def read_network(
    checkpoint: Checkpoint, format: str | WeightFormat | None, context: int | None, dtype: str
) -> tuple[ModelConfig, CausalLM]:
    """The config of a checkpoint and its network, every tensor found and checked; nothing is loaded."""
    if not checkpoint.config:
        raise UnsupportedModelError(f"{checkpoint.folder.name}: has no config.json, which says what network it is")
    limit = context if context is not None else DEFAULT_CONTEXT
    config = read_config(checkpoint.config, checkpoint.generation_config, context=limit)
    if context is not None and not 1 <= context <= config.context:
        raise ValueError(f"context must be 1 to {config.context} tokens for this model, got {context}")
    wanted = parse_format(format) if format is not None else None
    return config, build_for(config, checkpoint, wanted, dtype)


def build_for(
    config: ModelConfig, checkpoint: Checkpoint | None, format: WeightFormat | TrellisFormat | None, dtype: str
) -> CausalLM:
    """The network of a config for activations of this type, from a checkpoint or random.

    Raises ValueError for int8 where no matrix takes it.
    """
    network = build(config, Source(checkpoint, format, exact=dtype == "f32", int8=dtype == "int8"))
    if dtype == "int8" and not any(module.int8 for module in network.modules() if isinstance(module, Linear)):
        raise ValueError(
            "dtype int8 rounds what EXL3 trellises of codebook mul1 multiply; as loaded, this model has none: use f16"
        )
    return network


def make_plan(
    network: CausalLM,
    name: str,
    *,
    device: str,
    kind: str | None,
    budget: int | None,
    context: int | None,
    slots: int | None,
    kv: str | None,
    dtype: str,
    usage: ExpertUsage | None = None,
    rate: Callable[[], float] | None = None,
) -> MemoryPlan:
    """The plan of a network; a context or number of slots that is None shrinks until the plan fits.

    Where that is not enough, routed experts move to host memory, the least used first (usage: a profile), with one slot
    and the default context, or less, unless they are given. kind: of the device; rate: measures the bus.
    """
    config, kv = network.config, kv_dtype(kv, dtype)
    linears = [module for module in network.modules() if isinstance(module, Linear)]
    forms = dict.fromkeys(str(module.form) for module in linears)
    notes = tuple(dict.fromkeys(module.note for module in linears if module.note))

    def plan(tokens: int, rows: int, host: HostExperts | None = None) -> MemoryPlan:
        return MemoryPlan(
            name, "; ".join(forms), device, network.sizes(), kv_bytes(config, tokens, rows, kv),
            scratch_bytes(config, tokens, rows, dtype, chunk_rows(kind)), tokens, rows, kv, budget,
            state_bytes(config, rows), notes, host,
        )  # fmt: skip

    tokens = context or min(config.context, DEFAULT_CONTEXT)
    rows = slots or DEFAULT_SLOTS
    while slots is None and rows > 1 and not plan(tokens, rows).fits:
        rows //= 2
    while context is None and tokens > SMALLEST_CONTEXT and not plan(tokens, rows).fits:
        tokens = max(tokens // 2, SMALLEST_CONTEXT)
    smallest = plan(tokens, rows)
    if smallest.fits or config.experts is None:
        return smallest
    for tokens in (context or min(config.context, DEFAULT_CONTEXT), smallest.context):
        whole = plan(tokens, rows)
        assert budget is not None
        host = move_experts(network, whole.total - budget, usage, rate)
        if host is not None:
            return plan(tokens, rows, host)
    return smallest


def budget_of(device: Device, memory_limit: int | None) -> int:
    """Bytes that a model may take on a device."""
    left = int(device.memory()["device_budget"] * BUDGET_SHARE)
    return left if memory_limit is None else min(left, memory_limit)


def refuse(plan: MemoryPlan) -> DeviceOutOfMemory:
    """The exception for a plan that does not fit; it carries the plan."""
    error = DeviceOutOfMemory(
        f"the model needs {plan.total} bytes of device memory, {plan.budget} are left; choose a smaller format, "
        f"context or number of slots\n{plan!r}"
    )
    error.plan = plan  # type: ignore[attr-defined]
    return error


@checked_keywords
def plan(
    source: str | Path,
    *,
    format: str | WeightFormat | None = None,
    device: Device | int | str | None = None,
    dtype: str = "f16",
    context: int | None = None,
    kv: str | None = None,
    slots: int | None = None,
    memory_limit: int | None = None,
    expert_usage: ExpertUsage | str | Path | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> MemoryPlan:
    """What loading a model would take, from its headers only. Works without a device: then no budget is known.

    Arguments are those of Model.load. Where experts would go to host memory, the bus of the device is measured.
    """
    check_choice("dtype", dtype, ACTIVATION_BYTES)
    check_choice("kv", kv_dtype(kv, dtype), KV_BYTES)
    checkpoint = open_checkpoint(source, revision=revision, local_files_only=local_files_only)
    _, network = read_network(checkpoint, format, context, dtype)
    usage = read_usage(expert_usage)
    name, kind, budget, rate = "no device", None, memory_limit, None
    try:
        opened = device if isinstance(device, Device) else Device(find(device).index)
        name, kind, budget, rate = opened.name, opened.kind, budget_of(opened, memory_limit), partial(bus_rate, opened)
    except DeviceError:
        if device is not None:
            raise
    return make_plan(
        network,
        checkpoint.folder.name,
        device=name,
        kind=kind,
        budget=budget,
        context=context,
        slots=slots,
        kv=kv,
        dtype=dtype,
        usage=usage,
        rate=rate,
    )
