"""Vocabulary: the tokens of the model's tokenizer, as the library of grammars needs them.

It is made once in a process: that takes a third of a second, during which no other thread of the process runs Python,
and some 30 MB. A token that is special can be drawn where a grammar names it, and nowhere else. Tokens that adapters
add are not in it: `Matcher` spells them by others.
"""

from collections.abc import Sequence

from llguidance import LLTokenizer

from blora.adapters import MAX_ADDED_TOKENS, AddedToken

from ..errors import InvalidRequest
from ..text.tokenizer import Tokenizer
from .source import FIELD

WORD = 32  # bits of a word of a mask
MAX_SPELLED = 64  # tokens of an adapter that can stand in a text that has to match something


class Vocabulary:
    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """vocab_size: width of the model's logits. Raises InvalidRequest for a tokenizer that the library does not
        know."""
        if tokenizer.eos_token_id is None:
            raise InvalidRequest(FIELD, "is not served: the model's tokenizer names no token that ends a text")
        self.end: int = tokenizer.eos_token_id  # the token by which the library says that a text may end
        most = max(tokenizer.num_tokens, vocab_size) + MAX_ADDED_TOKENS  # adapters may widen the logits
        self.width = -(-most // WORD) * WORD  # bits of a mask
        try:
            self.tokens = LLTokenizer(tokenizer.serialized(), n_vocab=self.width, eos_token=self.end)
        except ValueError as error:
            raise InvalidRequest(FIELD, f"is not served with this model's tokenizer: {error!s:.200}") from error

    def spell(self, text: str) -> list[int]:
        """Returns tokens of the model's that make the text."""
        return list(self.tokens.greedy_tokenize(text))


def spelled_tokens(tokens: Sequence[AddedToken], grammar: str) -> tuple[tuple[int, str], ...]:
    """The tokens of an adapter that can stand in a text of this grammar, with their texts: those that are text, and of
    the special ones, such as the marks around a call of a tool, those that the grammar spells out."""
    plain = [token for token in tokens if not token.special]
    special = [token for token in tokens if token.special][:MAX_SPELLED]  # each is looked for in up to 64 kB
    named = [token for token in special if token.content in grammar]
    return tuple((token.id, token.content) for token in (named + plain)[:MAX_SPELLED])
