"""Marlin: quantized language models on any Vulkan GPU.

    import marlin as ml

    model = ml.Model.load("path-or-hub-name", format="int4")
    print(model.generate("Once upon a time"))

Importing touches no device and is quick: what is heavy is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from marlin.bench import BenchResult
    from marlin.config import ModelConfig
    from marlin.device import Device, devices
    from marlin.errors import (
        CancelledError,
        DeviceError,
        DeviceLostError,
        DeviceOutOfMemory,
        MarlinError,
        ModelFormatError,
        QueueFull,
        UnsupportedModelError,
    )
    from marlin.generate import Chunk, Generation
    from marlin.linear import Linear, WeightFormat
    from marlin.memory import MemoryPlan
    from marlin.model import Model, Session
    from marlin.moe import MoE
    from marlin.planning import plan
    from marlin.sampling import SamplingParams
    from marlin.tensors import Tensor, tensor
    from marlin.tokenizer import Tokenizer
    from marlin.trellis import TrellisLinear
    from marlin.usage import ExpertUsage

__version__ = "0.1.0"

# Name -> the module that has it.
_HOMES: Final = {
    "BenchResult": "bench",
    "CancelledError": "errors",
    "Chunk": "generate",
    "Device": "device",
    "DeviceError": "errors",
    "DeviceLostError": "errors",
    "DeviceOutOfMemory": "errors",
    "ExpertUsage": "usage",
    "Generation": "generate",
    "Linear": "linear",
    "MarlinError": "errors",
    "MemoryPlan": "memory",
    "MoE": "moe",
    "Model": "model",
    "ModelConfig": "config",
    "ModelFormatError": "errors",
    "QueueFull": "errors",
    "SamplingParams": "sampling",
    "Session": "model",
    "Tensor": "tensors",
    "Tokenizer": "tokenizer",
    "TrellisLinear": "trellis",
    "UnsupportedModelError": "errors",
    "WeightFormat": "linear",
    "devices": "device",
    "plan": "planning",
    "tensor": "tensors",
}

__all__ = [
    "BenchResult",
    "CancelledError",
    "Chunk",
    "Device",
    "DeviceError",
    "DeviceLostError",
    "DeviceOutOfMemory",
    "ExpertUsage",
    "Generation",
    "Linear",
    "MarlinError",
    "MemoryPlan",
    "MoE",
    "Model",
    "ModelConfig",
    "ModelFormatError",
    "QueueFull",
    "SamplingParams",
    "Session",
    "Tensor",
    "Tokenizer",
    "TrellisLinear",
    "UnsupportedModelError",
    "WeightFormat",
    "devices",
    "plan",
    "tensor",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'marlin' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"marlin.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
