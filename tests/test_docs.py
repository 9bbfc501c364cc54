"""README.md and docs/: links and examples are sound, and no table lags behind the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import check_docs
import pytest

from marlin import _C, config, doctor
from marlin.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def first_cells(text: str) -> set[str]:
    """The code spans in the first columns of all tables of a page."""
    return {span for row in re.findall(r"(?m)^\| ([^|]*)\|", text) for span in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_examples(page: Path) -> None:
    assert list(check_docs.complaints(page)) == []


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/formats.md", [row["name"] for row in _C.formats()]),
        ("docs/kernels.md", [row["name"] for row in _C.kernels()]),
        ("docs/models.md", config.model_types()),
        ("docs/models.md", config.ROPE_KINDS),
        ("docs/debugging.md", list(doctor.VARIABLES)),
    ],
    ids=["formats", "kernels", "models", "ropes", "variables"],
)
def test_tables_name_everything(page: str, names: list[str]) -> None:
    assert set(names) <= first_cells(read(page))


def test_every_command_is_shown() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == set(re.findall(r"(?m)^## (\w+)$", read("docs/cli.md")))
    assert names == set(re.findall(r"(?m)^\| `marlin (\w+)", read("README.md")))


def test_the_notebook_of_the_readme_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    example = re.search(r"(?ms)^## In a notebook\n+```python\n(.*?)^```", read("README.md"))
    assert example is not None
    exec(compile(example.group(1), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 20


def test_a_broken_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["check_docs"], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# One\n[gone](no.md) [heading](#two) [fine](#one)\n```python\nx = = 1\n```\n")
    found = list(check_docs.complaints(page))
    assert len(found) == 3
    assert sorted(line.rpartition(": ")[2] for line in found)[1:] == ["no heading for #two", "no.md"]
