"""Which shader modules exist, and the file that carries them, marlin/shaders.bin.

The tables csrc/{kernels,formats,features}.def say which modules there are. Each is one flattened
GLSL text: version, defines, types.glsl, the format, the kernel. shaderc.py compiles them; this part
needs no compiler and imports fast, for `stale` runs whenever an editable install is imported.

shaders.bin, little-endian:

    0   char magic[8] "MRLSHDR1" | u32 count | u32 build hash
    16  count x 96 bytes, sorted by name:
        char name[64] | u64 offset | u64 bytes | u64 source hash | u32 needs | u32 SPIR-V version
    ..  the SPIR-V modules, each at a multiple of 16
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"MRLSHDR1"
HEADER = struct.Struct("<8sII")
ENTRY = struct.Struct("<64sQQQII")
SPIRV_MAGIC = 0x07230203
SPIRV_1_5, SPIRV_1_6 = 0x00010500, 0x00010600
TABLES = ("kernels", "formats", "features")
VARIANTS = ("PLAIN", "MATH", "F16", "FORMAT", "FORMAT_MATH", "FORMAT_F16")
# Part of every source hash: raise it when the same text must be compiled anew.
RECIPE = "1"

ROOT = Path(__file__).resolve().parent.parent


class ShaderError(Exception):
    """A table, a shader or the compiler is wrong; the text is meant for a person."""


@dataclass(frozen=True)
class Module:
    """One SPIR-V module to build.

    `files` are its sources by their `#line` number, `needs` is the mask of features.def and `half`
    says that only devices with fp16 get it.
    """

    name: str
    text: str
    files: tuple[str, ...]
    needs: int
    version: int
    half: bool

    @property
    def source_hash(self) -> int:
        """64 bits over everything that decides the SPIR-V but the compiler."""
        key = f"{RECIPE}\0{self.version}\0{self.text}".encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "little")


@dataclass(frozen=True)
class Binary:
    """One entry of shaders.bin."""

    source_hash: int
    needs: int
    version: int
    spirv: bytes


# ---- the tables ---------------------------------------------------------------------------------


def parse_table(path: Path, macro: str, columns: int) -> list[list[str]]:
    """Rows `MACRO(a, "b", c)` of an X-macro file as lists of strings, quotes taken off."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ShaderError(f"{path} is missing") from None
    text = re.sub(
        r'"(?:\\.|[^"\\])*"|/\*.*?\*/|//[^\n]*|^[ \t]*#(?:[^\n\\]|\\.)*',
        lambda m: m.group() if m.group().startswith('"') else "\n" * m.group().count("\n"),
        text,
        flags=re.S | re.M,
    )
    rows = []
    for match in re.finditer(rf'\b{macro}\s*\(((?:"(?:\\.|[^"\\])*"|[^")])*)\)', text):
        cells = re.findall(r'((?:"(?:\\.|[^"\\])*"|[^",])+)', match.group(1))
        row = [re.sub(r'"((?:\\.|[^"\\])*)"\s*', r"\1", cell.strip()) for cell in cells]
        if len(row) != columns:
            line = text.count("\n", 0, match.start()) + 1
            raise ShaderError(f"{path}:{line}: {macro} takes {columns} values, got {len(row)}")
        rows.append(row)
    return rows


def words(cell: str) -> list[str]:
    """`A | B` as ["A", "B"]; `0` as []."""
    return [] if cell == "0" else [word.strip() for word in cell.split("|")]


# ---- flattening ---------------------------------------------------------------------------------


class Sources:
    """Reads files under shaders/ once and joins them, each `#include` expanded where first met."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: dict[str, list[str]] = {}

    def read(self, name: str, asked_by: str) -> list[str]:
        if name not in self.lines:
            try:
                text = (self.folder / name).read_text(encoding="utf-8")
            except FileNotFoundError:
                raise ShaderError(f"{asked_by}: no such file: shaders/{name}") from None
            self.lines[name] = text.splitlines()
        return self.lines[name]

    def flatten(self, names: list[str], asked_by: str) -> tuple[str, tuple[str, ...]]:
        """One text with `#line LINE FILE` marks, and the files that the marks number from 1."""
        files: list[str] = []
        out: list[str] = []

        def add(name: str, asker: str) -> None:
            if name in files:
                return
            lines = self.read(name, asker)
            files.append(name)
            number = len(files)
            out.append(f"#line 1 {number}")
            for at, line in enumerate(lines, 1):
                include = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
                if include is None:
                    out.append(line)
                    continue
                add(include.group(1), f"shaders/{name}:{at}")
                out.append(f"#line {at + 1} {number}")

        for name in names:
            add(name, asked_by)
        return "\n".join(out) + "\n", tuple(files)


def modules(root: Path = ROOT) -> list[Module]:
    """Every module that the tables under `root` name, sorted; ShaderError for a bad row."""
    tables = root / "csrc"
    features = [row[0] for row in parse_table(tables / "features.def", "FEATURE", 2)]
    formats = [(row[0], row[2]) for row in parse_table(tables / "formats.def", "FORMAT", 7)]
    sources = Sources(root / "shaders")
    found: dict[str, Module] = {}

    def add(name: str, kernel: str, needs: list[str], fmt: str, f16: bool) -> None:
        row = f"csrc/kernels.def: {name}"
        mask = 0
        needs = [*needs, "fp16"] if f16 else needs
        for need in needs:
            if need not in features:
                raise ShaderError(f"{row}: {need!r} is not in features.def ({', '.join(features)})")
            mask |= 1 << features.index(need)
        head = ["#version 460", f"#define MATH_F16 {int(f16)}"]
        parts = ["include/types.glsl"]
        if fmt:
            head.append(f"#define FMT_NAME {fmt}")
            parts.append(f"formats/{fmt}.glsl")
        text, files = sources.flatten([*parts, kernel], row)
        if len(name.encode()) > 63:
            raise ShaderError(f"{row}: module names have at most 63 bytes")
        if name in found:
            raise ShaderError(f"{row}: named twice")
        # Cooperative matrix 2 asks for Vulkan 1.3; all else stays on the floor of Vulkan 1.2.
        version = SPIRV_1_6 if any(n.startswith("coopmat2") for n in needs) else SPIRV_1_5
        text = "\n".join(head) + "\n" + text
        found[name] = Module(name, text, files, mask, version, "fp16" in needs)

    for name, kernel, variants, needs in parse_table(tables / "kernels.def", "KERNEL", 4):
        if variants not in VARIANTS:
            raise ShaderError(f"csrc/kernels.def: {name}: {variants!r} is not one of {VARIANTS}")
        rows = formats if variants.startswith("FORMAT") else [("", "F16")]
        for fmt, math in rows:
            stem = f"{name}.{fmt}" if fmt else name
            if variants in ("PLAIN", "FORMAT"):
                add(stem, kernel, words(needs), fmt, False)
            if variants.endswith("MATH"):
                add(f"{stem}.f32", kernel, words(needs), fmt, False)
            if math == "F16" and variants.endswith(("MATH", "F16")):
                add(f"{stem}.f16", kernel, words(needs), fmt, True)
    return [found[name] for name in sorted(found, key=str.encode)]


# ---- shaders.bin --------------------------------------------------------------------------------


def read_binary(path: Path) -> dict[str, Binary]:
    """The entries of a shaders.bin by name; ShaderError when it is malformed."""
    data = path.read_bytes()
    if len(data) < HEADER.size:
        raise ShaderError(f"{path} is cut short")
    magic, count, _ = HEADER.unpack_from(data)
    if magic != MAGIC or len(data) < HEADER.size + count * ENTRY.size:
        raise ShaderError(f"{path} is not a shader file of this version")
    entries = {}
    for row in range(count):
        name, offset, size, *rest = ENTRY.unpack_from(data, HEADER.size + row * ENTRY.size)
        if offset + size > len(data) or offset % 16 or size % 4:
            raise ShaderError(f"{path}: entry {row} lies outside the file")
        source_hash, needs, version = rest
        text = name.rstrip(b"\0").decode()
        entries[text] = Binary(source_hash, needs, version, data[offset : offset + size])
    return entries


def write_binary(path: Path, entries: dict[str, Binary]) -> int:
    """Write shaders.bin by renaming a finished file over it; returns the build hash."""
    index, body = bytearray(), bytearray()
    start = (HEADER.size + len(entries) * ENTRY.size + 15) & ~15
    for name in sorted(entries, key=str.encode):
        e = entries[name]
        index += ENTRY.pack(name.encode(), start + len(body), len(e.spirv), e.source_hash, e.needs, e.version)
        body += e.spirv + bytes(-len(e.spirv) % 16)
    gap = bytes(start - HEADER.size - len(index))
    payload = bytes(index) + gap + bytes(body)
    digest = int.from_bytes(hashlib.sha256(payload).digest()[:4], "little")
    replace_file(path, HEADER.pack(MAGIC, len(entries), digest) + payload)
    return digest


def replace_file(path: Path, data: bytes) -> None:
    """Readers see the old file or the new one, also when two builds run at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        new.write_bytes(data)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, object]:
    """shaders.json as written by `build`; empty when there is none."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def stale(root: Path | str = ROOT) -> list[str]:
    """Names of modules that marlin/shaders.bin lacks or has from other sources; [] when it is good.

    Cheap: only times are compared unless a source is newer, and a missing source tree is not stale.
    """
    root = Path(root)
    binary, manifest = root / "marlin" / "shaders.bin", root / "marlin" / "shaders.json"
    if not (root / "csrc" / "kernels.def").is_file():
        return []
    # Folders too: their time tells of a file renamed or removed.
    sources = [root / "csrc", *(root / "csrc" / f"{table}.def" for table in TABLES)]
    sources += [root / "shaders", *(root / "shaders").rglob("*")]
    try:
        built = min(binary.stat().st_mtime_ns, manifest.stat().st_mtime_ns)
        if all(source.stat().st_mtime_ns <= built for source in sources):
            return []
        have = {name: entry.source_hash for name, entry in read_binary(binary).items()}
    except (OSError, ShaderError):
        have = {}
    for row in dropped_modules(manifest):
        have[row["name"]] = int(row["hash"], 16)
    want = {module.name: module.source_hash for module in modules(root)}
    return sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))


def ready(root: Path | str = ROOT) -> bool:
    """Whether marlin/shaders.bin exists and was made from the sources beside it."""
    binary = Path(root) / "marlin" / "shaders.bin"
    return binary.is_file() and not stale(root)


def dropped_modules(manifest: Path) -> list[dict[str, str]]:
    """The rows {name, reason, hash} of modules that the compiler was too old for."""
    rows = read_manifest(manifest).get("dropped", [])
    return rows if isinstance(rows, list) else []
