"""Fuzzing of the readers of model folders, at a size for every run; `fuzz_loaders.py --cases` does
more."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import fuzz_loaders
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marlin.config import read_config
from marlin.errors import MarlinError
from marlin.loaders import safetensors

CASES = 1000  # of each target

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*safetensors.NAMES, "F4", ""]),
        "shape": st.lists(st.integers(-1, 2**40) | st.integers(0, 4), max_size=4),
        "data_offsets": st.lists(st.integers(0, 64) | st.integers(0, 2**64), min_size=1, max_size=3),
    }
)
QUICK = settings(max_examples=150, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("target", fuzz_loaders.TARGETS)
def test_damaged_folders(target: str) -> None:
    assert not fuzz_loaders.run(CASES, seed=0, target=target)


@QUICK
@given(
    header=st.dictionaries(st.text(max_size=4), ENTRIES | VALUES, max_size=4),
    data=st.binary(max_size=64),
)
def test_headers_of_any_shape(header: dict[str, Any], data: bytes, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    try:
        tensors, _ = safetensors.read_header(tmp_path / "x.safetensors")
    except MarlinError:
        return
    assert sum(info.nbytes for info in tensors.values()) == len(data)


@QUICK
@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(MarlinError):
        safetensors.read_header(tmp_path / "x.safetensors")


KEYS = st.sampled_from(
    [
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rope_scaling",
        "rope_parameters",
        "rope_theta",
        "eos_token_id",
        "bos_token_id",
        "architectures",
        "layer_types",
        "sliding_window",
        "use_sliding_window",
        "hidden_act",
        "tie_word_embeddings",
        "partial_rotary_factor",
        "model_type",
    ]
)


@QUICK
@given(
    changes=st.dictionaries(KEYS, VALUES, max_size=3),
    generation=st.dictionaries(KEYS, VALUES, max_size=2),
)
def test_configs_of_any_shape(changes: dict[str, Any], generation: dict[str, Any]) -> None:
    sound = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 100,
    }
    try:
        config = read_config(sound | changes, generation)
    except MarlinError:
        return
    assert config.head_dim * config.heads == config.q_size and config.heads % config.kv_heads == 0
