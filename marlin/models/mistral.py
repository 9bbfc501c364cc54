"""Mistral: Llama's network; config.py refuses sliding windows that a context would feel.

Source: Jiang et al. 2023, arXiv 2310.06825.
"""

from __future__ import annotations

from marlin.models import llama


class Model(llama.Model):
    """MistralForCausalLM."""
