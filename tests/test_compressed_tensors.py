"""compressed-tensors: weights written and read back, targets, and bad files with exact messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marlin import formats
from marlin.errors import ModelFormatError, UnsupportedModelError
from marlin.loaders import compressed_tensors, open_checkpoint, safetensors

STORED = [
    ("int8", 0, False, "f16"),
    ("int8", 0, True, "f16"),
    ("int8", 128, False, "f16"),
    ("int8", 64, True, "f32"),
    ("int4", 0, True, "f16"),
    ("int4", 32, False, "f16"),
    ("int4", 16, True, "f32"),
    ("fp8_e4m3", 0, False, "f16"),
    ("fp8_e4m3", 32, False, "f32"),
    ("fp4_e2m1", 32, False, "e8m0"),
    ("fp4_e2m1", 16, False, "e4m3"),
]


def store(folder: Path, weights: np.ndarray, *case: Any, **config: Any) -> Path:
    """A folder with one quantized linear layer "x" (and a norm)."""
    folder.mkdir(exist_ok=True)
    format, group, zero, scale = case
    dense = {"x.weight": weights, "norm.weight": np.ones(weights.shape[1], np.float32)}
    (folder / "in").mkdir()
    safetensors.save(folder / "in" / "model.safetensors", dense)
    (folder / "in" / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    compressed_tensors.save_quantized(folder / "in", folder, format, group=group, zero=zero, scale=scale)
    return folder


@pytest.mark.parametrize("case", STORED, ids=lambda case: "-".join(map(str, case)))
def test_stored_weights_are_the_packed_ones(case: tuple[Any, ...], tmp_path: Path) -> None:
    weights = np.random.default_rng(3).normal(size=(13, 256)).astype(np.float32)
    checkpoint = open_checkpoint(store(tmp_path, weights, *case))
    q = checkpoint.quantized["x"]
    format, group, zero, scale = case
    packed = formats.pack(weights, format, group=group, zero=zero, scale=scale)
    assert (q.format, q.group, q.shape) == (format, group, (13, 256)) and (q.zero is not None) == zero
    np.testing.assert_allclose(q.dequantize(), formats.unpack(packed), rtol=1e-6)
    if zero:
        assert np.array_equal(q.read_zero(), packed.zero)
    if format.startswith("int"):
        codes = packed.quant if q.bits == 8 else np.stack([packed.quant & 15, packed.quant >> 4], 2).reshape(13, -1)
        assert np.array_equal(q.read_codes(), codes[:, :256])


def test_scale_of_the_whole_tensor_is_spread(tmp_path: Path) -> None:
    store(tmp_path, np.ones((4, 32), np.float32), "fp8_e4m3", 0, False, "f32")
    replace(tmp_path, "x.weight_scale", np.array([0.5], np.float32))
    q = open_checkpoint(tmp_path).quantized["x"]
    assert not q.scale_is_plane and q.read_scale().shape == (4, 1) and np.all(q.dequantize() == 224)


def test_several_config_groups(tmp_path: Path) -> None:
    store(tmp_path, np.ones((4, 32), np.float32), "int4", 32, False, "f16")
    section = quantization(tmp_path)
    group = section["config_groups"].pop("group_0")
    eight = json.loads(json.dumps(group)) | {"targets": ["re:.*y$", "Linear"]}
    eight["weights"]["num_bits"] = 8
    section["config_groups"] = {"eight": eight, "four": group | {"targets": ["re:^x"]}}
    quantization(tmp_path, section)
    assert open_checkpoint(tmp_path).quantized["x"].bits == 4


def quantization(folder: Path, section: Any = None) -> dict[str, Any]:
    """The quantization_config of a folder; written if given."""
    config = json.loads((folder / "config.json").read_text())
    if section is not None:
        config["quantization_config"] = section
        (folder / "config.json").write_text(json.dumps(config))
    return config["quantization_config"]


def replace(folder: Path, name: str, array: np.ndarray | None) -> None:
    """Put another tensor into a folder's file, or with None take it out."""
    tensors, _ = safetensors.read_header(folder / "model.safetensors")
    arrays = {key: info.read() for key, info in tensors.items() if key != name}
    if array is not None:
        arrays[name] = array
    safetensors.save(folder / "model.safetensors", arrays)


def test_patterns_match_as_python_does() -> None:
    import re

    names = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.11.mlp.gate_proj",
        "lm_head",
        "model.layers.1.q_proj.x",
    ]
    patterns = [
        ".*",
        ".*q_proj$",
        "model.layers.[0-9]+.mlp.*",
        r".*layers\.1\..*",
        ".*(q|k|v)_proj",
        "^lm_head$",
        "layers",
        ".*self_attn.*q_proj.*",
        "",
        "model.*proj$",
        r".*\.(gate|up)_proj$",
    ]
    for pattern in patterns:
        for name in names:
            assert compressed_tensors.matches(pattern, name) == bool(re.match(pattern, name)), (
                pattern,
                name,
            )


@pytest.mark.timeout(5)
@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "(", "a{99999999}", "[", "x*x*x*x*y", "(a|a)*b", "a" * 999])
def test_hostile_patterns(pattern: str) -> None:
    with pytest.raises(UnsupportedModelError, match="is not supported"):
        compressed_tensors.matches(pattern, "a" * 60)


# Bad files and configs ---------------------------------------------------------------


def edit(*path: str, value: Any) -> Callable[[Path], None]:
    """A change of one value of quantization_config."""

    def change(folder: Path) -> None:
        section = quantization(folder)
        part = section
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        quantization(folder, section)

    return change


def put(name: str, array: np.ndarray | None) -> Callable[[Path], None]:
    return lambda folder: replace(folder, name, array)


GROUP = ("config_groups", "group_0")
WEIGHTS = (*GROUP, "weights")
INT4, INT8, FP8 = ("int4", 32, True, "f16"), ("int8", 0, True, "f16"), ("fp8_e4m3", 0, False, "f16")
NV, MX = ("fp4_e2m1", 16, False, "e4m3"), ("fp4_e2m1", 32, False, "e8m0")
f4, i4, i8, u1 = np.float32, np.int32, np.int64, np.uint8

BAD_CONFIGS: list[tuple[Any, Callable[[Path], None], type[Exception], str]] = (
    [
        (
            INT4,
            edit("config_groups", value=value),
            ModelFormatError,
            "config_groups must be a non-empty object",
        )
        for value in (None, {}, [], "W4A16", 4)
    ]
    + [
        (INT4, edit(*GROUP, value=value), ModelFormatError, "'group_0' must be an object")
        for value in (None, [], 1, "x")
    ]
    + [
        (
            INT4,
            edit(*GROUP, "targets", value=value),
            ModelFormatError,
            "targets must be a list of strings",
        )
        for value in (None, [], {}, "Linear", [1], [None])
    ]
    + [
        (INT4, edit(*WEIGHTS, value=value), ModelFormatError, "weights must be an object")
        for value in (1, [], "int4", True)
    ]
    + [
        (
            INT4,
            edit("format", value=value),
            UnsupportedModelError,
            "is not supported; known are pack-quantized",
        )
        for value in (
            None,
            1,
            [],
            "",
            "marlin-24",
            "mxfp8-quantized",
            "mixed-precision",
            "dense",
            "sparse-bitmask",
        )
    ]
    + [
        (
            INT4,
            edit(*WEIGHTS, "num_bits", value=value),
            UnsupportedModelError,
            "pack-quantized holds int weights of 4 or 8",
        )
        for value in (None, 0, -4, 3, 5, 16, 4.0, "4", True, 1 << 70)
    ]
    + [
        (INT4, edit(*WEIGHTS, "type", value=value), UnsupportedModelError, "got type")
        for value in ("float", "", None, 1, [])
    ]
    + [
        (INT4, edit(*WEIGHTS, "group_size", value=value), UnsupportedModelError, "group_size")
        for value in (None, 0, -1, 1, 8, 31, 33, 512, 1 << 40)
    ]
    + [
        (
            INT4,
            edit(*WEIGHTS, "group_size", value=value),
            ModelFormatError,
            "group_size must be an integer or null",
        )
        for value in ("32", 32.0, [], True)
    ]
    + [
        (INT4, edit(*WEIGHTS, "strategy", value=value), UnsupportedModelError, "strategy")
        for value in ("block", "token", "tensor_group", "attn_head", "", 1, [])
    ]
    + [
        (
            INT4,
            edit(*WEIGHTS, "symmetric", value=value),
            ModelFormatError,
            "symmetric must be true or false",
        )
        for value in (None, 0, "true", [])
    ]
    + [
        (INT4, edit(*WEIGHTS, "actorder", value=value), UnsupportedModelError, "permuted columns")
        for value in (True, "group", "dynamic")
    ]
    + [
        (
            INT4,
            edit("sparsity_config", value={"format": "sparse-24-bitmask"}),
            UnsupportedModelError,
            "sparsity_config",
        ),
        (
            INT4,
            edit("transform_config", value={"config_groups": {}}),
            UnsupportedModelError,
            "transform_config",
        ),
        (
            INT4,
            edit("config_groups", value={"a": {"targets": ["x"], "weights": None}}),
            ModelFormatError,
            "no config group is about the quantized module 'x'",
        ),
        (
            FP8,
            edit(*WEIGHTS, "symmetric", value=False),
            UnsupportedModelError,
            "with zero points is not supported",
        ),
        (
            FP8,
            edit(*WEIGHTS, "strategy", value="block"),
            UnsupportedModelError,
            "strategy 'block' is not supported",
        ),
        (
            INT8,
            edit(*WEIGHTS, "num_bits", value=4),
            UnsupportedModelError,
            "int-quantized holds int weights of 8 bits",
        ),
        (
            NV,
            edit(*WEIGHTS, "group_size", value=32),
            UnsupportedModelError,
            "group_size 32 is not supported; known are 16",
        ),
        (
            MX,
            edit(*WEIGHTS, "group_size", value=16),
            UnsupportedModelError,
            "group_size 16 is not supported; known are 32",
        ),
        (
            INT4,
            put("x.weight_g_idx", np.zeros(64, i4)),
            UnsupportedModelError,
            "'x': permuted columns",
        ),
        (
            INT4,
            put("x.weight_packed", None),
            ModelFormatError,
            "tensor 'x.weight_packed' is missing",
        ),
        (
            INT4,
            put("x.weight_packed", np.zeros((6, 8), i8)),
            ModelFormatError,
            "weight_packed': dtype must be i32, got i64",
        ),
        (
            INT4,
            put("x.weight_packed", np.zeros(48, i4)),
            ModelFormatError,
            "shape must be (n, k), got [48]",
        ),
        (
            INT4,
            put("x.weight_packed", np.zeros((0, 8), i4)),
            ModelFormatError,
            "shape must be (n, k), got [0, 8]",
        ),
        (
            INT4,
            put("x.weight_packed", np.zeros((2, 3, 8), i4)),
            ModelFormatError,
            "shape must be (n, k), got [2, 3, 8]",
        ),
        (
            INT4,
            put("x.weight_packed", np.zeros((6, 7), i4)),
            ModelFormatError,
            "says [6, 64], but 'x.weight_packed'",
        ),
        (INT4, put("x.weight_shape", None), ModelFormatError, "tensor 'x.weight_shape' is missing"),
        (
            INT4,
            put("x.weight_shape", np.array([6.0, 64], f4)),
            ModelFormatError,
            "dtype must be i64 or i32, got f32",
        ),
        (
            INT4,
            put("x.weight_shape", np.array([6, 64, 1], i8)),
            ModelFormatError,
            "shape must be [2], got [3]",
        ),
        (INT4, put("x.weight_shape", np.array([7, 64], i8)), ModelFormatError, "says [7, 64]"),
        (INT4, put("x.weight_shape", np.array([6, 65], i8)), ModelFormatError, "says [6, 65]"),
        (INT4, put("x.weight_shape", np.array([6, 0], i8)), ModelFormatError, "says [6, 0]"),
        (INT4, put("x.weight_shape", np.array([6, -64], i8)), ModelFormatError, "says [6, -64]"),
        (
            INT4,
            put("x.weight_shape", np.array([6, 2**62], i8)),
            ModelFormatError,
            "says [6, 4611686018427387904]",
        ),
        (
            INT4,
            put("x.weight_shape", np.array([6, 60], i8)),
            UnsupportedModelError,
            "rows of 60 weights end inside a word",
        ),
        (INT4, put("x.weight_scale", None), ModelFormatError, "tensor 'x.weight_scale' is missing"),
        (
            INT4,
            put("x.weight_scale", np.zeros((6, 1), f4)),
            ModelFormatError,
            "shape must be [6, 2], got [6, 1]",
        ),
        (
            INT4,
            put("x.weight_scale", np.zeros((2, 6), f4)),
            ModelFormatError,
            "shape must be [6, 2], got [2, 6]",
        ),
        (
            INT4,
            put("x.weight_scale", np.zeros(1, f4)),
            ModelFormatError,
            "shape must be [6, 2], got [1]",
        ),
        (
            INT4,
            put("x.weight_scale", np.zeros((6, 2), i8)),
            ModelFormatError,
            "dtype must be f32 or f16 or bf16, got i64",
        ),
        (
            INT4,
            put("x.weight_zero_point", None),
            ModelFormatError,
            "tensor 'x.weight_zero_point' is missing",
        ),
        (
            INT4,
            put("x.weight_zero_point", np.zeros((6, 2), i4)),
            ModelFormatError,
            "shape must be [1, 2], got [6, 2]",
        ),
        (
            INT4,
            put("x.weight_zero_point", np.zeros((1, 2), u1)),
            ModelFormatError,
            "dtype must be i32, got u8",
        ),
        (INT8, put("x.weight", None), ModelFormatError, "tensor 'x.weight' is missing"),
        (
            INT8,
            put("x.weight", np.zeros((6, 64), f4)),
            ModelFormatError,
            "tensor 'x.weight': dtype must be i8, got f32",
        ),
        (
            INT8,
            put("x.weight", np.zeros(6, np.int8)),
            ModelFormatError,
            "shape must be (n, k), got [6]",
        ),
        (
            INT8,
            put("x.weight_scale", np.zeros((6, 2), f4)),
            ModelFormatError,
            "shape must be [6, 1], got [6, 2]",
        ),
        (
            INT8,
            put("x.weight_zero_point", np.zeros((6, 1), i4)),
            ModelFormatError,
            "dtype must be i8, got i32",
        ),
        (
            INT8,
            put("x.weight_zero_point", np.zeros((5, 1), np.int8)),
            ModelFormatError,
            "shape must be [6, 1]",
        ),
        (FP8, put("x.weight_scale", None), ModelFormatError, "tensor 'x.weight_scale' is missing"),
        (
            FP8,
            put("x.weight", np.zeros((6, 64), u1)),
            ModelFormatError,
            "dtype must be e4m3, got u8",
        ),
        (
            NV,
            put("x.weight_scale", np.zeros((6, 4), u1)),
            ModelFormatError,
            "dtype must be e4m3, got u8",
        ),
        (
            NV,
            put("x.weight_global_scale", None),
            ModelFormatError,
            "tensor 'x.weight_global_scale' is missing",
        ),
        (
            NV,
            put("x.weight_global_scale", np.array([0.0], f4)),
            ModelFormatError,
            "must be a positive number, got 0.0",
        ),
        (
            NV,
            put("x.weight_global_scale", np.array([-1.0], f4)),
            ModelFormatError,
            "must be a positive number, got -1.0",
        ),
        (
            NV,
            put("x.weight_global_scale", np.array([np.nan], f4)),
            ModelFormatError,
            "must be a positive number, got nan",
        ),
        (
            NV,
            put("x.weight_global_scale", np.array([np.inf], f4)),
            ModelFormatError,
            "must be a positive number, got inf",
        ),
        (
            NV,
            put("x.weight_global_scale", np.array([1, 1], f4)),
            ModelFormatError,
            "shape must be [1], got [2]",
        ),
        (
            MX,
            put("x.weight_scale", np.zeros((6, 2), f4)),
            ModelFormatError,
            "dtype must be u8 or e8m0, got f32",
        ),
        (
            MX,
            put("x.weight_packed", np.zeros((6, 32), np.int8)),
            ModelFormatError,
            "dtype must be u8, got i8",
        ),
    ]
)


@pytest.mark.parametrize(("case", "change", "kind", "words"), BAD_CONFIGS, ids=lambda value: None)
def test_bad_compressed_tensors(
    case: Any, change: Callable[[Path], None], kind: type[Exception], words: str, tmp_path: Path
) -> None:
    store(tmp_path, np.random.default_rng(5).normal(size=(6, 64)).astype(np.float32), *case)
    open_checkpoint(tmp_path)
    change(tmp_path)
    with pytest.raises(kind) as caught:
        open_checkpoint(tmp_path)
    assert words in str(caught.value) and len(str(caught.value)) < 500


def test_writer_refuses(tmp_path: Path) -> None:
    weights = np.ones((4, 36), np.float32)
    with pytest.raises(ValueError, match="rows of 36 weights do not fill whole words"):
        compressed_tensors.pack_module(weights, "int4", group=32)
    with pytest.raises(ValueError, match="no form for fp8_e5m2"):
        compressed_tensors.pack_module(weights, "fp8_e5m2")
    with pytest.raises(ValueError, match="no form for fp4_e2m1 with f16 scales"):
        compressed_tensors.pack_module(np.ones((4, 32), np.float32), "fp4_e2m1")
    store(tmp_path, np.ones((4, 32), np.float32), *INT8)
    with pytest.raises(ValueError, match="is quantized already"):
        compressed_tensors.save_quantized(tmp_path, tmp_path / "out", "int8")
