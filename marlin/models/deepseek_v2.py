"""DeepSeek-V2: V3's network with a softmax router; the Lite model has a query of one matrix.

Source: DeepSeek-V2, arXiv 2405.04434.
"""

from __future__ import annotations

from marlin.models import deepseek_v3


class Model(deepseek_v3.Model):
    """DeepseekV2ForCausalLM."""
