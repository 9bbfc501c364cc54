"""A gated MLP as a part of a network: norm(h) -> (activation(norm(h) Wgate^T) * (norm(h) Wup^T)) Wdown^T.

Gate and up are one matrix, with their rows interleaved, that multiplies them with each other. EXL3 trellises have
scales on x, so those stay apart: they run beside each other, and down multiplies gate and up as it reads them.
Source: Shazeer 2020, arXiv 2002.05202; names of weights as in transformers.
"""

from __future__ import annotations

from marlin import _C
from marlin.errors import UnsupportedModelError
from marlin.models.base import Linear, Module, Source, Vector
from marlin.trellis import TrellisFormat


class MLP(Module):
    """residual + MLP(norm(h)). name: that of the checkpoint ("model.layers.3.mlp"); kind: of weights, for the plan.

    Raises UnsupportedModelError where gate and up are trellises and down is none, or only one of the two is.
    """

    def __init__(
        self, source: Source, name: str, hidden: int, inner: int, activation: str, *, kind: str, bias: bool = False
    ) -> None:
        super().__init__(name)
        self.activation = activation
        pair = [(f"{name}.gate_proj", inner), (f"{name}.up_proj", inner)]
        self.gate_up = Linear(source, f"{name}.gate_up", pair, hidden, bias=bias, interleaved=2, kind=kind)
        self.down = Linear(source, f"{name}.down", [(f"{name}.down_proj", hidden)], inner, bias=bias, kind=kind)
        if isinstance(self.gate_up.form, TrellisFormat):
            refuse_half_a_trellis(self.gate_up, self.down)

    def __call__(
        self,
        h: _C.Tensor,
        *,
        norm: Vector | None = None,
        eps: float = 1e-6,
        residual: _C.Tensor,
        dtype: str = "f16",
        shares: bool = False,
    ) -> _C.Tensor | _C.Shares:
        """h (rows, hidden) f32 -> (rows, hidden) f32. dtype: of activations between the kernels. shares: one row may
        come back as Shares."""
        y: _C.Tensor | _C.Shares
        if self.gate_up.trellises:
            gate, up = self.gate_up.apart(h, norm=norm, eps=eps, dtype=dtype)
            y = self.down.gated(up, gate, self.activation, residual, shares=shares)
        else:
            m = self.gate_up(h, norm=norm, eps=eps, activation=self.activation, dtype=dtype)
            y = self.down(m, residual=residual)
        return self.seen(y) if isinstance(y, _C.Tensor) else y

    def describe(self) -> str:
        return f"{self.activation} MLP"


def refuse_half_a_trellis(gate_up: Linear, down: Linear) -> None:
    """UnsupportedModelError if only one of them is a trellis: who multiplies gate and up depends on it."""
    if isinstance(gate_up.form, TrellisFormat) != isinstance(down.form, TrellisFormat):
        raise UnsupportedModelError(
            f"{down.parts[0].module}: must be a trellis if gate and up are, and only then; load the model rounded to "
            "another format, as format='f16'"
        )
