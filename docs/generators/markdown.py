"""Markdown: text from docstrings, comments and help texts, made safe for a page. Knows no page."""

import re
from collections.abc import Iterable, Sequence

CODE_SPAN = re.compile(r"(`[^`\n]+`)")
SPECIAL = re.compile(r"([\\*<>\[\]])")


def prose(text: str) -> str:
    """Plain text in which only backticks mean something, as Markdown."""
    parts = CODE_SPAN.split(text)
    return "".join(part if CODE_SPAN.fullmatch(part) else SPECIAL.sub(r"\\\1", part) for part in parts)


def one_line(text: str) -> str:
    return " ".join(text.split())


def sentence(text: str) -> str:
    """A comment or a help text, which begin with a small letter and end without a full stop, for a cell or a line."""
    text = prose(one_line(text))
    return text and text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def code(text: str) -> str:
    return f"`{text}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown; a bar in one would end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def page(title: str, source: str, *parts: str) -> str:
    """source: the code that the page is made from."""
    note = f"<!-- `make docs` writes this page from {source}. A change made here is lost. -->"
    return "\n\n".join([note, f"# {title}", *(part.strip("\n") for part in parts if part)]) + "\n"
