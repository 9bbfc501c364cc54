"""EXL3 checkpoints whose embedding is coded, by rows or in tiles, and heads of their own bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_trellis_moe
from conftest import device_row
from numpy.typing import NDArray
from ref import exl3
from ref.model import Model as Reference
from test_moe_model import COMMON

import marlin as ml
from marlin.errors import ModelFormatError
from marlin.inspect import inspect
from marlin.loaders import open_checkpoint, safetensors
from marlin.trellis import decode_rows

EMBED = "model.embed_tokens"
IDS = [5, 99, 3, 64, 17, 17, 80]
LLAMA = COMMON | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def coded_rows(rows: int, columns: int, bits: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random words with scales that make numbers of about 1, and signs."""
    rng = np.random.default_rng(bits)
    groups = -(-columns // 256)
    words = rng.integers(0, 1 << 16, (rows, groups, 1 + 16 * bits), np.uint16)
    words[:, :, 0] = rng.uniform(0.5, 1.5, (rows, groups)).astype(np.float16).view(np.uint16)
    return words.reshape(rows, -1), rng.choice([np.float16(-1), np.float16(1)], (groups, 256))


@pytest.mark.parametrize("bits", range(1, 9))
def test_rows_are_decoded(bits: int) -> None:
    words, signs = coded_rows(3, 400, bits)
    np.testing.assert_allclose(decode_rows(words, signs), exl3.embedding(words, signs), atol=1e-5)


def change(folder: Path, **tensors: NDArray[Any] | None) -> None:
    """Replace planes of the embedding by others; its plain weight goes."""
    found, _ = safetensors.read_header(folder / "model.safetensors")
    stored = {name: info.read() for name, info in found.items() if name != f"{EMBED}.weight"}
    stored |= {f"{EMBED}.{name}": array for name, array in tensors.items() if array is not None}
    safetensors.save(folder / "model.safetensors", stored)


def coded_by_rows(folder: Path, config: dict[str, Any], bits: int) -> Reference:
    wanted = test_trellis_moe.write(folder, config, bits=lambda module: 4)
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    words, signs = coded_rows(vocab, hidden, bits)
    change(folder, trellis=words.view(np.int16), signs=signs)
    wanted.weights[f"{EMBED}.weight"] = exl3.embedding(words, signs)[:, :hidden].astype(np.float16)
    return wanted


def distance(model: ml.Model, wanted: Reference) -> float:
    logits = wanted.forward(IDS)
    return float(np.abs(model.logits(IDS) - logits).max() / np.abs(logits).max())


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_coded_by_rows(tmp_path: Path, tied: bool) -> None:
    folder = tmp_path / "model"
    wanted = coded_by_rows(folder, LLAMA | {"tie_word_embeddings": tied}, 5)
    plan = ml.plan(folder, slots=1)
    assert plan.notes == ("embedding: exl3 5 bits, mul1 in the file, f16 on the device",)
    assert plan.notes[0] in repr(plan) and plan.notes[0] in plan._repr_html_() and plan.to_dict()["notes"]
    assert plan.weights["embedding"] == ml.WeightFormat("f16").nbytes(LLAMA["vocab_size"], LLAMA["hidden_size"])
    (entry,) = [entry for entry in inspect(folder).entries if entry.name.startswith(EMBED)]
    assert entry.form == "exl3 5 bits, mul1" and entry.shape == (LLAMA["vocab_size"], 256)
    with ml.Model.load(folder, dtype="f32", kv="f32", slots=1, device=device_row()["index"]) as model:
        assert distance(model, wanted) < 1e-3  # f16, here and there rounded the other way
        assert model.memory.weights == plan.weights


def test_embedding_coded_by_rows_in_another_format(tmp_path: Path) -> None:
    wanted = coded_by_rows(tmp_path / "model", LLAMA | {"tie_word_embeddings": True}, 8)
    with ml.Model.load(
        tmp_path / "model", format="f32", dtype="f32", kv="f32", slots=1, device=device_row()["index"]
    ) as model:
        assert distance(model, wanted) < 1e-3


def test_large_embeddings_are_decoded_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marlin.loaders.base.ROWS_NUMBERS", 256 * 50)
    wanted = coded_by_rows(tmp_path / "model", LLAMA, 3)
    stored = open_checkpoint(tmp_path / "model").row_trellis[EMBED]
    sizes = [(first, len(rows)) for first, rows in stored.blocks()]
    assert sizes == [(first, min(50, LLAMA["vocab_size"] - first)) for first in range(0, LLAMA["vocab_size"], 50)]
    assert len(sizes) > 1
    with ml.Model.load(tmp_path / "model", dtype="f32", kv="f32", slots=1, device=device_row()["index"]) as model:
        assert distance(model, wanted) < 1e-3  # f16, here and there rounded the other way


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_coded_in_tiles(tmp_path: Path, tied: bool) -> None:
    """As a linear layer is: decoded, because a tile has 16 rows."""
    wanted = test_trellis_moe.write(tmp_path / "model", LLAMA | {"tie_word_embeddings": tied}, plain=())
    plan = ml.plan(tmp_path / "model", slots=1)
    assert plan.notes == ("embedding: exl3 4 bits, mul1 in the file, f16 on the device",)
    with ml.Model.load(tmp_path / "model", dtype="f32", kv="f32", slots=1, device=device_row()["index"]) as model:
        assert distance(model, wanted) < 2e-3  # f16 of its weights


@pytest.mark.parametrize("head", [1, 2.5, 6, 8])
def test_heads_have_their_own_bits(tmp_path: Path, head: float) -> None:
    wanted = test_trellis_moe.write(tmp_path / "model", LLAMA, bits=lambda module: head if module == "lm_head" else 3)
    plan = ml.plan(tmp_path / "model", slots=1)
    padded = [-(-size // 128) * 128 for size in (LLAMA["vocab_size"], LLAMA["hidden_size"])]
    assert plan.weights["head"] == padded[0] * padded[1] * head / 8 + 2 * sum(padded) and not plan.notes
    with ml.Model.load(tmp_path / "model", dtype="f32", kv="f32", slots=1, device=device_row()["index"]) as model:
        assert distance(model, wanted) < 2e-4


WORDS, SIGNS = coded_rows(LLAMA["vocab_size"], LLAMA["hidden_size"], 4)
WORDS = WORDS.view(np.int16)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"signs": SIGNS.astype(np.float32)}, r"signs.*expected f16 of shape \(groups, 256\), got f32"),
        ({"signs": SIGNS[:, :128]}, r"signs.*expected f16 of shape \(groups, 256\), got f16 \(1, 128\)"),
        ({"signs": SIGNS[0]}, r"signs.*expected f16 of shape \(groups, 256\), got f16 \(256,\)"),
        ({"signs": None}, "trellis.*expected shape .k / 16, n / 16"),
        ({"trellis": WORDS[:, :-1]}, r"trellis.*expected i16 of shape \(rows, 1 \* \(1 \+ 16 \* bits\)\)"),
        ({"trellis": WORDS[:, :1]}, "trellis.*bits 1 to 8"),
        ({"trellis": np.tile(WORDS, 3)}, "trellis.*bits 1 to 8"),
        ({"trellis": WORDS.astype(np.int32)}, "trellis.*got i32"),
        ({"trellis": WORDS[:-1]}, "embed_tokens.weight.: expected shape"),
        ({"signs": np.tile(SIGNS, (2, 1)), "trellis": np.tile(WORDS, 2)}, "embed_tokens.weight.: expected shape"),
    ],
    ids=range(10),
)
def test_broken_embeddings(tmp_path: Path, tensors: dict[str, Any], text: str) -> None:
    test_trellis_moe.write(tmp_path / "model", LLAMA)
    change(tmp_path / "model", **({"trellis": WORDS, "signs": SIGNS} | tensors))
    with pytest.raises(ModelFormatError, match=text):
        ml.plan(tmp_path / "model")


def test_scales_must_be_finite(tmp_path: Path) -> None:
    test_trellis_moe.write(tmp_path / "model", LLAMA)
    words = WORDS.copy()
    words[-1, 0] = 0x7C00
    change(tmp_path / "model", trellis=words, signs=SIGNS)
    with pytest.raises(ModelFormatError, match=r"embed_tokens\.trellis.*inf or nan"):
        ml.Model.load(tmp_path / "model", slots=1, device=device_row()["index"])
