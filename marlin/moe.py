"""A mixture of experts that can be used on arrays by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marlin import _C, html
from marlin.device import Device
from marlin.keywords import checked_keywords
from marlin.linear import WeightFormat, global_scale
from marlin.tensors import Tensor, host_array, to_numpy, upload


class MoE:
    """y = sum over the chosen experts e of weight * down[e](silu(gate[e] x) * up[e] x). `raw` is the marlin._C.MoE.

    moe = MoE.from_arrays(router, gate, up, down, top_k=2, format="int4")
    y = moe(x)                        # x (..., hidden) array or Tensor -> Tensor (..., hidden)
    experts, weights = moe.route(x)   # (rows, top_k + shared) each
    loss = moe.balance_loss(x)        # 1 where the router is even
    """

    __slots__ = ("_router", "_scoring", "raw")

    def __init__(self, raw: _C.MoE, router: _C.Linear, scoring: str) -> None:
        self.raw, self._router, self._scoring = raw, router, scoring

    @classmethod
    @checked_keywords
    def from_arrays(
        cls,
        router: ArrayLike,
        gate: Iterable[ArrayLike],
        up: Iterable[ArrayLike],
        down: Iterable[ArrayLike],
        *,
        top_k: int,
        shared: int = 0,
        format: str | WeightFormat | Sequence[str | WeightFormat] = "f16",
        scoring: str = "softmax",
        bias: ArrayLike | None = None,
        normalise: bool = True,
        scale: float = 1.0,
        groups: int = 1,
        top_groups: int = 1,
        group_best: int = 2,
        activation: str = "swiglu",
        device: Device | int | str | None = None,
    ) -> MoE:
        """Round experts to a format on the device, one at a time.

        gate and up (experts + shared, inner, hidden) and down (experts + shared, hidden, inner): arrays, or sequences
        of one matrix an expert. Every row goes to the last `shared` of them too. router (experts, hidden) stays f32; a
        row more weights the shared ones by its sigmoid. format: of all experts, or a sequence of one an expert.
        scoring: softmax over the experts' scores, or the sigmoid of each. bias (experts): added for the choice only.
        normalise: weights are divided by their sum; then they are multiplied by scale. groups, top_groups,
        group_best: experts are chosen within the best groups (DeepSeek). Of equal scores the lower number wins; a row
        with NaN scores gives NaN.

        Raises ValueError for zero experts, top_k above their number, experts of unequal shapes, inf and nan in them,
        formats that are not as many as the experts.
        """
        opened = Device(device).raw
        first = _matrix(router, "router")
        gates, ups, downs = ([_matrix(w, "experts") for w in given] for given in (gate, up, down))
        count = len(gates)
        if count <= shared or shared < 0:
            raise ValueError(f"MoE.from_arrays: there must be at least one expert, got {count} with {shared} shared")
        if len(ups) != count or len(downs) != count:
            raise ValueError(f"MoE.from_arrays: gate has {count} experts, up {len(ups)} and down {len(downs)}")
        inner, hidden = gates[0].shape
        shapes = {"gate": (gates, (inner, hidden)), "up": (ups, (inner, hidden)), "down": (downs, (hidden, inner))}
        for name, (matrices, shape) in shapes.items():
            for i, matrix in enumerate(matrices):
                if matrix.shape != shape:
                    raise ValueError(f"MoE.from_arrays: {name} of expert {i} must be {shape}, got {matrix.shape}")
        forms = _formats(format, count)
        found = list(dict.fromkeys(forms))
        stacks = [found.index(form) for form in forms]
        both: list[_C.Linear | tuple[_C.TrellisLinear, _C.TrellisLinear]] = []
        back: list[_C.Linear | _C.TrellisLinear] = []
        for stack, form in enumerate(found):
            members = [i for i in range(count) if stacks[i] == stack]
            mine = [[matrices[i] for i in members] for matrices in (gates, ups, downs)]
            both.append(_stack(opened, form, *mine[:2]))
            back.append(_stack(opened, form, mine[2]))
        rows = WeightFormat("f32").create(opened, *first.shape)
        rows.set_rows(first, "f32", len(first))
        offset = None if bias is None else upload(np.ascontiguousarray(bias, np.float32).reshape(-1), opened)
        return cls(
            _C.MoE(
                rows, both, back, stacks=stacks, experts=count - shared, top_k=top_k, shared=shared, scoring=scoring,
                bias=offset, normalise=normalise, scale=scale, groups=groups, top_groups=top_groups,
                group_best=group_best, activation=activation,
            ),
            rows,
            scoring,
        )  # fmt: skip

    def __call__(self, x: ArrayLike | Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden) in the dtype of x. An empty batch is a ValueError."""
        raw = self._rows(x)
        return Tensor(self.raw(raw.reshape(-1, self.raw.hidden)).reshape(*raw.shape))

    def route(self, x: ArrayLike | Tensor) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The experts that each row goes to, the best first and shared ones last, and their weights."""
        ids, weights = self.raw.route(self._rows(x).reshape(-1, self.raw.hidden))
        return to_numpy(ids), to_numpy(weights)

    def balance_loss(self, x: ArrayLike | Tensor) -> float:
        """The auxiliary loss that keeps a router even while it is trained: experts * sum over routed experts of the
        share of all choices that fall on an expert times its mean probability over the rows.

        1 where either is even, up to experts / top_k where all rows go to the same. The probability is the softmax of
        the logits or, with sigmoid scoring, the share of the scores; a bias takes part in the choice alone. The rows
        count in `usage` like a call. NaN where a logit is.
        Source: Fedus et al. 2022, "Switch Transformers", arXiv 2101.03961, equation 4; DeepSeek-V3, arXiv 2412.19437,
        equations 17 to 20, for several experts a row and for sigmoids.
        """
        raw, experts = self._rows(x).reshape(-1, self.raw.hidden), self.raw.experts
        logits = to_numpy(self._router(raw, dtype="f32"))[:, :experts].astype(np.float64)
        if self._scoring == "softmax":
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        else:
            with np.errstate(over="ignore"):
                scores = 1 / (1 + np.exp(-logits)) + 1e-20
        ids = to_numpy(self.raw.route(raw)[0])[:, : self.raw.top_k]
        share = np.bincount(ids.reshape(-1), minlength=experts) / ids.size
        return float(experts * share @ (scores / scores.sum(axis=1, keepdims=True)).mean(axis=0))

    @property
    def usage(self) -> NDArray[np.uint32]:
        """(experts) how often each was chosen."""
        counts: NDArray[Any] = to_numpy(self.raw.usage)
        return counts

    def __repr__(self) -> str:
        raw = self.raw
        shared = f" and {raw.shared} shared" if raw.shared else ""
        return f"<MoE, {raw.top_k} of {raw.experts} experts{shared}, hidden {raw.hidden}, inner {raw.inner}>"

    def _repr_html_(self) -> str:
        raw = self.raw
        rows = [("experts", f"{raw.top_k} of {raw.experts}"), ("shared", str(raw.shared)),
                ("hidden, inner", f"{raw.hidden}, {raw.inner}")]  # fmt: skip
        return html.table(rows, title="MoE")

    def _rows(self, x: ArrayLike | Tensor) -> _C.Tensor:
        if not isinstance(x, Tensor) and 0 in np.shape(x):
            raise ValueError(f"MoE: x must have at least one row, got shape {np.shape(x)}")
        raw = x.raw if isinstance(x, Tensor) else upload(host_array(x), self.raw.device)
        if raw.shape[-1] != self.raw.hidden:
            raise ValueError(f"MoE: x must be (..., {self.raw.hidden}), got shape {raw.shape}")
        return raw


def _matrix(w: ArrayLike, name: str) -> NDArray[np.float32]:
    matrix = np.ascontiguousarray(host_array(w), np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"MoE.from_arrays: {name} must be matrices, got shape {matrix.shape}")
    return matrix


def _formats(format: str | WeightFormat | Sequence[str | WeightFormat], count: int) -> list[WeightFormat]:
    """The format of each expert."""
    if isinstance(format, str | WeightFormat):
        return [WeightFormat.parse(format)] * count
    if len(format) != count:
        raise ValueError(f"MoE.from_arrays: there are {count} experts, but {len(format)} formats")
    return [WeightFormat.parse(one) for one in format]


def _stack(device: _C.Device, form: WeightFormat, *parts: list[NDArray[np.float32]]) -> _C.Linear:
    """The matrices of experts one behind the other; of two parts, gate and up, the rows in turn."""
    rows, columns = parts[0][0].shape
    flat = [matrix for part in parts for matrix in part]
    linear = form.create(device, len(flat) * rows, columns, global_scale=_scale(form, flat))
    for place, part in enumerate(parts):
        for i, matrix in enumerate(part):
            start = i * len(parts) * rows + place
            linear.set_rows(matrix, "f32", rows, row_start=start, row_stride=len(parts))
    return linear


def _scale(form: WeightFormat, matrices: list[NDArray[np.float32]]) -> float:
    if form.scale != "e4m3":
        return 1.0
    return global_scale(form, max(float(np.abs(matrix).max()) for matrix in matrices))
