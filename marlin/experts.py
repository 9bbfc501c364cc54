"""What config.json says of routed experts, for every model type that has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from marlin.errors import ModelFormatError, UnsupportedModelError

if TYPE_CHECKING:
    from marlin.config import _Section

MAX_EXPERTS: Final = 1024  # of a layer, shared ones included (MRL_MOE_EXPERTS_MAX)
MAX_TOP_K: Final = 32

# Where model types differ in what they leave unsaid. `bias`: the router has a score-correction bias; `group_best`:
# how many of its best scores a group of experts is ranked by.
_KINDS: Final[dict[str, dict[str, Any]]] = {
    "mixtral": {"num_experts_per_tok": 2, "norm_topk_prob": True, "scoring_func": "softmax"},
    "qwen3_moe": {"norm_topk_prob": False, "scoring_func": "softmax", "decoder_sparse_step": 1},
    "qwen3_next": {"norm_topk_prob": True, "scoring_func": "softmax", "decoder_sparse_step": 1, "shared_gate": True},
    "deepseek_v2": {
        "norm_topk_prob": False, "scoring_func": "softmax", "n_shared_experts": 1, "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0, "moe_layer_freq": 1, "group_best": 1,
    },
    "deepseek_v3": {
        "norm_topk_prob": True, "scoring_func": "sigmoid", "n_shared_experts": 1, "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5, "moe_layer_freq": 1, "bias": True,
    },
    "glm4_moe_lite": {
        "norm_topk_prob": True, "scoring_func": "sigmoid", "n_shared_experts": 1, "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.8, "bias": True,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Experts:
    """The mixture of experts of a model.

    count, top_k       experts of a layer, and how many of them a token goes to
    inner              width between gate/up and down of one expert
    shared_inner       the same of the shared experts together; 0: there are none
    shared_gate        the shared expert is weighted by the sigmoid of a router row of its own (Qwen)
    scoring            "softmax" over the logits, or "sigmoid" of each
    bias               a vector is added to the scores for the choice, not for the weights (DeepSeek-V3's noaux_tc)
    normalise, scale   weights are divided by their sum, then multiplied by scale
    groups, top_groups, group_best   experts are chosen within the top_groups of `groups` groups whose group_best
                       best scores add up to most
    sparse             for each layer whether it has experts; the others have a dense MLP
    """

    count: int
    top_k: int
    inner: int
    shared_inner: int
    shared_gate: bool
    scoring: str
    bias: bool
    normalise: bool
    scale: float
    groups: int
    top_groups: int
    group_best: int
    sparse: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= min(self.count, MAX_TOP_K):
            raise ModelFormatError(
                f"config.json: num_experts_per_tok must be 1 to {min(self.count, MAX_TOP_K)} "
                f"with {self.count} experts, got {self.top_k}"
            )
        if self.count % self.groups or not 1 <= self.top_groups <= self.groups:
            raise ModelFormatError(
                f"config.json: n_group must divide the {self.count} experts and topk_group be at most n_group, "
                f"got {self.groups} and {self.top_groups}"
            )
        if self.count // self.groups * self.top_groups < self.top_k:
            raise ModelFormatError(
                f"config.json: topk_group {self.top_groups} of {self.groups} groups leaves "
                f"{self.count // self.groups * self.top_groups} experts, num_experts_per_tok is {self.top_k}"
            )

    @property
    def share(self) -> float:
        """The share of the experts' weights that one token reads, shared experts included."""
        shared = self.shared_inner / self.inner
        return (self.top_k + shared) / (self.count + shared)


def read_experts(section: _Section, model_type: str, layers: int) -> Experts | None:
    """The experts of a model type that has them, else None. Raises ModelFormatError and UnsupportedModelError."""
    if model_type not in _KINDS:
        return None
    keys = section.over(_KINDS[model_type])
    # Qwen and transformers 5 call them differently.
    count_key = next((key for key in ("num_local_experts", "n_routed_experts") if key in keys.values), "num_experts")
    inner_key = "intermediate_size" if model_type == "mixtral" else "moe_intermediate_size"
    inner = keys.integer(inner_key, 1, 1 << 22)
    shared = keys.optional_integer("n_shared_experts", 0, 64) or 0
    shared_inner = keys.optional_integer("shared_expert_intermediate_size", 0, 1 << 22) or shared * inner
    scoring = keys.text("scoring_func", "softmax")
    if scoring not in ("softmax", "sigmoid"):
        raise UnsupportedModelError(f"config.json: scoring_func {scoring!r} is not supported")
    method = keys.text("topk_method", "greedy" if scoring == "softmax" else "noaux_tc")
    if method not in ("greedy", "group_limited_greedy", "noaux_tc"):
        raise UnsupportedModelError(f"config.json: topk_method {method!r} is not supported")
    grouped = method != "greedy"
    top_k = keys.integer("num_experts_per_tok", 1, 1 << 20)
    return Experts(
        count=keys.integer(count_key, 1, MAX_EXPERTS - 1),
        top_k=top_k,
        inner=inner,
        shared_inner=shared_inner,
        shared_gate=bool(keys.raw("shared_gate", False)),
        scoring=scoring,
        bias=bool(keys.raw("bias", False)) and method == "noaux_tc",
        normalise=keys.boolean("norm_topk_prob"),
        scale=keys.number("routed_scaling_factor", 0.0, 1e4, 1.0),
        groups=(keys.optional_integer("n_group", 1, 1 << 10) or 1) if grouped else 1,
        top_groups=(keys.optional_integer("topk_group", 1, 1 << 10) or 1) if grouped else 1,
        group_best=int(keys.raw("group_best", 2)),
        sparse=_sparse_layers(keys, layers),
    )


def _sparse_layers(keys: _Section, layers: int) -> tuple[bool, ...]:
    kinds = keys.raw("mlp_layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= {"dense", "sparse"}:
            raise keys.bad("mlp_layer_types", f'a list of num_hidden_layers = {layers} times "dense" or "sparse"')
        return tuple(kind == "sparse" for kind in kinds)
    dense = keys.raw("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(item) is int for item in dense):
        raise keys.bad("mlp_only_layers", "a list of layer numbers")
    first = keys.optional_integer("first_k_dense_replace", 0, 1 << 20) or 0
    step = keys.optional_integer("decoder_sparse_step", 1, 1 << 20) or 1
    every = keys.optional_integer("moe_layer_freq", 1, 1 << 20) or 1
    return tuple(i not in dense and i >= first and (i + 1) % step == 0 and i % every == 0 for i in range(layers))
