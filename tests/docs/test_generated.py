"""The reference pages are what the code says now: `make docs` writes them."""

import re

import pytest

from blora.engine.cli.main import build_parser
from blora.engine.cli.serve_command import SERVED_BY_DEFAULT
from docs.generate import FOLDER, PAGES
from docs.generators.cli import commands_of, flags_of
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


def test_every_flag_has_its_default() -> None:
    """That of the server where it has one of its own, and each in words where it is no value."""
    serve = next(command for command in commands_of(build_parser()) if command.name == "blora serve")
    defaults = {flag.dest: flag.default for flag in flags_of(serve)}
    assert all(defaults.values())
    assert {name: float(defaults[name]) for name in SERVED_BY_DEFAULT} == SERVED_BY_DEFAULT
    some = {"max_num_seqs": "128", "host_cache": "0.25", "adapter_copy_bytes": "64M", "max_tenants": "256"}
    some |= {"enable_prefix_caching": "yes", "share_prefixes": "each tenant has its own", "disable_log_stats": "off"}
    some |= {"port": "50051", "ssl_certfile": "none", "adapter": "none", "max_model_len": "those of the model"}
    assert defaults.items() >= some.items()


def test_what_means_something_in_markdown_is_text_on_a_page() -> None:
    assert prose("a * b <c> [d] `e * f`") == r"a \* b \<c\> \[d\] `e * f`"
    assert sentence("of the first, not\n  the second") == "Of the first, not the second."
    assert table(("a",), [("`b | c`",)]).splitlines()[-1] == r"| `b \| c` |"
