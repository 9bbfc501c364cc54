"""DeepSeek-V3 and R1: latent attention; behind the first layers, experts of which a sigmoid router picks.

    h = embed(ids)
    for each layer:
        h = h + latent attention(norm(h))                       models/mla.py
        h = h + MLP(norm(h)), or mixture of experts(norm(h))    models/llama.py, models/moe.py
    logits = norm(h) Whead^T

The checkpoint's layers for predicting further tokens are not read.
Source: DeepSeek-V3, arXiv 2412.19437; names of weights as in transformers.
"""

from __future__ import annotations

from typing import ClassVar

from marlin import _C
from marlin.config import ModelConfig
from marlin.models import llama, mixtral
from marlin.models.base import Rope, Run, Source
from marlin.models.mla import LatentAttention
from marlin.models.moe import DEEPSEEK, Names


class Layer(mixtral.Layer):
    """A decoder layer with latent attention, and experts where the config has them."""

    experts: ClassVar[str] = "mlp"
    names: ClassVar[Names] = DEEPSEEK

    def build_attention(self, config: ModelConfig, source: Source, index: int, rope: Rope) -> None:
        """The weights of `attend`."""
        self.latent = LatentAttention(source, f"{self.name}.self_attn", index, config, rope)

    @property
    def takes_shares(self) -> bool:
        return self.latent.takes_shares

    def attend(self, h: _C.Tensor | _C.Shares, run: Run) -> _C.Tensor:
        """h + attention(norm(h))."""
        return self.latent(h, run, self.input_norm, self.eps)


class Model(llama.Model):
    """DeepseekV3ForCausalLM."""

    layer: ClassVar[type[llama.Layer]] = Layer

    def __init__(self, config: ModelConfig, source: Source) -> None:
        super().__init__(config, source)
        source.ignore_layers(config.layers, config.extra_layers)
