"""Safetensors and compressed-tensors: round trips, the shipped models, and bad files with exact messages."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from marlin import formats
from marlin.errors import MarlinError, ModelFormatError, UnsupportedModelError
from marlin.loaders import compressed_tensors, open_checkpoint, safetensors
from marlin.loaders.base import parse_json
from marlin.loaders.base import show as shorten

MODELS = Path(__file__).resolve().parents[1] / "models"


def file_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; `header` may be an object, text or bytes, `length` what the file says of it."""
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets}


def write(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


# Reading what is sound --------------------------------------------------------------------------------


def test_round_trip_of_every_dtype(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {}
    for numpy_name in (info[1] for info in safetensors.DTYPES.values()):
        dtype = np.dtype(numpy_name if numpy_name[0] in "<|" else getattr(ml_dtypes, numpy_name))
        raw = rng.integers(0, 2, (3, 5), dtype=np.uint8) if dtype == bool else rng.integers(0, 120, (3, 5))
        arrays[f"t.{dtype.name}"] = raw.astype(np.float32).astype(dtype)
    arrays |= {"scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 7), np.float16), "ü": np.ones(1, np.int8)}
    safetensors.save(tmp_path / "model.safetensors", arrays, {"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.metadata == {"format": "pt"} and set(checkpoint.tensors) == set(arrays)
    for name, array in arrays.items():
        got = checkpoint.read(name)
        assert got.dtype == array.dtype and got.shape == array.shape and got.tobytes() == array.tobytes()
    assert open_checkpoint(tmp_path / "model.safetensors").tensors.keys() == arrays.keys()


def test_the_safetensors_package_agrees(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((4,), np.float16)}
    safetensors.save(tmp_path / "ours.safetensors", arrays)
    for name, array in numpy.load_file(tmp_path / "ours.safetensors").items():
        assert np.array_equal(array, arrays[name])
    numpy.save_file(arrays, tmp_path / "theirs.safetensors")
    tensors, _ = safetensors.read_header(tmp_path / "theirs.safetensors")
    assert all(np.array_equal(tensors[name].read(), array) for name, array in arrays.items())


def test_shards(tmp_path: Path) -> None:
    make_shards(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert sorted(checkpoint.tensors) == ["a", "b", "c"] and len(checkpoint.files) == 2
    assert np.array_equal(checkpoint.read("c"), [5, 6])


def make_shards(folder: Path, weight_map: Any = None) -> None:
    safetensors.save(folder / "one.safetensors", {"a": np.array([1.0, 2.0]), "b": np.array([3.0])})
    safetensors.save(folder / "two.safetensors", {"c": np.array([5, 6], np.int32)})
    if weight_map is None:
        weight_map = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def test_shipped_models_load() -> None:
    tale = open_checkpoint(MODELS / "tale-dense")
    assert tale.loader == "compressed_tensors" and len(tale.quantized) == 43
    q = tale.quantized["model.layers.0.mlp.up_proj"]
    assert (q.format, q.bits, q.group, q.shape, q.zero) == ("int8", 8, 128, (1024, 384), None)
    assert q.scale_is_plane and q.weight.nbytes == 1024 * 384
    fix = open_checkpoint(MODELS / "fix-llama")
    assert {q.group for q in fix.quantized.values()} == {0}
    assert fix.linear("lm_head") is fix.quantized["lm_head"]
    assert fix.linear("model.norm") is fix.tensors["model.norm.weight"]
    with pytest.raises(ModelFormatError, match=r"no tensor 'model.nrm.weight' \(it has 'model.norm.weight'"):
        fix.tensor("model.nrm.weight")


def test_hugging_face_cache_layout(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    safetensors.save(tmp_path / "blobs" / "123", {"a": np.ones(2)})
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert list(open_checkpoint(snapshot).tensors) == ["a"]


# Quantized weights ------------------------------------------------------------------------------------

STORED = [
    ("int8", 0, False, "f16"), ("int8", 0, True, "f16"), ("int8", 128, False, "f16"), ("int8", 64, True, "f32"),
    ("int4", 0, True, "f16"), ("int4", 32, False, "f16"), ("int4", 16, True, "f32"), ("fp8_e4m3", 0, False, "f16"),
    ("fp8_e4m3", 32, False, "f32"), ("fp4_e2m1", 32, False, "e8m0"), ("fp4_e2m1", 16, False, "e4m3"),
]  # fmt: skip


def store(folder: Path, weights: np.ndarray, *case: Any, **config: Any) -> Path:
    """A folder with one quantized linear layer "x" (and a norm)."""
    folder.mkdir(exist_ok=True)
    format, group, zero, scale = case
    dense = {"x.weight": weights, "norm.weight": np.ones(weights.shape[1], np.float32)}
    (folder / "in").mkdir()
    safetensors.save(folder / "in" / "model.safetensors", dense)
    write(folder / "in" / "config.json", {"model_type": "llama"} | config)
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
        write(folder / "config.json", config)
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

    names = ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.gate_proj", "lm_head", "model.layers.1.q_proj.x"]
    patterns = [".*", ".*q_proj$", "model.layers.[0-9]+.mlp.*", r".*layers\.1\..*", ".*(q|k|v)_proj", "^lm_head$",
                "layers", ".*self_attn.*q_proj.*", "", "model.*proj$", r".*\.(gate|up)_proj$"]  # fmt: skip
    for pattern in patterns:
        for name in names:
            assert compressed_tensors.matches(pattern, name) == bool(re.match(pattern, name)), (pattern, name)


@pytest.mark.timeout(5)
@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "(", "a{99999999}", "[", "x*x*x*x*y", "(a|a)*b", "a" * 999])
def test_hostile_patterns(pattern: str) -> None:
    with pytest.raises(UnsupportedModelError, match="is not supported"):
        compressed_tensors.matches(pattern, "a" * 60)


# Bad safetensors files --------------------------------------------------------------------------------

FULL = bytes(8)
BAD_FILES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "0 bytes are too short"),
    ("seven-bytes", bytes(7), "7 bytes are too short"),
    ("length-only", bytes(8), "must begin with '{', got b''"),
    ("length-beyond", file_bytes({}, length=3), "header of 3 bytes in a file of 10 bytes"),
    ("length-1", file_bytes({}, length=1), "not JSON"),
    ("length-huge", file_bytes({}, length=2**63), "header of 9223372036854775808 bytes, the limit is"),
    ("length-max", file_bytes({}, length=2**64 - 1), "the limit is"),
    ("leading-space", file_bytes(" {}"), "must begin with '{'"),
    ("list", file_bytes("[]"), "must begin with '{'"),
    ("number", file_bytes("1"), "must begin with '{'"),
    ("zip", b"PK\x03\x04" + bytes(60), "header of"),
    ("unclosed", file_bytes('{"a":'), "not JSON"),
    ("two-objects", file_bytes("{}{}"), "not JSON"),
    ("trailing-comma", file_bytes("{},"), "not JSON"),
    ("bad-utf8", file_bytes(b'{"\xff":1}'), "not UTF-8 at byte 2"),
    ("utf16", file_bytes("{}".encode("utf-16-le")), "not JSON"),
    ("bom", file_bytes(b"\xef\xbb\xbf{}"), "must begin with '{'"),
    ("nan", file_bytes('{"a":NaN}'), "NaN is not JSON"),
    ("infinity", file_bytes('{"a":-Infinity}'), "-Infinity is not JSON"),
    ("digits", file_bytes('{"a":' + "9" * 5000 + "}"), "too many digits"),
    ("depth-65", file_bytes('{"a":' * 65 + "1" + "}" * 65), "nested deeper than 64"),
    ("depth-100000", file_bytes('{"a":' + "[" * 100000 + "]" * 100000 + "}"), "nested deeper than 64"),
    ("values", file_bytes('{"a":[' + "1," * (5 << 20) + "1]}"), "more than 4194304 values"),
    ("duplicate", file_bytes('{"a":%s,"a":%s}' % ((json.dumps(entry()),) * 2), FULL), "key 'a' appears twice"),
    ("duplicate-metadata", file_bytes('{"__metadata__":{},"__metadata__":{}}'), "key '__metadata__' appears twice"),
    ("duplicate-field", file_bytes('{"a":{"dtype":"F32","dtype":"F16"}}'), "key 'dtype' appears twice"),
    ("duplicate-escaped", file_bytes('{"a":1,"\\u0061":2}'), "key 'a' appears twice"),
    ("metadata-list", file_bytes({"__metadata__": []}), "__metadata__ must map strings to strings"),
    ("metadata-number", file_bytes({"__metadata__": {"a": 1}}), "__metadata__ must map strings to strings"),
    ("metadata-nested", file_bytes({"__metadata__": {"a": {}}}), "__metadata__ must map strings to strings"),
    ("trailing-bytes", file_bytes({"a": entry()}, bytes(9)), "1 bytes behind tensor 'a'"),
    ("trailing-no-tensor", file_bytes({}, bytes(4)), "4 bytes behind the header"),
    ("cut-short", file_bytes({"a": entry()}, bytes(7)), "tensor 'a': ends at byte 8 of 7 bytes of data"),
    ("gap-first", file_bytes({"a": entry(offsets=(4, 12))}, bytes(12)), "4 bytes between the header and tensor 'a'"),
    ("gap", file_bytes({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)), "1 bytes between tensor 'a'"),
    ("overlap", file_bytes({"a": entry(), "b": entry(offsets=(7, 15))}, bytes(15)), "'b' overlaps tensor 'a'"),
    ("same-place", file_bytes({"a": entry(), "b": entry()}, FULL), "tensor 'b' overlaps tensor 'a'"),
    ("inside", file_bytes({"a": entry(shape=(4,), offsets=(0, 16)), "b": entry(offsets=(4, 12))}, bytes(16)),
     "tensor 'b' overlaps tensor 'a'"),
    ("empty-inside", file_bytes({"a": entry(), "b": entry(shape=(0,), offsets=(4, 4))}, FULL), "overlaps tensor 'a'"),
    ("empty-beyond", file_bytes({"a": entry(shape=(0,), offsets=(9, 9))}, FULL), "ends at byte 9 of 8"),
    ("empty-gap", file_bytes({"a": entry(shape=(0,), offsets=(4, 4))}, bytes(4)), "4 bytes between the header"),
    ("surrogate", file_bytes('{"\\ud800":1}'), "tensor '\\ud800': must be an object"),
]  # fmt: skip
BAD_FILES += [(f"entry-{i}", file_bytes({"a": value}), f"tensor 'a': must be an object, got {value!r}")
              for i, value in enumerate((None, 1, "F32", [], True))]  # fmt: skip
BAD_FILES += [
    (f"fields-{i}", file_bytes({"a": value}, FULL), "must have dtype, shape and data_offsets")
    for i, value in enumerate(
        [{}, {"dtype": "F32"}, entry() | {"more": 1}, {"dtype": "F32", "shape": [2], "offsets": [0, 8]}]
        + [{key: value for key, value in entry().items() if key != gone} for gone in entry()]
    )
]
BAD_FILES += [
    (f"dtype-{i}", file_bytes({"a": entry(dtype=value)}, FULL), f"dtype {shorten(value)} is unknown; known are F64")
    for i, value in enumerate((None, 1, [], {}, "", "f32", "F31", "FLOAT", "F4", "C64", "F6_E2M3", "F" * 1000, "F32\0"))
]
BAD_FILES += [
    (f"shape-{i}", file_bytes({"a": entry(shape=value)}, FULL), "shape must be at most 8 sizes of 0 or more")
    for i, value in enumerate(
        (None, 2, "2", {}, [-2], [2.0], ["2"], [True], [None], [[2]], [1] * 9, [2, -1], [-(2**63)])
    )
]
BAD_FILES += [
    (f"size-{i}", file_bytes({"a": entry(dtype, shape)}, FULL), f"{dtype} of shape")
    for i, (dtype, shape) in enumerate(
        [("F32", s) for s in ([], [0], [1], [3], [2, 2], [2**31], [2**62, 4], [2**64], [2**32, 2**32], [2, 0])]
        + [("F16", [2]), ("F64", [2]), ("U8", [7]), ("BOOL", [9]), ("BF16", [2]), ("F8_E4M3", [2]), ("I64", [2])]
        + [("F32", [2**63, 2**63, 2**63, 2**63]), ("F32", [10**300])]
    )
]
BAD_FILES += [
    (f"offsets-{i}", file_bytes({"a": entry(offsets=value)}, FULL), "data_offsets must be [begin, end]")
    for i, value in enumerate(
        (None, 0, "0,8", {}, [], [0], [8], [0, 8, 8], [8, 0], [-8, 0], [0.0, 8.0], ["0", "8"], [False, 8], [0, None],
         [2**64, 0], [[0], [8]])
    )  # fmt: skip
]
BAD_FILES += [
    (f"end-{i}", file_bytes({"a": entry(offsets=[begin, begin + 8])}, FULL), "bytes of data (file cut short?)")
    for i, begin in enumerate((1, 8, 2**31, 2**32, 2**63 - 8, 2**63, 2**64 - 8, 2**64, 2**200))
]


@pytest.mark.timeout(5)
@pytest.mark.parametrize(("content", "words"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES])
def test_bad_file(content: bytes, words: str, tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", content)
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(tmp_path)
    assert words in str(caught.value) and str(caught.value).startswith("model.safetensors: ")
    assert len(str(caught.value)) < 500


def test_zero_sized_tensors_are_fine(tmp_path: Path) -> None:
    header = {"z": entry(shape=(0, 9), offsets=(0, 0)), "a": entry(), "y": entry(shape=(0,), offsets=(8, 8))}
    write(tmp_path / "model.safetensors", file_bytes(header, FULL))
    assert open_checkpoint(tmp_path).read("z").shape == (0, 9)


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", file_bytes({"a": entry()}, FULL))
    checkpoint = open_checkpoint(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 40)
    with pytest.raises(ModelFormatError, match="cut short while tensor 'a' was read"):
        checkpoint.read("a")


def test_read_is_for_small_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marlin.loaders.base.READ_LIMIT", 7)
    write(tmp_path / "model.safetensors", file_bytes({"a": entry()}, FULL))
    with pytest.raises(ValueError, match="a: 8 bytes are too many"):
        open_checkpoint(tmp_path).read("a")


# Bad folders and indexes ------------------------------------------------------------------------------

ONE = "one.safetensors"
BAD_INDEXES: list[tuple[Any, str]] = [
    ({}, "weight_map must be a non-empty object, got {}"),
    ([], "weight_map must be a non-empty object, got []"),
    ("x", "weight_map must be a non-empty object"),
    ({"a": 1}, "'a' must name a file, got 1"),
    ({"a": None}, "'a' must name a file, got None"),
    ({"a": ["one.safetensors"]}, "'a' must name a file"),
    ({"a": "one.bin"}, "'one.bin' is not a .safetensors file"),
    ({"a": "three.safetensors"}, "file 'three.safetensors' is missing"),
    ({"a": ONE}, "holds tensor 'b', which model.safetensors.index.json puts nowhere"),
    ({"a": ONE, "b": ONE, "x": ONE}, "tensor 'x' is missing"),
    ({"a": ONE, "b": "two.safetensors", "c": "two.safetensors"}, "puts in 'two.safetensors'"),
    ({str(i): f"{i}.safetensors" for i in range(5000)}, "names 5000 files, more than 4096"),
] + [
    ({"a": name}, "is not the plain name of a file in the model's folder")
    for name in (
        "../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "..\\one.safetensors",
        "C:one.safetensors", "./one.safetensors", "one\0.safetensors", "x" * 300 + ".safetensors",
        "//host/one.safetensors",
    )
]  # fmt: skip


@pytest.mark.parametrize(("weight_map", "words"), BAD_INDEXES, ids=lambda value: None)
def test_bad_index(weight_map: Any, words: str, tmp_path: Path) -> None:
    make_shards(tmp_path, weight_map)
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(tmp_path)
    assert words in str(caught.value) and len(str(caught.value)) < 500


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    make_shards(tmp_path)
    safetensors.save(tmp_path / "two.safetensors", {"c": np.ones(1), "a": np.ones(1)})
    with pytest.raises(ModelFormatError, match="two.safetensors: tensor 'a' is in one.safetensors too"):
        open_checkpoint(tmp_path)


def link_out(folder: Path) -> None:
    safetensors.save(folder.parent / "secret.safetensors", {"a": np.ones(1)})
    (folder / "model.safetensors").symlink_to(folder.parent / "secret.safetensors")


def link_loop(folder: Path) -> None:
    (folder / "model.safetensors").symlink_to("model.safetensors")
    (folder / "model.safetensors.index.json").symlink_to("model.safetensors")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "model.safetensors")


BAD_FOLDERS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: None, "no weights that a loader knows"),
    (link_out, "is a link that leaves the model's folder"),
    (link_loop, "no weights that a loader knows"),
    (fifo, "is not a regular file"),
    (lambda folder: (folder / "model.safetensors").mkdir(), "is not a regular file"),
    (lambda folder: write(folder / "pytorch_model.bin", b"\x80\x04."), "no weights that a loader knows"),
    (lambda folder: (make_shards(folder), write(folder / "config.json", [])), "config.json: must be a JSON object"),
    (lambda folder: (make_shards(folder), write(folder / "config.json", b"{")), "config.json: not JSON"),
    (lambda folder: (make_shards(folder), write(folder / "config.json", b'{"a":1,"a":1}')), "'a' appears twice"),
    (lambda folder: (make_shards(folder), write(folder / "config.json", b" " * (33 << 20))), "larger than"),
    (lambda folder: (make_shards(folder), write(folder / "generation_config.json", b"[1]")), "must be a JSON object"),
]


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("make", "words"), BAD_FOLDERS, ids=lambda value: None)
def test_bad_folder(make: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "no such folder", "", "a/b/c", "../x/y", "x" * 5000, "a\0b", "org/..", "-x/y"]
)
def test_bad_source(source: str) -> None:
    with pytest.raises(ModelFormatError, match="no such file or folder|no weights that a loader knows"):
        open_checkpoint(source)


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MarlinError, match=r"pip install marlin-vulkan\[hub\]"):
        open_checkpoint("some-org/some-model")


def test_hub_not_in_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def missing(name: str, **options: Any) -> str:
        assert options["local_files_only"] and options["revision"] == "main"
        raise hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(hub, "snapshot_download", missing)
    with pytest.raises(MarlinError, match="'some-org/some-model': cannot be fetched from the hub: not here"):
        open_checkpoint("some-org/some-model", revision="main", local_files_only=True)


def test_other_quantization_methods_are_named(tmp_path: Path) -> None:
    make_shards(tmp_path)
    write(tmp_path / "config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(UnsupportedModelError, match="quant_method 'gptq' has no loader; known are compressed-tensors"):
        open_checkpoint(tmp_path)


# Bad compressed-tensors -------------------------------------------------------------------------------


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

BAD_CONFIGS: list[tuple[Any, Callable[[Path], None], type[Exception], str]] = [
    (INT4, edit("config_groups", value=value), ModelFormatError, "config_groups must be a non-empty object")
    for value in (None, {}, [], "W4A16", 4)
] + [
    (INT4, edit(*GROUP, value=value), ModelFormatError, "'group_0' must be an object") for value in (None, [], 1, "x")
] + [
    (INT4, edit(*GROUP, "targets", value=value), ModelFormatError, "targets must be a list of strings")
    for value in (None, [], {}, "Linear", [1], [None])
] + [
    (INT4, edit(*WEIGHTS, value=value), ModelFormatError, "weights must be an object") for value in (1, [], "int4", True)
] + [
    (INT4, edit("format", value=value), UnsupportedModelError, "is not supported; known are pack-quantized")
    for value in (None, 1, [], "", "marlin-24", "mxfp8-quantized", "mixed-precision", "dense", "sparse-bitmask")
] + [
    (INT4, edit(*WEIGHTS, "num_bits", value=value), UnsupportedModelError, "pack-quantized holds int weights of 4 or 8")
    for value in (None, 0, -4, 3, 5, 16, 4.0, "4", True, 1 << 70)
] + [
    (INT4, edit(*WEIGHTS, "type", value=value), UnsupportedModelError, "got type") for value in ("float", "", None, 1, [])
] + [
    (INT4, edit(*WEIGHTS, "group_size", value=value), UnsupportedModelError, "group_size")
    for value in (None, 0, -1, 1, 8, 31, 33, 512, 1 << 40)
] + [
    (INT4, edit(*WEIGHTS, "group_size", value=value), ModelFormatError, "group_size must be an integer or null")
    for value in ("32", 32.0, [], True)
] + [
    (INT4, edit(*WEIGHTS, "strategy", value=value), UnsupportedModelError, "strategy")
    for value in ("block", "token", "tensor_group", "attn_head", "", 1, [])
] + [
    (INT4, edit(*WEIGHTS, "symmetric", value=value), ModelFormatError, "symmetric must be true or false")
    for value in (None, 0, "true", [])
] + [
    (INT4, edit(*WEIGHTS, "actorder", value=value), UnsupportedModelError, "permuted columns")
    for value in (True, "group", "dynamic")
] + [
    (INT4, edit("sparsity_config", value={"format": "sparse-24-bitmask"}), UnsupportedModelError, "sparsity_config"),
    (INT4, edit("transform_config", value={"config_groups": {}}), UnsupportedModelError, "transform_config"),
    (INT4, edit("config_groups", value={"a": {"targets": ["x"], "weights": None}}), ModelFormatError,
     "no config group is about the quantized module 'x'"),
    (FP8, edit(*WEIGHTS, "symmetric", value=False), UnsupportedModelError, "with zero points is not supported"),
    (FP8, edit(*WEIGHTS, "strategy", value="block"), UnsupportedModelError, "strategy 'block' is not supported"),
    (INT8, edit(*WEIGHTS, "num_bits", value=4), UnsupportedModelError, "int-quantized holds int weights of 8 bits"),
    (NV, edit(*WEIGHTS, "group_size", value=32), UnsupportedModelError, "group_size 32 is not supported; known are 16"),
    (MX, edit(*WEIGHTS, "group_size", value=16), UnsupportedModelError, "group_size 16 is not supported; known are 32"),
    (INT4, put("x.weight_g_idx", np.zeros(64, i4)), UnsupportedModelError, "'x': permuted columns"),
    (INT4, put("x.weight_packed", None), ModelFormatError, "tensor 'x.weight_packed' is missing"),
    (INT4, put("x.weight_packed", np.zeros((6, 8), i8)), ModelFormatError, "weight_packed': dtype must be i32, got i64"),
    (INT4, put("x.weight_packed", np.zeros(48, i4)), ModelFormatError, "shape must be (n, k), got [48]"),
    (INT4, put("x.weight_packed", np.zeros((0, 8), i4)), ModelFormatError, "shape must be (n, k), got [0, 8]"),
    (INT4, put("x.weight_packed", np.zeros((2, 3, 8), i4)), ModelFormatError, "shape must be (n, k), got [2, 3, 8]"),
    (INT4, put("x.weight_packed", np.zeros((6, 7), i4)), ModelFormatError, "says [6, 64], but 'x.weight_packed'"),
    (INT4, put("x.weight_shape", None), ModelFormatError, "tensor 'x.weight_shape' is missing"),
    (INT4, put("x.weight_shape", np.array([6.0, 64], f4)), ModelFormatError, "dtype must be i64 or i32, got f32"),
    (INT4, put("x.weight_shape", np.array([6, 64, 1], i8)), ModelFormatError, "shape must be [2], got [3]"),
    (INT4, put("x.weight_shape", np.array([7, 64], i8)), ModelFormatError, "says [7, 64]"),
    (INT4, put("x.weight_shape", np.array([6, 65], i8)), ModelFormatError, "says [6, 65]"),
    (INT4, put("x.weight_shape", np.array([6, 0], i8)), ModelFormatError, "says [6, 0]"),
    (INT4, put("x.weight_shape", np.array([6, -64], i8)), ModelFormatError, "says [6, -64]"),
    (INT4, put("x.weight_shape", np.array([6, 2**62], i8)), ModelFormatError, "says [6, 4611686018427387904]"),
    (INT4, put("x.weight_shape", np.array([6, 60], i8)), UnsupportedModelError, "rows of 60 weights end inside a word"),
    (INT4, put("x.weight_scale", None), ModelFormatError, "tensor 'x.weight_scale' is missing"),
    (INT4, put("x.weight_scale", np.zeros((6, 1), f4)), ModelFormatError, "shape must be [6, 2], got [6, 1]"),
    (INT4, put("x.weight_scale", np.zeros((2, 6), f4)), ModelFormatError, "shape must be [6, 2], got [2, 6]"),
    (INT4, put("x.weight_scale", np.zeros(1, f4)), ModelFormatError, "shape must be [6, 2], got [1]"),
    (INT4, put("x.weight_scale", np.zeros((6, 2), i8)), ModelFormatError, "dtype must be f32 or f16 or bf16, got i64"),
    (INT4, put("x.weight_zero_point", None), ModelFormatError, "tensor 'x.weight_zero_point' is missing"),
    (INT4, put("x.weight_zero_point", np.zeros((6, 2), i4)), ModelFormatError, "shape must be [1, 2], got [6, 2]"),
    (INT4, put("x.weight_zero_point", np.zeros((1, 2), u1)), ModelFormatError, "dtype must be i32, got u8"),
    (INT8, put("x.weight", None), ModelFormatError, "tensor 'x.weight' is missing"),
    (INT8, put("x.weight", np.zeros((6, 64), f4)), ModelFormatError, "tensor 'x.weight': dtype must be i8, got f32"),
    (INT8, put("x.weight", np.zeros(6, np.int8)), ModelFormatError, "shape must be (n, k), got [6]"),
    (INT8, put("x.weight_scale", np.zeros((6, 2), f4)), ModelFormatError, "shape must be [6, 1], got [6, 2]"),
    (INT8, put("x.weight_zero_point", np.zeros((6, 1), i4)), ModelFormatError, "dtype must be i8, got i32"),
    (INT8, put("x.weight_zero_point", np.zeros((5, 1), np.int8)), ModelFormatError, "shape must be [6, 1]"),
    (FP8, put("x.weight_scale", None), ModelFormatError, "tensor 'x.weight_scale' is missing"),
    (FP8, put("x.weight", np.zeros((6, 64), u1)), ModelFormatError, "dtype must be e4m3, got u8"),
    (NV, put("x.weight_scale", np.zeros((6, 4), u1)), ModelFormatError, "dtype must be e4m3, got u8"),
    (NV, put("x.weight_global_scale", None), ModelFormatError, "tensor 'x.weight_global_scale' is missing"),
    (NV, put("x.weight_global_scale", np.array([0.0], f4)), ModelFormatError, "must be a positive number, got 0.0"),
    (NV, put("x.weight_global_scale", np.array([-1.0], f4)), ModelFormatError, "must be a positive number, got -1.0"),
    (NV, put("x.weight_global_scale", np.array([np.nan], f4)), ModelFormatError, "must be a positive number, got nan"),
    (NV, put("x.weight_global_scale", np.array([np.inf], f4)), ModelFormatError, "must be a positive number, got inf"),
    (NV, put("x.weight_global_scale", np.array([1, 1], f4)), ModelFormatError, "shape must be [1], got [2]"),
    (MX, put("x.weight_scale", np.zeros((6, 2), f4)), ModelFormatError, "dtype must be u8 or e8m0, got f32"),
    (MX, put("x.weight_packed", np.zeros((6, 32), np.int8)), ModelFormatError, "dtype must be u8, got i8"),
]  # fmt: skip


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


@pytest.mark.parametrize("text", ["", "null", "[]", '"x"', "1", "true", "{", '{"a"}', "{'a':1}", "\x00", "{}\x00", "//"])
def test_bad_json(text: str) -> None:
    with pytest.raises(ModelFormatError, match=r"^f\.json: "):
        parse_json(text.encode(), "f.json")
