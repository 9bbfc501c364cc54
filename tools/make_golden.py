#!/usr/bin/env python3
"""Compute golden.npz of a model folder with the NumPy reference (tests/ref/model.py), in
float64.

    python tools/make_golden.py FOLDER...

    ids            int32 [96]                the text below, the next four entries are about it
    positions      int32 [12]                positions whose logits are kept
    logits         float32 [12, vocab]
    nll            float32 [95]              negative log-likelihood of ids[1:]
    hidden         float32 [layers+1, hidden]  of the last position: the embedding, then the output
                                             of each layer (the last one after the final norm)
    prompt0..2     int32                     prompts; the last is a chat, by the model's template
    greedy0..2     int32 [<= 32]             greedy continuation (ends early at an end token)
    margin0..2     float32                   best logit minus second best at each of those steps
The weights are the dequantized ones of the folder, so that a difference is the engine's, not the
format's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ref.model import Model, greedy, load_weights  # noqa: E402

from marlin.config import read_config, rope_frequencies  # noqa: E402
from marlin.loaders import open_checkpoint  # noqa: E402
from marlin.tokenizer import Tokenizer  # noqa: E402

TEXT = """The miller had three daughters, and the youngest of them could talk with the river. Every
evening she sat upon the old stone bridge and asked it what it had seen that day. "I have
seen the king's men," said the river, "and they are looking for a girl with silver shoes."
The youngest looked down at her bare feet and laughed, for she had given her shoes away to a
beggar woman that very morning, and had forgotten all about it. But the river did not laugh.
It grew quite still, and then it said in a low voice: "Go home, and bar the door."
"""
PROMPTS = (
    "Once upon a time there was a little girl who",
    '"Where are we going?" asked the boy.\n\n',
    [{"role": "user", "content": "Tell me a story about a fox and a king."}],
)
TOKENS, STEPS = 96, 32
POSITIONS = (0, 1, 2, 7, 15, 16, 31, 47, 63, 64, 80, 95)


def write_golden(folder: Path) -> None:
    """Write folder/golden.npz."""
    checkpoint = open_checkpoint(folder)
    config = read_config(checkpoint.config, checkpoint.generation_config)
    tokenizer = Tokenizer(folder)
    frequencies, scale = rope_frequencies(config)
    model = Model(config, load_weights(checkpoint), frequencies, rope_scale=scale, dtype=np.float64)

    ids = tokenizer.encode(TEXT.replace("\n", " "))[:TOKENS]
    hidden: list[np.ndarray] = []
    logits = model.forward(ids, hidden=hidden)
    likelihood = logits - logits.max(axis=1, keepdims=True)
    likelihood -= np.log(np.exp(likelihood).sum(axis=1, keepdims=True))
    golden = {
        "ids": np.array(ids, np.int32),
        "positions": np.array(POSITIONS, np.int32),
        "logits": logits[list(POSITIONS)].astype(np.float32),
        "nll": -likelihood[np.arange(TOKENS - 1), ids[1:]].astype(np.float32),
        "hidden": np.stack([layer[-1] for layer in hidden]).astype(np.float32),
    }
    for i, prompt in enumerate(PROMPTS):
        if isinstance(prompt, str):
            start = tokenizer.encode(prompt, bos=True)
        else:
            start = tokenizer.apply_chat_template(prompt, tokenize=True)
        tokens, margins = greedy(model, start, STEPS, config.eos_ids)
        golden[f"prompt{i}"] = np.array(start, np.int32)
        golden[f"greedy{i}"] = np.array(tokens, np.int32)
        golden[f"margin{i}"] = np.array(margins, np.float32)
        print(f"{folder.name} {i}: {tokenizer.decode(tokens)!r} (smallest margin {min(margins):.4f})")
    np.savez_compressed(folder / "golden.npz", **golden)


def main() -> None:
    """Write golden.npz for each folder named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    for folder in parser.parse_args().folders:
        write_golden(folder)


if __name__ == "__main__":
    main()
