"""The build backend of pyproject.toml: setuptools, plus the shader compiler where it is needed.

An sdist carries its compiled shaders, so who installs one is not asked for 90 MB of compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_requires import shader_compiler
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from shader_tables import ShaderError, ready

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, Any] | None


def compiler_if_stale() -> list[str]:
    """The shader compiler where marlin/shaders.bin is missing or stale."""
    try:
        return [] if ready() else shader_compiler()
    except ShaderError:  # the build tells what is wrong
        return shader_compiler()


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *compiler_if_stale()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *compiler_if_stale()]


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    return [*build_meta.get_requires_for_build_sdist(config_settings), *compiler_if_stale()]
