"""Grammars that are kept by their content: how many, and that what is asked for again stays."""

from types import SimpleNamespace
from typing import Any

import pytest

from blora.engine.grammar import grammars as module
from blora.engine.grammar.grammars import GrammarOrder, Grammars
from blora.engine.grammar.shelf import Shelf

MEASURED = 80 << 10  # bytes that a small schema takes


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the grammars that were compiled, in place of which there are stubs."""
    texts: list[str] = []

    def compile(text: str, _: Any) -> Any:
        texts.append(text)
        return SimpleNamespace(text=text)

    monkeypatch.setattr(module, "Grammar", compile)
    return texts


def grammars() -> Grammars:
    kept = Grammars(lambda: pytest.fail("no tokenizer is needed"), 8)
    kept.__dict__["vocabulary"] = None  # as if it were made
    return kept


def test_small_grammars_are_kept_within_the_bytes_that_they_take(
    made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they were checked they may seem to take nothing: the memory was free."""
    num = 20
    monkeypatch.setattr(module, "MAX_BYTES", num * MEASURED)
    kept = grammars()
    for index in range(3 * num):
        kept.grammar(GrammarOrder(f"{index}", num_bytes=0))
    assert 1 < len(kept._grammars) <= num
    newest = made[-1]
    kept.grammar(GrammarOrder(newest))
    assert made[-1] == newest and len(made) == 3 * num


def test_what_was_not_asked_for_the_longest_goes_first() -> None:
    shelf: Shelf[int] = Shelf(10)
    for key in range(3):
        shelf.put(key, key, 3)
    assert shelf.get(0) == 0
    shelf.put(3, 3, 3)
    assert [shelf.get(key) for key in range(4)] == [0, None, 2, 3]
    shelf.put("large", 4, 100)
    assert (shelf.get("large"), len(shelf)) == (4, 1)
