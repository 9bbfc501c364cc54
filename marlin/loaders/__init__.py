"""Loaders: a checkpoint folder or hub name in, tensors by name out.

A loader is a module of this folder with `sniff(path) -> bool` and `open(path) -> Checkpoint`; it is
found by being here.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Final

from marlin.errors import MarlinError, ModelFormatError, UnsupportedModelError
from marlin.loaders import safetensors
from marlin.loaders.base import Checkpoint, QuantizedTensor, RowTrellis, TensorInfo, TrellisTensor, read_json, show

__all__ = [
    "Checkpoint",
    "QuantizedTensor",
    "RowTrellis",
    "TensorInfo",
    "TrellisTensor",
    "find_folder",
    "loaders",
    "open_checkpoint",
]

HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
HUB_FILES: Final = ["*.json", "*.safetensors", "*.jinja"]


def loaders() -> dict[str, ModuleType]:
    """The loaders of this folder, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def open_checkpoint(source: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Checkpoint:
    """Open a folder, a single weight file or a hub name ("org/model"), by the first loader that
    knows it.

    Only headers are read. Raises ModelFormatError for broken files, UnsupportedModelError for a
    quantization method or file kind without a loader.
    """
    path = find_folder(source, revision=revision, local_files_only=local_files_only)
    known = loaders()
    for loader in known.values():
        if loader.sniff(path):
            checkpoint: Checkpoint = loader.open(path)
            return checkpoint
    if path.is_dir() and safetensors.has_weights(path):
        section = safetensors.quantization(read_json(path, "config.json", optional=True))
        raise UnsupportedModelError(
            f"{path.name}: config.json: quant_method {show(section.get('quant_method'))} has no "
            "loader; "
            ""
            f"known are compressed-tensors, exl3 and unquantized weights"
        )
    raise ModelFormatError(
        f"{path.name}: no weights that a loader knows ({', '.join(known)}); "
        f"expected {safetensors.SINGLE} or {safetensors.INDEX}"
    )


def find_folder(source: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The local path of a model: the path itself if it exists, else the hub's snapshot, fetched if
    need be."""
    path = Path(source).expanduser()
    try:
        if path.exists():
            return path.absolute()
    except (OSError, ValueError):
        pass  # too long, or with a NUL: no path, and no hub name either
    name = str(source)
    if isinstance(source, Path) or not HUB_NAME.fullmatch(name) or ".." in name:
        raise ModelFormatError(f"{show(name)}: no such file or folder, and not a hub name (org/model)")
    try:
        import huggingface_hub
    except ImportError:
        raise MarlinError(
            f"{show(name)} is no local folder, and fetching it needs huggingface_hub: pip install marlin-vulkan[hub]"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, local_files_only=local_files_only, allow_patterns=HUB_FILES
        )
    except (
        OSError,
        ValueError,
    ) as error:  # HTTP errors and "not in the cache" are both among these
        raise MarlinError(f"{show(name)}: cannot be fetched from the hub: {error}") from error
    return Path(folder)
