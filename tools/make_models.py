#!/usr/bin/env python3
"""Make the models that the repository ships, from bf16 checkpoints: 8- and 4-bit compressed-tensors
and goldens.

    python tools/make_models.py FOLDER...            # each FOLDER named as in MODELS below

Both layouts of integers are used, so that the tests read both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_golden import write_golden

from marlin.loaders.compressed_tensors import save_quantized

MODELS = {
    "fix-llama": {"format": "int8", "group": 0},  # int-quantized, per channel
    # pack-quantized. Routers choose, and a wrong choice is a large error; kv_b works on what is cached. On held-out
    # books kv_b in int4 would save 1.0 MB and cost 0.4 % more perplexity, groups of 128 0.4 MB and 1.3 %.
    "tale-moe": {
        "format": "int4",
        "group": 64,
        "ignore": ("re:.*mlp.gate$",),
        "others": {r".*kv_b_proj$": ("int8", 256)},
    },
}


def main() -> None:
    """Quantize each folder into models/<name> beside this script's folder, and compute its
    golden.npz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "models")
    options = parser.parse_args()
    for folder in options.folders:
        if folder.name not in MODELS:
            parser.error(f"{folder.name} is not one of {', '.join(MODELS)}")
        out = options.out / folder.name
        save_quantized(folder, out, **MODELS[folder.name])
        write_golden(out)
        for file in sorted(out.iterdir()):
            print(f"{file.stat().st_size:>10}  {file}")


if __name__ == "__main__":
    main()
