"""Speed of prefill and decode, in the rows that people compare: pp512, tg128, tg128 @ d4096."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from marlin import html
from marlin.errors import MarlinError
from marlin.generate import Engine


@dataclass(frozen=True)
class BenchRow:
    """One case: tokens a second, mean and standard deviation over the repeats."""

    test: str
    batch: int
    depth: int
    tokens_per_s: float
    deviation: float

    @property
    def name(self) -> str:
        """pp512, tg128, with the batch and depth where they are not 1 and 0."""
        batch = f" b{self.batch}" if self.batch > 1 else ""
        return f"{self.test}{batch}" + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class BenchResult:
    """Rows of a benchmark, with what they were measured on."""

    model: str
    device: str
    driver: str
    format: str
    parameters: int
    rows: list[BenchRow]
    profile: list[dict[str, Any]] = field(default_factory=list)  # of a decode step
    prefill_profile: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        rows = [
            {"name": row.name, "test": row.test, "batch": row.batch, "depth": row.depth,
             "tokens_per_s": row.tokens_per_s, "deviation": row.deviation}
            for row in self.rows
        ]  # fmt: skip
        return {
            "model": self.model, "device": self.device, "driver": self.driver, "format": self.format,
            "parameters": self.parameters, "rows": rows, "profile": self.profile,
            "prefill_profile": self.prefill_profile,
        }  # fmt: skip

    def _table(self) -> list[tuple[str, str]]:
        return [(row.name, f"{row.tokens_per_s:.2f} ± {row.deviation:.2f}") for row in self.rows]

    def __repr__(self) -> str:
        title = f"{self.model}, {self.format}, on {self.device} ({self.driver})"
        return f"{title}\n{html.lined_up(self._table(), ('test', 'tokens/s'))}"

    def _repr_html_(self) -> str:
        return html.table(
            self._table(),
            head=("test", "tokens/s"),
            title=f"{self.model}, {self.format}, {self.device}",
        )

    def plot(self, axes: Any = None) -> Any:
        """Bars of tokens a second as matplotlib Axes (needs the extra `plot`)."""
        import matplotlib.pyplot

        if axes is None:
            _, axes = matplotlib.pyplot.subplots()
        names = [row.name for row in self.rows]
        axes.barh(
            names,
            [row.tokens_per_s for row in self.rows],
            xerr=[row.deviation for row in self.rows],
        )
        axes.invert_yaxis()
        axes.set_xlabel("tokens/s")
        axes.set_title(f"{self.model}, {self.format}, {self.device}")
        return axes

    def save(self, path: str | Path) -> None:
        """Write the picture to a file, SVG or PNG by its name."""
        self.plot().figure.savefig(path, bbox_inches="tight")


def measure(
    engine: Engine,
    *,
    prompt: Sequence[int],
    gen: Sequence[int],
    depth: Sequence[int],
    batch: Sequence[int],
    repeat: int,
) -> Iterator[BenchRow]:
    """Rows of every combination that fits the context and the slots; ValueError for one that does not."""
    for size in batch:
        if not 1 <= size <= engine.slots:
            raise ValueError(f"bench: batch must be 1 to {engine.slots} (the model's slots), got {size}")
    for deep in depth:
        for count in prompt:
            _check("prompt", count, deep, engine.context)
            seconds = partial(prefill_time, engine, count, deep)
            yield _row(f"pp{count}", 1, deep, repeat, count, seconds)
        for count in gen:
            _check("gen", count, deep, engine.context)
            for size in batch:
                seconds = partial(decode_time, engine, count, deep, size)
                yield _row(f"tg{count}", size, deep, repeat, count * size, seconds)


def _check(name: str, count: int, depth: int, context: int) -> None:
    if count < 1 or depth < 0 or count + depth + 1 > context:
        raise ValueError(f"bench: {name} {count} at depth {depth} does not fit the context of {context} tokens")


def _row(test: str, batch: int, depth: int, repeat: int, tokens: int, seconds: Callable[[], float]) -> BenchRow:
    warm_up(seconds)
    rates = [tokens / seconds() for _ in range(max(1, repeat))]
    deviation = statistics.stdev(rates) if len(rates) > 1 else 0.0
    return BenchRow(test, batch, depth, statistics.fmean(rates), deviation)


def warm_up(run: Callable[[], object]) -> None:
    """Run until things are as they will stay: once for pipelines, captures and slabs, then for clocks and caches.

    The first run may spend seconds in the driver's compiler while the device rests, so that its time does not count:
    another one follows, and more until they have taken 0.2 s.
    """
    run()
    begin = time.perf_counter()
    run()
    while time.perf_counter() - begin < 0.2:
        run()


def _ids(engine: Engine, count: int) -> list[int]:
    """Token ids without a pattern; the same each time."""
    return [(i * 7919 + 13) % engine.config.vocab_size for i in range(count)]


def prefill_time(engine: Engine, count: int, depth: int = 0) -> float:
    """Seconds for `count` prompt tokens behind `depth` others."""
    ids = _ids(engine, depth + count)
    engine.prefill(0, ids[:depth])
    engine.kept[0] = ids[:depth]
    engine.device.sync()
    begin = time.perf_counter()
    engine.prefill(0, ids, reuse=True)
    engine.device.sync()
    return time.perf_counter() - begin


def decode_time(engine: Engine, count: int, depth: int = 0, batch: int = 1) -> float:
    """Seconds from the first to the last of `count` steps of `batch` slots behind `depth` tokens."""
    generator, slots = engine.generator(batch, depth + count + 1)
    ids = _ids(engine, depth + 1)
    for slot in range(min(batch, slots)):
        engine.prefill(slot, ids[:-1])
    engine.device.sync()
    begin = time.perf_counter()
    for slot in range(min(batch, slots)):
        generator.admit(slot, token=ids[-1], position=depth, limit=depth + count)
    drawn = 0
    try:
        while rows := generator.pump():
            drawn += len(rows)
            if any(finish == "nan" for _, _, finish, _, _ in rows):
                raise MarlinError("bench: the model's logits are not finite")
    finally:
        for slot in range(slots):
            generator.release(slot)
    seconds = time.perf_counter() - begin
    assert drawn == count * min(batch, slots), (drawn, count, batch)
    return seconds


def profile(engine: Engine, *, depth: int = 0, batch: int = 1) -> list[dict[str, Any]]:
    """Time by kernel of one decode step, run without a capture: name, calls, us, gb_per_s, tflop_per_s."""
    slots = max(1, min(batch, engine.slots))
    ids = _ids(engine, depth + 1)
    for slot in range(slots):
        engine.prefill(slot, ids[:-1])
    return _by_kernel(engine, lambda: engine.decode_once(ids[-1], depth, slots))


def profile_prefill(engine: Engine, count: int, *, depth: int = 0) -> list[dict[str, Any]]:
    """Time by kernel of a prefill of `count` tokens behind `depth` others: name, calls, us, gb_per_s, tflop_per_s."""
    ids = _ids(engine, depth + count)
    engine.prefill(0, ids[:depth])

    def prefill() -> None:
        engine.kept[0] = ids[:depth]
        engine.prefill(0, ids, reuse=True)

    return _by_kernel(engine, prefill)


def _by_kernel(engine: Engine, run: Callable[[], object]) -> list[dict[str, Any]]:
    """What the dispatches of a run take together, by name, after one run that compiles; the longest first."""
    run()
    engine.device.sync()
    engine.device.profile_start()
    try:
        run()
    finally:
        rows = engine.device.profile_stop()
    total: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = total.setdefault(row["name"], {"name": row["name"], "calls": 0, "ns": 0.0, "bytes": 0, "flops": 0.0})
        entry["calls"] += 1
        for key in ("ns", "bytes", "flops"):
            entry[key] += row[key]
    result = []
    for entry in sorted(total.values(), key=lambda entry: -entry["ns"]):
        ns = max(entry["ns"], 1e-3)
        result.append(
            {"name": entry["name"], "calls": entry["calls"], "us": entry["ns"] / 1e3,
             "gb_per_s": entry["bytes"] / ns, "tflop_per_s": entry["flops"] / ns / 1e3}
        )  # fmt: skip
    return result
