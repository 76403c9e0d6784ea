"""Page: a self-contained HTML page of headings, tables and charts."""

import html
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..table import Cell, text_of

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15em .8em; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f4f4f4 }
p.fault { background: #fde8e8; padding: .6em 1em } svg { max-width: 100%; height: auto }
"""


class Page:
    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def fault(self, text: str) -> None:
        self._parts.append(f'<p class="fault">{html.escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text_of(cell))}</td>" for cell in row) + "</tr>" for row in rows
        )
        self._parts.append(f"<table><tr>{head}</tr>{body}</table>")

    def chart(self, figure: Figure) -> None:
        """The chart as SVG, without the head that only a file needs."""
        image = io.StringIO()
        figure.savefig(image, format="svg", metadata={"Date": None})
        text = image.getvalue()
        self._parts.append(text[text.index("<svg") :])

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.render())

    def render(self) -> str:
        title = html.escape(self._title)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
            f"</head><body><h1>{title}</h1>{''.join(self._parts)}</body></html>\n"
        )
