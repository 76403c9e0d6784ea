"""Bad words as token sequences: what the tokens of a word are at the beginning of an answer, and within it."""

from collections.abc import Iterator, Sequence

from ..errors import InvalidRequest
from ..facts import Facts
from ..text.tokenizer import Tokenizer


def bad_sequences(words: Sequence[str], tokenizer: Tokenizer, facts: Facts) -> tuple[tuple[int, ...], ...]:
    """Returns the token sequences that spell the words, each once, without a leading space and with one. Raises
    InvalidRequest for a word that has no token.

    As in vLLM, which adds the sequence with a space only if it is as long as the one without. Here it is left out only
    if it ends in that one, so that no spelling of a word is forgotten.
    """
    found = {sequence for word in words for sequence in _spellings(word, tokenizer)}
    # The tokenizer may be wider than the logits: such a token is never drawn.
    return tuple(sorted(sequence for sequence in found if max(sequence) < facts.vocab_size))


def _spellings(word: str, tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    word = word.lstrip() or word  # a line end is a word, too
    plain, spaced = (tuple(tokenizer.encode(space + word, add_special_tokens=False)) for space in ("", " "))
    if not plain:
        raise InvalidRequest("bad_words", f"{word!r:.80} has no token")
    yield plain
    if spaced[-len(plain) :] != plain:
        yield spaced
