"""Qwen2 and Qwen2.5: Llama's network with biases on q, k and v (config.qkv_bias).

Source: Yang et al. 2024, arXiv 2407.10671.
"""

from __future__ import annotations

from marlin.models import llama


class Model(llama.Model):
    """Qwen2ForCausalLM."""
