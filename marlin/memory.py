"""What goes where in device memory, known before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from marlin import html
from marlin.config import ModelConfig

KV_BYTES: Final = {"f16": 2, "f32": 4}
ACTIVATION_BYTES: Final = {"f16": 2, "bf16": 2, "f32": 4, "int8": 2}  # int8: f16 between kernels
CHUNK_ROWS: Final = {"discrete": 2048}  # of a prefill call, by the kind of device: experts want hundreds of rows each
CHUNK_ROWS_ELSEWHERE: Final = 512  # large enough for full matrix tiles, short enough to cancel
EXPANDED_BYTES: Final = 256 << 20  # keys and values that are made of latents at a time (csrc/ops/mla_prefill.c)
UPLOAD_BYTES: Final = 64 << 20  # device buffers of the loader, and slack of the allocator's slabs


@dataclass(frozen=True)
class HostExperts:
    """Routed experts in host memory.

    count, of        how many of how many; nbytes: their size
    bytes_a_token    read over the bus, as expected by a usage profile (profiled), or if all experts are chosen alike
    rate             measured bytes a second of the bus, None without a device
    """

    count: int
    of: int
    nbytes: int
    bytes_a_token: int
    profiled: bool
    rate: float | None

    @property
    def seconds_a_token(self) -> float | None:
        """That reading takes; None without a rate."""
        return self.bytes_a_token / self.rate if self.rate else None

    def __str__(self) -> str:
        how = "the least used" if self.profiled else "if all are used alike"
        cost = f"{html.size(self.bytes_a_token)} a token over the bus, {how}"
        if self.rate:
            cost += f": {1e3 * self.bytes_a_token / self.rate:.2f} ms at {self.rate / 1e9:.1f} GB/s, measured"
        return f"{self.count} of {self.of} experts in host memory, {html.size(self.nbytes)}; {cost}"


@dataclass(frozen=True)
class MemoryPlan:
    """Device bytes by class for a context (tokens a slot) and a number of slots.

    weights: by kind of layer. state: what layers without a cache remember of the slots. scratch: activations of a
    prefill chunk, logits, buffers of the loader; an estimate, the rest is exact. budget: what the device has left for
    this process, None without a device. notes: what else there is to know. host: experts in host memory, not counted in
    weights.
    """

    model: str
    format: str
    device: str
    weights: dict[str, int]
    kv: int
    scratch: int
    context: int
    slots: int
    kv_dtype: str
    budget: int | None
    state: int = 0
    notes: tuple[str, ...] = ()
    host: HostExperts | None = None

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return sum(self.weights.values()) + self.kv + self.state + self.scratch

    @property
    def fits(self) -> bool:
        """Whether the total is within the budget; True where no budget is known."""
        return self.budget is None or self.total <= self.budget

    def rows(self) -> list[tuple[str, int]]:
        """(name, bytes), the total aside."""
        cache = f"KV cache {self.kv_dtype}, {self.slots} × {self.context} tokens"
        state = [(f"state f32, {self.slots} slots", self.state)] if self.state else []
        return [*self.weights.items(), (cache, self.kv), *state, ("scratch", self.scratch)]

    def lines(self) -> list[str]:
        """What stands below the table."""
        return [*self.notes, *([str(self.host)] if self.host else [])]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "model": self.model, "format": self.format, "device": self.device, "weights": dict(self.weights),
            "kv": self.kv, "state": self.state, "scratch": self.scratch, "total": self.total, "budget": self.budget,
            "fits": self.fits, "context": self.context, "slots": self.slots, "kv_dtype": self.kv_dtype,
            "notes": list(self.notes), "host": asdict(self.host) if self.host else None,
        }  # fmt: skip

    def __repr__(self) -> str:
        budget = [] if self.budget is None else [("budget", html.size(self.budget))]
        rows = [
            *((name, html.size(count)) for name, count in self.rows()),
            ("total", html.size(self.total)),
            *budget,
        ]
        verdict = "" if self.fits else "\ndoes not fit"
        return "\n".join([self._title(), html.lined_up(rows), *self.lines()]) + verdict

    def _repr_html_(self) -> str:
        rows = [
            *((name, html.size(count)) for name, count in self.rows()),
            ("total", html.size(self.total)),
        ]
        if self.budget is not None:
            rows.append(("budget", html.size(self.budget)))
        parts = [(f"{name}: {html.size(count)}", float(count)) for name, count in self.rows()]
        notes = "".join(html.text(line) for line in self.lines())
        return html.table(rows, title=self._title()) + html.bar(parts, self.budget or self.total) + notes

    def plot(self, axes: Any = None) -> Any:
        """A stacked bar as matplotlib Axes (needs the extra `plot`)."""
        import matplotlib.pyplot

        if axes is None:
            _, axes = matplotlib.pyplot.subplots(figsize=(8, 1.8))
        left = 0.0
        for i, (name, count) in enumerate(self.rows()):
            axes.barh([0], [count / 2**30], left=left, label=name, color=html.COLORS[i % len(html.COLORS)])
            left += count / 2**30
        if self.budget is not None:
            axes.axvline(self.budget / 2**30, color="black", linestyle="--", label="budget")
        axes.set_yticks([])
        axes.set_xlabel("GiB")
        axes.set_title(self._title())
        axes.legend(fontsize="small", ncols=3)
        return axes

    def save(self, path: str | Path) -> None:
        """Write the picture to a file, SVG or PNG by its name."""
        self.plot().figure.savefig(path, bbox_inches="tight")

    def _title(self) -> str:
        return f"{self.model}, {self.format}, on {self.device}"


def kv_dtype(kv: str | None, dtype: str) -> str:
    """The type of the cache for activations of `dtype`, where None leaves it open."""
    return kv if kv is not None else "f32" if dtype == "f32" else "f16"


def kv_bytes(config: ModelConfig, context: int, slots: int, kv: str) -> int:
    """Bytes of the cache."""
    return config.cache_layers * slots * context * config.cache_row * KV_BYTES[kv]


def state_bytes(config: ModelConfig, slots: int) -> int:
    """Bytes of the state of layers with a gated delta net."""
    return 4 * slots * sum(config.delta.linear) * config.delta.slot_floats if config.delta else 0


def chunk_rows(kind: str | None) -> int:
    """Rows of a prefill call on a device of this kind (Device.kind); None: not known yet."""
    return CHUNK_ROWS.get(kind or "", CHUNK_ROWS_ELSEWHERE)


def scratch_bytes(config: ModelConfig, context: int, slots: int, dtype: str, chunk: int) -> int:
    """Activations of a prefill chunk (residual twice, qkv, attention, MLP, experts), logits of a step, loader."""
    rows, wide = min(chunk, context), ACTIVATION_BYTES[dtype]
    row = 8 * config.hidden_size + wide * (2 * config.q_size + 2 * config.kv_size + config.intermediate_size)
    expanded = 0
    if config.latent is not None:  # absorbed queries and chunk results, f32; keys and values of prompts, f16
        row += 8 * config.heads * config.latent.row
        keys = 2 * context * config.heads * (config.latent.nope_dim + config.latent.v_dim)
        expanded = min(keys, EXPANDED_BYTES) + 2 * context * config.latent.rank
    if config.delta is not None:  # x, the gates, mixed and o of delta nets; the gate beside q
        d = config.delta
        row += wide * (d.channels + 2 * d.value_size + config.q_size) + 4 * (d.channels + d.value_size)
        row += 16 * d.value_heads
        if dtype in ("f16", "int8"):  # in chunks, csrc/ops/delta.c
            row += d.value_heads * (6 * d.key_dim + 4 * d.value_dim + 128)
    if config.experts is not None:  # of each chosen expert act and, of tiles, the result; logits of the router
        e = config.experts
        row += (e.top_k + 1) * (wide * e.inner + 4 * config.hidden_size) + 4 * e.count
        row += (e.top_k + 1) * (wide * e.inner + 2 * config.hidden_size)  # of trellises the gate and the transformed x
    return rows * row + expanded + 4 * slots * config.vocab_size + UPLOAD_BYTES
