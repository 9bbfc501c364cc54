"""Llama 2 and 3, and the pattern that Mistral and Qwen follow.

    h = embed(ids)                                              residual stream, f32
    for each layer:
        qkv = norm(h) [Wq; Wk; Wv]^T                            one matrix; the norm is fused into it
        a   = attention(rope(q), rope(k), v)                    writes the cache
        h   = h + a Wo^T
        m   = silu(norm(h) Wgate^T) * (norm(h) Wup^T)           models/mlp.py
        h   = h + m Wdown^T
    logits = norm(h) Whead^T

Source: Touvron et al. 2023, arXiv 2302.13971 and 2307.09288; names of weights as in transformers.
"""

from __future__ import annotations

from typing import ClassVar

from marlin import _C
from marlin.config import ModelConfig
from marlin.models.base import GATED, Attention, CausalLM, Linear, Module, Rope, Run, Source, Vector
from marlin.models.mlp import MLP


class Layer(Module):
    """One decoder layer: attention, then a gated MLP, each behind an RMS norm and added to the stream."""

    head_norms: ClassVar[bool] = False  # RMS norm of each head of q and k

    def __init__(self, config: ModelConfig, source: Source, index: int, rope: Rope) -> None:
        name = f"model.layers.{index}"
        super().__init__(name)
        hidden = config.hidden_size
        self.eps = config.norm_eps
        self.input_norm = Vector(source, f"{name}.input_layernorm.weight", hidden)
        self.build_attention(config, source, index, rope)
        self.mlp_norm = Vector(source, f"{name}.post_attention_layernorm.weight", hidden)
        self.build_mlp(config, source, index)

    def build_attention(self, config: ModelConfig, source: Source, index: int, rope: Rope) -> None:
        """The weights of `attend`."""
        name, hidden = self.name, config.hidden_size
        attention = f"{name}.self_attn"
        self.qkv = Linear(
            source,
            f"{name}.qkv",
            [
                (f"{attention}.q_proj", config.q_size),
                (f"{attention}.k_proj", config.kv_size),
                (f"{attention}.v_proj", config.kv_size),
            ],
            hidden,
            bias=config.qkv_bias,
            kind="attention",
        )
        self.attention = Attention(source, attention, index, config, rope, norms=self.head_norms)
        self.o = Linear(
            source,
            f"{name}.o",
            [(f"{attention}.o_proj", hidden)],
            config.q_size,
            bias=config.o_bias,
            kind="attention",
        )

    def build_mlp(self, config: ModelConfig, source: Source, index: int) -> None:
        """The weights of `mlp`."""
        self.dense = MLP(
            source, f"{self.name}.mlp", config.hidden_size, config.intermediate_size, GATED[config.activation],
            kind="mlp", bias=config.mlp_bias,
        )  # fmt: skip

    @property
    def takes_shares(self) -> bool:
        """Whether h may come in Shares."""
        return False

    def __call__(self, h: _C.Tensor | _C.Shares, run: Run, shares: bool = False) -> _C.Tensor | _C.Shares:
        """h (rows, hidden) f32 -> the same after this layer. shares: may be Shares, for the next layer takes them."""
        y = self.mlp(self.attend(h, run), run, shares and self.watch is None)
        return self.seen(y) if isinstance(y, _C.Tensor) else y

    def attend(self, h: _C.Tensor | _C.Shares, run: Run) -> _C.Tensor:
        """h + attention(norm(h))."""
        assert isinstance(h, _C.Tensor)
        qkv = self.qkv(h, norm=self.input_norm, eps=self.eps, dtype=run.dtype)
        return self.o(self.attention(qkv, run), residual=h)

    def mlp(self, h: _C.Tensor, run: Run, shares: bool = False) -> _C.Tensor | _C.Shares:
        """h + MLP(norm(h)). shares: see __call__."""
        return self.dense(h, norm=self.mlp_norm, eps=self.eps, residual=h, dtype=run.dtype, shares=shares)


class Model(CausalLM):
    """LlamaForCausalLM."""

    layer: ClassVar[type[Layer]] = Layer

    def __init__(self, config: ModelConfig, source: Source) -> None:
        super().__init__("")
        self.config = config
        vocab, hidden = config.vocab_size, config.hidden_size
        tied = config.tie_embeddings
        self.rope = Rope(config)
        # Looked up, not multiplied: rounding it would save memory but no time, so only a head's is rounded, and that
        # not to a trellis, which has no rows.
        self.embed = Linear(
            source,
            "model.embed_tokens",
            [("model.embed_tokens", vocab)],
            hidden,
            as_stored=not tied,
            whole=True,
            kind="embedding",
        )
        self.layers = [self.layer(config, source, index, self.rope) for index in range(config.layers)]
        self.norm = Vector(source, "model.norm.weight", hidden)
        if tied:
            source.ignore("lm_head.weight")
            self.lm_head = self.embed
        else:
            self.lm_head = Linear(source, "lm_head", [("lm_head", vocab)], hidden, kind="head")

    def __call__(self, ids: _C.Tensor, run: Run) -> _C.Tensor:
        """ids (rows) i32 -> hidden (rows, hidden) f32, before the final norm."""
        h: _C.Tensor | _C.Shares = self.embed.embed(ids)
        for layer, following in zip(self.layers, [*self.layers[1:], None], strict=True):
            h = layer(h, run, shares=following is not None and following.takes_shares)
        assert isinstance(h, _C.Tensor)
        return h
