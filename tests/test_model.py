"""Models: weights found and checked, results against the goldens, memory plans."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import marlin as ml
from marlin.loaders import compressed_tensors, open_checkpoint, safetensors

ROOT = Path(__file__).resolve().parent.parent
LLAMA, MOE = ROOT / "models" / "fix-llama", ROOT / "models" / "tale-moe"

TINY: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 128,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 64, "tie_word_embeddings": False,
    "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip


def weights_of(config: dict[str, Any], dtype: Any = np.float16) -> dict[str, np.ndarray]:
    """Random tensors of a config, by their names."""
    rng = np.random.default_rng(7)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes |= {
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
            f"{at}self_attn.q_proj.weight": (q, hidden),
            f"{at}self_attn.k_proj.weight": (kv, hidden),
            f"{at}self_attn.v_proj.weight": (kv, hidden),
            f"{at}self_attn.o_proj.weight": (hidden, q),
            f"{at}mlp.gate_proj.weight": (inner, hidden),
            f"{at}mlp.up_proj.weight": (inner, hidden),
            f"{at}mlp.down_proj.weight": (hidden, inner),
        }
        if config["model_type"] == "qwen3":
            shapes |= {f"{at}self_attn.{x}_norm.weight": (dim,) for x in "qk"}
        if config["model_type"] == "qwen2":
            shapes |= {f"{at}self_attn.{x}_proj.bias": (n,) for x, n in (("q", q), ("k", kv), ("v", kv))}
    return {name: (rng.standard_normal(shape) / 8 + (len(shape) == 1)).astype(dtype) for name, shape in shapes.items()}


Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """folder(change=..., **config): a tiny checkpoint; `change` edits its tensors first."""

    def make(change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None, **changes: Any) -> Path:
        config = TINY | changes
        tensors = weights_of(config)
        change(tensors)
        (tmp_path / "config.json").write_text(json.dumps(config))
        safetensors.save(tmp_path / "model.safetensors", tensors)
        return tmp_path

    return make


@pytest.fixture(scope="module")
def exact() -> Iterator[ml.Model]:
    with ml.Model.load(LLAMA, dtype="f32", kv="f32", slots=2) as model:
        yield model


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_golden_f32(exact: ml.Model) -> None:
    golden = np.load(LLAMA / "golden.npz")
    trace = exact.trace(golden["ids"])
    assert np.abs(trace["logits"][golden["positions"]] - golden["logits"]).max() < 2e-4
    states = [trace["model.embed_tokens"], *(trace[f"model.layers.{i}"] for i in range(3)), trace["model.norm"]]
    for ours, theirs in zip(states, golden["hidden"], strict=True):
        np.testing.assert_allclose(ours[-1], theirs, atol=1e-4, rtol=1e-4)
    assert np.abs(-exact.score(golden["ids"]).logprobs - golden["nll"]).max() < 2e-4


@pytest.mark.parametrize("index", [0, 1, 2])
def test_golden_greedy(exact: ml.Model, index: int) -> None:
    golden = np.load(LLAMA / "golden.npz")
    wanted = golden[f"greedy{index}"].tolist()
    clear = next((i for i, margin in enumerate(golden[f"margin{index}"]) if margin < 1e-3), len(wanted))
    found = exact.generate(golden[f"prompt{index}"], temperature=0, max_tokens=len(wanted)).tokens
    assert found[:clear] == wanted[:clear]


@pytest.mark.parametrize(("dtype", "limit"), [("f32", 2e-4), ("f16", 0.05)])
def test_golden_of_the_demo(dtype: str, limit: float) -> None:
    """Experts and latent attention in int4. In the first 8 tokens no expert is chosen by less than 0.003 of a score, so
    rounding tips none of them; the prompt's tokens stay what they are even if it does."""
    golden = np.load(MOE / "golden.npz")
    with ml.Model.load(MOE, slots=1, context=64, dtype=dtype, kv=dtype) as model:
        logits = model.logits(golden["ids"][:8])
        kept = golden["positions"] < 8
        assert np.abs(logits[golden["positions"][kept]] - golden["logits"][kept]).max() < limit
        wanted = golden["greedy1"][:16].tolist()
        assert golden["margin1"][:16].min() > 0.1
        assert model.generate(golden["prompt1"], temperature=0, max_tokens=16).tokens == wanted


def test_logits_of_parts(exact: ml.Model) -> None:
    """Positions do not depend on what follows; a prompt may cross a chunk."""
    ids = np.load(LLAMA / "golden.npz")["ids"][:20].tolist()
    whole = exact.logits(ids)
    assert whole.shape == (20, 4096)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(exact.logits(ids[:7]), whole[:7], atol=1e-4)


def test_score_and_perplexity_agree(exact: ml.Model) -> None:
    text = "The miller had three daughters, and the youngest of them could talk with the river."
    ids = exact.tokenizer.encode(text)
    score = exact.score(text, top=3)
    assert len(score) == len(ids) - 1
    assert all(len(top) == 3 and top[0][1] >= top[1][1] for top in score.top)
    perplexity = exact.perplexity(text, stride=512)
    assert perplexity == pytest.approx(np.exp(-score.total / len(score)), rel=1e-5)
    assert (perplexity.count, len(perplexity.windows)) == (len(ids) - 1, 1)
    halves = exact.perplexity(text, stride=8)
    assert halves.count == sum(min(8, len(ids) - i) - 1 for i in range(0, len(ids), 8))
    assert "perplexity" in perplexity._repr_html_()


def test_trace_is_in_order(exact: ml.Model) -> None:
    trace = exact.trace([5, 6, 7])
    names = list(trace)
    assert names[0] == "model.embed_tokens"
    assert names[-2:] == ["model.norm", "lm_head"] or names[-1] == "logits"
    assert trace["model.layers.0.qkv"].shape == (3, 512)
    assert all(np.isfinite(value).all() for value in trace.values())
    assert all(module.watch is None for module in exact.layers.modules())


# ---- families and formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None, "head_dim": 32},
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 32},
    ],
    ids=["llama", "mistral", "qwen2-tied", "qwen3"],
)
def test_families_against_numpy(folder: Folder, changes: dict[str, Any]) -> None:
    path = folder(**changes)
    ids = [3, 100, 7, 7, 42, 0, 127, 9]
    expected = reference_logits(TINY | changes, weights_of(TINY | changes), ids)
    with ml.Model.load(path, dtype="f32", kv="f32", slots=1) as model:
        np.testing.assert_allclose(model.logits(ids), expected, atol=2e-3, rtol=2e-3)
        assert model.layers.parameters == sum(w.size for w in weights_of(TINY | changes).values())
        assert (model.layers.lm_head is model.layers.embed) == bool(changes.get("tie_word_embeddings"))


def reference_logits(config: dict[str, Any], weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """The network in float64, as its formulas say."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim", config["hidden_size"] // heads)

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight

    angles = np.arange(len(ids))[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def rotate(x: np.ndarray) -> np.ndarray:
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    h = w["model.embed_tokens.weight"][ids]
    mask = np.where(np.tri(len(ids)) > 0, 0.0, -np.inf)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        x = norm(h, w[f"{at}input_layernorm.weight"])
        q, k, v = (
            (x @ w[f"{at}self_attn.{n}_proj.weight"].T + w.get(f"{at}self_attn.{n}_proj.bias", 0.0)).reshape(
                len(ids), -1, dim
            )
            for n in "qkv"
        )
        if config["model_type"] == "qwen3":
            q, k = norm(q, w[f"{at}self_attn.q_norm.weight"]), norm(k, w[f"{at}self_attn.k_norm.weight"])
        q, k = rotate(q), np.repeat(rotate(k), heads // kv_heads, 1)
        score = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim) + mask
        score = np.exp(score - score.max(-1, keepdims=True))
        score /= score.sum(-1, keepdims=True)
        a = np.einsum("hqk,khd->qhd", score, np.repeat(v, heads // kv_heads, 1)).reshape(len(ids), -1)
        h = h + a @ w[f"{at}self_attn.o_proj.weight"].T
        x = norm(h, w[f"{at}post_attention_layernorm.weight"])
        gate, up = x @ w[f"{at}mlp.gate_proj.weight"].T, x @ w[f"{at}mlp.up_proj.weight"].T
        h = h + (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(h, w["model.norm.weight"]) @ head.T


@pytest.mark.parametrize(
    ("format", "error"),
    [("f32", 1e-5), ("bf16", 0.01), ("int8", 0.03), ("int4:32", 0.3), ("fp8", 0.1), ("mxfp4", 0.5), ("nvfp4", 0.35)],
)
def test_formats(folder: Folder, format: str, error: float) -> None:
    """Round-to-nearest on load: near the unrounded model, by the format's precision."""
    path, ids = folder(), [3, 100, 7, 7, 42, 0, 127, 9]
    with ml.Model.load(path, dtype="f32", kv="f32", slots=1) as model:
        expected = model.logits(ids)
    with ml.Model.load(path, format=format, dtype="f32", kv="f32", slots=1) as model:
        found = model.logits(ids)
        assert model.memory.weights["mlp"] == sum(
            module.weight.nbytes for module in model.layers.modules() if getattr(module, "part_kind", "") == "mlp"
        )
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < error


def test_stored_int8_as_other_format() -> None:
    """A quantized checkpoint can be asked for in another format: it is dequantized and rounded again."""
    with (
        ml.Model.load(LLAMA, slots=1, context=32) as stored,
        ml.Model.load(LLAMA, format="f16", slots=1, context=32) as half,
    ):
        assert "int8" in stored.memory.format
        np.testing.assert_allclose(stored.logits([5, 6, 7]), half.logits([5, 6, 7]), atol=0.05)


@pytest.mark.parametrize(
    ("stored", "asked", "found"),
    [
        (("int4", 128, False, "f16"), "int4", ("int4", 128, "f16", False)),
        (("int4", 128, False, "f16"), "int4:128", ("int4", 128, "f16", False)),
        (("int4", 128, False, "f16"), "int4:64", ("int4", 64, "f16", False)),
        (("int4", 128, False, "f16"), ml.WeightFormat("int4", zero=True), ("int4", 128, "f16", True)),
        (("int4", 128, False, "f16"), ml.WeightFormat("int4", 128, "f32"), ("int4", 128, "f32", False)),
        (("int4", 32, True, "f32"), "int4", ("int4", 32, "f32", True)),
        (("int4", 32, True, "f32"), "int4:32", ("int4", 32, "f32", True)),
        (("int4", 32, True, "f32"), ml.WeightFormat("int4", 32, zero=False), ("int4", 32, "f16", False)),
        (("fp4_e2m1", 16, False, "e4m3"), "fp4", ("fp4_e2m1", 16, "e4m3", False)),
        (("fp4_e2m1", 16, False, "e4m3"), "nvfp4", ("fp4_e2m1", 16, "e4m3", False)),
        (("fp4_e2m1", 16, False, "e4m3"), "mxfp4", ("fp4_e2m1", 32, "e8m0", False)),
        (("fp4_e2m1", 32, False, "e8m0"), "nvfp4", ("fp4_e2m1", 16, "e4m3", False)),
        (("fp4_e2m1", 32, False, "e8m0"), ml.WeightFormat("fp4_e2m1", 32, "f32"), ("fp4_e2m1", 32, "f32", False)),
        (("int8", 0, False, "f16"), "nvfp4", ("fp4_e2m1", 16, "e4m3", False)),
    ],
    ids=str,
)
def test_what_is_asked_of_a_stored_format(
    tmp_path: Path, stored: tuple[Any, ...], asked: Any, found: tuple[Any, ...]
) -> None:
    """Options that were asked for are had, by rounding again where they are stored otherwise; the rest stays."""
    config = TINY | {"hidden_size": 256, "intermediate_size": 256}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    safetensors.save(tmp_path / "in" / "model.safetensors", weights_of(config))
    format, group, zero, scale = stored
    compressed_tensors.save_quantized(tmp_path / "in", tmp_path / "m", format, group=group, zero=zero, scale=scale)
    source = open_checkpoint(tmp_path / "m").linear("model.layers.0.mlp.down_proj").dequantize()
    with ml.Model.load(tmp_path / "m", format=asked, slots=1) as model:
        weight = model.layers.layers[0].dense.down.weight
        values = np.array(weight.dequantize())
        assert model.memory == dataclasses.replace(ml.plan(tmp_path / "m", format=asked, slots=1), budget=mock.ANY)
    assert (weight.format, weight.group, weight.scale, weight.zero) == found
    assert (weight.global_scale < 0.01) == (found[2] == "e4m3")
    if found == (format, group, scale, zero) or (found[:2] == (format, group) and found[2] == "f32"):
        np.testing.assert_allclose(values, source, rtol=1e-6)  # the planes themselves
    else:
        assert np.linalg.norm(values - source) / np.linalg.norm(source) < (0.15 if format == "int4" else 0.2)


# ---- broken checkpoints ----------------------------------------------------------------------------------------------


def drop(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, value: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop("model.layers.1.mlp.up_proj.weight"), "no tensor 'model.layers.1.mlp.up_proj.weight'"),
        (drop("model.norm.weight"), "no tensor 'model.norm.weight'"),
        (put("model.layers.2.mlp.up_proj.weight", np.zeros((96, 64), np.float16)), "no place for 'model.layers.2"),
        (put("model.norm.weight", np.zeros(63, np.float16)), r"'model.norm.weight': expected shape \(64,\).*\(63,\)"),
        (put("lm_head.weight", np.zeros((64, 128), np.float16)), r"expected shape \(128, 64\).*got \(64, 128\)"),
        (put("model.norm.weight", np.zeros(64, np.int32)), "expected one of f32, f16, bf16, got i32"),
        (put("model.norm.weight", np.full(64, np.nan, np.float16)), "'model.norm.weight': holds inf or nan"),
        (put("lm_head.weight", np.full((128, 64), np.inf, np.float16)), "lm_head: "),
    ],
)
def test_wrong_tensors(folder: Folder, change: Callable[[dict[str, np.ndarray]], None], text: str) -> None:
    with pytest.raises(ml.ModelFormatError, match=text):
        ml.Model.load(folder(change), slots=1)


def test_cut_short_while_loading(folder: Folder) -> None:
    path = folder()
    checkpoint = safetensors.open(path)
    network = ml.plan(path)
    assert network.total > 0
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-1000])
    with pytest.raises(ml.ModelFormatError):
        ml.Model.load(path)
    with pytest.raises(ml.ModelFormatError):  # opened before it was cut
        from marlin.config import read_config
        from marlin.device import Device
        from marlin.models import build
        from marlin.models.base import Source

        for module in build(read_config(checkpoint.config), Source(checkpoint)).modules():
            module.load(Device().raw)


def test_unused_tensors_are_known(folder: Folder) -> None:
    table = np.zeros(8, np.float32)
    path = folder(put("model.layers.0.self_attn.rotary_emb.inv_freq", table))
    ml.Model.load(path, slots=1).close()


def test_mixed_formats_in_one_matrix(tmp_path: Path) -> None:
    """q dense, k and v quantized: refused by name, since they are multiplied as one matrix."""
    shutil.copytree(LLAMA, tmp_path / "m")
    tensors, notes = safetensors.read_header(tmp_path / "m" / "model.safetensors")
    arrays = {name: info.read() for name, info in tensors.items()}
    name = "model.layers.0.self_attn.q_proj"
    codes, scale = arrays.pop(f"{name}.weight"), arrays.pop(f"{name}.weight_scale")
    arrays[f"{name}.weight"] = (codes.astype(np.float32) * scale.astype(np.float32)).astype(np.float16)
    safetensors.save(tmp_path / "m" / "model.safetensors", arrays, notes)
    with pytest.raises((ml.UnsupportedModelError, ml.ModelFormatError), match="q_proj"):
        ml.Model.load(tmp_path / "m")


# ---- arguments and memory


def test_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"Model\.load: unknown keyword 'formt'; did you mean 'format'"):
        ml.Model.load(LLAMA, formt="int4")
    with pytest.raises(TypeError, match="did you mean 'context'"):
        ml.plan(LLAMA, contxt=3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"format": "int5"}, "unknown weight format 'int5'"),
        ({"format": "int4:x"}, "must be a number"),
        ({"format": "f16:32"}, "no groups"),
        ({"dtype": "f64"}, "dtype must be one of"),
        ({"kv": "int8"}, "kv must be one of f16, f32"),
        ({"context": 4096}, "context must be 1 to 1024"),
        ({"context": 0}, "context must be 1 to 1024"),
        ({"slots": 0}, "slots must be 1 to"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ml.Model.load(LLAMA, **options)


def test_heads_that_are_not_supported(folder: Folder) -> None:
    """Refused before anything is planned or loaded."""
    for call in (ml.plan, ml.Model.load):
        with pytest.raises(ml.UnsupportedModelError, match="heads of 12 dimensions"):
            call(folder(head_dim=12))


@pytest.mark.parametrize(
    ("dtype", "kv", "found"),
    [("f16", None, "f16"), ("bf16", None, "f16"), ("f32", None, "f32"), ("f32", "f16", "f16"), ("f16", "f32", "f32")],
)
def test_cache_follows_the_activations(folder: Folder, dtype: str, kv: str | None, found: str) -> None:
    path = folder()
    plan = ml.plan(path, dtype=dtype, kv=kv, slots=1)
    assert plan.kv_dtype == found and plan.kv == 2 * 2 * 64 * 32 * {"f16": 2, "f32": 4}[found]
    with ml.Model.load(path, dtype=dtype, kv=kv, slots=1) as model:
        assert (model.memory.kv_dtype, model.memory.kv, model._open_engine().cache.dtype) == (found, plan.kv, found)
    with ml.Model.random(TINY, dtype=dtype, kv=kv, slots=1) as model:
        assert (model.memory.kv_dtype, model.memory.kv) == (found, plan.kv)


@pytest.mark.parametrize(
    ("options", "text"), [({"kv": "f64"}, "kv must be one of f16, f32, got 'f64'"), ({"dtype": "f8"}, "dtype must be")]
)
def test_random_weights_refuse(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ml.Model.random(TINY, **options)


def test_plan_is_what_is_taken(exact: ml.Model) -> None:
    plan = ml.plan(LLAMA, dtype="f32", kv="f32", slots=2)
    assert plan.weights == exact.memory.weights
    assert plan.kv == exact.memory.kv == 2 * 4 * 2 * 1024 * 128 * 4
    loaded = sum(
        module.weight.nbytes for module in exact.layers.modules() if getattr(module, "weight", None) is not None
    )
    assert sum(plan.weights.values()) == pytest.approx(loaded, rel=0.001)
    assert plan.fits
    assert plan.to_dict()["total"] == plan.total
    assert "KV cache f32" in repr(plan)
    assert "<svg" in plan._repr_html_()


def test_plan_shrinks_and_refuses() -> None:
    whole = ml.plan(LLAMA)
    assert (whole.context, whole.slots) == (1024, 8)
    less = ml.plan(LLAMA, memory_limit=whole.total - whole.kv // 2)
    assert less.fits
    assert less.slots < 8
    with pytest.raises(ml.DeviceOutOfMemory) as refused:
        ml.Model.load(LLAMA, memory_limit=1 << 20)
    assert refused.value.plan.budget == 1 << 20
    assert not refused.value.plan.fits


def test_random_weights_have_the_shapes() -> None:
    with ml.Model.random(TINY, format="int4:32", slots=1) as model:
        assert model.tokenizer is None
        assert np.isfinite(model.logits([1, 2, 3])).all()
        assert len(model.generate([1, 2, 3], max_tokens=4).tokens) == 4
        with pytest.raises(ml.MarlinError, match="no tokenizer"):
            model.generate("text")


def test_shown(exact: ml.Model) -> None:
    assert "fix-llama" in repr(exact)
    assert "2.0M parameters" in repr(exact)
    assert "<svg" in exact._repr_html_()
    assert len(exact._repr_html_()) < 50_000
    tree = repr(exact.layers)
    assert "    qkv: (512, 128) int8" in tree
    assert "[q_proj + k_proj + v_proj]" in tree


def test_close_and_verify() -> None:
    model = ml.Model.load(LLAMA, slots=1, context=64, verify=True)
    before = model.device.memory()["device_used"]
    model.close()
    model.close()
    assert model.closed
    assert "closed" in repr(model)
    assert model.device.memory()["device_used"] < before
    with pytest.raises(ml.MarlinError, match="is closed"):
        model.generate("x")
