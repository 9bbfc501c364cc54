"""Qwen3-MoE: Qwen3's attention, and a mixture of experts in place of the MLP of most layers.

Source: Yang et al. 2025, arXiv 2505.09388.
"""

from __future__ import annotations

from typing import ClassVar

from marlin.models import llama, mixtral
from marlin.models.moe import QWEN, Names


class Layer(mixtral.Layer):
    """A decoder layer with head norms and experts."""

    head_norms: ClassVar[bool] = True
    experts: ClassVar[str] = "mlp"
    names: ClassVar[Names] = QWEN


class Model(llama.Model):
    """Qwen3MoeForCausalLM."""

    layer: ClassVar[type[llama.Layer]] = Layer
