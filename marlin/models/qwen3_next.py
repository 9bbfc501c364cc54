"""Qwen3-Next: three of four layers are gated delta nets, the others attend with an output gate; experts in all.

    h = embed(ids)
    for each layer:
        h = h + delta net(norm(h))                              models/delta.py
            or, in every fourth,
        q, gate, k, v = norm(h) [Wq; Wk; Wv]^T                  each head of q is followed by its gate
        h = h + (attention(rope(norm(q)), rope(norm(k)), v) * sigmoid(gate)) Wo^T
        h = h + mixture of experts(norm(h))                     the shared expert times the sigmoid of a gate
    logits = norm(h) Whead^T

Norms but that of the delta nets are stored around zero: x / rms(x) * (1 + weight). Only a part of each head rotates.
The checkpoint's layer for predicting further tokens ("mtp.") is not read.
Source: Qwen3-Next, Qwen team 2025; names of weights as in transformers.
"""

from __future__ import annotations

from typing import ClassVar

from marlin import _C
from marlin.config import ModelConfig
from marlin.models import llama, mixtral
from marlin.models.base import Attention, Linear, Rope, Run, Source, Vector
from marlin.models.delta import GatedDeltaNet
from marlin.models.moe import QWEN, Names


class Layer(mixtral.Layer):
    """A decoder layer: a delta net or gated attention, then experts."""

    experts: ClassVar[str] = "mlp"
    names: ClassVar[Names] = QWEN

    def __init__(self, config: ModelConfig, source: Source, index: int, rope: Rope) -> None:
        super().__init__(config, source, index, rope)
        around_zero(self.input_norm, self.mlp_norm)

    def build_attention(self, config: ModelConfig, source: Source, index: int, rope: Rope) -> None:
        """The weights of `attend`."""
        assert config.delta is not None
        before = sum(config.delta.linear[:index])
        self.delta: GatedDeltaNet | None = None
        if config.delta.linear[index]:
            self.delta = GatedDeltaNet(source, f"{self.name}.linear_attn", before, config)
            return
        name, hidden = f"{self.name}.self_attn", config.hidden_size
        parts = [
            (f"{name}.q_proj", 2 * config.q_size),
            (f"{name}.k_proj", config.kv_size),
            (f"{name}.v_proj", config.kv_size),
        ]
        self.qkv = Linear(source, f"{self.name}.qkv", parts, hidden, bias=config.qkv_bias, kind="attention")
        self.attention = Attention(source, name, index - before, config, rope, norms=True, gated=True)
        around_zero(self.attention.q_norm, self.attention.k_norm)
        self.o = Linear(
            source, f"{self.name}.o", [(f"{name}.o_proj", hidden)], config.q_size, bias=config.o_bias, kind="attention"
        )

    def attend(self, h: _C.Tensor | _C.Shares, run: Run) -> _C.Tensor:
        """h + delta net(norm(h)), or h + attention(norm(h))."""
        if self.delta is not None:
            assert isinstance(h, _C.Tensor)
            return self.delta(h, run, self.input_norm, self.eps)
        return super().attend(h, run)


class Model(llama.Model):
    """Qwen3NextForCausalLM."""

    layer: ClassVar[type[llama.Layer]] = Layer

    def __init__(self, config: ModelConfig, source: Source) -> None:
        super().__init__(config, source)
        around_zero(self.norm)
        source.ignore_all("mtp.")


def around_zero(*norms: Vector | None) -> None:
    """Add 1 to these norms when they are loaded."""
    for norm in norms:
        if norm is not None:
            norm.plus = 1.0
