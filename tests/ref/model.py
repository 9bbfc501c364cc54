"""Decoders (Llama, Mistral, Qwen2, Qwen3; Mixtral, Qwen3-MoE, DeepSeek and GLM with experts, these two
with latent attention) in NumPy: the whole forward pass in plain formulas.

Nothing here is fast and nothing is shared with the engine: weights come in as a dict of float
arrays, so a test decides what rounding they have had. Source: the papers of Llama (arXiv
2302.13971), Qwen3 (arXiv 2505.09388) and DeepSeek-V3 (arXiv 2412.19437), and transformers'
modeling files for names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .moe import route

Array = NDArray[Any]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x: Array, positions: Array, frequencies: Array, scale: float = 1.0, *, interleaved: bool = False) -> Array:
    """Rope on (tokens, heads, dim); only the first 2 * len(frequencies) dimensions turn.

    Pairs are half-split; interleaved ones come out half-split too, as in transformers: q and k agree.
    """
    half = len(frequencies)
    angle = positions[:, None, None] * frequencies
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    if interleaved:
        x = np.concatenate([x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2], x[..., 2 * half :]], axis=-1)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x.dtype)


def attention(q: Array, k: Array, v: Array, scale: float | None = None) -> Array:
    """Causal attention of (tokens, heads, dim) over (length, kv_heads, dim); the queries are the
    last tokens. Values may have another dim; scale is 1 / sqrt(dim) unless given."""
    tokens, heads, dim = q.shape
    length, kv_heads, _ = k.shape
    k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * np.asarray(dim**-0.5 if scale is None else scale, q.dtype)
    future = np.arange(length) > np.arange(length - tokens, length)[:, None]
    scores = np.where(future, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU (arXiv 1606.08415)."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"silu": silu, "gelu_tanh": gelu_tanh}


GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")


class Model:
    """config: a marlin.config.ModelConfig; weights: checkpoint names to arrays, (out, in)
    matrices."""

    def __init__(
        self,
        config: Any,
        weights: Mapping[str, Array],
        frequencies: Array,
        *,
        rope_scale: float = 1.0,
        dtype: Any = np.float32,
    ) -> None:
        self.config, self.dtype = config, dtype
        self.weights = {name: np.asarray(array, dtype) for name, array in weights.items()}
        self.frequencies, self.rope_scale = frequencies, rope_scale
        self.reset()

    def reset(self) -> None:
        """Forget the tokens seen."""
        c = self.config
        widths = (c.latent.q_dim, c.latent.v_dim) if c.latent else (c.head_dim, c.head_dim)
        k, v = (np.zeros((0, c.kv_heads, width), self.dtype) for width in widths)
        self.cache: list[tuple[Array, Array]] = [(k, v) for _ in range(c.layers)]
        self.seen = 0

    def linear(self, x: Array, module: str) -> Array:
        """x W^T + bias, the bias if the checkpoint has one."""
        y = x @ self.weights[module + ".weight"].T
        return y + self.weights[module + ".bias"] if module + ".bias" in self.weights else y

    def norm(self, x: Array, module: str, eps: float | None = None) -> Array:
        """RMSNorm with the weight of that module."""
        return rms_norm(x, self.weights[module + ".weight"], self.config.norm_eps if eps is None else eps)

    def forward(self, ids: Sequence[int], *, hidden: list[Array] | None = None) -> Array:
        """Logits (tokens, vocab) of the next tokens of a text; appends to the cache.

        hidden: gets the residual stream before each layer and, last, after the final norm.
        """
        c = self.config
        positions = np.arange(self.seen, self.seen + len(ids), dtype=np.float64)
        self.seen += len(ids)
        x = self.weights["model.embed_tokens.weight"][np.asarray(ids)]
        for i in range(c.layers):
            if hidden is not None:
                hidden.append(x)
            attend = self._latent_attention if c.latent else self._attention
            x = x + attend(self.norm(x, f"model.layers.{i}.input_layernorm"), i, positions)
            x = x + self._mlp(self.norm(x, f"model.layers.{i}.post_attention_layernorm"), i)
        x = self.norm(x, "model.norm")
        if hidden is not None:
            hidden.append(x)
        return self.linear(x, "model.embed_tokens" if c.tie_embeddings else "lm_head")

    def _attention(self, x: Array, i: int, positions: Array) -> Array:
        c, at = self.config, f"model.layers.{i}.self_attn"
        q = self.linear(x, at + ".q_proj").reshape(len(x), c.heads, c.head_dim)
        k = self.linear(x, at + ".k_proj").reshape(len(x), c.kv_heads, c.head_dim)
        v = self.linear(x, at + ".v_proj").reshape(len(x), c.kv_heads, c.head_dim)
        if at + ".q_norm.weight" in self.weights:
            q, k = self.norm(q, at + ".q_norm"), self.norm(k, at + ".k_norm")
        q, k = (rotate(part, positions, self.frequencies, self.rope_scale) for part in (q, k))
        keys, values = self._append(i, k, v)
        return self.linear(attention(q, keys, values).reshape(len(x), -1), at + ".o_proj")

    def _append(self, i: int, k: Array, v: Array) -> tuple[Array, Array]:
        keys, values = self.cache[i]
        self.cache[i] = np.concatenate([keys, k]), np.concatenate([values, v])
        return self.cache[i]

    def _latent_attention(self, x: Array, i: int, positions: Array) -> Array:
        """The expanded form: the cache holds keys and values of every head."""
        c, at, tokens = self.config, f"model.layers.{i}.self_attn", len(x)
        latent, heads = c.latent, c.heads
        if latent.q_rank is None:
            q = self.linear(x, at + ".q_proj")
        else:
            low = self.norm(self.linear(x, at + ".q_a_proj"), at + ".q_a_layernorm", latent.norm_eps)
            q = self.linear(low, at + ".q_b_proj")
        q = q.reshape(tokens, heads, -1)
        kv = self.linear(x, at + ".kv_a_proj_with_mqa")
        rows = self.norm(kv[:, : latent.rank], at + ".kv_a_layernorm", latent.norm_eps)
        each = self.linear(rows, at + ".kv_b_proj").reshape(tokens, heads, -1)
        turned = [
            rotate(part, positions, self.frequencies, self.rope_scale, interleaved=latent.interleaved)
            for part in (q[..., latent.nope_dim :], kv[:, None, latent.rank :])
        ]
        q = np.concatenate([q[..., : latent.nope_dim], turned[0]], axis=-1)
        k = np.concatenate([each[..., : latent.nope_dim], np.repeat(turned[1], heads, axis=1)], axis=-1)
        keys, values = self._append(i, k, each[..., latent.nope_dim :])
        y = attention(q, keys, values, latent.softmax_scale)
        return self.linear(y.reshape(tokens, -1), at + ".o_proj")

    def _mlp(self, x: Array, i: int) -> Array:
        at, experts = f"model.layers.{i}.mlp", self.config.experts
        if experts is None or not experts.sparse[i]:
            return self._gated(x, at)
        mixtral = f"model.layers.{i}.block_sparse_moe"
        if mixtral + ".gate.weight" in self.weights:
            return self._experts(x, mixtral, ("w1", "w3", "w2"))
        return self._experts(x, at)

    def _experts(self, x: Array, at: str, names: Sequence[str] = GATE_UP_DOWN) -> Array:
        """The experts that the router picks, and the shared ones."""
        c = self.config.experts
        ids, weights = route(
            self.linear(x, at + ".gate").astype(np.float64), c.top_k, scoring=c.scoring, normalise=c.normalise,
            scale=c.scale, bias=self.weights.get(at + ".gate.e_score_correction_bias"), groups=c.groups,
            top_groups=c.top_groups, group_best=c.group_best,
        )  # fmt: skip
        y = self._gated(x, at + ".shared_experts") if c.shared_inner and not c.shared_gate else np.zeros_like(x)
        for expert in np.unique(ids):
            rows, places = np.nonzero(ids == expert)
            factors = weights[rows, places, None].astype(self.dtype)
            y[rows] += factors * self._gated(x[rows], f"{at}.experts.{expert}", names)
        return y

    def _gated(self, x: Array, at: str, names: Sequence[str] = GATE_UP_DOWN) -> Array:
        gate, up, down = (f"{at}.{name}" for name in names)
        return self.linear(ACTIVATIONS[self.config.activation](self.linear(x, gate)) * self.linear(x, up), down)


def greedy(model: Model, prompt: Sequence[int], count: int, end: Sequence[int] = ()) -> tuple[list[int], list[float]]:
    """The most likely continuation, and by how much each step's best logit leads the second."""
    model.reset()
    logits = model.forward(prompt)[-1]
    ids: list[int] = []
    margins: list[float] = []
    for _ in range(count):
        second, best = np.argsort(logits)[-2:]
        ids.append(int(best))
        margins.append(float(logits[best] - logits[second]))
        if ids[-1] in end:
            break
        logits = model.forward([ids[-1]])[-1]
    return ids, margins


def load_weights(checkpoint: Any) -> dict[str, Array]:
    """Every weight of a marlin Checkpoint as float32, quantized ones dequantized."""
    planes = {info.name for q in checkpoint.quantized.values() for info in (q.weight, q.scale, q.zero) if info}
    weights = {
        name: checkpoint.read(name).astype(np.float32)
        for name, info in checkpoint.tensors.items()
        if name not in planes and info.dtype in ("f32", "f16", "bf16")
    }
    weights |= {module + ".weight": q.dequantize() for module, q in checkpoint.quantized.items()}
    return weights
