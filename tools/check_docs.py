"""Check README.md and docs/: relative links lead somewhere, Python examples parse."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def anchors(text: str) -> set[str]:
    """The names by which the headings of a page can be linked to."""
    headings = re.findall(r"(?m)^#+ +(.+?)\s*$", text)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def complaints(page: Path) -> Iterator[str]:
    """What is wrong on one page, as `file:line: text`."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT)

    def at(offset: int) -> str:
        line = text.count("\n", 0, offset) + 1
        return f"{name}:{line}"

    for block in re.finditer(r"(?ms)^( *)```(\w*)\n(.*?)^ *```", text):
        if block.group(2) == "python":
            try:
                ast.parse(textwrap.dedent(block.group(3)))
            except SyntaxError as error:
                yield f"{at(block.start(3))}: the Python example does not parse: {error}"
    prose = re.sub(r"(?ms)^ *```.*?^ *```|`[^`\n]*`", lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    for link in re.finditer(r"\[[^\]]*\]\(([^)\s]+)\)", prose):
        target, _, anchor = link.group(1).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target) if target else page
        if not path.exists():
            yield f"{at(link.start())}: no such file: {target}"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text()):
            yield f"{at(link.start())}: no heading for #{anchor}"


def main() -> int:
    """Check every page; 1 when anything is wrong."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [line for page in pages for line in complaints(page)]
    print("\n".join([*found, f"docs: {len(pages)} pages, {len(found)} complaints"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
