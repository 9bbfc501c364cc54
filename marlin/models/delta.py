"""A gated delta net as a part of a network: a matrix of memory a head and slot in place of a cache.

    q, k, v, z = norm(h) Wqkvz^T,  b, a = norm(h) Wba^T      of each key head and the value heads that share it
    q, k, v = silu(causal convolution(q, k, v));  q, k to length 1
    S = exp(-exp(A_log) softplus(a + dt_bias)) S
    S = S + k (sigmoid(b) (v - k S))^T
    h = h + (norm(q S) * silu(z)) Wo^T

S is f32 and belongs to a slot. It is that behind the last position and cannot be taken back to an earlier one, so a
text either goes on where its slot stands or begins anew (`Engine.prefill`).
Source: Yang et al. 2024, "Gated Delta Networks", arXiv 2412.06464; names of weights as in transformers' Qwen3-Next.
"""

from __future__ import annotations

from marlin import _C
from marlin.config import ModelConfig
from marlin.models.base import Linear, Module, Run, Source, Vector
from marlin.tensors import upload


class Filter(Vector):
    """The taps of a depthwise convolution: stored (channels, 1, taps), (channels, taps) f32 on the device."""

    def __init__(self, source: Source, name: str, channels: int, taps: int) -> None:
        super().__init__(source, name, channels * taps, fill=1 / taps, shape=(channels, 1, taps))
        self.channels, self.taps = channels, taps

    def load(self, device: _C.Device) -> None:
        self.weight = upload(self.read().reshape(self.channels, self.taps), device)

    def describe(self) -> str:
        return f"({self.channels}, {self.taps}) f32"


class GatedDeltaNet(Module):
    """h + delta net(norm(h)). name: that of the checkpoint ("model.layers.3.linear_attn"); layer: of the state."""

    def __init__(self, source: Source, name: str, layer: int, config: ModelConfig) -> None:
        super().__init__(name)
        delta = config.delta
        assert delta is not None
        self.delta, self.layer, hidden = delta, layer, config.hidden_size

        def linear(leaf: str, rows: int, k: int, *, dense: bool = False) -> Linear:
            part = f"{name}.{leaf}"
            return Linear(source, part, [(part, rows)], k, kind="delta nets", dense=dense)

        self.qkvz = linear("in_proj_qkvz", delta.channels + delta.value_size, hidden)
        self.ba = linear("in_proj_ba", 2 * delta.value_heads, hidden, dense=True)  # what decides how fast to forget
        self.conv = Filter(source, f"{name}.conv1d.weight", delta.channels, delta.taps)
        self.a_log = Vector(source, f"{name}.A_log", delta.value_heads, fill=0.0)
        self.dt_bias = Vector(source, f"{name}.dt_bias", delta.value_heads)
        self.norm = Vector(source, f"{name}.norm.weight", delta.value_dim)
        self.out = linear("out_proj", hidden, delta.value_size)

    def __call__(self, h: _C.Tensor, run: Run, norm: Vector, eps: float) -> _C.Tensor:
        """h (rows, hidden) f32 -> h + delta net(norm(h)), f32."""
        assert self.conv.weight is not None and self.a_log.weight is not None and self.dt_bias.weight is not None
        assert self.norm.weight is not None and run.state is not None
        x = self.qkvz(h, norm=norm, eps=eps, dtype=run.dtype)
        ba = self.ba(h, norm=norm, eps=eps, dtype="f32")
        y = _C.gated_delta(
            x, ba, self.conv.weight, self.a_log.weight, self.dt_bias.weight, self.norm.weight, run.state, self.layer,
            run.positions, run.slots, eps=eps, sequence=run.sequence, dtype=run.dtype,
        )  # fmt: skip
        return self.out(self.seen(y), residual=h)

    def describe(self) -> str:
        d = self.delta
        return f"{d.key_heads} key heads of {d.key_dim}, {d.value_heads} value heads of {d.value_dim}, {d.taps} taps"
