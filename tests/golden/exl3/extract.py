"""Make linears.npz and tiny/ from outputs of ExLlamaV3 1.6.5: `python extract.py FOLDER`.

FOLDER has linear_K<bits>_<codebook>_<k>x<n>.safetensors (layers that ExLlamaV3 quantized, with results of its
kernels), codebooks.safetensors, and checkpoints that it wrote of a small llama. Of each layer are kept the stored
tensors, four rows of x, of the rotated x and of y in f32, and hashes of the decoded matrix; of the checkpoints the
mul1 one and its logits.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
ROWS = 4
STORED = ("trellis", "suh", "svh", "bias", "mul1", "mcg")


def digest(array: np.ndarray) -> np.ndarray:
    """SHA-256 of the bytes, as an array of 32."""
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest(), np.uint8)


def main(folder: Path) -> None:
    kept = {}
    for path in sorted(folder.glob("linear_*.safetensors")):
        case = path.stem.removeprefix("linear_")
        tensors = load_file(path)
        for name in STORED:
            if name in tensors:
                kept[f"{case}/{name}"] = tensors[name]
        for name, golden in (("x", "x"), ("x_had", "x_had"), ("y", "y_m20_fp32")):
            kept[f"{case}/{name}"] = tensors[golden][:ROWS]
        kept[f"{case}/inner_sha256"] = digest(tensors["inner_weight"])
        kept[f"{case}/weight_first_row"] = tensors["weight"][0]
    for name, table in load_file(folder / "codebooks.safetensors").items():
        kept[f"codebook/{name}"] = digest(table)
    np.savez_compressed(HERE / "linears.npz", **kept)

    source, target = folder / "tiny_llama_exl3_mul1_3.25bpw", HERE / "tiny"
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.name != "golden_logits.safetensors":
            shutil.copyfile(path, target / path.name)
    golden = load_file(source / "golden_logits.safetensors")
    save_file(
        {name: golden[name] for name in ("input_ids", "logits_exl3", "logits_hf_dequantized_fp32")},
        HERE / "tiny_logits.safetensors",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
