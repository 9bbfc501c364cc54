"""GLM-4.7-Flash: DeepSeek-V3's network in other sizes (47 layers, 64 experts of which 4 are used, and a shared one).

Source: GLM-4.5, arXiv 2508.06471; the network as in transformers' glm4_moe_lite.
"""

from __future__ import annotations

from marlin.models import deepseek_v3


class Model(deepseek_v3.Model):
    """Glm4MoeLiteForCausalLM."""
