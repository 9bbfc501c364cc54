"""Qwen3-Next: golden logits and tokens of transformers, the state of slots, plans, layouts, bad checkpoints.

The golden checkpoint is tests/golden/qwen3_next; record.py beside it says what is in golden.npz. Others have random
weights and are held against tests/ref/qwen3_next.py, which is held against the goldens first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ref.model import greedy, load_weights
from ref.qwen3_next import Qwen3Next
from test_moe_model import fuse

import marlin as ml
from marlin.config import read_config, rope_frequencies
from marlin.loaders import open_checkpoint, safetensors
from marlin.memory import state_bytes
from marlin.sampling import STOP_IDS

GOLDEN = Path(__file__).parent / "golden" / "qwen3_next"
CONFIG: dict[str, Any] = json.loads((GOLDEN / "config.json").read_text())
LINEAR = 3  # of its layers


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "golden.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def model() -> Iterator[ml.Model]:
    with ml.Model.load(GOLDEN, dtype="f32", slots=3) as loaded:
        yield loaded


def reference(folder: Path) -> Qwen3Next:
    checkpoint = open_checkpoint(folder)
    config = read_config(checkpoint.config)
    frequencies, scale = rope_frequencies(config)
    return Qwen3Next(config, load_weights(checkpoint), frequencies, rope_scale=scale, dtype=np.float64)


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_the_reference_gives_the_goldens(golden: dict[str, np.ndarray]) -> None:
    net = reference(GOLDEN)
    hidden: list[np.ndarray] = []
    np.testing.assert_allclose(net.forward(golden["ids"], hidden=hidden), golden["logits"], atol=1e-4)
    np.testing.assert_allclose(np.stack([state[-1] for state in hidden]), golden["hidden"], atol=1e-4)
    tokens, margins = greedy(net, golden["prompt"], len(golden["greedy"]))
    assert tokens == golden["greedy"].tolist()
    np.testing.assert_allclose(margins, golden["margin"], atol=1e-4)


def test_golden_logits(model: ml.Model, golden: dict[str, np.ndarray]) -> None:
    trace = model.trace(golden["ids"])
    np.testing.assert_allclose(trace["logits"], golden["logits"], atol=5e-4)
    states = [trace["model.embed_tokens"], *(trace[f"model.layers.{i}"] for i in range(4)), trace["model.norm"]]
    for ours, theirs in zip(states, golden["hidden"], strict=True):
        np.testing.assert_allclose(ours[-1], theirs, atol=5e-4)


def test_golden_tokens(model: ml.Model, golden: dict[str, np.ndarray]) -> None:
    assert golden["margin"].min() > 0.01
    found = model.generate(golden["prompt"], temperature=0, max_tokens=24)
    assert found.tokens == golden["greedy"].tolist()


def test_f16(golden: dict[str, np.ndarray]) -> None:
    with ml.Model.load(GOLDEN, slots=1) as loaded:
        logits = loaded.logits(golden["ids"])
        assert np.square(logits - golden["logits"]).sum() < 1e-3 * np.square(golden["logits"]).sum()
        assert loaded.generate(golden["prompt"], temperature=0, max_tokens=24).tokens == golden["greedy"].tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 15, 16, 17, 33])
def test_logits_of_parts(model: ml.Model, golden: dict[str, np.ndarray], count: int) -> None:
    """Positions do not depend on what follows, and a text begins anew whatever the slot held."""
    np.testing.assert_allclose(model.logits(golden["ids"][:count]), golden["logits"][:count], atol=5e-4)


def test_prompts_across_chunks(golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """The state goes on from one chunk of a prompt to the next."""
    monkeypatch.setattr("marlin.generate.chunk_rows", lambda kind: 7)
    with ml.Model.load(GOLDEN, dtype="f32", slots=1) as loaded:
        np.testing.assert_allclose(loaded.logits(golden["ids"]), golden["logits"], atol=5e-4)


# ---- the state of slots ------------------------------------------------------------------------------------------

PROMPTS = [[5, 17, 99, 3], [64], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [20, 21], [127, 0, 127], [8, 8, 8, 8, 8, 8]]


def wanted(prompt: list[int], count: int) -> list[int]:
    tokens, margins = greedy(reference(GOLDEN), prompt, count)
    clear = next((i for i, margin in enumerate(margins) if margin < 2e-3), count)
    assert clear > 5
    return tokens[:clear]


def test_more_prompts_than_slots(model: ml.Model) -> None:
    """Slots are used again, for texts of other lengths, while others run; steps of several slots are in flight."""
    lengths = [9, 17, 6, 12, 7, 15]
    params = [ml.SamplingParams(temperature=0, max_tokens=count) for count in lengths]
    made = [model._continuations(ids, one)[0] for ids, one in zip(PROMPTS, params, strict=True)]
    model._finish(made, None)
    for ids, count, item in zip(PROMPTS, lengths, made, strict=True):
        assert len(item.tokens) == count
        expected = wanted(ids, count)
        assert item.tokens[: len(expected)] == expected


def finish(model: ml.Model, ids: list[int], **options: Any) -> ml.Generation:
    """As a session generates: the state of the slot is used where it can be."""
    made = model._continuations(ids, ml.SamplingParams(temperature=0).changed(**options))
    model._finish(made, None, reuse=True)
    return made[0].result(False)


def test_a_text_that_goes_on_uses_its_state(model: ml.Model) -> None:
    first = finish(model, PROMPTS[2], max_tokens=8)
    assert first.stats.cached_tokens == 0
    more = [*PROMPTS[2], *first.tokens, 70, 71]
    second = finish(model, more, max_tokens=8)
    assert second.stats.cached_tokens == len(PROMPTS[2]) + 7  # the last token drawn was never an input
    more += second.tokens
    assert finish(model, more, max_tokens=3).stats.cached_tokens == len(more) - 1  # all of the prompt but its last
    assert second.tokens == model.generate(more[:-8], temperature=0, max_tokens=8).tokens
    model.logits([1, 2])
    assert finish(model, [*more, 3], max_tokens=3).stats.cached_tokens == 0  # something else used the slot


@pytest.mark.parametrize(
    "change",
    [lambda ids: ids[:-3], lambda ids: [*ids[:-3], 1, 2, 3], lambda ids: [9, *ids], lambda ids: ids[:1]],
    ids=["shorter", "another end", "another beginning", "one token"],
)
def test_a_state_is_not_taken_back(model: ml.Model, change: Callable[[list[int]], list[int]]) -> None:
    """What is not the text of the slot, gone on with, is computed from its beginning."""
    first = finish(model, PROMPTS[2], max_tokens=8)
    ids = change([*PROMPTS[2], *first.tokens])
    second = finish(model, ids, max_tokens=8)
    assert second.stats.cached_tokens == 0
    assert second.tokens == model.generate(ids, temperature=0, max_tokens=8).tokens


def test_a_text_that_the_host_ended_is_not_gone_on_with(model: ml.Model) -> None:
    """Steps were in flight when the host found the end, and have moved the state on."""
    free = model.generate(PROMPTS[2], temperature=0, max_tokens=8).tokens
    end = next(i for i in range(3, 8) if free[i] not in free[:i])
    unused = [id for id in range(128) if id not in free][:STOP_IDS]
    cut = finish(model, PROMPTS[2], max_tokens=30, stop=[*unused, free[end]])
    assert (cut.finish_reason, cut.tokens) == ("stop", free[: end + 1])
    ids = [*PROMPTS[2], *cut.tokens, 5]
    after = finish(model, ids, max_tokens=6)
    assert after.stats.cached_tokens == 0
    assert after.tokens == model.generate(ids, temperature=0, max_tokens=6).tokens


def test_a_text_that_the_device_ended(model: ml.Model) -> None:
    """An end token ends the slot on the device at once: its state is right, also for steps that were in flight."""
    free = model.generate(PROMPTS[2], temperature=0, max_tokens=8).tokens
    end = next(i for i in range(3, 8) if free[i] not in free[:i])
    cut = finish(model, PROMPTS[2], max_tokens=30, stop=[free[end]])
    assert cut.tokens == free[: end + 1]
    ids = [*PROMPTS[2], *cut.tokens, 5]
    after = finish(model, ids, max_tokens=6)
    assert after.stats.cached_tokens == len(PROMPTS[2]) + end
    assert after.tokens == model.generate(ids, temperature=0, max_tokens=6).tokens


def test_a_stream_that_is_closed(model: ml.Model) -> None:
    stream = model.stream(PROMPTS[2], max_tokens=50, temperature=0)
    drawn = [next(stream).token for _ in range(3)]
    stream.close()
    ids = [*PROMPTS[2], *drawn]
    after = finish(model, ids, max_tokens=6)
    assert after.stats.cached_tokens == 0
    assert after.tokens == model.generate(ids, temperature=0, max_tokens=6).tokens


def test_a_full_context(golden: dict[str, np.ndarray]) -> None:
    with ml.Model.load(GOLDEN, dtype="f32", slots=2, context=16) as loaded:
        found = loaded.generate([golden["prompt"], [3, 4]], temperature=0, max_tokens=100)
        assert [item.finish_reason for item in found] == ["length", "length"]
        assert found[0].tokens == golden["greedy"].tolist()[: len(found[0].tokens)]
        assert len(found[0].tokens) == 12
        again = loaded.generate(golden["prompt"], temperature=0, max_tokens=5)
        assert again.tokens == golden["greedy"].tolist()[:5]


def test_same_tokens_alone_and_among_others(model: ml.Model, golden: dict[str, np.ndarray]) -> None:
    prompt = golden["prompt"].tolist()
    found = model.generate([prompt, PROMPTS[0], prompt], temperature=0, max_tokens=24)
    assert found[0].tokens == found[2].tokens == golden["greedy"].tolist()


def test_bench(model: ml.Model) -> None:
    rows = model.bench(prompt=[9], gen=[4], depth=[0, 6], batch=[2], repeat=1, progress=False).rows
    assert len(rows) == 4 and all(row.tokens_per_s > 0 for row in rows)


# ---- memory ------------------------------------------------------------------------------------------------------


def test_plan(model: ml.Model) -> None:
    plan = ml.plan(GOLDEN, context=100, slots=2)
    channels = 2 * 2 * 8 + 6 * 16
    assert plan.state == LINEAR * 2 * 4 * (4 * channels + 6 * 8 * 16)
    assert plan.kv == 2 * 2 * 100 * 2 * (2 * 16) * 2  # of two layers
    assert plan.to_dict()["state"] == plan.state
    assert ("state f32, 2 slots", plan.state) in plan.rows()
    assert plan.total == sum(size for _, size in plan.rows())
    engine = model._open_engine()
    assert engine.state is not None
    assert (engine.state.nbytes, engine.cache.nbytes) == (model.memory.state, model.memory.kv)
    assert model.layers.parameters == sum(int(np.prod(info.shape)) for info in open_checkpoint(GOLDEN).tensors.values())


def test_state_of_the_large_model() -> None:
    """Qwen3-Next-80B-A3B: 36 layers of 32 heads of 128 x 128, 76.5 MiB a slot."""
    config = read_config({"model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 48,
                          "num_attention_heads": 16, "num_key_value_heads": 2, "intermediate_size": 5632,
                          "vocab_size": 151936, "num_experts": 512, "num_experts_per_tok": 10,
                          "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512})  # fmt: skip
    assert config.delta is not None and sum(config.delta.linear) == 36 and config.cache_layers == 12
    assert (config.head_dim, config.rope.dim) == (256, 64)
    assert state_bytes(config, 1) == 36 * 4 * (32 * 128 * 128 + 4 * 8192) == 80216064


def test_a_model_without_delta_nets_has_no_state() -> None:
    config = read_config(json.loads((GOLDEN.parents[2] / "models" / "fix-llama" / "config.json").read_text()))
    assert config.delta is None and state_bytes(config, 8) == 0 and config.cache_layers == config.layers


# ---- other checkpoints -------------------------------------------------------------------------------------------


def write(folder: Path, changes: dict[str, Any], change: Callable[[dict[str, np.ndarray]], Any] | None = None) -> Path:
    """The golden checkpoint in f32 with another config and other tensors."""
    checkpoint = open_checkpoint(GOLDEN)
    tensors = {name: checkpoint.read(name).astype(np.float32) for name in checkpoint.tensors}
    if change is not None:
        tensors = change(tensors) or tensors
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    safetensors.save(folder / "model.safetensors", tensors)
    return folder


def check_model(folder: Path, ids: np.ndarray, **options: Any) -> None:
    expected = reference(folder).forward(ids)
    with ml.Model.load(folder, dtype="f32", slots=1, **options) as loaded:
        np.testing.assert_allclose(loaded.logits(ids), expected, atol=5e-4)


def widen_shared(tensors: dict[str, np.ndarray]) -> None:
    """A shared expert of 40 beside experts of 24."""
    rng = np.random.default_rng(6)
    for name in [name for name in tensors if ".shared_expert." in name]:
        shape = (32, 40) if name.endswith("down_proj.weight") else (40, 32)
        tensors[name] = (rng.standard_normal(shape) / 5).astype(np.float32)


def test_a_shared_expert_of_another_width(tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    """It lies apart, and is gated all the same."""
    folder = write(tmp_path, {"shared_expert_intermediate_size": 40}, widen_shared)
    check_model(folder, golden["ids"])
    with ml.Model.load(folder, dtype="f32", slots=2) as loaded:
        found = loaded.generate([golden["prompt"], [7]], temperature=0, max_tokens=12)
        tokens, margins = greedy(reference(folder), golden["prompt"], 12)
        assert min(margins) > 1e-3 and found[0].tokens == tokens
        usage = loaded.expert_usage()
        assert usage.counts.shape == (4, 5)


def test_experts_in_one_tensor(tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    folder = write(tmp_path, {}, lambda tensors: fuse(tensors, CONFIG))
    with ml.Model.load(folder, dtype="f32", slots=1) as loaded:
        np.testing.assert_allclose(loaded.logits(golden["ids"]), golden["logits"], atol=5e-4)


def test_tensors_for_further_tokens_are_left_out(tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    folder = write(tmp_path, {}, lambda tensors: tensors.update({"mtp.fc.weight": np.ones((4, 4), np.float32)}))
    check_model(folder, golden["ids"])


def test_biases_of_attention(tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    def add(tensors: dict[str, np.ndarray]) -> None:
        rng = np.random.default_rng(6)
        for name in [name for name in tensors if ".self_attn." in name and name.endswith("_proj.weight")]:
            tensors[name.replace("weight", "bias")] = rng.standard_normal(len(tensors[name])).astype(np.float32)

    check_model(write(tmp_path, {"attention_bias": True}, add), golden["ids"])


def test_quantized_and_random_weights(golden: dict[str, np.ndarray]) -> None:
    with ml.Model.load(GOLDEN, format="int8", slots=1) as loaded:
        assert np.isfinite(loaded.logits(golden["ids"])).all()
        lines = repr(loaded.layers).splitlines()
        assert all("int8" not in line for line in lines if "in_proj_ba" in line)
        assert any("int8" in line for line in lines if "in_proj_qkvz" in line)
    apart = CONFIG | {"shared_expert_intermediate_size": 40}
    for config, format in ((CONFIG, "f16"), (apart, "int4"), (CONFIG, "exl3:4"), (apart, "exl3:3")):
        with ml.Model.random(config, format=format, context=64, slots=2) as loaded:
            assert np.isfinite(loaded.logits(golden["ids"])).all()
            assert len(loaded.generate([1, 2, 3], max_tokens=4, temperature=0).tokens) == 4


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"linear_num_value_heads": 5}, ml.ModelFormatError, "linear_num_value_heads 5 is not a multiple"),
        ({"linear_num_key_heads": 0}, ml.ModelFormatError, "linear_num_key_heads must be"),
        ({"linear_key_head_dim": 12}, ml.UnsupportedModelError, "linear_key_head_dim 12 is not supported"),
        ({"linear_value_head_dim": 264}, ml.UnsupportedModelError, "multiple of 8 up to 256"),
        ({"linear_value_head_dim": "16"}, ml.ModelFormatError, "linear_value_head_dim must be"),
        ({"linear_conv_kernel_dim": 9}, ml.ModelFormatError, "linear_conv_kernel_dim must be"),
        ({"linear_conv_kernel_dim": 3}, ml.ModelFormatError, "conv1d.*expected shape"),
        ({"layer_types": ["linear_attention"] * 5}, ml.UnsupportedModelError, "without full_attention"),
        ({"layer_types": ["full_attention"] * 4}, ml.ModelFormatError, "layer_types must be"),
        ({"layer_types": ["linear_attention"] * 4 + ["mamba"]}, ml.UnsupportedModelError, "mamba"),
        ({"layer_types": ["full_attention"] * 5}, ml.ModelFormatError, "has no tensor"),
        ({"layer_types": None}, ml.ModelFormatError, "has no tensor"),
        ({"full_attention_interval": 0, "layer_types": None}, ml.ModelFormatError, "full_attention_interval"),
        ({"shared_expert_intermediate_size": 40}, ml.ModelFormatError, "expected shape"),
        ({"model_type": "qwen3_moe"}, ml.UnsupportedModelError, "linear_attention"),
    ],
    ids=str,
)
def test_bad_config(tmp_path: Path, changes: dict[str, Any], kind: type[Exception], text: str) -> None:
    folder = write(tmp_path, changes)
    with pytest.raises(kind, match=text):
        ml.plan(folder)


@pytest.mark.parametrize("leaf", ["A_log", "dt_bias", "conv1d.weight", "in_proj_ba.weight", "norm.weight"])
def test_a_missing_tensor(tmp_path: Path, leaf: str) -> None:
    name = f"model.layers.2.linear_attn.{leaf}"
    folder = write(tmp_path, {}, lambda tensors: {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(ml.ModelFormatError, match=name.replace(".", r"\.").removesuffix(r"\.weight")):
        ml.plan(folder)


@pytest.mark.parametrize("leaf", ["A_log", "conv1d.weight"])
def test_weights_that_are_not_finite(tmp_path: Path, leaf: str) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"model.layers.2.linear_attn.{leaf}"].flat[1] = np.nan

    with pytest.raises(ml.ModelFormatError, match="inf or nan"):
        ml.Model.load(write(tmp_path, {}, spoil), slots=1)
