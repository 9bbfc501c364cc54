"""Two steps: shaders/ -> SPIR-V -> marlin/shaders.bin, and csrc/ -> marlin._C."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import shaderc  # noqa: E402
from cflags import INCLUDES, LANGUAGE, MACROS, WARNINGS  # noqa: E402
from shader_tables import ShaderError, ready  # noqa: E402

FOLDERS = ("base", "vk", "ops", "engine", "py")
HARDENING = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
SANITIZERS = "-fsanitize=address,undefined"


def compile_flags() -> list[str]:
    """Flags of every .c file; MARLIN_SANITIZE=1 adds sanitizers, CI makes warnings errors."""
    flags = [*LANGUAGE, *WARNINGS]
    if os.environ.get("CI"):
        flags.append("-Werror")
    if os.environ.get("MARLIN_SANITIZE"):
        # Fortified calls hide from the address sanitizer; assertions are wanted here.
        recover = "-fno-sanitize-recover=undefined"
        return [*flags, "-O1", "-g", "-UNDEBUG", SANITIZERS, recover, "-fno-omit-frame-pointer"]
    return [*flags, "-O2", *HARDENING]


def link_flags() -> list[str]:
    """The Vulkan library is opened at run time, so nothing but libc is linked."""
    flags = ["-Wl,-z,relro,-z,now", "-ldl", "-lpthread", "-lm"]
    return [*flags, SANITIZERS] if os.environ.get("MARLIN_SANITIZE") else flags


def build_shaders() -> None:
    """Make marlin/shaders.bin unless it is good, as it is in an sdist; that needs no compiler."""
    try:
        if not ready(ROOT):
            shaderc.build(ROOT, say=print)
    except ShaderError as error:
        raise SystemExit(f"shaders: {error}") from None


class BuildPy(build_py):
    """Python files and the shaders."""

    def run(self) -> None:
        build_shaders()
        super().run()


class Sdist(sdist):
    """The source archive carries the compiled shaders."""

    def run(self) -> None:
        build_shaders()
        super().run()


class BuildExt(build_ext):
    """Compiles only the C files whose text, headers or flags changed, on all cores."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.inplace or getattr(self, "editable_mode", False):
            # An editable install would compile in a fresh temporary folder each time.
            self.build_temp = str(ROOT / "build" / "objects")

    def build_extension(self, ext: Extension) -> None:
        whole: Callable[..., list[str]] = self.compiler.compile
        stamp = Path(self.build_temp, "flags.json")
        tool = [*self.compiler.compiler_so, *ext.extra_compile_args, *ext.extra_link_args]
        flags = json.dumps([*tool, sys.version])
        if not stamp.is_file() or stamp.read_text() != flags:
            self.force = True

        def compile_one(source: str, options: dict) -> str:
            (target,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
            if self.force or outdated(Path(target)):
                whole([source], **options)
            return target

        def compile_changed(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return list(pool.map(lambda source: compile_one(source, options), sources))

        self.compiler.compile = compile_changed
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = whole
        stamp.write_text(flags)


def outdated(target: Path) -> bool:
    """Whether an object file is missing or older than a file that -MMD says it was made of."""
    try:
        built = target.stat().st_mtime_ns
        text = target.with_suffix(".d").read_text().replace("\\\n", " ")
        return any(Path(name).stat().st_mtime_ns >= built for name in text.split(":", 1)[1].split())
    except (OSError, IndexError):
        return True


def files(pattern: str, folder: str) -> list[str]:
    """Files under a folder, relative to this one."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern))


setup(
    ext_modules=[
        Extension(
            "marlin._C",
            [source for folder in FOLDERS for source in files("*.c", f"csrc/{folder}")],
            include_dirs=INCLUDES,
            depends=[
                *files("*.h", "csrc"),
                *files("*.def", "csrc"),
                *files("*.h", "shaders"),
            ],
            define_macros=MACROS,
            py_limited_api=True,
            extra_compile_args=[*compile_flags(), "-MMD"],
            extra_link_args=link_flags(),
        )
    ],
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt, "sdist": Sdist},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
