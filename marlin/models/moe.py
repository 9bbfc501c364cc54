"""A mixture of experts as a part of a network: where its tensors are called what, and the call.

    r = norm(h) Wrouter^T                           a score for each expert; the top_k best of a token are chosen
    m = silu(norm(h) Wgate[e]^T) * (norm(h) Wup[e]^T)   for each chosen expert e, and for the shared ones
    h = h + sum over them of weight * (m Wdown[e]^T)

All experts of a layer lie in two matrices, gate_up (experts * 2 inner, hidden) with the rows of gate and up
interleaved, and down (experts * hidden, inner), so that an expert is an offset. EXL3 trellises have scales on x, so
gate and up are a TrellisLinear each, of all experts. Experts that are stored in different formats, or trellises of
different bits, lie in a stack each: such matrices for each format. Shared experts of the same width and of a format
that routed ones have stand behind those; others are ordinary Linears.
Source: Shazeer et al. 2017, arXiv 1701.06538; DeepSeek-V3, arXiv 2412.19437 section 2.1.2; names as in transformers.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Final, cast

from marlin import _C
from marlin.config import ModelConfig
from marlin.errors import UnsupportedModelError
from marlin.experts import Experts
from marlin.models.base import GATED, Linear, Module, Source, Vector
from marlin.models.mlp import MLP, refuse_half_a_trellis

MAX_STACKS: Final = 32  # of a layer (MRL_MOE_STACKS_MAX)


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
    unequal shapes, UnsupportedModelError where gate and up of one expert are stored in different weight formats, or
    the experts of the layer in more than 32, or where some but not all of gate, up and down are trellises.
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
        triples = [
            (f"{name}.{names.gate.format(i)}", f"{name}.{names.up.format(i)}", f"{name}.{names.down.format(i)}")
            for i in routed
        ]
        kinds = [kind_of(source, triple, hidden, inner) for triple in triples]
        shared = f"{name}.{names.shared}"
        shared_triple = (f"{shared}.gate_proj", f"{shared}.up_proj", f"{shared}.down_proj")
        fused = experts.shared_inner == inner and kind_of(source, shared_triple, hidden, inner) in kinds
        rows, gate = [(f"{name}.{names.router}", experts.count)], (f"{name}.{names.shared_gate}", 1)
        gated = experts.shared_gate and experts.shared_inner > 0
        if gated and fused:
            rows.append(gate)
        self.router = Linear(source, f"{name}.router", rows, hidden, kind="router", dense=True)
        self.bias = Vector(source, f"{name}.{names.bias}", experts.count, fill=0.0) if experts.bias else None
        if fused:
            triples.append(shared_triple)
            kinds.append(kind_of(source, shared_triple, hidden, inner))
        self.source, self.triples, self.kinds, self.hidden, self.inner = source, triples, kinds, hidden, inner
        self.place(set())
        self.apart: MLP | None = None
        self.shared_router: Linear | None = None
        if experts.shared_inner and not fused:
            self.apart = MLP(source, shared, hidden, experts.shared_inner, self.activation, kind="experts")
            if gated:
                self.shared_router = Linear(source, f"{shared}.router", [gate], hidden, kind="router", dense=True)
        # Last: they are made of what was loaded before.
        self.core = Core(f"{name}.core", self, experts, self.activation, shared=int(fused))
        self.core.bias = self.bias
        self.shared_core: Core | None = None
        if self.shared_router is not None and self.apart is not None:
            refuse_half_a_trellis(self.apart.gate_up, self.apart.down)
            parts = Matrices(self.shared_router, [self.apart.gate_up], [self.apart.down], [0])
            one = replace(
                experts, count=1, top_k=1, scoring="sigmoid", normalise=False, scale=1.0, groups=1, top_groups=1
            )
            self.shared_core = Core(f"{shared}.core", parts, one, self.activation)

    def place(self, host: set[int]) -> None:
        """Make the matrices of all experts, a pair for each of their kinds; those of `host` in host memory.

        Before anything is loaded.
        """
        kinds = [(kind, i in host) for i, kind in enumerate(self.kinds)]
        found = list(dict.fromkeys(kinds))
        if len(found) > MAX_STACKS:
            raise UnsupportedModelError(
                f"{self.name}: its experts are stored in {len(found)} combinations of formats, at most "
                f"{MAX_STACKS} are supported"
            )
        self.stacks = [found.index(kind) for kind in kinds]
        self.gate_up: list[Linear] = []
        self.down: list[Linear] = []
        for stack, (_, in_host) in enumerate(found):
            members = [triple for triple, at in zip(self.triples, self.stacks, strict=True) if at == stack]
            memory = "host" if in_host else "device"
            end = f".{stack}" if len(found) > 1 else ""
            both = [(module, self.inner) for gate, up, _ in members for module in (gate, up)]
            last = [(down, self.hidden) for _, _, down in members]
            gate_up = Linear(
                self.source, f"{self.name}.gate_up{end}", both, self.hidden, interleaved=2, kind="experts",
                experts=True, memory=memory,
            )  # fmt: skip
            down = Linear(
                self.source, f"{self.name}.down{end}", last, self.inner, kind="experts", experts=True, memory=memory
            )
            refuse_half_a_trellis(gate_up, down)
            self.gate_up.append(gate_up)
            self.down.append(down)

    @staticmethod
    def activations(x: _C.Tensor, *experts: Linear) -> str | None:
        """What these round x to: 8 bits only where all of them do."""
        found = {linear.activations(x) for linear in experts}
        return found.pop() if len(found) == 1 else None

    def expert_bytes(self) -> list[int]:
        """Of each expert, shared ones last."""
        members = [self.stacks.count(stack) for stack in range(len(self.gate_up))]
        return [(self.gate_up[at].nbytes + self.down[at].nbytes) // members[at] for at in self.stacks]

    def __call__(
        self,
        h: _C.Tensor,
        *,
        norm: Vector | None = None,
        dtype: str = "f16",
        positions: _C.Tensor | None = None,
        shares: bool = False,
    ) -> _C.Tensor | _C.Shares:
        """h (rows, hidden) f32 -> h + mixture(norm(h)), f32.

        dtype: of activations between the kernels. positions (rows) i32: rows with a negative one are idle, they go
        to no expert and what comes back for them is undefined. shares: one row may come back as Shares.
        """
        assert self.core.raw is not None
        weight = norm.weight if norm is not None else None
        x = h
        if weight is not None and self.exact:
            x, weight = _C.rms_norm(h, weight, self.eps, dtype="f32"), None
        base = h
        if self.shared_core is not None and self.apart is not None:
            assert self.shared_core.raw is not None
            base = self.shared_core.raw(
                x, norm=weight, eps=self.eps, residual=h, dtype=dtype, positions=positions,
                activations=self.activations(x, self.apart.gate_up, self.apart.down),
            )  # fmt: skip
        elif self.apart is not None:
            base = cast(_C.Tensor, self.apart(h, norm=norm, eps=self.eps, residual=h, dtype=dtype))
        y = self.core.raw(
            x, norm=weight, eps=self.eps, residual=base, dtype=dtype, positions=positions,
            activations=self.activations(x, *self.gate_up, *self.down), shares=shares and self.watch is None,
        )  # fmt: skip
        return self.seen(y) if isinstance(y, _C.Tensor) else y

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


@dataclass
class Matrices:
    """What a Core is made of: the router; gate and up, and down, of each stack of experts; the stack of each expert."""

    router: Linear
    gate_up: list[Linear]
    down: list[Linear]
    stacks: list[int]


class Core(Module):
    """The marlin._C.MoE over the matrices of a mixture, which are another's children.

    A shared expert that lies apart is a mixture of one whose weight is the sigmoid of its gate.
    """

    def __init__(self, name: str, parts: MoE | Matrices, experts: Experts, activation: str, *, shared: int = 0) -> None:
        super().__init__(name)
        self.parts, self.config, self.activation, self.shared = parts, experts, activation, shared
        self.bias: Vector | None = None
        self.raw: _C.MoE | None = None

    def load(self, device: _C.Device) -> None:
        parts = self.parts
        both: list[_C.Linear | tuple[_C.TrellisLinear, _C.TrellisLinear]] = [
            (w.trellises[0], w.trellises[1]) if w.trellises else loaded(w) for w in parts.gate_up
        ]
        last: list[_C.Linear | _C.TrellisLinear] = [w.trellises[0] if w.trellises else loaded(w) for w in parts.down]
        c = self.config
        self.raw = _C.MoE(
            loaded(parts.router), both, last, stacks=parts.stacks, experts=c.count, top_k=c.top_k, shared=self.shared,
            scoring=c.scoring, normalise=c.normalise, scale=c.scale, groups=c.groups, top_groups=c.top_groups,
            group_best=c.group_best, bias=self.bias.weight if self.bias else None, activation=self.activation,
        )  # fmt: skip

    def describe(self) -> str:
        return "router and expert kernels"


def loaded(linear: Linear) -> _C.Linear:
    """The weight of a layer that is no trellis."""
    assert linear.weight is not None
    return linear.weight


def kind_of(source: Source, triple: tuple[str, str, str], hidden: int, inner: int) -> Hashable:
    """The formats that gate, up and down of an expert will have: experts of equal kinds can lie in one stack."""
    gate, up, down = triple
    sizes = ((gate, inner, hidden), (up, inner, hidden), (down, hidden, inner))
    return tuple(source.kind(source.matrix(module, rows, columns)) for module, rows, columns in sizes)


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
