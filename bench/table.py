"""Tables of figures as plain text, and results as JSON files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Cell = str | float | None


def format_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Returns a table with columns as wide as their cells, the first one aligned left. None is an empty cell."""
    texts = [list(header), *([text_of(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(_line(line, widths) for line in texts)


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    rest = [text.rjust(width) for text, width in zip(texts[1:], widths[1:], strict=True)]
    return "  ".join([texts[0].ljust(widths[0]), *rest]).rstrip()


def text_of(cell: Cell) -> str:
    """Returns a number with three significant digits, or as an integer from 100 on."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, int) or abs(cell) >= 100:
        return f"{cell:,.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
