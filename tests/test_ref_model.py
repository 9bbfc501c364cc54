"""The goldens of the shipped models belong to their weights: the NumPy model gives them again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ref.model import Model, greedy, load_weights

from marlin.config import read_config, rope_frequencies
from marlin.loaders import open_checkpoint
from marlin.tokenizer import Tokenizer

MODELS = Path(__file__).resolve().parents[1] / "models"


@pytest.mark.parametrize("name", ["fix-llama", "tale-moe"])
def test_goldens(name: str) -> None:
    golden = np.load(MODELS / name / "golden.npz")
    checkpoint = open_checkpoint(MODELS / name)
    config = read_config(checkpoint.config, checkpoint.generation_config)
    frequencies, scale = rope_frequencies(config)
    model = Model(config, load_weights(checkpoint), frequencies, rope_scale=scale)

    hidden: list[np.ndarray] = []
    logits = model.forward(golden["ids"], hidden=hidden)
    assert np.abs(logits[golden["positions"]] - golden["logits"]).max() < 2e-4
    assert np.abs(np.stack([layer[-1] for layer in hidden]) - golden["hidden"]).max() < 2e-4
    shifted = logits[:-1] - logits[:-1].max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(shifted)), golden["ids"][1:]]
    assert np.abs(losses - golden["nll"]).max() < 2e-4

    tokenizer = Tokenizer(MODELS / name)
    for i in range(3):
        prompt = golden[f"prompt{i}"].tolist()
        assert tokenizer.encode(tokenizer.decode(prompt, special=True), special=True) == prompt
        tokens, margins = greedy(model, prompt, len(golden[f"greedy{i}"]))
        assert tokens == golden[f"greedy{i}"].tolist()
        assert np.allclose(margins, golden[f"margin{i}"], atol=2e-4)


def test_a_text_in_pieces_is_the_text() -> None:
    """The cache of the reference: token by token as all at once."""
    golden = np.load(MODELS / "fix-llama" / "golden.npz")
    checkpoint = open_checkpoint(MODELS / "fix-llama")
    config = read_config(checkpoint.config)
    model = Model(config, load_weights(checkpoint), rope_frequencies(config)[0], dtype=np.float64)
    ids = golden["ids"][:20]
    whole = model.forward(ids)
    model.reset()
    pieces = np.concatenate([model.forward(ids[at : at + 3]) for at in range(0, len(ids), 3)])
    assert np.allclose(whole, pieces, rtol=1e-12, atol=1e-10)
