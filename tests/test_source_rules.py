"""Rules that the sources keep: nothing that runs foreign code, layers, sizes, every kernel tested, every name told."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import marlin as ml
from marlin import _C

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("csrc", "shaders", "marlin", "tests", "tools", "benchmarks", "docs")
SUFFIXES = {".py", ".pyi", ".c", ".h", ".def", ".comp", ".glsl", ".sh", ".md", ".toml"}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders or FOLDERS:
        yield from (path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES)
    if not folders:
        yield from (path for path in sorted(ROOT.iterdir()) if path.suffix in SUFFIXES or path.name == "Makefile")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---- Python --------------------------------------------------------------------------------------------------------

FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "yaml.load",
    "np.load",
}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "socket", "http", "requests"}


def violations(tree: ast.AST) -> Iterator[str]:
    """Calls and imports by which the content of a file could become code, a shell command or a connection."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: calls {called}"
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if (keyword.arg, value) in (("shell", "True"), ("allow_pickle", "True"), ("trust_remote_code", "True")):
                    yield f"line {node.lineno}: {keyword.arg}={value}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"line {node.lineno}: imports {x}" for x in names if x.split(".")[0] in FORBIDDEN_MODULES)


@pytest.mark.parametrize("path", list(sources("marlin")), ids=name_of)
def test_nothing_runs_foreign_code(path: Path) -> None:
    assert list(violations(ast.parse(path.read_text()))) == []


def test_the_rule_finds_what_it_should() -> None:
    code = (
        "import pickle\nfrom http import client\neval('1')\nnp.load('x', allow_pickle=True)\n"
        "subprocess.run('x', shell=True)\nre.compile('x')\nmodel.eval()\nfrom marlin import compiled\n"
    )
    assert len(list(violations(ast.parse(code)))) == 6


def public_names() -> Iterator[tuple[str, object]]:
    """marlin.NAME, and the methods and properties that a class of it defines itself."""
    for name in ml.__all__:
        value = getattr(ml, name)
        yield name, value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and (callable(member) or isinstance(member, property | classmethod)):
                    yield f"{name}.{attribute}", member


# Their names and types say all: a docstring would repeat them.
PLAIN = {
    "Model.close", "Model.closed", "Tensor.shape", "Tensor.dtype", "Tensor.ndim", "Tensor.nbytes", "Tensor.device",
    "Linear.device", "Linear.format",
}  # fmt: skip


def test_public_names_have_docstrings() -> None:
    names = dict(public_names())
    assert len(names) > 60
    silent = {name for name, value in names.items() if not inspect.getdoc(value)}
    assert silent <= PLAIN, sorted(silent - PLAIN)


@pytest.mark.parametrize("path", [path for path in sources("marlin") if path.suffix == ".py"], ids=name_of)
def test_modules_have_docstrings(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_environment_variables() -> None:
    """At run time those of the documentation and no other."""
    found = {
        match
        for path in sources("marlin", "csrc")
        for match in re.findall(r"""(?:environ(?:\.get)?|getenv)[\[(]\s*["'](\w+)""", path.read_text())
    }
    ours = {"MARLIN_DEVICE", "MARLIN_CACHE"}
    foreign = {"XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TERM", "COLUMNS", "NO_COLOR"}
    assert found <= ours | foreign, sorted(found - ours - foreign)
    assert ours <= found


# ---- C and shaders -------------------------------------------------------------------------------------------------

LAYERS = ("base", "vk", "ops", "engine", "py")


@pytest.mark.parametrize("path", [path for path in sources("csrc") if path.suffix in (".c", ".h")], ids=name_of)
def test_includes_point_down(path: Path) -> None:
    """py -> engine -> ops -> vk -> base; Python.h in py alone, Vulkan's names in vk alone."""
    text, layer = path.read_text(), path.parent.name
    for include in re.findall(r'#include [<"]([\w./]+)[>"]', text):
        folder = include.split("/")[0]
        if folder in LAYERS:
            assert LAYERS.index(folder) <= LAYERS.index(layer), include
        assert include != "Python.h" or layer == "py"
    if layer != "vk":
        assert not re.search(r"\bVk[A-Z]\w+|\bvk[A-Z]\w+\(", text)
    assert "fprintf(stderr" not in text and not re.search(r"\bprintf\(", text)


@pytest.mark.parametrize("name", [row["name"] for row in _C.kernels()])
def test_every_kernel_is_named_by_a_test(name: str) -> None:
    assert any(re.search(rf"\b{name}\b", path.read_text()) for path in sources("tests") if path != Path(__file__))


@pytest.mark.parametrize("name", [row["name"] for row in _C.formats()])
def test_every_format_has_its_files(name: str) -> None:
    assert (ROOT / "shaders" / "formats" / f"{name}.glsl").is_file()
    assert re.search(rf"\b{name}\b", (ROOT / "tests" / "ref" / "formats.py").read_text())


@pytest.mark.parametrize("path", list(sources("shaders")), ids=name_of)
def test_memory_qualifiers_stand_at_members(path: Path) -> None:
    """Before the block of a buffer reference glslang takes them and emits nothing: what is shared would be private."""
    assert not re.search(r"\b(nonprivate|\w+coherent)\s+(\w+\s+)*buffer\b", path.read_text())


@pytest.mark.parametrize("path", list(sources("csrc", "shaders")), ids=name_of)
def test_lines_fit(path: Path) -> None:
    """In 120 characters, as ruff has it for Python."""
    assert [number for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 120] == []


# ---- every file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", list(sources()), ids=name_of)
def test_files(path: Path) -> None:
    """Short, plain, no private path, nothing left to do. The one long file is a table: Vulkan's own definitions."""
    text = path.read_text()
    assert text.count("\n") <= 1000 or path.name == "vulkan_defs.h"
    if path != Path(__file__):
        assert not re.search(r"\bTODO\b|\bFIXME\b|\bXXX\b", text)
        assert not re.search(r"\.\./shared\b|/work/\w|/root/\w|/home/(?!someone)\w", text)
    assert "\t" not in text or path.name == "Makefile" or path.suffix in (".sh", ".md") or "\\t" in text
    assert not re.search(r"[ \t]+$", text, re.MULTILINE) or path.suffix == ".md"
