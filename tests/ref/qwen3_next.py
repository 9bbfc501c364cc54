"""Qwen3-Next in NumPy: delta nets in most layers, gated attention in the others, a gated shared expert.

Source: transformers' modeling_qwen3_next.py for names; formulas of the delta rule in delta.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .delta import gated_delta
from .model import GATE_UP_DOWN, Model, attention, rotate

Array = NDArray[Any]


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


class Qwen3Next(Model):
    """As Model. Of a layer with a delta net `cache` holds the last inputs of the convolution, and S."""

    def reset(self) -> None:
        """Forget the tokens seen."""
        super().reset()
        d = self.config.delta
        start = np.zeros((d.taps - 1, d.channels)), np.zeros((d.value_heads, d.key_dim, d.value_dim))
        for i, linear in enumerate(d.linear):
            if linear:
                self.cache[i] = start

    def norm(self, x: Array, module: str, eps: float | None = None) -> Array:
        """RMS norm by 1 + the weight of that module."""
        factor = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config.norm_eps)
        return x / factor * (1 + self.weights[module + ".weight"])

    def _attention(self, x: Array, i: int, positions: Array) -> Array:
        c, at = self.config, f"model.layers.{i}.self_attn"
        if c.delta.linear[i]:
            return self._delta(x, i)
        both = self.linear(x, at + ".q_proj").reshape(len(x), c.heads, 2 * c.head_dim)
        q, gate = both[..., : c.head_dim], both[..., c.head_dim :]
        k = self.linear(x, at + ".k_proj").reshape(len(x), c.kv_heads, c.head_dim)
        v = self.linear(x, at + ".v_proj").reshape(len(x), c.kv_heads, c.head_dim)
        q, k = self.norm(q, at + ".q_norm"), self.norm(k, at + ".k_norm")
        q, k = (rotate(part, positions, self.frequencies, self.rope_scale) for part in (q, k))
        y = attention(q, *self._append(i, k, v)) * sigmoid(gate)
        return self.linear(y.reshape(len(x), -1), at + ".o_proj")

    def _delta(self, x: Array, i: int) -> Array:
        at, c = f"model.layers.{i}.linear_attn", self.config
        y, *self.cache[i] = gated_delta(
            self.linear(x, at + ".in_proj_qkvz"), self.linear(x, at + ".in_proj_ba"),
            self.weights[at + ".conv1d.weight"][:, 0], self.weights[at + ".A_log"], self.weights[at + ".dt_bias"],
            self.weights[at + ".norm.weight"], *self.cache[i], key_heads=c.delta.key_heads, eps=c.norm_eps, size=16,
        )  # fmt: skip
        return self.linear(y.astype(self.dtype), at + ".out_proj")

    def _experts(self, x: Array, at: str, names: Any = GATE_UP_DOWN) -> Array:
        """The experts that the router picks, and the shared one by its gate."""
        gate = sigmoid(self.linear(x, at + ".shared_expert_gate"))
        return super()._experts(x, at, names) + gate * self._gated(x, at + ".shared_expert")
