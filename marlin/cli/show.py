"""What commands print: tables, JSON, bars. Names come from files: control characters go out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import typer

BAR: Final = 60  # characters of a bar
SHADES: Final = "█▓▒░#=+-:"


def clean(text: object) -> str:
    """Text for a terminal: no escape sequences, no line breaks."""
    return "".join(c if c.isprintable() else "�" for c in str(text))


def terminal_text(text: str) -> str:
    """Text of a model for a terminal: of control characters only line breaks and tabs stay."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def print_json(value: Any) -> None:
    """One JSON document, strict: what is not finite becomes null."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def print_table(
    rows: Sequence[Sequence[object]],
    head: Sequence[str] = (),
    *,
    right: Sequence[int] = (),
    title: str = "",
) -> None:
    """Rows in columns; `right`: columns that stand on the right."""
    if title:
        typer.secho(clean(title), bold=True)
    cells = [[clean(value) for value in row] for row in ([head] if head else []) + list(rows)]
    if not cells:
        return
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for number, row in enumerate(cells):
        fitted = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        typer.secho("  ".join(fitted).rstrip(), dim=bool(head) and number == 0)


def bar_lines(parts: Sequence[tuple[str, int]], whole: int) -> list[str]:
    """A stacked bar of BAR characters for `whole`, and a legend; each part shows, however small."""
    bar, legend = "", []
    for i, (name, count) in enumerate(parts):
        shade = SHADES[i % len(SHADES)]
        bar += shade * max(1, round(BAR * count / max(whole, 1))) if count else ""
        legend.append(f"{shade} {name}")
    return [f"[{bar[:BAR].ljust(BAR)}]", "   ".join(legend)]


def save_plot(result: Any, path: Path) -> None:
    """result.save(path), with a clear error where matplotlib is missing."""
    try:
        result.save(path)
    except ImportError:
        from marlin.errors import MarlinError

        raise MarlinError("--plot needs matplotlib: pip install 'marlin-vulkan[plot]'") from None
    print(f"wrote {path}", file=sys.stderr)
