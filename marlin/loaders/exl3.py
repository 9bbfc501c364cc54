"""EXL3: trellis-coded weights in safetensors, as ExLlamaV3 writes them.

What lies in the files for a linear layer X of k inputs and n outputs, both rounded up to multiples of 128:

  X.trellis         I16 (k/16, n/16, 16 * bits)   packed codes: 1 .. 8 bits, or 1.5, 2.5, 3.5 with mul1
  X.suh, X.svh      F16 (k), (n)                  scales with signs of the input and output channels
  X.su, X.sv        I16 (k/16), (n/16)            instead of those in old files: signs alone, 1 for -1, LSB first
  X.mul1 or X.mcg   I32 scalar                    which codebook, by being there; neither: 3inst
  X.bias            F16 (n)                       optional
  X.scale                                         in very old files; means nothing

An embedding may be coded in rows instead (marlin.trellis.decode_rows):

  X.trellis         I16 (rows, groups * (1 + 16 * bits))   bits 1 .. 8; groups of 256 columns, the last padded
  X.signs           F16 (groups, 256)

A module without X.trellis has X.weight, as in any checkpoint. Everything follows from names and shapes:
quantization_config.json and the bits that config.json names are not needed and not believed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from marlin.errors import ModelFormatError
from marlin.loaders import safetensors
from marlin.loaders.base import Checkpoint, RowTrellis, TensorInfo, TrellisTensor, read_json, show
from marlin.trellis import BLOCK, HALF_RATES, RATES

SUFFIX: Final = ".trellis"


def sniff(path: Path) -> bool:
    """A folder whose config.json or quantization_config.json names exl3; without any word, one with trellises."""
    if not path.is_dir() or not safetensors.has_weights(path):
        return False
    section = safetensors.quantization(read_json(path, "config.json", optional=True))
    if not section:
        section = read_json(path, "quantization_config.json", optional=True)
    if section:
        return section.get("quant_method") == "exl3"
    return any(name.endswith(SUFFIX) for name in safetensors.open(path).tensors)


def open(path: Path) -> Checkpoint:
    """The checkpoint of a folder, its trellises in `trellis`. Raises ModelFormatError naming the tensor."""
    plain = safetensors.open(path)
    modules = [name.removesuffix(SUFFIX) for name in plain.tensors if name.endswith(SUFFIX)]
    by_rows = {module for module in modules if f"{module}.signs" in plain.tensors}
    trellis = {module: _module(module, plain.tensors) for module in modules if module not in by_rows}
    row_trellis = {module: _rows(module, plain.tensors) for module in modules if module in by_rows}
    return dataclasses.replace(plain, loader="exl3", trellis=trellis, row_trellis=row_trellis)


def _module(module: str, tensors: Mapping[str, TensorInfo]) -> TrellisTensor:
    codes = tensors[module + SUFFIX]
    where = f"tensor {show(codes.name)}"
    if codes.dtype not in ("i16", "u16"):
        raise ModelFormatError(f"{where}: expected i16, got {codes.dtype}")
    if len(codes.shape) != 3 or 0 in codes.shape or codes.shape[0] % 8 or codes.shape[1] % 8:
        raise ModelFormatError(
            f"{where}: expected shape (k / 16, n / 16, 16 * bits) with k and n multiples of {BLOCK}, got {codes.shape}"
        )
    bits = codes.shape[2] / 16
    if bits not in RATES:
        raise ModelFormatError(f"{where}: {show(codes.shape[2])} words a tile; bits must be 1 to 8, 1.5, 2.5 or 3.5")
    codebook = _codebook(module, tensors)
    if bits in HALF_RATES and codebook != "mul1":
        raise ModelFormatError(f"{where}: {bits} bits need the codebook mul1, this is {codebook}")
    return TrellisTensor(
        name=f"{module}.weight",
        bits=bits,
        codebook=codebook,
        trellis=codes,
        suh=_scales(module, "su", 16 * codes.shape[0], tensors),
        svh=_scales(module, "sv", 16 * codes.shape[1], tensors),
    )


def _rows(module: str, tensors: Mapping[str, TensorInfo]) -> RowTrellis:
    codes, signs = tensors[module + SUFFIX], tensors[f"{module}.signs"]
    if signs.dtype != "f16" or len(signs.shape) != 2 or signs.shape[0] == 0 or signs.shape[1] != 256:
        raise ModelFormatError(
            f"tensor {show(signs.name)}: expected f16 of shape (groups, 256), got {signs.dtype} {signs.shape}"
        )
    groups = signs.shape[0]
    words = codes.shape[1] // groups - 1 if len(codes.shape) == 2 else 0
    fits = words in range(16, 129, 16) and codes.shape[1] == groups * (1 + words)
    if codes.dtype not in ("i16", "u16") or not fits or codes.shape[0] == 0:
        raise ModelFormatError(
            f"tensor {show(codes.name)}: expected i16 of shape (rows, {groups} * (1 + 16 * bits)), bits 1 to 8, got "
            f"{codes.dtype} {codes.shape}"
        )
    return RowTrellis(name=f"{module}.weight", bits=words // 16, trellis=codes, signs=signs)


def _codebook(module: str, tensors: Mapping[str, TensorInfo]) -> str:
    found = [name for name in ("mul1", "mcg") if f"{module}.{name}" in tensors]
    if len(found) > 1:
        raise ModelFormatError(f"{show(module)}: has both tensors .mul1 and .mcg, at most one may name its codebook")
    for name in found:
        info = tensors[f"{module}.{name}"]
        if info.dtype not in ("i32", "u32") or info.nbytes != 4:
            raise ModelFormatError(f"tensor {show(info.name)}: expected one i32, got {info.dtype} {info.shape}")
    return found[0] if found else "3inst"


def _scales(module: str, name: str, size: int, tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    """suh or svh, else the packed signs su or sv."""
    info = tensors.get(f"{module}.{name}h")
    if info is not None:
        if info.dtype != "f16" or info.shape != (size,):
            raise ModelFormatError(
                f"tensor {show(info.name)}: expected f16 of shape ({size},), got {info.dtype} {info.shape}"
            )
        return info
    info = tensors.get(f"{module}.{name}")
    if info is None:
        raise ModelFormatError(f"tensor {show(module + SUFFIX)}: has neither .{name}h nor .{name} beside it")
    if info.dtype not in ("i16", "u16") or info.shape != (size // 16,):
        raise ModelFormatError(
            f"tensor {show(info.name)}: expected i16 of shape ({size // 16},), got {info.dtype} {info.shape}"
        )
    return info
