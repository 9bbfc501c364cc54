"""The build: shaders.bin as shipped, tools/shaderc.py on a tree of its own, and the file of _C."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import shader_tables
import shaderc

ROOT = Path(__file__).resolve().parent.parent
FLOAT16 = 9


def package() -> Path:
    """The folder of the marlin package that the tests run against."""
    spec = importlib.util.find_spec("marlin")
    assert spec and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def rows(table: str, macro: str) -> list[list[str]]:
    return shader_tables.parse_table(ROOT / "csrc" / f"{table}.def", macro, {"KERNEL": 4, "FORMAT": 7}[macro])


def capabilities(spirv: bytes) -> Iterator[int]:
    """The operand of every OpCapability, found by walking all instructions."""
    words = struct.unpack(f"<{len(spirv) // 4}I", spirv)
    at = 5
    while at < len(words):
        if words[at] & 0xFFFF == 17:
            yield words[at + 1]
        assert words[at] >> 16, "an instruction of no words"
        at += words[at] >> 16
    assert at == len(words)


# ---- shaders.bin as built -----------------------------------------------------------------------


def test_index_is_well_formed() -> None:
    data = (package() / "shaders.bin").read_bytes()
    magic, count, build = struct.unpack_from("<8sII", data)
    assert magic == b"MRLSHDR1" and count > 0
    assert build == int.from_bytes(hashlib.sha256(data[16:]).digest()[:4], "little")
    names, end = [], (16 + 96 * count + 15) & ~15
    for row in range(count):
        name, offset, size, source, _, version = struct.unpack_from("<64sQQQII", data, 16 + 96 * row)
        text = name.rstrip(b"\0")
        assert text and b"\0" not in text and len(text) < 64
        assert offset == end and size % 4 == 0 and size > 20 and source
        assert struct.unpack_from("<II", data, offset) == (0x07230203, version)
        names.append(text)
        end = (offset + size + 15) & ~15
    assert end == len(data)
    assert names == sorted(set(names))

    manifest = json.loads((package() / "shaders.json").read_text())
    assert manifest["build"] == f"{build:08x}" and manifest["compiler"]
    assert sorted(manifest["hashes"]) == [name.decode() for name in names]


def test_every_row_has_its_modules() -> None:
    expected = set()
    for name, _, variants, _ in rows("kernels", "KERNEL"):
        stems = [(name, "F16")]
        if variants.startswith("FORMAT"):
            stems = [(f"{name}.{row[0]}", row[2]) for row in rows("formats", "FORMAT")]
        for stem, math in stems:
            if variants in ("PLAIN", "FORMAT"):
                expected.add(stem)
            if variants.endswith("MATH"):
                expected.add(f"{stem}.f32")
            if math == "F16" and variants.endswith(("MATH", "F16")):
                expected.add(f"{stem}.f16")
    present = set(shader_tables.read_binary(package() / "shaders.bin"))
    dropped = {row["name"]: row["reason"] for row in shader_tables.dropped_modules(package() / "shaders.json")}
    assert all(dropped.values())
    assert not present & dropped.keys()
    assert present | dropped.keys() == expected
    assert len(expected) <= 600, "architecture.md allows 600 modules"


def test_built_from_these_sources() -> None:
    assert shader_tables.stale(ROOT) == []
    built = shader_tables.read_binary(package() / "shaders.bin")
    for module in shader_tables.modules(ROOT):
        if module.name in built:
            entry = built[module.name]
            assert (entry.source_hash, entry.needs) == (module.source_hash, module.needs)


def test_only_modules_that_need_fp16_declare_it() -> None:
    features = shader_tables.parse_table(ROOT / "csrc/features.def", "FEATURE", 2)
    fp16 = 1 << [row[0] for row in features].index("fp16")
    declaring = []
    for name, entry in shader_tables.read_binary(package() / "shaders.bin").items():
        declares = FLOAT16 in capabilities(entry.spirv)
        assert bool(entry.needs & fp16) or not declares, name
        if name.endswith(".f32"):
            assert not declares and not entry.needs & fp16, name
        declaring += [name] * declares
    assert declaring, "no module at all does f16 arithmetic"


# ---- the compiler driver ------------------------------------------------------------------------


def has_compiler() -> bool:
    try:
        shaderc.find_compiler()
    except shader_tables.ShaderError:
        return False
    return True


compiles = pytest.mark.skipif(not has_compiler(), reason="no shader compiler (slangpy) installed")

TREE = {
    "csrc/features.def": """\
/* FEATURE(name, text) */
FEATURE(fast, "a, b")
FEATURE(fp16, "(half)")
""",
    "csrc/formats.def": """\
#define SEEN(x) \\
    FORMAT(x)
FORMAT(wide, 32, F32, NONE, 0, 0, "floats, \\"plain\\"") // FORMAT(no)
FORMAT(slim, 4, F16, F16|F32, 1, 128,
       "nibbles " "of two rows")
""",
    "csrc/kernels.def": """\
KERNEL(copy, "copy/copy.comp", PLAIN, 0)
KERNEL(gemv, "copy/gemv.comp", FORMAT_MATH, fast)
""",
    "shaders/include/types.glsl": """\
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_scalar_block_layout : require
#if MATH_F16
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#define A float16_t
#else
#define A float
#endif
layout(local_size_x_id = 0) in;
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer BufF32 { float v[]; };
""",
    "shaders/include/twice.glsl": "float twice(float x) { return x + x; }\n",
    "shaders/formats/wide.glsl": "A decode(A x) { return x; }\n",
    "shaders/formats/slim.glsl": "A decode(A x) { return x * A(0.5); }\n",
    "shaders/copy/copy.comp": """\
#include "include/twice.glsl"
#include "include/twice.glsl"
layout(push_constant, scalar) uniform Push { BufF32 to; } push;
void main() { push.to.v[gl_GlobalInvocationID.x] = twice(1.0); }
""",
    "shaders/copy/gemv.comp": """\
layout(push_constant, scalar) uniform Push { BufF32 to; } push;
void main() { push.to.v[gl_GlobalInvocationID.x] = float(decode(A(push.to.v[0]))); }
""",
}
MODULES = ["copy", "gemv.slim.f16", "gemv.slim.f32", "gemv.wide.f32"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree with four modules; every file a second old, so that an edit is newer."""
    monkeypatch.delenv("CI", raising=False)
    for name, text in TREE.items():
        edit(tmp_path, name, text)
    return tmp_path


def edit(tree: Path, name: str, text: str) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def age(tree: Path) -> None:
    """Make shaders.bin and shaders.json older than an edit that follows at once."""
    for name in ("shaders.bin", "shaders.json"):
        path = tree / "marlin" / name
        then = path.stat().st_mtime_ns - 10**9
        os.utime(path, ns=(then, then))


def test_modules_of_the_tables(tree: Path) -> None:
    modules = shader_tables.modules(tree)
    assert [module.name for module in modules] == MODULES
    assert [module.needs for module in modules] == [0, 0b11, 0b01, 0b01]
    assert "#define FMT_NAME slim" in modules[1].text
    assert modules[0].text.count("float twice") == 1
    assert len({module.source_hash for module in modules}) == len(modules)


@compiles
def test_incremental_and_stale(tree: Path) -> None:
    assert shader_tables.stale(tree) == MODULES
    assert shaderc.build(tree) == MODULES
    assert shader_tables.stale(tree) == [] and shaderc.build(tree) == []
    before = shader_tables.read_binary(tree / "marlin/shaders.bin")

    age(tree)
    edit(tree, "shaders/formats/slim.glsl", "A decode(A x) { return x * A(0.25); }\n")
    changed = ["gemv.slim.f16", "gemv.slim.f32"]
    assert shader_tables.stale(tree) == changed
    assert shaderc.build(tree) == changed
    assert shader_tables.stale(tree) == []
    after = shader_tables.read_binary(tree / "marlin/shaders.bin")
    assert [name for name in MODULES if before[name] != after[name]] == changed

    age(tree)
    (tree / "shaders/copy/copy.comp").touch()
    assert shader_tables.stale(tree) == [], "newer, but the same text"
    edit(tree, "csrc/kernels.def", 'KERNEL(copy, "copy/copy.comp", PLAIN, 0)\n')
    assert shader_tables.stale(tree) == MODULES[1:]
    assert shaderc.build(tree) == []
    assert list(shader_tables.read_binary(tree / "marlin/shaders.bin")) == ["copy"]


@compiles
def test_a_damaged_file_is_made_anew(tree: Path) -> None:
    shaderc.build(tree)
    binary = tree / "marlin/shaders.bin"
    good = binary.read_bytes()
    for bad in (b"", good[:50], b"MRLSHDR0" + good[8:], good[:-16]):
        binary.write_bytes(bad)
        with pytest.raises(shader_tables.ShaderError):
            shader_tables.read_binary(binary)
        assert shaderc.build(tree) == MODULES
        assert binary.read_bytes() == good


def test_nothing_is_stale_without_sources(tmp_path: Path) -> None:
    assert shader_tables.stale(tmp_path) == []
    assert not shader_tables.ready(tmp_path)


@compiles
def test_errors_name_the_line_of_the_source(tree: Path) -> None:
    edit(tree, "shaders/include/twice.glsl", "\n\nfloat twice(float x) { return y; }\n")
    text = TREE["shaders/copy/gemv.comp"] + "what is this\n"
    edit(tree, "shaders/copy/gemv.comp", text)
    with pytest.raises(shader_tables.ShaderError) as caught:
        shaderc.build(tree)
    message = str(caught.value)
    assert "4 of 4 shaders failed" in message
    assert re.search(r"copy:\nshaders/include/twice.glsl:3: error: 'y'", message)
    assert re.search(r"gemv.wide.f32:\nshaders/copy/gemv.comp:3: error:", message)
    assert not (tree / "marlin/shaders.bin").exists()


@compiles
def test_keep_going_writes_the_good_ones(tree: Path) -> None:
    edit(tree, "shaders/copy/copy.comp", "void main() { nothing(); }\n")
    with pytest.raises(shader_tables.ShaderError, match="1 of 4"):
        shaderc.build(tree, keep_going=True)
    assert list(shader_tables.read_binary(tree / "marlin/shaders.bin")) == MODULES[1:]
    assert shader_tables.stale(tree) == ["copy"]


@compiles
def test_float16_without_fp16_is_refused(tree: Path) -> None:
    extension = "#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require\n"
    text = TREE["shaders/copy/copy.comp"].replace("twice(1.0)", "float(float16_t(push.to.v[1]))")
    edit(tree, "shaders/copy/copy.comp", extension + text)
    with pytest.raises(shader_tables.ShaderError, match=r"copy: declares the capability Float16"):
        shaderc.build(tree)
    edit(tree, "csrc/kernels.def", 'KERNEL(copy, "copy/copy.comp", PLAIN, fast | fp16)\n')
    assert shaderc.build(tree) == ["copy"]


@compiles
def test_unknown_extension_drops_the_module(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extension = "#extension GL_EXT_of_tomorrow : require\n"
    edit(tree, "shaders/copy/copy.comp", extension + TREE["shaders/copy/copy.comp"])
    said: list[str] = []
    shaderc.build(tree, say=said.append)
    assert any("dropped copy" in text and "GL_EXT_of_tomorrow" in text for text in said)
    (row,) = shader_tables.dropped_modules(tree / "marlin/shaders.json")
    assert row["name"] == "copy"
    age(tree)
    (tree / "csrc/kernels.def").touch()
    assert shader_tables.stale(tree) == [], "dropped is not stale: no rebuild would help"
    monkeypatch.setenv("CI", "true")
    with pytest.raises(shader_tables.ShaderError, match=r"GL_EXT_of_tomorrow.*copy"):
        shaderc.build(tree)


@compiles
def test_a_crash_of_the_compiler_is_an_error_of_its_module(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module = shaderc.compile_module

    def crash(module: shader_tables.Module, *rest: object) -> tuple[bytes, str]:
        if module.name == "copy":
            os.kill(os.getpid(), signal.SIGKILL)
        return compile_module(module, *rest)

    monkeypatch.setattr(shaderc, "compile_module", crash)
    with pytest.raises(shader_tables.ShaderError, match=r"1 of 4 .*\ncopy: the compiler crashed"):
        shaderc.build(tree)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("csrc/kernels.def", "KERNEL(a, b)", r"kernels.def:1: KERNEL takes 4 values, got 2"),
        ("csrc/kernels.def", '\nKERNEL(a, "copy/copy.comp", SOME, 0)', "a: 'SOME' is not one of"),
        ("csrc/kernels.def", 'KERNEL(a, "copy/copy.comp", PLAIN, f)', "'f' is not in features.def"),
        (
            "csrc/kernels.def",
            'KERNEL(a, "copy/none.comp", PLAIN, 0)',
            "a: no such file: shaders/copy/none",
        ),
        ("csrc/kernels.def", 'KERNEL(a, "copy/copy.comp", PLAIN, 0)\n' * 2, "a: named twice"),
        ("csrc/kernels.def", f'KERNEL({"a" * 64}, "copy/copy.comp", PLAIN, 0)', "at most 63 bytes"),
        (
            "shaders/copy/copy.comp",
            '\n#include "x.h"',
            r"shaders/copy/copy.comp:2: no such file: .*x.h",
        ),
    ],
)
def test_bad_tables(tree: Path, file: str, text: str, message: str) -> None:
    edit(tree, file, text)
    with pytest.raises(shader_tables.ShaderError, match=message):
        shader_tables.modules(tree)


def test_command_line_check(tree: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/shaderc.py"), "--check", "--root", str(tree)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.split()) == (1, MODULES)


# ---- marlin._C ----------------------------------------------------------------------------------


def extension() -> Path:
    (path,) = package().glob("_C*.so")
    return path


def test_extension_is_abi3() -> None:
    assert extension().name == "_C.abi3.so"
    if importlib.util.find_spec("abi3audit") is None:
        pytest.skip("abi3audit is not installed")
    command = [sys.executable, "-m", "abi3audit", "--strict", "--assume-minimum-abi3", "3.11"]
    run = subprocess.run([*command, str(extension())], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(not shutil.which("readelf"), reason="no readelf")
@pytest.mark.skipif("MARLIN_SANITIZE" in os.environ, reason="a sanitizer build exports more")
def test_extension_is_hardened_and_links_little() -> None:
    command = [
        "readelf",
        "--wide",
        "--dynamic",
        "--program-headers",
        "--dyn-syms",
        str(extension()),
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "GNU_RELRO" in text and re.search(r"\(FLAGS.*NOW", text)
    assert re.search(r"GNU_STACK .* RW ", text) and "TEXTREL" not in text
    assert re.search(r"__stack_chk_fail", text)
    needed = set(re.findall(r"\(NEEDED\).*\[([a-z]+)", text))
    assert needed <= {"libc", "libm", "libdl", "libpthread", "ld"}, needed
    symbols = re.findall(r"(?m)^.* (?:GLOBAL|WEAK) +DEFAULT +(?!UND)\S+ (\S+)$", text)
    assert symbols == ["PyInit__C"]
