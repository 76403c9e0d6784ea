"""A vocabulary of the tiny model's bytes, and random ways through grammars."""

from pathlib import Path

import pytest

from blora.engine.grammar.vocabulary import Vocabulary
from blora.engine.text.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def vocabulary(tiny_model: Path) -> Vocabulary:
    return Vocabulary(load_tokenizer(tiny_model), 260)
