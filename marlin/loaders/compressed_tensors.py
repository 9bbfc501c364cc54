"""compressed-tensors: quantized weights in safetensors, described by quantization_config of
config.json.

What lies in the files for a linear layer X of n rows and k columns (little-endian, row-major):

  format                weight                             scale              zero point
  pack-quantized        X.weight_packed I32 (n, k*bits/32) X.weight_scale     X.weight_zero_point
    int4, int8          codes biased by 2^(bits-1), the    (n, k/group)       I32 (n*bits/32, k/g),
                        first in the lowest bits;          float              biased, packed along
                        X.weight_shape = [n, k]                               rows, n rounded up
  int-quantized         X.weight I8 (n, k), signed         (n, 1) or (1)      I8 (n, 1)
  float-quantized       X.weight F8_E4M3 (n, k)            (n, 1) or (1)      -
  nvfp4-pack-quantized  X.weight_packed U8 (n, k/2),       F8_E4M3 (n, k/16)  -
                        two e2m1, the first in the low     and a divisor of it:
                        half                               X.weight_global_scale F32 (1)
  mxfp4-pack-quantized  the same                           U8, e8m0 (n, k/32) -

w = (code - zero point) * scale. Source: vllm-project/compressed-tensors,
src/compressed_tensors/compressors and quantization/quant_args.py. Quantized activations and caches
that a config asks for are not applied: the weights are what they are without them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from marlin.errors import ModelFormatError, UnsupportedModelError
from marlin.loaders import safetensors
from marlin.loaders.base import Checkpoint, QuantizedTensor, TensorInfo, read_json, show

GROUPS: Final = (16, 32, 64, 128, 256)
WHERE: Final = "config.json: quantization_config"


@dataclass(frozen=True)
class Layout:
    """One format name: the weight's type and bits, the strategies allowed, and the stored
    dtypes."""

    type: str
    bits: tuple[int, ...]
    strategies: tuple[str, ...]
    weight: str  # name of the tensor behind the module's
    dtype: str
    scales: tuple[str, ...] = ("f32", "f16", "bf16")
    group: int | None = None  # the only group size, if the format has one


LAYOUTS: Final[dict[str, Layout]] = {
    "pack-quantized": Layout("int", (4, 8), ("group", "channel", "tensor"), "weight_packed", "i32"),
    "int-quantized": Layout("int", (8,), ("channel", "tensor", "group"), "weight", "i8"),
    "float-quantized": Layout("float", (8,), ("tensor", "channel", "group"), "weight", "e4m3"),
    "nvfp4-pack-quantized": Layout("float", (4,), ("tensor_group",), "weight_packed", "u8", ("e4m3",), 16),
    "mxfp4-pack-quantized": Layout("float", (4,), ("group",), "weight_packed", "u8", ("u8", "e8m0"), 32),
}


@dataclass(frozen=True)
class Scheme:
    """A config group: which modules it is about, and how their weights are stored."""

    name: str
    targets: tuple[str, ...]
    layout: Layout
    format: str  # Marlin's format name
    bits: int
    group: int  # 0 = per channel or per tensor
    symmetric: bool


def sniff(path: Path) -> bool:
    """A folder with safetensors weights whose config.json names compressed-tensors."""
    if not path.is_dir() or not safetensors.has_weights(path):
        return False
    config = read_json(path, "config.json", optional=True)
    return safetensors.quantization(config).get("quant_method") == "compressed-tensors"


def open(path: Path) -> Checkpoint:
    """The checkpoint of a folder, its quantized modules in `quantized`.

    Raises ModelFormatError naming the tensor or key, UnsupportedModelError for formats Marlin
    lacks.
    """
    plain = safetensors.open(path)
    schemes = read_schemes(safetensors.quantization(plain.config))
    quantized = {}
    for module in _quantized_modules(plain.tensors):
        quantized[module] = _module(module, _scheme_of(module, schemes), plain.tensors)
    return dataclasses.replace(plain, loader="compressed_tensors", quantized=quantized)


def read_schemes(section: Mapping[str, Any]) -> list[Scheme]:
    """The config groups with quantized weights. Raises ModelFormatError or
    UnsupportedModelError."""
    for key in ("sparsity_config", "transform_config"):
        value = section.get(key)
        dense = isinstance(value, dict) and value.get("format", "dense") == "dense" and key == "sparsity_config"
        if value and not dense:
            raise UnsupportedModelError(f"{WHERE}: {key} is not supported, got {show(value)}")
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ModelFormatError(f"{WHERE}: config_groups must be a non-empty object, got {show(groups)}")
    schemes = []
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise ModelFormatError(f"{WHERE}: config_groups {show(name)} must be an object, got {show(group)}")
        if group.get("weights") is not None:
            schemes.append(_read_scheme(name, group, section))
    return schemes


def _read_scheme(name: str, group: Mapping[str, Any], section: Mapping[str, Any]) -> Scheme:
    where = f"{WHERE}: {show(name)}"
    weights = group["weights"]
    if not isinstance(weights, dict):
        raise ModelFormatError(f"{where}: weights must be an object, got {show(weights)}")
    targets = group.get("targets")
    if not isinstance(targets, list) or not targets or not all(isinstance(item, str) for item in targets):
        raise ModelFormatError(f"{where}: targets must be a list of strings, got {show(targets)}")
    kind = weights.get("type", "int")
    stored = group.get("format") or section.get("format")
    if stored == "naive-quantized":
        stored = "float-quantized" if kind == "float" else "int-quantized"
    if not isinstance(stored, str) or stored not in LAYOUTS:
        raise UnsupportedModelError(f"{where}: format {show(stored)} is not supported; known are {', '.join(LAYOUTS)}")
    layout = LAYOUTS[stored]
    bits = weights.get("num_bits", 8)
    if kind != layout.type or type(bits) is not int or bits not in layout.bits:
        raise UnsupportedModelError(
            f"{where}: {stored} holds {layout.type} weights of "
            f"{' or '.join(map(str, layout.bits))} bits, "
            ""
            f"got type {show(kind)} and num_bits {show(bits)}"
        )
    if weights.get("actorder") in (True, "group", "dynamic"):
        raise UnsupportedModelError(
            f"{where}: actorder {show(weights['actorder'])} (permuted columns) is not supported"
        )
    symmetric = weights.get("symmetric", True)
    if type(symmetric) is not bool:
        raise ModelFormatError(f"{where}: symmetric must be true or false, got {show(symmetric)}")
    if not symmetric and layout.type == "float":
        raise UnsupportedModelError(f"{where}: {stored} with zero points is not supported")
    names = {"int": {4: "int4", 8: "int8"}, "float": {4: "fp4_e2m1", 8: "fp8_e4m3"}}
    group_size = _group_size(weights, layout, where)
    return Scheme(name, tuple(targets), layout, names[kind][bits], bits, group_size, symmetric)


def _group_size(weights: Mapping[str, Any], layout: Layout, where: str) -> int:
    size = weights.get("group_size")
    if size is not None and type(size) is not int:
        raise ModelFormatError(f"{where}: group_size must be an integer or null, got {show(size)}")
    strategy = weights.get("strategy")
    if strategy is None:  # as compressed-tensors infers it
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy not in layout.strategies:
        raise UnsupportedModelError(
            f"{where}: strategy {show(strategy)} is not supported; known are {', '.join(layout.strategies)}"
        )
    if strategy in ("channel", "tensor"):
        return 0
    allowed = GROUPS if layout.group is None else (layout.group,)
    if size is None or size not in allowed:
        raise UnsupportedModelError(
            f"{where}: group_size {show(size)} is not supported; known are {', '.join(map(str, allowed))}"
        )
    return size


def _quantized_modules(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Modules with a weight in codes: by their scale, or by a weight that cannot be anything
    else."""
    modules = set()
    for name, info in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf in ("weight_packed", "weight_scale") or (leaf == "weight" and info.dtype in ("i8", "e4m3", "e5m2")):
            modules.add(module)
    return sorted(modules)


def _scheme_of(module: str, schemes: Sequence[Scheme]) -> Scheme:
    """The scheme of a module; with several, the first by name, then by pattern, then by class."""
    if len(schemes) == 1:
        return schemes[0]
    kind = _kind(module)
    for fits in (
        lambda target: target == module,
        lambda target: target.startswith("re:") and matches(target[3:], module),
        lambda target: target == kind,
    ):
        for scheme in schemes:
            if any(map(fits, scheme.targets)):
                return scheme
    raise ModelFormatError(f"{WHERE}: no config group is about the quantized module {show(module)}")


def _kind(module: str) -> str:
    """The class that targets mean it by."""
    return "Embedding" if module.endswith("embed_tokens") else "Linear"


def matches(pattern: str, name: str) -> bool:
    """re.match(pattern, name) for patterns whose stars are all `.*` outside brackets.

    Patterns come from strangers, and Python's engine can be kept busy for years by one; the pieces
    between the `.*` are searched one after the other, which takes no time. Others raise
    UnsupportedModelError.
    """
    pieces = pattern.split(".*")
    at = 0
    try:
        for i, piece in enumerate(pieces):
            if len(piece) > 200 or re.search(r"\)[*+{]|\*|\{", piece) or piece.count("+") > 2:
                raise re.error("too complex")
            expression = re.compile(piece)
            found = expression.search(name, at) if i else expression.match(name)
            if found is None:
                return False
            at = found.end()
    except (re.error, RecursionError, OverflowError) as error:
        raise UnsupportedModelError(f"{WHERE}: target {show('re:' + pattern)} is not supported: {error}") from None
    return True


def _module(module: str, scheme: Scheme, tensors: Mapping[str, TensorInfo]) -> QuantizedTensor:
    layout = scheme.layout
    if module + ".weight_g_idx" in tensors:
        raise UnsupportedModelError(f"{show(module)}: permuted columns (weight_g_idx) are not supported")
    weight = _part(module, layout.weight, (layout.dtype,), tensors)
    n, k = shape = _matrix_shape(module, scheme, weight, tensors)
    groups = -(-k // scheme.group) if scheme.group else 1
    scale = _part(module, "weight_scale", layout.scales, tensors)
    whole = [(), (1,), (1, 1)] if not scheme.group else []
    if scale.shape not in [(n, groups), *whole] and not (groups == 1 and scale.shape == (n,)):
        raise ModelFormatError(f"tensor {show(scale.name)}: shape must be {[n, groups]}, got {list(scale.shape)}")
    if layout.scales == ("u8", "e8m0"):
        scale = dataclasses.replace(scale, dtype="e8m0")
    return QuantizedTensor(
        module, scheme.format, scheme.bits, scheme.group, shape, weight, scale,
        None if scheme.symmetric else _zero_point(module, scheme, (n, groups), tensors),
        _global_scale(module, tensors) if layout.scales == ("e4m3",) else 1.0,
    )  # fmt: skip


def _part(module: str, leaf: str, dtypes: Sequence[str], tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    name = f"{module}.{leaf}"
    if name not in tensors:
        raise ModelFormatError(f"tensor {show(name)} is missing")
    info = tensors[name]
    if info.dtype not in dtypes:
        raise ModelFormatError(f"tensor {show(name)}: dtype must be {' or '.join(dtypes)}, got {info.dtype}")
    return info


def _matrix_shape(
    module: str, scheme: Scheme, weight: TensorInfo, tensors: Mapping[str, TensorInfo]
) -> tuple[int, int]:
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise ModelFormatError(f"tensor {show(weight.name)}: shape must be (n, k), got {list(weight.shape)}")
    n, width = weight.shape
    if scheme.layout.dtype == "u8":
        return n, width * 2
    if scheme.layout.dtype != "i32":
        return n, width
    named = _part(module, "weight_shape", ("i64", "i32"), tensors)
    if named.shape != (2,):
        raise ModelFormatError(f"tensor {show(named.name)}: shape must be [2], got {list(named.shape)}")
    rows, k = map(int, named.read())
    if rows != n or k < 1 or -(-k * scheme.bits // 32) != width:
        raise ModelFormatError(
            f"tensor {show(named.name)}: says {[rows, k]}, but {show(weight.name)} is "
            f"{list(weight.shape)} "
            ""
            f"words of {scheme.bits}-bit codes"
        )
    if k * scheme.bits % 32:
        raise UnsupportedModelError(f"tensor {show(weight.name)}: rows of {k} weights end inside a word")
    return n, k


def _zero_point(module: str, scheme: Scheme, plane: tuple[int, int], tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    info = _part(module, "weight_zero_point", (scheme.layout.dtype,), tensors)
    n, groups = plane
    shapes: list[tuple[int, ...]] = [(n, groups)]
    if scheme.layout.dtype == "i32":
        shapes = [(-(-n * scheme.bits // 32), groups)]
    elif groups == 1:
        shapes.append((n,))
    if info.shape not in shapes:
        raise ModelFormatError(f"tensor {show(info.name)}: shape must be {list(shapes[0])}, got {list(info.shape)}")
    return info


def _global_scale(module: str, tensors: Mapping[str, TensorInfo]) -> float:
    info = _part(module, "weight_global_scale", ("f32",), tensors)
    if info.shape not in ((), (1,)):
        raise ModelFormatError(f"tensor {show(info.name)}: shape must be [1], got {list(info.shape)}")
    divisor = float(info.read().reshape(()))
    if not 2.0**-100 < divisor < 2.0**100:
        raise ModelFormatError(f"tensor {show(info.name)}: must be a positive number, got {divisor}")
    return 1.0 / divisor


# Writing ------------------------------------------------------------------------------


def save_quantized(
    folder_in: Path, folder_out: Path, format: str, *, group: int | None = None, zero: bool = False,
    scale: str = "f16", ignore: Sequence[str] = ("model.embed_tokens",),
    others: Mapping[str, tuple[str, int]] | None = None,
) -> None:  # fmt: skip
    """Quantize the linear layers of a checkpoint by rounding to nearest and write it as
    compressed-tensors.

    format  int8, int4, fp8_e4m3, or fp4_e2m1 with scale "e8m0" (MX) or "e4m3" (NV)
    group   weights a scale, 0 = per channel, None = the format's default
    ignore  modules that are left as they are, by name or "re:" and a pattern
    others  patterns of modules that get a format and group of their own, in the same layout
    The config and tokenizer files are copied along. Raises ValueError for what the files cannot
    express.
    """
    source = safetensors.open(folder_in)
    config = dict(source.config)
    if safetensors.quantization(config):
        raise ValueError(f"{folder_in.name}: is quantized already")
    tensors: dict[str, NDArray[Any]] = {}
    schemes: dict[str, dict[str, Any]] = {}  # by target
    for name in source.tensors:
        array = source.read(name)
        module = name.removesuffix(".weight")
        if array.ndim != 2 or module == name or any(_is(target, module) for target in ignore):
            tensors[name] = array
            continue
        target = next((pattern for pattern in others or {} if _is("re:" + pattern, module)), None)
        kind, size = (others or {})[target] if target is not None else (format, group)
        planes, scheme = pack_module(array.astype(np.float32), kind, group=size, zero=zero, scale=scale)
        schemes[_kind(module) if target is None else "re:" + target] = scheme
        tensors |= {f"{module}.{leaf}": plane for leaf, plane in planes.items()}
    layouts = {scheme.pop("format") for scheme in schemes.values()}
    if len(layouts) != 1:
        raise ValueError(f"{folder_in.name}: one layout is expected, got {', '.join(sorted(layouts)) or 'none'}")
    stored = layouts.pop()
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": stored,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {
                "targets": [target], "weights": schemes[target],
                "input_activations": None, "output_activations": None,
            }
            for i, target in enumerate(sorted(schemes))
        },
        "ignore": [module for module in ignore if not module.endswith("embed_tokens")],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }  # fmt: skip
    folder_out.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder_in.iterdir()):
        if file.name in COPIED:
            shutil.copyfile(file, folder_out / file.name)
    (folder_out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    safetensors.save(folder_out / safetensors.SINGLE, tensors, {"format": "pt"})


def _is(target: str, module: str) -> bool:
    """Whether a target (a name, or "re:" and a pattern) means the module."""
    return matches(target[3:], module) if target.startswith("re:") else target == module


COPIED: Final = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja",
)  # fmt: skip


def pack_module(
    weights: NDArray[np.float32],
    format: str,
    *,
    group: int | None = None,
    zero: bool = False,
    scale: str = "f16",
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """One matrix as the tensors of its module, and the `weights` entry of a config group with
    "format" added."""
    import ml_dtypes

    from marlin import formats

    packed = formats.pack(weights, format, group=group, zero=zero, scale=scale)
    assert packed.scale is not None
    n, k = packed.shape
    bits = formats.FORMATS[format].bits
    if k * bits % 32:
        raise ValueError(f"{format}: rows of {k} weights do not fill whole words")
    codes = np.ascontiguousarray(packed.quant[:, : k * bits // 8])
    planes: dict[str, NDArray[Any]] = {"weight_scale": packed.scale}
    scheme: dict[str, Any] = {
        "num_bits": bits, "type": "int" if format in ("int4", "int8") else "float",
        "symmetric": not zero,
        "strategy": "group" if packed.group else "channel", "group_size": packed.group or None,
        "dynamic": False, "actorder": None, "observer": "minmax", "observer_kwargs": {},
    }  # fmt: skip
    if format == "int8" and packed.group == 0:
        stored, planes["weight"] = "int-quantized", (codes ^ np.uint8(0x80)).view(np.int8)
        if packed.zero is not None:
            planes["weight_zero_point"] = (packed.zero ^ np.uint8(0x80)).view(np.int8)
    elif format in ("int4", "int8"):
        stored, planes["weight_packed"] = "pack-quantized", codes.view("<i4")
        planes["weight_shape"] = np.array([n, k], np.int64)
        if packed.zero is not None:
            planes["weight_zero_point"] = _pack_rows(packed.zero, bits)
    elif format == "fp8_e4m3":
        stored, planes["weight"] = "float-quantized", codes.view(ml_dtypes.float8_e4m3fn)
    elif format == "fp4_e2m1" and packed.scale_type in ("e8m0", "e4m3"):
        planes["weight_packed"] = codes
        stored = "mxfp4-pack-quantized"
        if packed.scale_type == "e4m3":
            stored, scheme["strategy"] = "nvfp4-pack-quantized", "tensor_group"
            planes["weight_scale"] = packed.scale.view(ml_dtypes.float8_e4m3fn)
            planes["weight_global_scale"] = np.array([1.0 / packed.global_scale], np.float32)
    else:
        raise ValueError(f"compressed-tensors has no form for {format} with {packed.scale_type} scales")
    return planes, scheme | {"format": stored}


def _pack_rows(zero: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """(n, groups) codes -> (ceil(n * bits / 32), groups) words, rows in consecutive bits."""
    per_word = 32 // bits
    n, groups = zero.shape
    padded = np.zeros((-(-n // per_word) * per_word, groups), np.uint32)
    padded[:n] = zero
    shifts = np.arange(per_word, dtype=np.uint32)[None, :, None] * np.uint32(bits)
    words = (padded.reshape(-1, per_word, groups) << shifts).sum(axis=1, dtype=np.uint32)
    return words.view(np.int32)
