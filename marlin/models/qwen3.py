"""Qwen3: Llama's network with an RMS norm on each head of q and k before the rotation.

Source: Yang et al. 2025, arXiv 2505.09388.
"""

from __future__ import annotations

from typing import ClassVar

from marlin.models import llama


class Layer(llama.Layer):
    """A decoder layer with head norms."""

    head_norms: ClassVar[bool] = True


class Model(llama.Model):
    """Qwen3ForCausalLM."""

    layer: ClassVar[type[llama.Layer]] = Layer
