"""Safetensors, read strictly and written plainly.

A file is: u64 length of the header; the header, a JSON object
{"name": {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, "__metadata__": {str:
str}}; then the data, to whose first byte the offsets count. The tensors must tile the data: no
overlap, no gap, nothing behind the last. Source: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marlin.errors import ModelFormatError, UnsupportedModelError
from marlin.loaders.base import (
    DTYPES,
    JSON_BYTES,
    Checkpoint,
    TensorInfo,
    inside,
    open_file,
    parse_json,
    read_json,
    show,
    tensor_bytes,
)

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_RANK: Final = 8
MAX_SHARDS: Final = 4096

# Name in the file -> name in DTYPES.
NAMES: Final[dict[str, str]] = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16",
    "F8_E4M3": "e4m3", "F8_E5M2": "e5m2", "F8_E8M0": "e8m0",
    "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8",
    "U64": "u64", "U32": "u32", "U16": "u16", "U8": "u8", "BOOL": "bool",
}  # fmt: skip


def sniff(path: Path) -> bool:
    """A .safetensors file, or a folder with unquantized safetensors weights."""
    if path.is_file():
        return path.suffix == ".safetensors"
    return has_weights(path) and not quantization(read_json(path, "config.json", optional=True))


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors weights under the usual names."""
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The quantization section of config.json, {} if there is none."""
    for key in ("quantization_config", "compression_config"):
        section = config.get(key)
        if section is not None and not isinstance(section, dict):
            raise ModelFormatError(f"config.json: {key} must be an object, got {show(section)}")
        if section:
            return section
    return {}


def open(path: Path) -> Checkpoint:
    """The checkpoint of a folder or of one .safetensors file. Raises ModelFormatError."""
    folder = path.parent if path.is_file() else path
    config = read_json(folder, "config.json", optional=True)
    generation = read_json(folder, "generation_config.json", optional=True)
    if path.is_file():
        tensors, metadata = read_header(inside(folder, path.name))
    elif (folder / SINGLE).exists():
        tensors, metadata = read_header(inside(folder, SINGLE))
    elif (folder / INDEX).exists():
        tensors, metadata = _read_shards(folder)
    else:
        raise ModelFormatError(f"{folder.name}: has neither {SINGLE} nor {INDEX}")
    return Checkpoint(folder, "safetensors", tensors, config, generation, metadata=metadata)


def _read_shards(folder: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    index = read_json(folder, INDEX)
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ModelFormatError(f"{INDEX}: weight_map must be a non-empty object, got {show(where)}")
    for name, shard in where.items():
        if not isinstance(shard, str):
            raise ModelFormatError(f"{INDEX}: {show(name)} must name a file, got {show(shard)}")
    shards = sorted(set(where.values()))
    if len(shards) > MAX_SHARDS:
        raise ModelFormatError(f"{INDEX}: names {len(shards)} files, more than {MAX_SHARDS}")
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        if not shard.endswith(".safetensors"):
            raise ModelFormatError(f"{INDEX}: {show(shard)} is not a .safetensors file")
        found, notes = read_header(inside(folder, shard))
        for name, info in found.items():
            if name in tensors:
                raise ModelFormatError(f"{shard}: tensor {show(name)} is in {tensors[name].path.name} too")
            if where.get(name) != shard:
                said = f"in {show(where[name])}" if name in where else "nowhere"
                raise ModelFormatError(f"{shard}: holds tensor {show(name)}, which {INDEX} puts {said}")
            tensors[name] = info
        metadata.update(notes)
    for name, shard in where.items():
        if name not in tensors:
            raise ModelFormatError(f"{shard}: tensor {show(name)} is missing, {INDEX} puts it there")
    return tensors, metadata


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata of one file, every offset checked. Raises ModelFormatError
    naming the tensor."""
    with open_file(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(8)
        if len(head) < 8:
            raise ModelFormatError(f"{path.name}: {size} bytes are too short for a safetensors file")
        (length,) = struct.unpack("<Q", head)
        if length > JSON_BYTES:
            raise ModelFormatError(f"{path.name}: header of {length} bytes, the limit is {JSON_BYTES}")
        if length > size - 8:
            raise ModelFormatError(f"{path.name}: header of {length} bytes in a file of {size} bytes")
        raw = file.read(length)
    if len(raw) != length:
        raise ModelFormatError(f"{path.name}: cut short while the header was read")
    if raw[:1] != b"{":
        raise ModelFormatError(f"{path.name}: the header must begin with '{{', got {show(raw[:8])}")
    header = parse_json(raw, path.name)
    metadata = _check_metadata(header.pop("__metadata__", {}), path)
    start = 8 + length
    tensors = {name: _check_entry(name, entry, path, start, size) for name, entry in header.items()}
    _check_tiling(tensors.values(), path, start, size)
    return tensors, metadata


def _check_metadata(notes: Any, path: Path) -> dict[str, str]:
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise ModelFormatError(f"{path.name}: __metadata__ must map strings to strings, got {show(notes)}")
    return notes


def _check_entry(name: str, entry: Any, path: Path, start: int, size: int) -> TensorInfo:
    where = f"{path.name}: tensor {show(name)}"
    if not isinstance(entry, dict):
        raise ModelFormatError(f"{where}: must be an object, got {show(entry)}")
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFormatError(f"{where}: must have dtype, shape and data_offsets, got {show(sorted(entry))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NAMES:
        raise ModelFormatError(f"{where}: dtype {show(dtype)} is unknown; known are {', '.join(NAMES)}")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise ModelFormatError(f"{where}: shape must be at most {MAX_RANK} sizes of 0 or more, got {show(shape)}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelFormatError(f"{where}: data_offsets must be [begin, end] with begin <= end, got {show(offsets)}")
    begin, end = offsets
    if end > size - start:
        raise ModelFormatError(f"{where}: ends at byte {show(end)} of {size - start} bytes of data (file cut short?)")
    need = tensor_bytes(NAMES[dtype], tuple(shape))
    if need != end - begin:
        raise ModelFormatError(
            f"{where}: {dtype} of shape {show(shape)} takes {show(need)} bytes, data_offsets give {end - begin}"
        )
    return TensorInfo(name, NAMES[dtype], tuple(shape), path, start + begin, need)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_tiling(tensors: Iterable[TensorInfo], path: Path, start: int, size: int) -> None:
    at, before = start, "the header"
    for info in sorted(tensors, key=lambda info: (info.offset, info.nbytes)):
        if info.offset < at:
            raise ModelFormatError(f"{path.name}: tensor {show(info.name)} overlaps {before}")
        if info.offset > at:
            gap = info.offset - at
            raise ModelFormatError(f"{path.name}: {gap} bytes between {before} and tensor {show(info.name)}")
        at, before = info.offset + info.nbytes, f"tensor {show(info.name)}"
    if at != size:
        raise ModelFormatError(f"{path.name}: {size - at} bytes behind {before}")


def save(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays (ml_dtypes included) as one file, in name order, the data aligned to 64
    bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    arrays = {name: np.asarray(tensors[name]) for name in sorted(tensors)}
    for name, array in arrays.items():
        header[name] = {"dtype": _file_dtype(name, array), "shape": list(array.shape),
                        "data_offsets": [at, at + array.nbytes]}  # fmt: skip
        at += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for array in arrays.values():
            file.write(array.tobytes())


def _file_dtype(name: str, array: NDArray[Any]) -> str:
    for file_name, dtype in NAMES.items():
        numpy_name = DTYPES[dtype][1]
        if array.dtype.name == numpy_name or (numpy_name[0] in "<|" and array.dtype == np.dtype(numpy_name)):
            return file_name
    raise UnsupportedModelError(f"tensor {show(name)}: safetensors has no dtype for {array.dtype}")
