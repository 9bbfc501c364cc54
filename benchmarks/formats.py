"""What each weight format costs in quality: perplexity and divergence of one model, rounded while it loads.

    python benchmarks/formats.py DIR TEXT...          # DIR: a 16-bit checkpoint; TEXT: plain text files

Perplexity: the first 16 windows of 512 tokens. Divergence: mean Kullback-Leibler divergence, in nats a token, of the
first window's distributions from those of the same weights in f32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import marlin as ml

WINDOW, WINDOWS, TEXT = 512, 16, 80_000
SCALE_BITS = {"f16": 16, "e4m3": 8, "e8m0": 8}
# (format, group, scale): group 0 is one scale a row
FORMATS: list[tuple[str, int | None, str | None]] = [
    ("f32", None, None), ("f16", None, None), ("bf16", None, None), ("int8", 128, "f16"), ("int8", 0, "f16"),
    ("fp8_e4m3", 0, "f16"), ("fp8_e5m2", 0, "f16"), ("int4", 32, "f16"), ("int4", 128, "f16"),
    ("fp4_e2m1", 32, "f16"), ("fp4_e2m1", 16, "e4m3"), ("fp4_e2m1", 32, "e8m0"),
]  # fmt: skip


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows of log-probabilities, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    args = parser.parse_args()
    texts = [path.read_text(encoding="utf-8")[:TEXT] for path in args.texts]
    names = " | ".join(f"perplexity, {path.stem}" for path in args.texts)
    print(f"| format | bits a weight | {names} | divergence |\n|---|---|{'---|' * (len(texts) + 1)}")
    exact: NDArray[np.float64] | None = None
    for name, group, scale in FORMATS:
        wanted = ml.WeightFormat(name, group=group, scale=scale)
        dtype = "f32" if name in ("f32", "bf16") else "f16"
        with ml.Model.load(args.folder, format=wanted, dtype=dtype, kv=dtype, context=WINDOW, slots=1) as model:
            assert model.tokenizer is not None
            found = []
            for text in texts:
                ids = model.tokenizer.encode(text)[: WINDOW * WINDOWS]
                found.append(f"{float(model.perplexity(ids, stride=WINDOW, progress=False)):.3f}")
            logp = log_softmax(model.logits(model.tokenizer.encode(texts[0])[:WINDOW]))
            bits = wanted.bits + (SCALE_BITS[scale] / group if scale and group else 0.0)
        exact = logp if exact is None else exact
        divergence = float((np.exp(exact) * (exact - logp)).sum(-1).mean())
        what = name if scale is None else f"{name}, {f'group {group}' if group else 'a row'}, {scale} scales"
        print(f"| {what} | {bits:.2f} | {' | '.join(found)} | {divergence:.5f} |", flush=True)


if __name__ == "__main__":
    main()
