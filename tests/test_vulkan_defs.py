"""csrc/vk/vulkan_defs.h against the official header in $VULKAN_SDK or installed; else skipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DEFS = TESTS.parent / "csrc" / "vk" / "vulkan_defs.h"
SDK = [f"-I{os.environ['VULKAN_SDK']}/include"] if "VULKAN_SDK" in os.environ else []
CC = next((cc for cc in ("cc", "gcc", "clang") if shutil.which(cc)), None)
OFFICIAL = "#include <vulkan/vulkan_core.h>\n"
# Macros with a number; enum constants are found by parsing.
NUMBERS = [f"VK_API_VERSION_1_{minor}" for minor in range(4)] + [
    "VK_WHOLE_SIZE",
    "VK_QUEUE_FAMILY_IGNORED",
    "VK_API_VERSION_MAJOR(VK_API_VERSION_1_2)",
    "VK_API_VERSION_MINOR(0x00402123u)",
    "VK_API_VERSION_PATCH(0x00402123u)",
    "VK_API_VERSION_VARIANT(0xa0402123u)",
    "VK_MAKE_API_VERSION(1, 2, 3, 4)",
]


def preprocess(text: str, *flags: str) -> str:
    """C text after the preprocessor; raises CalledProcessError where a header is missing."""
    command = [str(CC), "-E", "-x", "c", *flags, *SDK, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def official() -> str:
    """The official header, preprocessed; skips where there is none."""
    if CC is None:
        pytest.skip("no C compiler")
    try:
        return preprocess(OFFICIAL, "-P")
    except subprocess.CalledProcessError:
        pytest.skip("no official vulkan/vulkan_core.h (Debian: libvulkan-dev)")


def sections() -> dict[str, str]:
    """Section name -> our definitions in it, macros expanded, comments gone."""
    text = preprocess(DEFS.read_text(), "-C", "-P")
    parts = re.split(r"/\* == (.+?) ==", text)[1:]
    return {
        name: re.sub(r"/\*.*?\*/", " ", "/*" + body, flags=re.DOTALL)
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def known_sections() -> tuple[dict[str, str], list[str]]:
    """Our sections that the official header knows, and the names of those too new for it."""
    macros = set(re.findall(r"#define (\w+)", preprocess(OFFICIAL, "-dM")))
    ours = sections()
    unknown = [name for name in ours if name.startswith("VK_") and name not in macros]
    return {name: body for name, body in ours.items() if name not in unknown}, unknown


def facts(body: str) -> list[str]:
    """Lines for vulkan_defs_check.c: each constant, each type's size, each member's place."""
    lines = []
    for constants in re.findall(r"enum \{(.*?)\}", body, re.DOTALL):
        lines += [f"VALUE({name})" for name in re.findall(r"(\w+) =", constants)]
    records = r"typedef (?:struct|union) \w+ \{(.*?)\} (\w+);"
    for members, name in re.findall(records, body, re.DOTALL):
        lines.append(f"SIZE({name})")
        for declaration in filter(None, map(str.strip, members.split(";"))):
            for declarator in declaration.split(","):
                member = re.search(r"(\w+)\s*(?:\[\w+\])?$", declarator.strip())
                assert member, declaration
                lines.append(f"MEMBER({name}, {member[1]})")
    for names in re.findall(r"typedef (?:struct \w+ \*|\w+ )(\w+(?:, \w+)*);", body):
        lines += [f"SIZE({name})" for name in names.split(", ")]
    return lines


def listing(directory: Path, lines: list[str], *flags: str) -> list[str]:
    """What vulkan_defs_check.c prints for these facts."""
    (directory / "facts.inc").write_text("\n".join(lines))
    program = directory / "check"
    include = [f"-I{directory}", f"-I{DEFS.parents[1]}", *SDK]
    source = str(TESTS / "vulkan_defs_check.c")
    built = subprocess.run(
        [str(CC), "-std=c11", *flags, *include, source, "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


@pytest.mark.usefixtures("official")
def test_values_sizes_and_offsets(tmp_path: Path) -> None:
    known, unknown = known_sections()
    named = re.findall(r'#define (VK_\w+_EXTENSION_NAME)[\s\\]+"(\w+)"', DEFS.read_text())
    assert [name for _, name in named] == [name for name in sections() if name.startswith("VK_")]
    lines = [f"VALUE({number})" for number in NUMBERS]
    lines += [f"STRING({macro})" for macro, name in named if name in known]
    for body in known.values():
        lines += facts(body)
    assert len(lines) > 900, "the parser lost most of the header"
    ours = listing(tmp_path, lines)
    theirs = listing(tmp_path, lines, "-DOFFICIAL")
    assert [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b] == []
    print(f"{len(lines)} facts agree; extensions newer than the installed header: {unknown}")


def signature(result: str, parameters: str) -> list[str]:
    """Types only, with Vulkan's flag words and enums of bits as vulkan_defs.h spells them."""
    types = []
    for parameter in [result, *parameters.split(",")]:
        plain = re.sub(r"\bVk\w+FlagBits\w*", "int32_t", parameter)
        plain = re.sub(r"\bVk\w+Flags(?:[A-Z]+)?\b", "VkFlags", plain)
        words = re.findall(r"\w+|\*", plain)
        # The official header names its parameters, ours does not.
        named = re.search(r"[\w*]\s+[a-z]\w*$", plain.strip())
        types.append(" ".join(words[:-1] if named else words))
    return types


def signatures(text: str) -> dict[str, list[str]]:
    """PFN name -> signature() of each function pointer type in the text."""
    pattern = r"typedef ([\w ]+?\**) ?\( ?\*(PFN_\w+)\)\((.*?)\);"
    found = re.findall(pattern, text, re.DOTALL)
    return {name: signature(result, parameters) for result, name, parameters in found}


def test_signatures(official: str) -> None:
    known, _ = known_sections()
    theirs = signatures(official)
    ours = {name: s for body in known.values() for name, s in signatures(body).items()}
    assert len(ours) > 70
    assert {name: s for name, s in ours.items() if theirs.get(name) != s} == {}
