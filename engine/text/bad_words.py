"""Bad words as token sequences: what the tokens of a word are at the beginning of an answer, and within it."""

from collections.abc import Iterator, Sequence

from ..errors import InvalidRequest
from .tokenizer import Tokenizer


def spellings(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Returns the token sequences that spell the words, each once, without a leading space and with one. Raises
    InvalidRequest for a word that has no token.

    As in vLLM, which adds the sequence with a space only if it is as long as the one without. Here it is left out only
    if it ends in that one, so that no spelling of a word is forgotten.
    """
    return tuple(sorted({sequence for word in words for sequence in _spellings(word, tokenizer)}))


def _spellings(word: str, tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    word = word.lstrip() or word  # a line end is a word, too
    plain, spaced = (tuple(tokenizer.encode(space + word, add_special_tokens=False)) for space in ("", " "))
    if not plain:
        raise InvalidRequest("bad_words", f"{word!r:.80} has no token")
    yield plain
    if spaced[-len(plain) :] != plain:
        yield spaced


def drawable(sequences: Sequence[tuple[int, ...]], vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """Returns the sequences that can occur: the tokenizer may be wider than the logits."""
    return tuple(sequence for sequence in sequences if max(sequence) < vocab_size)
