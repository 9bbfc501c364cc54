"""Latent attention (MLA) as a part of a network: two low-rank projections, one compressed cache row a token.

    q      = norm(norm(h) Wqa^T) Wqb^T                   heads of [nope | rope]; or one matrix, norm(h) Wq^T
    kv     = norm(h) Wkva^T                              [latent | rope part], the same for all heads
    cache  = norm(latent) | rope(rope part)
    a      = softmax([q_nope Wuk | rope(q_rope)] cache^T * scale) latent Wuv^T
    h      = h + a Wo^T

Wkvb holds Wuk and Wuv of each head and is never multiplied with the cache: Wuk goes to the query, Wuv to the
result. It stays in 16 bits (as stored), for it works on rows that quantization has not seen.
Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; names of weights as in transformers.
"""

from __future__ import annotations

from marlin import _C
from marlin.config import ModelConfig
from marlin.models.base import Linear, Module, Rope, Run, Source, Vector


class LatentAttention(Module):
    """h + attention(norm(h)) over a KVCache with a rank. name: that of the checkpoint ("model.layers.3.self_attn")."""

    def __init__(self, source: Source, name: str, layer: int, config: ModelConfig, rope: Rope) -> None:
        super().__init__(name)
        latent = config.latent
        assert latent is not None
        self.latent, self.layer, self.heads, self.rope = latent, layer, config.heads, rope
        hidden, bias = config.hidden_size, config.qkv_bias

        def linear(leaf: str, rows: int, k: int, *, bias: bool = False, whole: bool = False) -> Linear:
            part = f"{name}.{leaf}"
            return Linear(
                source, part, [(part, rows)], k, bias=bias, kind="attention", as_stored=whole, whole=whole
            )  # fmt: skip

        self.q_a: Linear | None = None
        if latent.q_rank is None:
            self.q = linear("q_proj", config.q_size, hidden)
        else:
            self.q_a = linear("q_a_proj", latent.q_rank, hidden, bias=bias)
            self.q_norm = Vector(source, f"{name}.q_a_layernorm.weight", latent.q_rank)
            self.q = linear("q_b_proj", config.q_size, latent.q_rank)
        self.kv_a = linear("kv_a_proj_with_mqa", latent.row, hidden, bias=bias)
        self.kv_norm = Vector(source, f"{name}.kv_a_layernorm.weight", latent.rank)
        width = config.heads * (latent.nope_dim + latent.v_dim)
        self.kv_b = linear("kv_b_proj", width, latent.rank, whole=True)
        self.o = linear("o_proj", hidden, config.heads * latent.v_dim, bias=config.o_bias)

    @property
    def takes_shares(self) -> bool:
        """Whether h of one row may be Shares, so that nobody waits between the layer before and this one."""
        return (self.q_a or self.q).takes_shares and self.kv_a.takes_shares

    def __call__(self, h: _C.Tensor | _C.Shares, run: Run, norm: Vector, eps: float) -> _C.Tensor:
        """h (rows, hidden) f32 -> h + attention(norm(h)), f32."""
        latent = self.latent
        assert self.kv_norm.weight is not None and self.kv_b.weight is not None and self.rope.freq is not None
        whole = h if isinstance(h, _C.Tensor) else _C.empty(h.device, h.shape)
        total = None if isinstance(h, _C.Tensor) else whole
        q: _C.Tensor | _C.Shares
        if self.q_a is None:
            kv = self.kv_a(h, norm=norm, eps=eps, dtype=run.dtype)
            q = self.q.open(h, norm=norm, eps=eps, dtype=run.dtype, total=total)
        else:
            low = self.q_a(h, norm=norm, eps=eps, dtype=run.dtype, total=total)
            kv = self.kv_a(h, norm=norm, eps=eps, dtype=run.dtype)
            q = self.q.open(low, norm=self.q_norm, eps=latent.norm_eps, dtype=run.dtype)
        a = _C.mla(
            q, kv, self.kv_norm.weight, self.kv_b.weight, run.cache, self.layer, run.positions, run.slots,
            self.rope.freq, heads=self.heads, bound=run.bound, eps=latent.norm_eps, scale=latent.softmax_scale,
            rope_scale=self.rope.scale, interleaved=latent.interleaved, dtype=run.dtype,
            sequence=run.sequence,
        )  # fmt: skip
        return self.o(self.seen(a), residual=whole)

    def describe(self) -> str:
        c = self.latent
        return f"{self.heads} heads of {c.nope_dim} + {c.rope_dim}, values of {c.v_dim}, over rows of {c.row}"
