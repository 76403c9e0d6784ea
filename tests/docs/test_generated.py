"""The reference pages are what the code says now: `make docs` writes them."""

import re

import pytest

from docs.generate import FOLDER, PAGES
from docs.generators.markdown import prose, sentence, table


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name](), "run `make docs`, and commit what it writes"


def test_there_is_no_other_page() -> None:
    assert {path.name for path in FOLDER.iterdir()} == PAGES.keys()


@pytest.mark.parametrize("name", ["cli.md", "errors.md", "grpc.md", "metrics.md", "options.md"])
def test_every_row_of_a_table_says_something(name: str) -> None:
    """A flag, a field or a value without a text in the code would leave an empty cell."""
    rows = [line for line in (FOLDER / name).read_text().splitlines() if line.startswith("| `")]
    assert rows
    silent = [row for row in rows if re.search(r"\|\s*\|$|SUPPRESS", row)]
    assert not silent


def test_what_means_something_in_markdown_is_text_on_a_page() -> None:
    assert prose("a * b <c> [d] `e * f`") == r"a \* b \<c\> \[d\] `e * f`"
    assert sentence("of the first, not\n  the second") == "Of the first, not the second."
    assert table(("a",), [("`b | c`",)]).splitlines()[-1] == r"| `b \| c` |"
