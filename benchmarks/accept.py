"""Check a model folder against its golden.npz: `python benchmarks/accept.py DIR [--dtype f32 f16]`.

golden.npz holds what an independent implementation computed in f32 from the same weights:

    ids (t), logits (t, vocab) or those of `positions` only, nll (t - 1) of ids[1:]
    hidden (layers + 1, hidden) of the last position
    promptI, greedyI, marginI    greedy continuations; margin: best logit minus second best
    ppl_names, ppl               perplexity of the first 16 windows of 512 tokens of named texts

With experts, rounding of activations may tip a choice between two experts that are equal to it (in tale-moe two of
96 tokens, by 9e-6 and 7e-5 of a score); so with f16 and bf16 activations 3 in 100 positions, at least one, may
exceed the limit.
A greedy token may differ where the margin is below the tolerance; the rest is then compared behind the
golden token. Perplexities are checked for the texts found in --data. Exit code 0: everything passed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import marlin as ml

WINDOW, WINDOWS, TEXT = 512, 16, 80_000


@dataclass(frozen=True)
class Tolerance:
    """Largest differences: of a logit, of the hidden state relative to its norm, of log perplexity."""

    logit: float
    hidden: float
    ppl: float


TOLERANCES = {
    "f32": Tolerance(logit=2e-3, hidden=1e-4, ppl=1e-4),
    "f16": Tolerance(logit=0.08, hidden=5e-3, ppl=2e-3),
    "bf16": Tolerance(logit=0.6, hidden=4e-2, ppl=1e-2),
}


@dataclass(frozen=True)
class Check:
    """One row of the report."""

    dtype: str
    what: str
    value: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.value <= self.limit)


def checks(model: ml.Model, golden: Any, dtype: str, data: Path | None) -> Iterator[Check]:
    """All comparisons of one loaded model."""
    limits = TOLERANCES[dtype]
    ids = golden["ids"].tolist()
    trace = model.trace(ids)
    logits = trace["logits"]
    if "positions" in golden:
        logits = logits[golden["positions"]]
    worst = np.sort(np.abs(logits - golden["logits"]).max(axis=1))
    excused = math.ceil(0.03 * len(worst)) if model.config.experts and dtype != "f32" else 0
    note = f"largest difference, {excused} positions excused up to {worst[-1]:.3g}" if excused else "largest difference"
    yield Check(dtype, "logits", float(worst[len(worst) - 1 - excused]), limits.logit, note)
    nll = -model.score(ids).logprobs
    yield Check(dtype, "nll", float(np.abs(nll - golden["nll"]).max()), limits.logit, "largest difference")

    layers = len(golden["hidden"]) - 1
    states = [trace["model.embed_tokens"][-1]]
    states += [trace[f"model.layers.{i}"][-1] for i in range(layers - 1)]
    states += [trace["model.norm"][-1]]  # transformers reports the last one behind the final norm
    errors = [
        float(np.linalg.norm(ours - wanted) / np.linalg.norm(wanted))
        for ours, wanted in zip(states, golden["hidden"], strict=True)
    ]
    worst = int(np.argmax(errors))
    yield Check(dtype, "hidden", errors[worst], limits.hidden, f"relative, worst after layer {worst}")

    for i in range(len([name for name in golden.files if name.startswith("greedy")])):
        wrong, allowed, smallest = greedy(model, golden, i, limits.logit)
        note = f"{len(golden[f'greedy{i}'])} tokens, {allowed} within the tolerance"
        if wrong:
            note += f"; smallest margin of a wrong one {smallest:.4f}"
        yield Check(dtype, f"greedy {i}", wrong, 0, note)

    named = golden["ppl_names"].tolist() if "ppl_names" in golden else []
    for name, ppl in zip(named, golden["ppl"].tolist() if named else [], strict=True):
        file = data / name if data is not None else None
        if file is None or not file.is_file():
            continue
        assert model.tokenizer is not None
        text = file.read_text(encoding="utf-8")[:TEXT]
        found = model.perplexity(model.tokenizer.encode(text)[: WINDOWS * WINDOW], stride=WINDOW)
        error = abs(float(np.log(found / ppl)))
        yield Check(dtype, f"perplexity {name}", error, limits.ppl, f"{found:.4f}, golden {ppl:.4f}")


def greedy(model: ml.Model, golden: Any, index: int, tolerance: float) -> tuple[int, int, float]:
    """Wrong tokens, tokens that differ within the tolerance, and the smallest margin of a wrong one."""
    prompt, wanted = golden[f"prompt{index}"].tolist(), golden[f"greedy{index}"].tolist()
    margins = golden[f"margin{index}"]
    at, wrong, allowed, smallest = 0, 0, 0, float("inf")
    while at < len(wanted):
        found = model.generate(
            prompt + wanted[:at], max_tokens=len(wanted) - at, temperature=0, repetition_penalty=1
        ).tokens
        while at < len(wanted) and found and found[0] == wanted[at]:
            at += 1
            found = found[1:]
        if at < len(wanted):
            if margins[at] <= 2 * tolerance:  # both logits may be off by the tolerance
                allowed += 1
            else:
                wrong += 1
                smallest = min(smallest, float(margins[at]))
            at += 1
    return wrong, allowed, smallest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="model folder with golden.npz")
    parser.add_argument("--dtype", nargs="+", default=["f32", "f16"], choices=sorted(TOLERANCES))
    parser.add_argument("--format", help="weight format, default: as stored")
    parser.add_argument("--device", help="index, name or UUID")
    parser.add_argument("--data", type=Path, help="folder of the texts of ppl_names")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    options = parser.parse_args()
    golden = np.load(options.folder / "golden.npz")
    report: list[Check] = []
    for dtype in options.dtype:
        kv = "f32" if dtype == "f32" else "f16"
        with ml.Model.load(
            options.folder,
            dtype=dtype,
            kv=kv,
            format=options.format,
            device=options.device,
            slots=1,
        ) as model:
            for check in checks(model, golden, dtype, options.data):
                report.append(check)
                if not options.json:
                    verdict = "ok  " if check.passed else "FAIL"
                    line = f"{verdict} {check.dtype:5}{check.what:32}{check.value:10.3g}"
                    print(f"{line} <= {check.limit:<8.3g} {check.note}", flush=True)
    if options.json:
        print(json.dumps([{**asdict(check), "passed": check.passed} for check in report], indent=1))
    return 0 if all(check.passed for check in report) else 1


if __name__ == "__main__":
    sys.exit(main())
