"""EXL3 folders: what the loader accepts and refuses, and the golden checkpoint's logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import device_row
from exl3_golden import FOLDER, TINY
from ref import exl3

import marlin as ml
from marlin.errors import ModelFormatError, UnsupportedModelError
from marlin.inspect import inspect
from marlin.loaders import open_checkpoint, safetensors
from marlin.models.base import Linear, Source

Tensors = dict[str, np.ndarray[Any, Any]]
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def tiny() -> Iterator[ml.Model]:
    with ml.Model.load(TINY, device=device_row()["index"], slots=1) as model:
        yield model


def tensors_of(folder: Path) -> Tensors:
    return {name: info.read() for name, info in open_checkpoint(folder).tensors.items()}


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the golden checkpoint with other tensors, or without one of its JSON files."""

    def make(change: Callable[[Tensors], None] = lambda tensors: None, without: tuple[str, ...] = ()) -> Path:
        folder = tmp_path / "tiny"
        shutil.copytree(TINY, folder)
        tensors = tensors_of(TINY)
        change(tensors)
        safetensors.save(folder / "model.safetensors", tensors)
        for name in without:
            (folder / name).unlink()
        return folder

    return make


def golden_logits() -> tuple[list[int], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    tensors, _ = safetensors.read_header(FOLDER / "tiny_logits.safetensors")
    ids = tensors["input_ids"].read()[0].tolist()
    return ids, tensors["logits_exl3"].read()[0, :, :300], tensors["logits_hf_dequantized_fp32"].read()[0, :, :300]


def distance(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


def test_golden_logits(tiny: ml.Model) -> None:
    """ExLlamaV3 itself rounds, which makes 4.2e-4 of an exact forward pass."""
    ids, theirs, dequantized = golden_logits()
    logits = tiny.logits(ids)
    assert distance(logits, dequantized) < 5e-4
    assert distance(logits, theirs) < 8e-4
    assert np.array_equal(logits.argmax(1), theirs.argmax(1))


def test_int8_activations(tiny: ml.Model) -> None:
    """One or two rows in 8 bits: further from an exact forward pass than f16 is, by what 8 bits allow."""
    ids, _, dequantized = golden_logits()
    with ml.Model.load(TINY, device=device_row()["index"], slots=1, dtype="int8") as model:
        rounded = distance(model.logits(ids[:2]), dequantized[:2])
        assert distance(tiny.logits(ids[:2]), dequantized[:2]) < 5e-4 < rounded < 3e-2
        assert np.array_equal(model.logits(ids[:8]), tiny.logits(ids[:8]))  # more rows are in f16
        made = model.generate(ids[:8], temperature=0, max_tokens=12).tokens
        assert made[0] == dequantized[7].argmax() and len(made) == 12
        with pytest.raises(ValueError, match="f16"):
            model.perplexity("a text")
    with pytest.raises(ValueError, match="mul1"):
        ml.plan(TINY, dtype="int8", format="f16")


def test_golden_greedy(tiny: ml.Model) -> None:
    """Each token that is generated is the likeliest of the logits for all before it."""
    ids, theirs, _ = golden_logits()
    made = tiny.generate(ids[:8], temperature=0, max_tokens=12).tokens
    logits = tiny.logits(ids[:8] + made)
    top = np.sort(logits, 1)[:, -2:]
    clear = (top[:, 1] - top[:, 0] > 1e-2)[7 : 7 + len(made)]
    assert np.array_equal(logits.argmax(1)[7 : 7 + len(made)][clear], np.array(made)[clear])
    assert clear.sum() > 6
    assert made[0] == theirs[7].argmax()


def test_inspect_and_plan() -> None:
    found = {entry.name: entry for entry in inspect(TINY).entries}
    assert found[f"{UP}.weight"].form == "exl3 3 bits, mul1" and found[f"{UP}.weight"].shape == (384, 256)
    assert found["lm_head.weight"].form == "exl3 6 bits, mul1" and found["lm_head.weight"].shape == (384, 256)
    assert found["model.norm.weight"].form == "f16" and f"{UP}.suh" not in found
    plan = ml.plan(TINY)
    assert "exl3 3.5 bits, mul1" in repr(plan) and plan.weights["head"] == 384 * 256 * 6 // 8 + 2 * (384 + 256)


def test_a_layer_takes_what_the_plan_says(tiny: ml.Model) -> None:
    checkpoint = open_checkpoint(TINY)
    device = tiny.device.raw
    for module, stored in checkpoint.trellis.items():
        linear = Linear(Source(checkpoint), module, [(module, stored.shape[0])], stored.shape[1])
        linear.load(device)
        assert [trellis.nbytes for trellis in linear.trellises] == [linear.nbytes]


@pytest.mark.parametrize("without", [("quantization_config.json",), ("quantization_config.json", "config.json")])
def test_without_json(changed: Callable[..., Path], without: tuple[str, ...]) -> None:
    checkpoint = open_checkpoint(changed(without=without))
    assert checkpoint.loader == "exl3" and len(checkpoint.trellis) == 15


def test_shards(tmp_path: Path) -> None:
    tensors = tensors_of(TINY)
    halves = [dict(sorted(tensors.items())[i::2]) for i in range(2)]
    names = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for name, half in zip(names, halves, strict=True):
        safetensors.save(tmp_path / name, half)
    where = {tensor: name for name, half in zip(names, halves, strict=True) for tensor in half}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    shutil.copyfile(TINY / "config.json", tmp_path / "config.json")
    assert open_checkpoint(tmp_path).trellis.keys() == open_checkpoint(TINY).trellis.keys()


def test_requantized(tiny: ml.Model) -> None:
    """An EXL3 checkpoint in another format: decoded, then rounded."""
    ids, _, dequantized = golden_logits()
    with ml.Model.load(TINY, device=device_row()["index"], slots=1, format="f16") as model:
        assert distance(model.logits(ids[:6]), dequantized[:6]) < 2e-3


def drop(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: Any) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: np.array(value)})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop(f"{UP}.suh"), "neither .suh nor .su"),
        (drop(f"{UP}.svh"), "neither .svh nor .sv"),
        (put(f"{UP}.suh", np.ones(255, np.float16)), "suh.*expected f16 of shape"),
        (put(f"{UP}.svh", np.ones(384, np.float32)), "svh.*expected f16"),
        (put(f"{UP}.mcg", np.int32(1)), "both tensors"),
        (put(f"{UP}.mul1", np.zeros(2, np.int32)), "expected one i32"),
        (put(f"{UP}.trellis", np.zeros((16, 24, 48), np.int32)), "expected i16"),
        (put(f"{UP}.trellis", np.zeros((16, 20, 48), np.int16)), "multiples of 128"),
        (put(f"{UP}.trellis", np.zeros((16, 24, 50), np.int16)), "50 words"),
        (put(f"{UP}.trellis", np.zeros((16, 24, 144), np.int16)), "144 words"),
        (put(f"{UP}.trellis", np.zeros((16, 32, 48), np.int16)), "expected f16 of shape .512"),
        (drop("model.layers.0.self_attn.q_proj.mul1"), "need the codebook mul1"),
    ],
)
def test_broken_trellises(changed: Callable[..., Path], change: Callable[[Tensors], None], text: str) -> None:
    with pytest.raises(ModelFormatError, match=text):
        open_checkpoint(changed(change))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (put(f"{UP}.suh", np.full(256, np.nan, np.float16)), ModelFormatError, "suh of channel 0"),
        (put("lm_head.svh", np.full(384, np.inf, np.float16)), ModelFormatError, "svh of channel 0"),
        (drop(f"{UP}.mul1"), UnsupportedModelError, "one weight format"),
        (drop("lm_head.trellis"), ModelFormatError, "lm_head.weight"),
    ],
)
def test_unusable_trellises(
    changed: Callable[..., Path], change: Callable[[Tensors], None], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        ml.Model.load(changed(change), device=device_row()["index"], slots=1)


def test_older_files(changed: Callable[..., Path]) -> None:
    """Packed signs instead of scales, a scale that means nothing, a dense matrix beside trellises."""
    rng = np.random.default_rng(0)
    su, sv = (rng.integers(-(1 << 15), 1 << 15, size, np.int16) for size in (24, 16))

    def older(tensors: Tensors) -> None:
        down = "model.layers.0.mlp.down_proj"
        del tensors[f"{down}.suh"], tensors[f"{down}.svh"]
        tensors.update({f"{down}.su": su, f"{down}.sv": sv, f"{down}.scale": np.ones(1, np.float16)})
        for name in ("trellis", "suh", "svh", "mul1"):
            del tensors[f"lm_head.{name}"]
        tensors["lm_head.weight"] = rng.standard_normal((300, 256)).astype(np.float16)

    folder = changed(older)
    stored = open_checkpoint(folder).trellis["model.layers.0.mlp.down_proj"]
    assert np.array_equal(stored.read_scales()[0], exl3.signs(su))
    with ml.Model.load(folder, device=device_row()["index"], slots=1) as model:
        assert model.logits([5, 6]).shape == (2, 300)


def test_random_weights() -> None:
    config = json.loads((TINY / "config.json").read_text())
    with ml.Model.random(config, format="exl3:2.5", device=device_row()["index"], slots=1) as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()
    with pytest.raises(ValueError, match="exl3:9"):
        ml.Model.random(config, format="exl3:9", device=device_row()["index"])
