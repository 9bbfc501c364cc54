"""A mixture of experts as a part of a network: where its tensors are called what, and the call.

    r = norm(h) Wrouter^T                           a score for each expert; the top_k best of a token are chosen
    m = silu(norm(h) Wgate[e]^T) * (norm(h) Wup[e]^T)   for each chosen expert e, and for the shared ones
    h = h + sum over them of weight * (m Wdown[e]^T)

All experts of a layer lie in two matrices, gate_up (experts * 2 inner, hidden) with the rows of gate and up
interleaved, and down (experts * hidden, inner), so that an expert is an offset. EXL3 trellises have scales on x, so
gate and up are a TrellisLinear each, of all experts. Shared experts of the same width, and as trellises of the same
bits, stand behind the routed ones in them; others are ordinary Linears.
Source: Shazeer et al. 2017, arXiv 1701.06538; DeepSeek-V3, arXiv 2412.19437 section 2.1.2; names as in transformers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from marlin import _C
from marlin.config import ModelConfig
from marlin.loaders.base import TrellisTensor
from marlin.models.base import GATED, Linear, Module, Source, Vector
from marlin.trellis import TrellisFormat


@dataclass(frozen=True)
class Names:
    """What the modules of a mixture are called behind its own name; {} is the number of the expert."""

    gate: str = "experts.{}.gate_proj"
    up: str = "experts.{}.up_proj"
    down: str = "experts.{}.down_proj"
    router: str = "gate"
    bias: str = "gate.e_score_correction_bias"
    shared: str = "shared_experts"
    shared_gate: str = "shared_expert_gate"


MIXTRAL: Final = Names("experts.{}.w1", "experts.{}.w3", "experts.{}.w2")
DEEPSEEK: Final = Names()  # Qwen3-MoE, DeepSeek-V2 and V3, GLM-4 MoE
QWEN: Final = Names(shared="shared_expert")  # Qwen3-Next


class MoE(Module):
    """h + mixture(norm(h)): router, chosen experts and shared ones.

    name: that of the checkpoint ("model.layers.3.mlp"). Raises ModelFormatError for tensors that are missing or of
    unequal shapes, UnsupportedModelError for experts stored in different weight formats.
    """

    def __init__(self, source: Source, name: str, config: ModelConfig, names: Names = DEEPSEEK) -> None:
        super().__init__(name)
        experts = config.experts
        assert experts is not None
        hidden, inner = config.hidden_size, experts.inner
        self.config, self.eps, self.exact = experts, config.norm_eps, source.exact
        self.activation = GATED[config.activation]
        routed = range(experts.count)

        split_fused(source, name, experts.count, hidden, inner, names)
        fused = experts.shared_inner == inner and codes_alike(source, name, names, hidden, inner)
        rows, gate = [(f"{name}.{names.router}", experts.count)], (f"{name}.{names.shared_gate}", 1)
        gated = experts.shared_gate and experts.shared_inner > 0
        if gated and fused:
            rows.append(gate)
        self.router = Linear(source, f"{name}.router", rows, hidden, kind="router", dense=True)
        self.bias = Vector(source, f"{name}.{names.bias}", experts.count, fill=0.0) if experts.bias else None
        gate_up = [(f"{name}.{part.format(i)}", inner) for i in routed for part in (names.gate, names.up)]
        down = [(f"{name}.{names.down.format(i)}", hidden) for i in routed]
        shared = f"{name}.{names.shared}"
        if fused:
            gate_up += [(f"{shared}.gate_proj", inner), (f"{shared}.up_proj", inner)]
            down.append((f"{shared}.down_proj", hidden))
        self.gate_up = Linear(source, f"{name}.gate_up", gate_up, hidden, interleaved=2, kind="experts", experts=True)
        self.down = Linear(source, f"{name}.down", down, inner, kind="experts", experts=True)
        self.shared_gate_up: Linear | None = None
        self.shared_down: Linear | None = None
        self.shared_router: Linear | None = None
        if experts.shared_inner and not fused:
            width = experts.shared_inner
            pair = [(f"{shared}.gate_proj", width), (f"{shared}.up_proj", width)]
            self.shared_gate_up = Linear(source, f"{shared}.gate_up", pair, hidden, interleaved=2, kind="experts")
            self.shared_down = Linear(
                source, f"{shared}.down", [(f"{shared}.down_proj", hidden)], width, kind="experts"
            )
            if gated:
                self.shared_router = Linear(source, f"{shared}.router", [gate], hidden, kind="router", dense=True)
        # Last: they are made of what was loaded before.
        self.core = Core(f"{name}.core", (self.router, self.gate_up, self.down), config, shared=int(fused))
        self.core.bias = self.bias
        self.shared_core: Core | None = None
        if self.shared_router is not None and self.shared_gate_up is not None and self.shared_down is not None:
            matrices = (self.shared_router, self.shared_gate_up, self.shared_down)
            self.shared_core = Core(f"{shared}.core", matrices, config, alone=True)

    def __call__(
        self, h: _C.Tensor, *, norm: Vector | None = None, dtype: str = "f16", positions: _C.Tensor | None = None
    ) -> _C.Tensor:
        """h (rows, hidden) f32 -> h + mixture(norm(h)), f32.

        dtype: of activations between the kernels. positions (rows) i32: rows with a negative one are idle, they go
        to no expert and what comes back for them is undefined.
        """
        assert self.core.raw is not None
        weight = norm.weight if norm is not None else None
        x = h
        if weight is not None and self.exact:
            x, weight = _C.rms_norm(h, weight, self.eps, dtype="f32"), None
        base = h
        if self.shared_core is not None:
            assert self.shared_core.raw is not None
            base = self.shared_core.raw(x, norm=weight, eps=self.eps, residual=h, dtype=dtype, positions=positions)
        elif self.shared_gate_up is not None and self.shared_down is not None:
            m = self.shared_gate_up(h, norm=norm, eps=self.eps, activation=self.activation, dtype=dtype)
            base = self.shared_down(m, residual=h)
        y: _C.Tensor = self.core.raw(x, norm=weight, eps=self.eps, residual=base, dtype=dtype, positions=positions)
        return self.seen(y)

    @property
    def usage(self) -> _C.Tensor:
        """(experts) u32: how often each routed expert was chosen since loading or the last reset."""
        assert self.core.raw is not None
        return self.core.raw.usage

    def reset_usage(self) -> None:
        """Set those counters to 0."""
        assert self.core.raw is not None
        self.core.raw.reset_usage()

    def describe(self) -> str:
        c = self.config
        shared = " + shared" if c.shared_inner else ""
        return f"{c.top_k} of {c.count} experts{shared}, {c.scoring}"


class Core(Module):
    """The marlin._C.MoE over the matrices of a mixture: router, gate and up, down.

    alone: of a shared expert that lies apart, as a mixture of one whose weight is the sigmoid of its gate.
    """

    def __init__(
        self, name: str, matrices: tuple[Linear, Linear, Linear], config: ModelConfig, *, shared: int = 0,
        alone: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(name)
        assert config.experts is not None
        self.matrices = matrices  # a tuple: they are the mixture's children
        self.config, self.activation, self.shared = config.experts, GATED[config.activation], shared
        if alone:
            self.config = dataclasses.replace(
                config.experts, count=1, top_k=1, scoring="sigmoid", normalise=False, scale=1.0, groups=1, top_groups=1
            )
        self.bias: Vector | None = None
        self.raw: _C.MoE | None = None

    def load(self, device: _C.Device) -> None:
        router, gate_up, down = self.matrices
        both: _C.Linear | tuple[_C.TrellisLinear, _C.TrellisLinear] | None = gate_up.weight
        if gate_up.trellises:
            both = (gate_up.trellises[0], gate_up.trellises[1])
        last = down.trellises[0] if down.trellises else down.weight
        assert router.weight is not None and both is not None and last is not None
        c = self.config
        self.raw = _C.MoE(
            router.weight, both, last, experts=c.count, top_k=c.top_k, shared=self.shared,
            scoring=c.scoring, normalise=c.normalise, scale=c.scale, groups=c.groups, top_groups=c.top_groups,
            group_best=c.group_best, bias=self.bias.weight if self.bias else None, activation=self.activation,
        )  # fmt: skip

    def describe(self) -> str:
        return "router and expert kernels"


def codes_alike(source: Source, name: str, names: Names, hidden: int, inner: int) -> bool:
    """Whether the shared expert's matrices, as wide as those of expert 0, can lie behind them.

    Trellises can where bits and codebooks are the same, or where all are decoded for another format.
    """
    if source.format is not None and not isinstance(source.format, TrellisFormat):
        return True
    shared = f"{name}.{names.shared}"
    for leaf, own, rows, columns in (
        ("gate_proj", names.gate, inner, hidden),
        ("up_proj", names.up, inner, hidden),
        ("down_proj", names.down, hidden, inner),
    ):
        pair = [source.matrix(f"{shared}.{leaf}", rows, columns),
                source.matrix(f"{name}.{own.format(0)}", rows, columns)]  # fmt: skip
        codes = [(w.bits, w.codebook) if isinstance(w, TrellisTensor) else None for w in pair]
        if codes[0] != codes[1]:
            return False
    return True


def split_fused(source: Source, name: str, count: int, hidden: int, inner: int, names: Names) -> None:
    """Where a checkpoint has all experts in one tensor, let their parts be found under the single names.

    transformers 5 may store experts.gate_up_proj (experts, 2 inner, hidden), gate over up, and experts.down_proj
    (experts, hidden, inner).
    """
    leaves = {
        "gate_up_proj": ((count, 2 * inner, hidden), ((names.gate, 0), (names.up, inner)), inner),
        "down_proj": ((count, hidden, inner), ((names.down, 0),), hidden),
    }
    for leaf, (shape, parts, rows) in leaves.items():
        whole = f"{name}.experts.{leaf}"
        if source.has(whole):
            pieces = {
                f"{name}.{part.format(i)}.weight": i * shape[1] + first for i in range(count) for part, first in parts
            }
            source.split(whole, shape, pieces, rows)
