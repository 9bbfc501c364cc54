"""Activations by layer beside another implementation: arrays, and transformers where it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_model import TINY, weights_of

import marlin as ml
from marlin.compare import differences
from marlin.loaders import safetensors

IDS = [3, 100, 7, 7, 42, 0, 127, 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    (path / "config.json").write_text(json.dumps(TINY))
    safetensors.save(path / "model.safetensors", weights_of(TINY))
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[ml.Model]:
    with ml.Model.load(folder, dtype="f32", slots=1) as loaded:
        yield loaded


def test_arrays(model: ml.Model) -> None:
    """Of the names that both have, in order of computation."""
    trace = model.trace(IDS)
    other = {"logits": trace["logits"] + 0.5, "model.layers.1": trace["model.layers.1"], "elsewhere": np.zeros(1)}
    found = model.compare(other, IDS)
    assert [row.name for row in found] == ["model.layers.1", "logits"]
    assert (found[0].largest, found[0].relative, found[0].shape) == (0, 0, (8, 64))
    assert found[1].largest == pytest.approx(0.5, rel=1e-3)
    assert found[1].relative == pytest.approx(0.5 * np.sqrt(8 * 128) / np.linalg.norm(other["logits"]), rel=1e-3)
    lines = repr(found).splitlines()
    assert len(lines) == 3 and lines[1].startswith("model.layers.1  8 × 64") and "5.00e-01" in lines[2]
    assert "<table>" in found._repr_html_()


def test_zeros() -> None:
    zero, one = np.zeros(2), np.ones(2)
    found = differences({"a": zero, "b": one}, {"a": zero, "b": zero})
    assert [row.relative for row in found] == [0, np.inf]


def test_what_cannot_be_compared(model: ml.Model) -> None:
    with pytest.raises(ValueError, match=r"logits is \(8, 128\) here and \(128,\) in the reference"):
        model.compare({"logits": np.zeros(128)}, IDS)
    with pytest.raises(ValueError, match=r"the reference has none of model\.embed_tokens, "):
        model.compare({}, IDS)


def test_without_transformers(model: ml.Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ml.MarlinError, match=r"needs torch: pip install 'marlin-vulkan\[hf\]'"):
        model.compare(folder, IDS)


def test_transformers(model: ml.Model, folder: Path) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    found = model.compare(folder, IDS)
    assert [row.name for row in found] == ["model.embed_tokens", "model.layers.0", "model.norm", "logits"]
    assert max(row.relative for row in found) < 1e-5
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    loaded.model.layers[0].mlp.down_proj.weight.data *= 1.5
    wrong = {row.name: row.relative for row in model.compare(loaded.float(), IDS)}
    assert wrong["model.embed_tokens"] == 0 and wrong["model.layers.0"] > 0.01
