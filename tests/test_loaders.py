"""Safetensors and compressed-tensors: round trips, the shipped models, and bad files with exact
messages."""

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

from marlin.errors import MarlinError, ModelFormatError, UnsupportedModelError
from marlin.loaders import open_checkpoint, safetensors
from marlin.loaders.base import parse_json
from marlin.loaders.base import show as shorten

MODELS = Path(__file__).resolve().parents[1] / "models"


def file_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; `header` may be an object, text or bytes, `length` what the file says of
    it."""
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {
        "dtype": dtype,
        "shape": shape,
        "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets,
    }


def write(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


# Reading what is sound ----------------------------------------------------------------


def test_round_trip_of_every_dtype(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {}
    for numpy_name in (info[1] for info in safetensors.DTYPES.values()):
        dtype = np.dtype(numpy_name if numpy_name[0] in "<|" else getattr(ml_dtypes, numpy_name))
        raw = rng.integers(0, 2, (3, 5), dtype=np.uint8) if dtype.name == "bool" else rng.integers(0, 120, (3, 5))
        arrays[f"t.{dtype.name}"] = raw.astype(np.float32).astype(dtype)
    arrays |= {
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 7), np.float16),
        "ü": np.ones(1, np.int8),
    }
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
    tale = open_checkpoint(MODELS / "tale-moe")
    assert tale.loader == "compressed_tensors" and len(tale.quantized) == 402
    q = tale.quantized["model.layers.0.mlp.up_proj"]
    assert (q.format, q.bits, q.group, q.shape, q.zero) == ("int4", 4, 64, (1024, 384), None)
    assert q.scale_is_plane and q.weight.nbytes == 1024 * 384 // 2
    q = tale.quantized["model.layers.0.self_attn.kv_b_proj"]
    assert (q.format, q.bits, q.group, q.shape) == ("int8", 8, 256, (1024, 256))
    assert tale.linear("model.layers.1.mlp.gate") is tale.tensors["model.layers.1.mlp.gate.weight"]
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


# Bad safetensors files ----------------------------------------------------------------

FULL = bytes(8)
BAD_FILES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "0 bytes are too short"),
    ("seven-bytes", bytes(7), "7 bytes are too short"),
    ("length-only", bytes(8), "must begin with '{', got b''"),
    ("length-beyond", file_bytes({}, length=3), "header of 3 bytes in a file of 10 bytes"),
    ("length-1", file_bytes({}, length=1), "not JSON"),
    (
        "length-huge",
        file_bytes({}, length=2**63),
        "header of 9223372036854775808 bytes, the limit is",
    ),
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
    (
        "depth-100000",
        file_bytes('{"a":' + "[" * 100000 + "]" * 100000 + "}"),
        "nested deeper than 64",
    ),
    ("values", file_bytes('{"a":[' + "1," * (5 << 20) + "1]}"), "more than 4194304 values"),
    (
        "duplicate",
        file_bytes('{"a":%s,"a":%s}' % ((json.dumps(entry()),) * 2), FULL),
        "key 'a' appears twice",
    ),
    (
        "duplicate-metadata",
        file_bytes('{"__metadata__":{},"__metadata__":{}}'),
        "key '__metadata__' appears twice",
    ),
    (
        "duplicate-field",
        file_bytes('{"a":{"dtype":"F32","dtype":"F16"}}'),
        "key 'dtype' appears twice",
    ),
    ("duplicate-escaped", file_bytes('{"a":1,"\\u0061":2}'), "key 'a' appears twice"),
    ("metadata-list", file_bytes({"__metadata__": []}), "__metadata__ must map strings to strings"),
    (
        "metadata-number",
        file_bytes({"__metadata__": {"a": 1}}),
        "__metadata__ must map strings to strings",
    ),
    (
        "metadata-nested",
        file_bytes({"__metadata__": {"a": {}}}),
        "__metadata__ must map strings to strings",
    ),
    ("trailing-bytes", file_bytes({"a": entry()}, bytes(9)), "1 bytes behind tensor 'a'"),
    ("trailing-no-tensor", file_bytes({}, bytes(4)), "4 bytes behind the header"),
    (
        "cut-short",
        file_bytes({"a": entry()}, bytes(7)),
        "tensor 'a': ends at byte 8 of 7 bytes of data",
    ),
    (
        "gap-first",
        file_bytes({"a": entry(offsets=(4, 12))}, bytes(12)),
        "4 bytes between the header and tensor 'a'",
    ),
    (
        "gap",
        file_bytes({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)),
        "1 bytes between tensor 'a'",
    ),
    (
        "overlap",
        file_bytes({"a": entry(), "b": entry(offsets=(7, 15))}, bytes(15)),
        "'b' overlaps tensor 'a'",
    ),
    (
        "same-place",
        file_bytes({"a": entry(), "b": entry()}, FULL),
        "tensor 'b' overlaps tensor 'a'",
    ),
    (
        "inside",
        file_bytes({"a": entry(shape=(4,), offsets=(0, 16)), "b": entry(offsets=(4, 12))}, bytes(16)),
        "tensor 'b' overlaps tensor 'a'",
    ),
    (
        "empty-inside",
        file_bytes({"a": entry(), "b": entry(shape=(0,), offsets=(4, 4))}, FULL),
        "overlaps tensor 'a'",
    ),
    (
        "empty-beyond",
        file_bytes({"a": entry(shape=(0,), offsets=(9, 9))}, FULL),
        "ends at byte 9 of 8",
    ),
    (
        "empty-gap",
        file_bytes({"a": entry(shape=(0,), offsets=(4, 4))}, bytes(4)),
        "4 bytes between the header",
    ),
    ("surrogate", file_bytes('{"\\ud800":1}'), "tensor '\\ud800': must be an object"),
]
BAD_FILES += [
    (f"entry-{i}", file_bytes({"a": value}), f"tensor 'a': must be an object, got {value!r}")
    for i, value in enumerate((None, 1, "F32", [], True))
]
BAD_FILES += [
    (f"fields-{i}", file_bytes({"a": value}, FULL), "must have dtype, shape and data_offsets")
    for i, value in enumerate(
        [
            {},
            {"dtype": "F32"},
            entry() | {"more": 1},
            {"dtype": "F32", "shape": [2], "offsets": [0, 8]},
        ]
        + [{key: value for key, value in entry().items() if key != gone} for gone in entry()]
    )
]
BAD_FILES += [
    (
        f"dtype-{i}",
        file_bytes({"a": entry(dtype=value)}, FULL),
        f"dtype {shorten(value)} is unknown; known are F64",
    )
    for i, value in enumerate((None, 1, [], {}, "", "f32", "F31", "FLOAT", "F4", "C64", "F6_E2M3", "F" * 1000, "F32\0"))
]
BAD_FILES += [
    (
        f"shape-{i}",
        file_bytes({"a": entry(shape=value)}, FULL),
        "shape must be at most 8 sizes of 0 or more",
    )
    for i, value in enumerate(
        (None, 2, "2", {}, [-2], [2.0], ["2"], [True], [None], [[2]], [1] * 9, [2, -1], [-(2**63)])
    )
]
BAD_FILES += [
    (f"size-{i}", file_bytes({"a": entry(dtype, shape)}, FULL), f"{dtype} of shape")
    for i, (dtype, shape) in enumerate(
        [
            ("F32", s)
            for s in (
                [],
                [0],
                [1],
                [3],
                [2, 2],
                [2**31],
                [2**62, 4],
                [2**64],
                [2**32, 2**32],
                [2, 0],
            )
        ]
        + [
            ("F16", [2]),
            ("F64", [2]),
            ("U8", [7]),
            ("BOOL", [9]),
            ("BF16", [2]),
            ("F8_E4M3", [2]),
            ("I64", [2]),
        ]
        + [("F32", [2**63, 2**63, 2**63, 2**63]), ("F32", [10**300])]
    )
]
BAD_FILES += [
    (
        f"offsets-{i}",
        file_bytes({"a": entry(offsets=value)}, FULL),
        "data_offsets must be [begin, end]",
    )
    for i, value in enumerate(
        (
            None,
            0,
            "0,8",
            {},
            [],
            [0],
            [8],
            [0, 8, 8],
            [8, 0],
            [-8, 0],
            [0.0, 8.0],
            ["0", "8"],
            [False, 8],
            [0, None],
            [2**64, 0],
            [[0], [8]],
        )
    )
]
BAD_FILES += [
    (
        f"end-{i}",
        file_bytes({"a": entry(offsets=[begin, begin + 8])}, FULL),
        "bytes of data (file cut short?)",
    )
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
    header = {
        "z": entry(shape=(0, 9), offsets=(0, 0)),
        "a": entry(),
        "y": entry(shape=(0,), offsets=(8, 8)),
    }
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


# Bad folders and indexes --------------------------------------------------------------

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
        "../one.safetensors",
        "/etc/one.safetensors",
        "sub/one.safetensors",
        "..\\one.safetensors",
        "C:one.safetensors",
        "./one.safetensors",
        "one\0.safetensors",
        "x" * 300 + ".safetensors",
        "//host/one.safetensors",
    )
]


@pytest.mark.parametrize(("weight_map", "words"), BAD_INDEXES, ids=lambda value: None)
def test_bad_index(weight_map: Any, words: str, tmp_path: Path) -> None:
    make_shards(tmp_path, weight_map)
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(tmp_path)
    assert words in str(caught.value) and len(str(caught.value)) < 500


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    make_shards(tmp_path)
    safetensors.save(tmp_path / "two.safetensors", {"c": np.ones(1), "a": np.ones(1)})
    with pytest.raises(ModelFormatError, match=r"two\.safetensors: tensor 'a' is in one\.safetensors too"):
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
    (
        lambda folder: write(folder / "pytorch_model.bin", b"\x80\x04."),
        "no weights that a loader knows",
    ),
    (
        lambda folder: (make_shards(folder), write(folder / "config.json", [])),
        "config.json: must be a JSON object",
    ),
    (
        lambda folder: (make_shards(folder), write(folder / "config.json", b"{")),
        "config.json: not JSON",
    ),
    (
        lambda folder: (make_shards(folder), write(folder / "config.json", b'{"a":1,"a":1}')),
        "'a' appears twice",
    ),
    (
        lambda folder: (make_shards(folder), write(folder / "config.json", b" " * (33 << 20))),
        "larger than",
    ),
    (
        lambda folder: (make_shards(folder), write(folder / "generation_config.json", b"[1]")),
        "must be a JSON object",
    ),
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
    "source",
    [
        "/no/such/folder",
        "no such folder",
        "",
        "a/b/c",
        "../x/y",
        "x" * 5000,
        "a\0b",
        "org/..",
        "-x/y",
    ],
)
def test_bad_source(source: str) -> None:
    with pytest.raises(ModelFormatError, match=r"no such file or folder|no weights that a loader knows"):
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
    with pytest.raises(
        UnsupportedModelError,
        match="quant_method 'gptq' has no loader; known are compressed-tensors",
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '"x"', "1", "true", "{", '{"a"}', "{'a':1}", "\x00", "{}\x00", "//"]
)
def test_bad_json(text: str) -> None:
    with pytest.raises(ModelFormatError, match=r"^f\.json: "):
        parse_json(text.encode(), "f.json")
