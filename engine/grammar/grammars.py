"""Grammars: the grammars that are compiled in a process, kept by their content."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..text.tokenizer import Tokenizer
from .compiled import Grammar, Matcher
from .shelf import Shelf
from .vocabulary import Vocabulary

logger = logging.getLogger(__name__)
MAX_BYTES = 256 << 20  # of grammars, as they were found when they were checked
LEAST_BYTES = 128 << 10  # of a grammar: a schema of two properties takes 80 kB; so the shelf has 2048 at most, too
BYTES_PER_CHARACTER = 64  # of a grammar, at least, besides: memory that was free is not seen where it was checked


@dataclass(frozen=True, slots=True)
class GrammarOrder:
    """A grammar that has been found to be one, for an answer."""

    text: str  # from `library_text`
    num_bytes: int = 0  # that it took where it was checked
    spelled: tuple[tuple[int, str], ...] = ()  # tokens of the request's adapter, with their texts


class Grammars:
    def __init__(self, load_tokenizer: Callable[[], Tokenizer], vocab_size: int) -> None:
        """load_tokenizer: the model's, which is loaded when the first grammar comes, or by `warm`. vocab_size: width of
        the model's logits."""
        self._load_tokenizer, self._vocab_size = load_tokenizer, vocab_size
        self._grammars: Shelf[Grammar] = Shelf(MAX_BYTES)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Raises InvalidRequest."""
        return Vocabulary(self._load_tokenizer(), self._vocab_size)

    def warm(self) -> None:
        """Makes the vocabulary now, so that nobody waits for it when the first grammar comes. Where that is not served,
        each request is told so."""
        try:
            _ = self.vocabulary
        except Exception:
            logger.debug("structured output is not served", exc_info=True)

    def grammar(self, order: GrammarOrder) -> Grammar:
        """Compiles a grammar that is not kept. Raises InvalidRequest."""
        found = self._grammars.get(order.text)
        if found is None:
            found = Grammar(order.text, self.vocabulary)
            least = LEAST_BYTES + BYTES_PER_CHARACTER * len(order.text)
            self._grammars.put(order.text, found, max(order.num_bytes, least))
        return found

    def matcher(self, order: GrammarOrder, token_ids: Sequence[int] = ()) -> Matcher:
        """Begins an answer, of which there are these tokens. Raises InvalidRequest."""
        matcher = self.grammar(order).begin(order.spelled)
        for token_id in token_ids:
            matcher.take(token_id)
        return matcher
