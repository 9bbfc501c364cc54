"""config.json and generation_config.json, read in one place into frozen dataclasses.

Every value is checked for type and range; what Marlin cannot compute raises UnsupportedModelError
with the key's name, so that no model runs with a rope kind, activation or window that was silently
ignored. Source of key names and defaults: the configuration classes of Hugging Face transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marlin.errors import ModelFormatError, UnsupportedModelError
from marlin.experts import Experts, read_experts
from marlin.loaders.base import read_json, show

ACTIVATIONS: Final[dict[str, str]] = {  # name in config.json -> name in Marlin
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
HEAD_DIM_STEP: Final = 8  # what csrc/engine/kv_cache.h takes
HEAD_DIM_MAX: Final = 256
DELTA_TAPS_MAX: Final = 8  # what csrc/ops/delta.h takes
LATENT: Final = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")  # model types with latent attention
ROPE_KINDS: Final = ("default", "linear", "llama3", "yarn")
LINEAR_ATTENTION: Final = ("linear_attention", "qwen3_next")  # of layer_types, and the model type that has it
PARTS: Final = ("base", "delta", "mla", "mlp", "moe")  # files of marlin/models that are no model

# Keys that config.json may leave out, where model types differ. "attention_bias" is about q, k, v;
# "o_bias" (no key of config.json) says whether the same key adds a bias to the output projection.
_COMMON: Final[dict[str, Any]] = {
    "attention_bias": False,
    "o_bias": True,
    "mlp_bias": False,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "sliding_window": None,
    "use_sliding_window": True,
}
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "llama": {},
    "mistral": {"o_bias": False, "sliding_window": 4096, "max_position_embeddings": 131072},
    "qwen2": {
        "attention_bias": True, "o_bias": False, "max_position_embeddings": 32768,
        "sliding_window": 4096, "use_sliding_window": False,
    },
    "qwen3": {
        "head_dim": 128, "max_position_embeddings": 32768,
        "sliding_window": 4096, "use_sliding_window": False,
    },
    "mixtral": {"o_bias": False, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5},
    "qwen3_moe": {
        "max_position_embeddings": 32768,
        "sliding_window": 4096, "use_sliding_window": False,
    },
    "qwen3_next": {
        "head_dim": 256, "max_position_embeddings": 32768, "partial_rotary_factor": 0.25,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "full_attention_interval": 4,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: how many of a head's dimensions turn (`dim`), and how fast."""

    kind: str
    theta: float
    dim: int
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: the cache holds rank + rope_dim numbers a position, for all heads.

    q_rank: of the query's low-rank projection, None where it is one matrix. A query head has nope_dim +
    rope_dim elements, a value head v_dim. softmax_scale includes YaRN's mscale_all_dim.
    """

    rank: int
    q_rank: int | None
    nope_dim: int
    rope_dim: int
    v_dim: int
    softmax_scale: float
    interleaved: bool
    # transformers leaves the norms of both projections at their default, whatever rms_norm_eps says.
    norm_eps: float = 1e-6

    @property
    def q_dim(self) -> int:
        """Elements of a query head."""
        return self.nope_dim + self.rope_dim

    @property
    def row(self) -> int:
        """Elements of a cache row."""
        return self.rank + self.rope_dim


@dataclass(frozen=True)
class Delta:
    """A gated delta net in some of the layers: a state a slot there, no cache.

    key_heads of key_dim, value_heads of value_dim elements; taps of the convolution before it; linear: for each layer
    whether it has one, the others attend.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    linear: tuple[bool, ...]

    @property
    def key_size(self) -> int:
        """Width of the keys of all heads, and of the queries."""
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Width of the values of all heads."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Numbers a token that go through the convolution."""
        return 2 * self.key_size + self.value_size

    @property
    def slot_floats(self) -> int:
        """f32 numbers that a layer remembers of a slot."""
        return self.taps * self.channels + self.value_heads * self.key_dim * self.value_dim


@dataclass(frozen=True)
class GenerationDefaults:
    """What generation_config.json says of sampling; None where it says nothing."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Sizes in elements; `context` in tokens."""

    model_type: str
    architecture: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    activation: str
    rope: Rope
    context: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    generation: GenerationDefaults
    experts: Experts | None = None
    latent: Latent | None = None
    delta: Delta | None = None
    extra_layers: int = 0  # of the checkpoint behind the network's own: multi-token prediction

    @property
    def q_size(self) -> int:
        """Width of the query projection: heads * head_dim, which need not be hidden_size."""
        return self.heads * (self.latent.q_dim if self.latent else self.head_dim)

    @property
    def kv_size(self) -> int:
        """Width of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    @property
    def cache_layers(self) -> int:
        """Layers that have a cache."""
        return self.layers - (sum(self.delta.linear) if self.delta else 0)

    @property
    def cache_row(self) -> int:
        """Elements that the cache holds a token and layer."""
        return self.latent.row if self.latent else 2 * self.kv_size


def model_types() -> list[str]:
    """The model types that Marlin has: the file names of marlin/models."""
    folder = Path(__file__).parent / "models"
    return sorted(file.stem for file in folder.glob("*.py") if file.stem not in PARTS and file.stem[0] != "_")


def load_config(folder: str | Path, *, context: int | None = None) -> ModelConfig:
    """The config of a model folder; see `read_config`."""
    path = Path(folder)
    generation = read_json(path, "generation_config.json", optional=True)
    return read_config(read_json(path, "config.json"), generation, context=context)


def read_config(
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
    *,
    context: int | None = None,
) -> ModelConfig:
    """Check config.json and generation_config.json (parsed) and make a ModelConfig of them.

    context: how many tokens will be used, where that is less than the model's own limit; a sliding
    window at least as long changes nothing and is accepted.
    Raises ModelFormatError (key, value, what was expected) or UnsupportedModelError (key and
    value).
    """
    generation = generation or {}
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelFormatError(f"config.json: model_type must be a string, got {show(model_type)}")
    known = model_types()
    if model_type not in known:
        raise UnsupportedModelError(
            f"config.json: model_type {show(model_type)} is not supported; known are {', '.join(known)}"
        )
    section = _Section("config.json", config, _COMMON | _DEFAULTS.get(model_type, {}))

    hidden = section.integer("hidden_size", 1, 1 << 18)
    heads = section.integer("num_attention_heads", 1, 1 << 14)
    layers = section.integer("num_hidden_layers", 1, 4096)
    latent_attention = model_type in LATENT
    head_dim = section.optional_integer("qk_rope_head_dim" if latent_attention else "head_dim", 1, 4096)
    if head_dim is None:
        if hidden % heads:
            raise ModelFormatError(
                f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads "
                f"{heads}, "
                ""
                "and head_dim is not given"
            )
        head_dim = hidden // heads
    kv_heads = section.optional_integer("num_key_value_heads", 1, 1 << 14) or heads
    if heads % kv_heads:
        raise ModelFormatError(
            f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    vocab = section.integer("vocab_size", 1, 1 << 24)
    limit = section.integer("max_position_embeddings", 1, 1 << 28)
    _check_window(section, model_type, layers, min(context or limit, limit))

    rope = _rope(section, head_dim, limit)
    if not latent_attention and (head_dim % HEAD_DIM_STEP or head_dim > HEAD_DIM_MAX):
        raise UnsupportedModelError(
            f"config.json: heads of {head_dim} dimensions (head_dim, or hidden_size / num_attention_heads) are not "
            f"supported; it must be a multiple of {HEAD_DIM_STEP} up to {HEAD_DIM_MAX}"
        )

    bias = section.boolean("attention_bias")
    notes = _Section("generation_config.json", generation, {})
    ids = notes if generation.get("eos_token_id") is not None else section
    return ModelConfig(
        model_type=model_type,
        architecture=_architecture(config),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=section.integer("intermediate_size", 1, 1 << 22),
        vocab_size=vocab,
        norm_eps=section.number("rms_norm_eps", 1e-20, 1.0),
        tie_embeddings=section.boolean("tie_word_embeddings", False),
        qkv_bias=bias,
        o_bias=bias and bool(section.defaults["o_bias"]),
        mlp_bias=section.boolean("mlp_bias"),
        activation=_activation(section),
        rope=rope,
        context=limit,
        bos_id=next(
            iter((notes if "bos_token_id" in generation else section).ids("bos_token_id", vocab)),
            None,
        ),
        eos_ids=ids.ids("eos_token_id", vocab),
        generation=_generation(notes, vocab),
        experts=read_experts(section, model_type, layers),
        latent=_latent(section, rope) if latent_attention else None,
        delta=_delta(section, layers) if model_type == "qwen3_next" else None,
        extra_layers=section.optional_integer("num_nextn_predict_layers", 0, 64) or 0,
    )


def rope_frequencies(config: ModelConfig) -> tuple[NDArray[np.float64], float]:
    """Inverse frequencies (rope.dim / 2) in radians a position, and the factor on cos and sin.

    default: theta^(-2i/dim). linear (Chen et al. 2023, arXiv 2306.15595): divided by factor.
    llama3: transformers' _compute_llama3_parameters: long waves divided, short ones kept, a ramp
    between. yarn (Peng et al. 2023, arXiv 2309.00071): a ramp over dimensions between both, and a
    temperature 0.1 ln(factor) + 1; with mscale and mscale_all_dim (DeepSeek) the quotient of two
    such.
    """
    rope = config.rope
    plain = rope.theta ** (-np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "llama3":
        turns = rope.original_context * plain / (2 * np.pi)  # full turns within the original context
        ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = np.clip(ramp, 0.0, 1.0)
        return plain * (keep + (1 - keep) / rope.factor), 1.0
    if rope.kind == "yarn":
        keep = 1 - _yarn_ramp(rope)
        return plain * (keep + (1 - keep) / rope.factor), _yarn_temperature(rope)
    return plain, 1.0


def _yarn_ramp(rope: Rope) -> NDArray[np.float64]:
    def dimension(turns: float) -> float:
        """The dimension whose wave makes that many turns within the original context."""
        return rope.dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    width = max(high - low, 0.001)  # equal ends would divide by zero
    return np.clip((np.arange(rope.dim // 2) - low) / width, 0.0, 1.0)


def _yarn_temperature(rope: Rope) -> float:
    def scale(m: float) -> float:
        return 0.1 * m * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


class _Section:
    """Typed, range-checked reading of one JSON object; a default stands for a missing key."""

    def __init__(self, where: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.where, self.values, self.defaults = where, values, defaults

    def over(self, defaults: Mapping[str, Any]) -> _Section:
        """The same object with further defaults."""
        return _Section(self.where, self.values, {**self.defaults, **defaults})

    def raw(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, self.defaults.get(key, default))

    def bad(self, key: str, expected: str) -> ModelFormatError:
        if key not in self.values:
            return ModelFormatError(f"{self.where}: {key} is missing, expected {expected}")
        return ModelFormatError(f"{self.where}: {key} must be {expected}, got {show(self.values[key])}")

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.raw(key)
        if type(value) is not int or not low <= value <= high:
            raise self.bad(key, f"an integer from {low} to {high}")
        return value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        return None if self.raw(key) is None else self.integer(key, low, high)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.raw(key, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.bad(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def optional_number(self, key: str, low: float, high: float) -> float | None:
        return None if self.raw(key) is None else self.number(key, low, high)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self.raw(key, default)
        if type(value) is not bool:
            raise self.bad(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self.bad(key, "a string")
        return value

    def ids(self, key: str, vocab: int) -> tuple[int, ...]:
        """Token ids: an integer, a list of them, or null."""
        value = self.raw(key)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item < vocab for item in listed) or len(listed) > 256:
            raise self.bad(key, f"a token id below vocab_size {vocab}, or a list of them")
        return tuple(dict.fromkeys(listed))


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if names is None:
        return ""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelFormatError(f"config.json: architectures must be a list of strings, got {show(names)}")
    name = names[0] if names else ""
    if name and not name.endswith(("ForCausalLM", "LMHeadModel")):
        raise UnsupportedModelError(f"config.json: architectures {show(name)} is not a causal language model")
    return name


def _activation(section: _Section) -> str:
    name = section.text("hidden_act", "silu")
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"config.json: hidden_act {show(name)} is not supported; known are {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _check_window(section: _Section, model_type: str, layers: int, context: int) -> None:
    """Refuse a sliding window that would be felt: attention here is over the whole context."""
    kinds = section.values.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise section.bad("layer_types", f"a list of num_hidden_layers = {layers} strings")
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention") and (kind, model_type) != LINEAR_ATTENTION:
                raise UnsupportedModelError(f"config.json: layer_types {show(kind)} is not supported")
    window = section.optional_integer("sliding_window", 1, 1 << 40)
    if window is None or window >= context or not section.boolean("use_sliding_window"):
        return
    if kinds is not None and "sliding_attention" not in kinds:
        return
    first = section.optional_integer("max_window_layers", 0, 1 << 20)
    if kinds is None and "use_sliding_window" in section.values and first is not None and first >= layers:
        return  # Qwen: only layers from max_window_layers on have the window
    raise UnsupportedModelError(
        f"config.json: sliding_window {window} is shorter than the context {context}; "
        f"only full attention is supported, which a context of at most {window} tokens allows"
    )


def _rope(section: _Section, head_dim: int, context: int) -> Rope:
    """Both styles: rope_theta and rope_scaling at the top level, or all of it in
    rope_parameters."""
    values: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        nested = section.values.get(key)
        if nested is None:
            continue
        if not isinstance(nested, dict):
            raise section.bad(key, "an object or null")
        if any(isinstance(value, dict) for value in nested.values()):
            raise UnsupportedModelError(f"config.json: {key} differs from layer to layer, which is not supported")
        values.update(nested)
    where = "config.json: rope_parameters" if "rope_parameters" in section.values else "config.json: rope_scaling"
    for key in ("rope_theta", "partial_rotary_factor"):
        if section.values.get(key) is not None:
            if values.get(key, section.values[key]) != section.values[key]:
                raise ModelFormatError(
                    f"config.json: {key} is {show(section.values[key])}, but {show(values[key])} in rope_parameters"
                )
            values[key] = section.values[key]
    if values.get("type") is not None:
        values.setdefault("rope_type", values["type"])
    part = _Section(where, values, {})

    kind = part.text("rope_type", "default")
    if kind not in ROPE_KINDS:
        raise UnsupportedModelError(
            f"{where}: rope_type {show(kind)} is not supported; known are {', '.join(ROPE_KINDS)}"
        )
    theta = part.number("rope_theta", 1.0 if kind == "default" else 1.001, 1e12, 10000.0)
    share = section.defaults.get("partial_rotary_factor", 1.0)
    dim = int(head_dim * part.number("partial_rotary_factor", 1e-6, 1.0, share))
    if dim < 2 or dim % 2:
        raise ModelFormatError(
            f"config.json: head_dim {head_dim} times partial_rotary_factor must give an even "
            "number of "
            ""
            f"dimensions, got {dim}"
        )
    if kind == "default":
        return Rope(kind, theta, dim)
    factor = part.number("factor", 1.0, 1e6)
    if kind == "linear":
        return Rope(kind, theta, dim, factor)
    original = part.optional_integer("original_max_position_embeddings", 1, 1 << 28) or context
    if kind == "llama3":
        low = part.number("low_freq_factor", 1e-6, 1e6)
        high = part.number("high_freq_factor", 1e-6, 1e6)
        if low >= high:
            raise ModelFormatError(f"{where}: low_freq_factor {low:g} must be less than high_freq_factor {high:g}")
        return Rope(kind, theta, dim, factor, original, low, high)
    fast = part.optional_number("beta_fast", 1e-6, 1e6) or 32.0
    slow = part.optional_number("beta_slow", 1e-6, 1e6) or 1.0
    if slow > fast:
        raise ModelFormatError(f"{where}: beta_slow {slow:g} must not be more than beta_fast {fast:g}")
    return Rope(
        kind, theta, dim, factor, original, beta_fast=fast, beta_slow=slow,
        attention_factor=part.optional_number("attention_factor", 1e-6, 1e6),
        mscale=part.optional_number("mscale", 0.0, 1e6),
        mscale_all_dim=part.optional_number("mscale_all_dim", 0.0, 1e6),
        truncate=part.boolean("truncate", True),
    )  # fmt: skip


def _latent(section: _Section, rope: Rope) -> Latent:
    """The sizes of latent attention. Kernels read rows by eights, so all must be multiples of 8."""

    def size(key: str) -> int:
        value = section.integer(key, 8, 1 << 14)
        if value % 8:
            raise UnsupportedModelError(f"config.json: {key} {value} is not supported: it must be a multiple of 8")
        return value

    rank, rope_dim, nope = size("kv_lora_rank"), size("qk_rope_head_dim"), size("qk_nope_head_dim")
    if rope.dim != rope_dim:
        raise UnsupportedModelError(f"config.json: partial_rotary_factor of qk_rope_head_dim {rope_dim}")
    mscale = rope.mscale_all_dim if rope.kind == "yarn" else None
    # DeepSeek's YaRN sharpens the scores by the square of what it would have scaled cos and sin by.
    sharpen = (0.1 * mscale * math.log(rope.factor) + 1.0) ** 2 if mscale and rope.factor > 1 else 1.0
    return Latent(
        rank=rank,
        q_rank=section.optional_integer("q_lora_rank", 1, 1 << 16),
        nope_dim=nope,
        rope_dim=rope_dim,
        v_dim=size("v_head_dim"),
        softmax_scale=sharpen / math.sqrt(nope + rope_dim),
        interleaved=section.boolean("rope_interleave", True),
    )


def _delta(section: _Section, layers: int) -> Delta:
    """The layers with a gated delta net: those that layer_types calls linear, else all but every n-th."""
    kinds = section.values.get("layer_types")
    if kinds is None:
        interval = section.integer("full_attention_interval", 1, 1 << 20)
        linear = tuple((i + 1) % interval != 0 for i in range(layers))
    else:
        linear = tuple(kind == LINEAR_ATTENTION[0] for kind in kinds)
    if all(linear):
        raise UnsupportedModelError("config.json: layer_types without full_attention is not supported")

    def size(key: str) -> int:
        value = section.integer(key, 1, 1 << 14)
        if value % HEAD_DIM_STEP or value > HEAD_DIM_MAX:
            raise UnsupportedModelError(
                f"config.json: {key} {value} is not supported: it must be a multiple of {HEAD_DIM_STEP} up to "
                f"{HEAD_DIM_MAX}"
            )
        return value

    key_heads = section.integer("linear_num_key_heads", 1, 1 << 14)
    value_heads = section.integer("linear_num_value_heads", 1, 1 << 14)
    if value_heads % key_heads:
        raise ModelFormatError(
            f"config.json: linear_num_value_heads {value_heads} is not a multiple of linear_num_key_heads {key_heads}"
        )
    return Delta(
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=size("linear_key_head_dim"),
        value_dim=size("linear_value_head_dim"),
        taps=section.integer("linear_conv_kernel_dim", 1, DELTA_TAPS_MAX),
        linear=linear,
    )


def _generation(notes: _Section, vocab: int) -> GenerationDefaults:
    return GenerationDefaults(
        do_sample=None if notes.raw("do_sample") is None else notes.boolean("do_sample"),
        temperature=notes.optional_number("temperature", 0.0, 1e3),
        top_k=notes.optional_integer("top_k", 0, 1 << 31),
        top_p=notes.optional_number("top_p", 0.0, 1.0),
        min_p=notes.optional_number("min_p", 0.0, 1.0),
        repetition_penalty=notes.optional_number("repetition_penalty", 1e-3, 1e3),
    )
