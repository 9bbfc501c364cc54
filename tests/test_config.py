"""config.json: what is read, what is refused, and rope frequencies against independent figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marlin.config import ModelConfig, load_config, model_types, read_config, rope_frequencies
from marlin.errors import ModelFormatError, UnsupportedModelError

MODELS = Path(__file__).resolve().parents[1] / "models"


def base(**changes: Any) -> dict[str, Any]:
    """A small sound config; None removes nothing, "<drop>" removes the key."""
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 512,
        "vocab_size": 1000,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "eos_token_id": 2,
        "bos_token_id": 1,
        "rope_theta": 10000.0,
    }
    config.update(changes)
    return {key: value for key, value in config.items() if value != "<drop>"}


def test_shipped_models() -> None:
    tale = load_config(MODELS / "tale-moe")
    assert (tale.model_type, tale.hidden_size, tale.layers, tale.heads) == ("glm4_moe_lite", 384, 8, 4)
    assert tale.experts is not None and tale.latent is not None
    assert (tale.experts.count, tale.experts.top_k, tale.experts.scoring, tale.experts.scale) == (16, 4, "sigmoid", 1.8)
    assert tale.experts.sparse == (False,) + (True,) * 7 and (tale.experts.inner, tale.experts.shared_inner) == (
        128,
        128,
    )
    assert (tale.latent.rank, tale.latent.q_rank, tale.latent.nope_dim, tale.latent.rope_dim) == (256, 256, 64, 128)
    assert tale.eos_ids == (0,) and tale.bos_id is None and not tale.tie_embeddings
    assert tale.generation.do_sample and tale.generation.temperature == 0.8 and tale.generation.top_k == 40
    assert tale.rope.kind == "default" and tale.rope.theta == 1e4
    fix = load_config(MODELS / "fix-llama")
    assert (fix.model_type, fix.head_dim, fix.q_size, fix.kv_size) == ("llama", 64, 256, 128)
    assert fix.activation == "silu" and fix.experts is None and fix.latent is None


def test_model_types_are_the_files_of_models() -> None:
    assert {"llama", "mistral", "qwen2", "qwen3"} <= set(model_types())
    assert "base" not in model_types()


@pytest.mark.parametrize(
    ("model_type", "bias", "qkv", "o"),
    [
        ("llama", "<drop>", False, False),
        ("llama", True, True, True),
        ("mistral", "<drop>", False, False),
        ("qwen2", "<drop>", True, False),
        ("qwen2", False, False, False),
        ("qwen3", True, True, True),
    ],
)
def test_biases(model_type: str, bias: Any, qkv: bool, o: bool) -> None:
    config = read_config(base(model_type=model_type, attention_bias=bias, head_dim=64, sliding_window=None))
    assert (config.qkv_bias, config.o_bias) == (qkv, o)


def test_defaults_of_missing_keys() -> None:
    config = read_config(base(num_key_value_heads="<drop>", rope_theta="<drop>", rms_norm_eps="<drop>"))
    assert (config.kv_heads, config.head_dim, config.rope.theta, config.norm_eps) == (
        4,
        64,
        1e4,
        1e-6,
    )
    assert read_config(base(model_type="qwen3")).head_dim == 128
    assert read_config(base(head_dim=80)).q_size == 320
    for dim in (8, 256):
        assert read_config(base(head_dim=dim)).head_dim == dim
    for dim in (4, 12, 100, 264, 512):
        with pytest.raises(UnsupportedModelError, match=rf"heads of {dim} dimensions .* a multiple of 8 up to 256"):
            read_config(base(head_dim=dim))
    with pytest.raises(UnsupportedModelError, match="heads of 12 dimensions"):  # as hidden_size says
        read_config(base(hidden_size=48, num_attention_heads=4, num_key_value_heads=4))


def test_generation_config_overrides_ids() -> None:
    config = read_config(base(), {"eos_token_id": [5, 6, 5], "bos_token_id": 9, "temperature": 0.6, "top_p": 0.9})
    assert config.eos_ids == (5, 6) and config.bos_id == 9
    assert config.generation.temperature == 0.6 and config.generation.do_sample is None
    assert read_config(base(), {"eos_token_id": None}).eos_ids == (2,)
    assert read_config(base(eos_token_id=None)).eos_ids == ()


def test_both_rope_styles_agree() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = read_config(base(rope_theta=500000.0, rope_scaling={"type": "llama3", **scaling}))
    new = read_config(
        base(
            rope_theta="<drop>",
            rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **scaling},
        )
    )
    assert old.rope == new.rope and old.rope.kind == "llama3"


def test_partial_rotary() -> None:
    config = read_config(base(partial_rotary_factor=0.25))
    assert config.rope.dim == 16 and len(rope_frequencies(config)[0]) == 8


def frequencies(**changes: Any) -> tuple[np.ndarray, float, ModelConfig]:
    config = read_config(base(head_dim=128, **changes))
    inverse, scale = rope_frequencies(config)
    return inverse, scale, config


def test_rope_linear_divides() -> None:
    plain, one, _ = frequencies()
    scaled, scale, _ = frequencies(rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert one == scale == 1.0 and np.allclose(scaled * 4, plain, rtol=1e-15)
    assert plain[0] == 1.0 and math.isclose(plain[-1], 10000.0 ** (-126 / 128))


def test_rope_llama3_by_the_loop_of_its_source() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    got, scale, _ = frequencies(rope_theta=500000.0, rope_scaling=scaling, max_position_embeddings=131072)
    want = []
    for i in range(64):
        f = 500000.0 ** (-2 * i / 128)
        wave = 2 * math.pi / f
        if wave < 8192 / 4:
            want.append(f)
        elif wave > 8192 / 1:
            want.append(f / 8)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            want.append((1 - smooth) * f / 8 + smooth * f)
    assert scale == 1.0 and np.allclose(got, want, rtol=1e-12)
    assert got[0] == 1.0 and math.isclose(got[-1], 500000.0 ** (-126 / 128) / 8)


def test_rope_yarn() -> None:
    # Qwen's recommended scaling: theta 1e6, 32768 -> 131072; the ramp runs over dimensions 23 .. 40
    # (ends found by hand: 128 ln(32768 / (2 pi b)) / (2 ln 1e6), b = 32 and 1, floor and ceil).
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    got, scale, _ = frequencies(rope_theta=1e6, rope_scaling=scaling, max_position_embeddings=131072)
    plain = 1e6 ** (-np.arange(64) / 64)
    assert math.isclose(scale, 0.1 * math.log(4) + 1)
    assert np.allclose(got[:24], plain[:24]) and np.allclose(got[40:], plain[40:] / 4)
    assert math.isclose(got[30], plain[30] * ((1 - 7 / 17) + 7 / 17 / 4))


def test_rope_yarn_temperature() -> None:
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
    }
    assert frequencies(rope_scaling=scaling | {"mscale": 1.0, "mscale_all_dim": 1.0})[1] == 1.0
    assert frequencies(rope_scaling=scaling | {"attention_factor": 1.25})[1] == 1.25
    half = frequencies(rope_scaling=scaling | {"mscale": 1.0, "mscale_all_dim": 0.5})[1]
    assert math.isclose(half, (0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1))


def test_sliding_window() -> None:
    v1 = base(model_type="mistral", sliding_window=1024)
    with pytest.raises(UnsupportedModelError, match="sliding_window 1024 is shorter than the context 2048"):
        read_config(v1)
    assert read_config(v1, context=1024).context == 2048
    assert read_config(base(model_type="mistral", sliding_window=2048)).context == 2048
    assert read_config(base(model_type="mistral", sliding_window=None)).context == 2048
    qwen = base(model_type="qwen2", sliding_window=1024, max_window_layers=2)
    read_config(qwen)
    read_config(qwen | {"use_sliding_window": True})
    with pytest.raises(UnsupportedModelError, match="sliding_window"):
        read_config(qwen | {"use_sliding_window": True, "max_window_layers": 1})
    with pytest.raises(UnsupportedModelError, match="sliding_window"):
        read_config(qwen | {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]})


# (changes, words of the message): the message names the key, what came, and what was expected.
BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": value}, f"hidden_size must be an integer from 1 to 262144, got {value!r}")
    for value in (0, -1, 1 << 40, 2.0, "256", True, [], {})
] + [
    ({"hidden_size": None}, "hidden_size must be an integer"),
    ({"hidden_size": "<drop>"}, "hidden_size is missing, expected an integer"),
    ({"num_attention_heads": "<drop>"}, "num_attention_heads is missing"),
    ({"num_attention_heads": 0}, "num_attention_heads must be"),
    ({"num_attention_heads": 3}, "hidden_size 256 is not a multiple of num_attention_heads 3"),
    ({"num_hidden_layers": -2}, "num_hidden_layers must be"),
    ({"num_hidden_layers": 1e3}, "num_hidden_layers must be"),
    (
        {"num_key_value_heads": 3},
        "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
    ),
    ({"num_key_value_heads": 0}, "num_key_value_heads must be"),
    ({"num_key_value_heads": 8}, "is not a multiple of num_key_value_heads 8"),
    ({"head_dim": 0}, "head_dim must be"),
    ({"head_dim": -64}, "head_dim must be"),
    ({"head_dim": 1}, "must give an even number of dimensions, got 1"),
    ({"head_dim": 63}, "must give an even number of dimensions, got 63"),
    ({"head_dim": 1 << 31}, "head_dim must be"),
    ({"intermediate_size": "<drop>"}, "intermediate_size is missing"),
    ({"intermediate_size": 1 << 60}, "intermediate_size must be"),
    ({"vocab_size": 0}, "vocab_size must be"),
    ({"vocab_size": 1 << 31}, "vocab_size must be"),
    ({"vocab_size": False}, "vocab_size must be"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps must be a number"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps must be a number"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number from 1e-20 to 1, got '1e-5'"),
    ({"rms_norm_eps": math.inf}, "rms_norm_eps must be a number"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a number"),
    ({"max_position_embeddings": 0}, "max_position_embeddings must be"),
    ({"max_position_embeddings": None}, "max_position_embeddings must be"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, got 1"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
    ({"attention_bias": None}, "attention_bias must be true or false, got None"),
    ({"mlp_bias": 0}, "mlp_bias must be true or false, got 0"),
    ({"hidden_act": 3}, "hidden_act must be a string, got 3"),
    ({"hidden_act": None}, "hidden_act must be a string"),
    (
        {"eos_token_id": 1000},
        "eos_token_id must be a token id below vocab_size 1000, or a list of them, got 1000",
    ),
    ({"eos_token_id": -1}, "eos_token_id must be a token id"),
    ({"eos_token_id": [1, "2"]}, "eos_token_id must be a token id"),
    ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
    ({"eos_token_id": [1] * 1000}, "eos_token_id must be a token id"),
    ({"bos_token_id": 1.0}, "bos_token_id must be a token id"),
    ({"bos_token_id": True}, "bos_token_id must be a token id"),
    ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of strings"),
    ({"architectures": [1]}, "architectures must be a list of strings"),
    ({"model_type": "<drop>"}, "model_type must be a string, got None"),
    ({"model_type": ["llama"]}, "model_type must be a string"),
    ({"rope_theta": 0}, "rope_theta must be a number"),
    ({"rope_theta": -1e4}, "rope_theta must be a number"),
    ({"rope_theta": "10000"}, "rope_theta must be a number"),
    ({"rope_theta": 1e300}, "rope_theta must be a number"),
    ({"rope_scaling": 2.0}, "rope_scaling must be an object or null, got 2.0"),
    ({"rope_scaling": []}, "rope_scaling must be an object or null"),
    ({"rope_parameters": "yarn"}, "rope_parameters must be an object or null"),
    ({"rope_scaling": {"rope_type": 1}}, "rope_type must be a string"),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor is missing"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor must be a number from 1"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "factor must be a number"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor is missing"),
    (
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 4,
                "high_freq_factor": 4,
            }
        },
        "low_freq_factor 4 must be less than high_freq_factor 4",
    ),
    ({"rope_scaling": {"rope_type": "yarn"}}, "factor is missing"),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}},
        "beta_slow 2 must not be more than beta_fast 1",
    ),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": 1}},
        "truncate must be true or false",
    ),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 2, "attention_factor": 0}},
        "attention_factor must be",
    ),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 0}},
        "original_max_position_embeddings must be",
    ),
    ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 10000.0, but 5.0 in rope_parameters"),
    ({"partial_rotary_factor": 0.0}, "partial_rotary_factor must be a number"),
    ({"partial_rotary_factor": 1.5}, "partial_rotary_factor must be a number"),
    ({"sliding_window": 0}, "sliding_window must be an integer"),
    ({"sliding_window": "all"}, "sliding_window must be an integer"),
    ({"sliding_window": 16, "use_sliding_window": 3}, "use_sliding_window must be true or false"),
    (
        {"layer_types": ["full_attention"]},
        "layer_types must be a list of num_hidden_layers = 2 strings",
    ),
]


@pytest.mark.parametrize(("changes", "words"), BAD_VALUES, ids=lambda item: item if isinstance(item, str) else "")
def test_bad_values(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        read_config(base(**changes))
    assert words in str(caught.value) and str(caught.value).startswith("config.json: ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; known are deepseek_v2"),
        ({"model_type": "../llama"}, "model_type '../llama' is not supported"),
        ({"model_type": "base"}, "model_type 'base' is not supported"),
        ({"hidden_act": "relu2"}, "hidden_act 'relu2' is not supported; known are silu"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_type 'dynamic' is not supported",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "rope_type 'longrope' is not supported; known are default",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters differs from layer",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is not a causal language model"),
        (
            {"layer_types": ["full_attention", "linear_attention"]},
            "layer_types 'linear_attention' is not supported",
        ),
    ],
)
def test_unsupported(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read_config(base(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.1),
        ("min_p", -1),
        ("repetition_penalty", 0.0),
        ("do_sample", "yes"),
        ("eos_token_id", 5000),
        ("bos_token_id", [True]),
    ],
)
def test_bad_generation_config(key: str, value: Any) -> None:
    with pytest.raises(ModelFormatError, match=f"generation_config.json: {key} must be"):
        read_config(base(), {key: value})


def test_load_config_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"'config\.json' is missing"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(base()) + "x")
    with pytest.raises(ModelFormatError, match=r"config\.json: not JSON"):
        load_config(tmp_path)
