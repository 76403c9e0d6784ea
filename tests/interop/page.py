"""The page of what was seen."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .environments import ROOT

PAGE = ROOT / "docs/interop.md"
HEAD = """# Programs that were tried

`make interop` runs programs of others, as they are, against `blora serve` with the default model and an adapter, and
writes this page. It makes their environments first, some 700 MB below `.cache/interop`. The programs are in
`tests/interop/programs`; a new one is a file there and a line in `tests/interop/__main__.py`.

Last run: {date}.
"""


def write_page(results: Mapping[str, Sequence[Mapping[str, Any]]], titles: Sequence[str]) -> None:
    """results: of the programs that ran; others keep what the page says of them. titles: of all, in order."""
    sections = _kept() | {title: _section(title, checks) for title, checks in results.items()}
    shown = [sections[title] for title in titles if title in sections]
    PAGE.write_text("\n".join([HEAD.format(date=datetime.now(UTC).date().isoformat()), *shown]))


def _kept() -> dict[str, str]:
    """Returns the sections of the page by title."""
    if not PAGE.exists():
        return {}
    _, *sections = PAGE.read_text().split("\n## ")
    return {section.partition("\n")[0]: f"## {section.rstrip()}\n" for section in sections}


def _section(title: str, checks: Sequence[Mapping[str, Any]]) -> str:
    num_held = sum(check["is_held"] for check in checks)
    lines = [f"## {title}", "", f"{num_held} of {len(checks)} hold.", "", "| What | Seen | |", "|---|---|---|"]
    lines += [f"| {check['what']} | {_cell(check['seen'])} | {_mark(check)} |" for check in checks]
    return "\n".join([*lines, ""])


def _mark(check: Mapping[str, Any]) -> str:
    return "held" if check["is_held"] else "**not held**"


def _cell(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'") + "`" if text else ""
