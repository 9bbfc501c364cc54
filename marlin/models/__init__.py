"""Models: one file a Hugging Face model_type, found by its name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from marlin.config import ModelConfig, model_types
from marlin.errors import UnsupportedModelError

if TYPE_CHECKING:
    from marlin.models.base import CausalLM, Source


def build(config: ModelConfig, source: Source) -> CausalLM:
    """The network of a config, its weights found in `source` and checked, none loaded.

    Raises UnsupportedModelError for a model_type without a file here, ModelFormatError for missing tensors.
    """
    if config.model_type not in model_types():
        raise UnsupportedModelError(
            f"model_type {config.model_type!r} is not supported; known are {', '.join(model_types())}"
        )
    module = importlib.import_module(f"{__name__}.{config.model_type}")
    network: CausalLM = module.Model(config, source)
    source.finish()
    return network
