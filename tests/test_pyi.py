"""marlin/_C.pyi says what the built module has: the names, and the parameters of each callable."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

from marlin import _C

STUB = ast.parse((Path(__file__).parents[1] / "marlin" / "_C.pyi").read_text())
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
# Of overloads the first, with the most general defaults.
FUNCTIONS = {node.name: node for node in STUB.body[::-1] if isinstance(node, ast.FunctionDef)}
EXCEPTIONS = [name for name, node in CLASSES.items() if node.bases]
# What every type has, or has besides what the stub names (constructors are __new__ in C;
# __buffer__ is seen from 3.12 on).
IGNORED = {"__buffer__", "__new__", "__init__", "__doc__", "__module__", "__repr__", "__reduce__"}

Parameters = list[tuple[str, Any, Any]]  # name, kind, default
REQUIRED = inspect.Parameter.empty


def members(node: ast.ClassDef) -> dict[str, ast.AST]:
    found: dict[str, ast.AST] = {}
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            found[item.name] = item
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found[item.target.id] = item
    return found


def stub_parameters(node: ast.FunctionDef, method: bool) -> Parameters:
    arguments, kinds = node.args, inspect.Parameter
    positional = [(argument.arg, kinds.POSITIONAL_ONLY) for argument in arguments.posonlyargs]
    positional += [(argument.arg, kinds.POSITIONAL_OR_KEYWORD) for argument in arguments.args]
    defaults = [ast.literal_eval(default) for default in arguments.defaults]
    defaults = [REQUIRED] * (len(positional) - len(defaults)) + defaults
    found: Parameters = [(*row, default) for row, default in zip(positional, defaults, strict=True)]
    if method:
        found = found[1:]
    if arguments.vararg:
        found.append((arguments.vararg.arg, kinds.VAR_POSITIONAL, REQUIRED))
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        default = REQUIRED if value is None else ast.literal_eval(value)
        found.append((argument.arg, kinds.KEYWORD_ONLY, default))
    return found


def built_parameters(function: Any, method: bool) -> Parameters:
    """From the text signature, the first line of the doc string in C."""
    found = list(inspect.signature(function).parameters.values())
    if method and found and found[0].name == "self":
        found = found[1:]
    return [(p.name, p.kind, p.default) for p in found]


def callables() -> dict[str, tuple[ast.FunctionDef, Any, bool]]:
    """name -> (stub, what was built, whether it is a method)."""
    rows: dict[str, tuple[ast.FunctionDef, Any, bool]] = {
        name: (node, getattr(_C, name, None), False) for name, node in FUNCTIONS.items()
    }
    for name, node in CLASSES.items():
        kind = getattr(_C, name, None)
        for method, definition in members(node).items():
            # Properties take nothing; slots such as __call__ have no text signature.
            if not isinstance(definition, ast.FunctionDef) or definition.decorator_list:
                continue
            if method == "__init__":
                rows[name] = (definition, kind, False)
            elif method not in ("__len__", "__getitem__", "__call__", "__buffer__"):
                rows[f"{name}.{method}"] = (definition, getattr(kind, method, None), True)
    return rows


CALLABLES = callables()


def test_names_of_the_module() -> None:
    public = {name for name in vars(_C) if not name.startswith("_")}
    assert public == set(CLASSES) | set(FUNCTIONS)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in EXCEPTIONS])
def test_names_of_a_type(name: str) -> None:
    built = {
        member
        for member in vars(getattr(_C, name))
        if not member.startswith("_") or (member.startswith("__") and member not in vars(object))
    }
    assert built - IGNORED == set(members(CLASSES[name])) - IGNORED


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_bases_of_an_exception(name: str) -> None:
    bases = [base.id for base in CLASSES[name].bases if isinstance(base, ast.Name)]
    kind = getattr(_C, name)
    assert [base.__name__ for base in kind.__bases__] == bases
    assert kind.__module__ == "marlin.errors" and kind.__doc__
    import marlin.errors

    assert getattr(marlin.errors, name) is kind


@pytest.mark.parametrize("name", CALLABLES)
def test_parameters(name: str) -> None:
    node, function, method = CALLABLES[name]
    assert function is not None, f"{name} is in the stub and not in the module"
    assert getattr(function, "__text_signature__", None), f"{name} has no text signature"
    drop_self = method or node.name == "__init__"
    assert built_parameters(function, method) == stub_parameters(node, drop_self)


def test_everything_is_documented() -> None:
    for name in [*CLASSES, *FUNCTIONS]:
        assert getattr(_C, name).__doc__, name
