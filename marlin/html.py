"""Plain HTML for notebooks: tables and one inline SVG bar; no scripts, no styles from elsewhere.

Everything that comes from files or from a model is escaped here, by the functions that write it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

COLORS: Final = (
    "#4878a8",
    "#e49444",
    "#6a9f58",
    "#85b6b2",
    "#a87c9f",
    "#967662",
    "#d1615d",
    "#b8b0ac",
)
TEXT_LIMIT: Final = 30_000  # characters of a generated text that a cell shows


def size(count: float) -> str:
    """Bytes as people read them: 1.5 GiB, 12.0 MiB, 340 B."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def text(value: str) -> str:
    """Escaped text with its line breaks kept."""
    cut = value if len(value) <= TEXT_LIMIT else value[:TEXT_LIMIT] + "…"
    return f'<div style="white-space:pre-wrap">{escape(cut)}</div>'


def mono(value: str) -> str:
    """Escaped text in a fixed-width font."""
    return f"<pre>{escape(value)}</pre>"


def table(rows: Iterable[Sequence[object]], *, head: Sequence[str] = (), title: str = "") -> str:
    """An HTML table; cells are escaped, numbers stand on the right."""

    def cell(value: object, tag: str) -> str:
        right = "right" if isinstance(value, int | float) else "left"
        return f'<{tag} style="text-align:{right};padding:2px 8px">{escape(str(value))}</{tag}>'

    lines = ["<table>"]
    if title:
        lines.append(f'<caption style="text-align:left"><b>{escape(title)}</b></caption>')
    if head:
        lines.append("<tr>" + "".join(cell(name, "th") for name in head) + "</tr>")
    lines.extend("<tr>" + "".join(cell(value, "td") for value in row) + "</tr>" for row in rows)
    return "\n".join([*lines, "</table>"])


def bar(parts: Sequence[tuple[str, float]], total: float, *, width: int = 480) -> str:
    """A stacked horizontal bar as SVG: one labelled rectangle a part; `total` is the whole width."""
    height, at = 22, 0.0
    whole = max(total, sum(value for _, value in parts), 1e-9)
    drawn = [f'<rect width="{width}" height="{height}" fill="#e8e8e8"/>']
    for i, (label, value) in enumerate(parts):
        wide = width * value / whole
        drawn.append(
            f'<rect x="{at:.1f}" width="{wide:.1f}" height="{height}" fill="{COLORS[i % len(COLORS)]}">'
            f"<title>{escape(label)}</title></rect>"
        )
        at += wide
    return f'<svg width="{width}" height="{height}" role="img">{"".join(drawn)}</svg>'


def lined_up(rows: Sequence[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Rows as text in columns: the plain twin of `table`."""
    cells = [[str(value) for value in row] for row in ([head] if head else []) + [list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))] if cells else []
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(widths))]
    lines = (
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)).rstrip()
        for row in cells
    )
    return "\n".join(lines)
