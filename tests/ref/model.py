"""A decoder (Llama, Mistral, Qwen2, Qwen3, Mixtral, Qwen3-MoE) in NumPy: the whole forward pass in
plain formulas.

Nothing here is fast and nothing is shared with the engine: weights come in as a dict of float
arrays, so a test decides what rounding they have had. Source: the papers of Llama (arXiv
2302.13971) and Qwen3 (arXiv 2505.09388), and transformers' modeling files for names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .moe import moe, route

Array = NDArray[Any]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x: Array, positions: Array, frequencies: Array, scale: float = 1.0) -> Array:
    """Half-split rope on (tokens, heads, dim); only the first 2 * len(frequencies) dimensions
    turn."""
    half = len(frequencies)
    angle = positions[:, None, None] * frequencies
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x.dtype)


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of (tokens, heads, dim) over (length, kv_heads, dim); the queries are the
    last tokens."""
    tokens, heads, dim = q.shape
    length, kv_heads, _ = k.shape
    k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim).astype(q.dtype)
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
        width = (0, self.config.kv_heads, self.config.head_dim)
        self.cache = [(np.zeros(width, self.dtype), np.zeros(width, self.dtype)) for _ in range(self.config.layers)]

    def linear(self, x: Array, module: str) -> Array:
        """x W^T + bias, the bias if the checkpoint has one."""
        y = x @ self.weights[module + ".weight"].T
        return y + self.weights[module + ".bias"] if module + ".bias" in self.weights else y

    def norm(self, x: Array, module: str) -> Array:
        """RMSNorm with the weight of that module."""
        return rms_norm(x, self.weights[module + ".weight"], self.config.norm_eps)

    def forward(self, ids: Sequence[int], *, hidden: list[Array] | None = None) -> Array:
        """Logits (tokens, vocab) of the next tokens of a text; appends to the cache.

        hidden: gets the residual stream before each layer and, last, after the final norm.
        """
        c = self.config
        start = len(self.cache[0][0])
        positions = np.arange(start, start + len(ids), dtype=np.float64)
        x = self.weights["model.embed_tokens.weight"][np.asarray(ids)]
        for i in range(c.layers):
            if hidden is not None:
                hidden.append(x)
            x = x + self._attention(self.norm(x, f"model.layers.{i}.input_layernorm"), i, positions)
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
        keys, values = self.cache[i]
        keys, values = np.concatenate([keys, k]), np.concatenate([values, v])
        self.cache[i] = keys, values
        return self.linear(attention(q, keys, values).reshape(len(x), -1), at + ".o_proj")

    def _mixture(self, x: Array, at: str, names: Sequence[str]) -> Array:
        e = self.config.experts
        logits = self.linear(x, at + ".gate").astype(np.float64)
        ids, weights = route(logits, e.top_k, scoring=e.scoring, normalise=e.normalise, scale=e.scale)
        gate, up, down = (
            np.stack([self.weights[f"{at}.experts.{j}.{name}.weight"] for j in range(e.count)]) for name in names
        )
        return moe(x, gate, up, down, ids, weights).astype(self.dtype)

    def _mlp(self, x: Array, i: int) -> Array:
        if f"model.layers.{i}.block_sparse_moe.gate.weight" in self.weights:
            return self._mixture(x, f"model.layers.{i}.block_sparse_moe", ("w1", "w3", "w2"))
        if f"model.layers.{i}.mlp.gate.weight" in self.weights:
            return self._mixture(x, f"model.layers.{i}.mlp", ("gate_proj", "up_proj", "down_proj"))
        at = f"model.layers.{i}.mlp"
        gate = ACTIVATIONS[self.config.activation](self.linear(x, at + ".gate_proj"))
        return self.linear(gate * self.linear(x, at + ".up_proj"), at + ".down_proj")


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
