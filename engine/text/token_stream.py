"""TokenStream: decodes the tokens of one answer as they come, behind the end of its prompt.

What it returns adds up to the text by which the answer makes the prompt longer. A tokenizer decodes the same token
differently at the beginning of a text, where its space is lost, so the stream decodes new tokens behind a few known
ones: its context.
"""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import islice

MAX_PENDING = 16  # more tokens than any one character has
MAX_CHARACTER_TOKENS = 4  # a character of UTF-8 has at most four bytes
MAX_CONTEXT_TOKENS = 8
NUM_SEARCHED_TOKENS = 64  # last ones of the prompt, among which the context is looked for
MAX_KEPT_TEXTS = 8192
MAX_KEPT_CONTEXTS = 64
INCOMPLETE = "\ufffd"  # how half a character is decoded, and bytes that form none


class TokenDecoder:
    """Decodes tokens for the streams of one tokenizer. It keeps the texts of single tokens, which most contexts are."""

    def __init__(self, decode: Callable[[list[int]], str], hidden: Collection[int] = ()) -> None:
        """hidden: ids of tokens that `decode` leaves out."""
        self.decode = decode
        self.hidden = hidden
        self.clean_text_of_one = lru_cache(MAX_KEPT_TEXTS)(lambda token_id: self.clean_text([token_id]))
        # The samples of a prompt have one.
        self.context_in = lru_cache(MAX_KEPT_CONTEXTS)(lambda tokens: _context_in(self, list(tokens)))

    def clean_text(self, tokens: list[int]) -> str:
        """Returns the text of tokens that can be a context, and else nothing. They show something, and no part of a
        character."""
        text = self.decode(tokens)
        return "" if INCOMPLETE in text else text


class TokenStream:
    """It belongs to one thread at a time."""

    def __init__(self, decoder: TokenDecoder, prompt_token_ids: Sequence[int]) -> None:
        self._decoder = decoder
        self._context = _context(decoder, prompt_token_ids)
        self._context_text = decoder.decode(self._context)
        self._pending: list[int] = []  # tokens whose text is still held back

    def push(self, token_id: int) -> str:
        """Returns the text that this token completes; empty while a character is incomplete."""
        if token_id in self._decoder.hidden:
            return ""
        self._pending.append(token_id)
        text = self._decoder.decode(self._context + self._pending)
        if not text.endswith(INCOMPLETE):
            return self._release(self._pending, [], text)
        # No character is that long, and decoding ever more tokens at each new one would get slow.
        return "" if len(self._pending) <= MAX_PENDING else self._release_but_the_last(text)

    def flush(self) -> str:
        """Returns the text held back, with replacement characters for bytes that form no character."""
        return self._release(self._pending, [], self._decoder.decode(self._context + self._pending))

    def _release_but_the_last(self, whole: str) -> str:
        """Releases the tokens before the last character, which the next token may complete. A cut inside a character
        makes the text longer, because each half is decoded as wrong bytes."""
        cuts = [(self._pending[:-num_last], self._pending[-num_last:]) for num_last in range(1, MAX_CHARACTER_TOKENS)]
        texts = [(self._decoder.decode(self._context + first), self._decoder.decode(last)) for first, last in cuts]
        lengths = [len(first) + len(last) for first, last in texts]
        best = lengths.index(min(lengths))
        if lengths[best] > len(whole):
            return self._release(self._pending, [], whole)
        return self._release(*cuts[best], texts[best][0])

    def _release(self, tokens: list[int], pending: list[int], text: str) -> str:
        """Returns the text of tokens. pending: those that stay. text: of the context and the tokens."""
        # A byte that forms no character makes some tokenizers decode its neighbours anew, which were shown before.
        goes_on = text.startswith(self._context_text)
        new = text[len(self._context_text) :] if goes_on else self._decoder.decode(tokens)
        self._pending = pending
        if len(tokens) == 1 and (own_text := self._decoder.clean_text_of_one(tokens[0])):
            self._context, self._context_text = tokens, own_text
        elif tokens:
            known = self._context + tokens
            # Nothing but wrong bytes tells all the same that the text has begun.
            self._context = _context(self._decoder, known) or _last_whole(self._decoder, known)
            self._context_text = self._decoder.decode(self._context)
        return new


def _context(decoder: TokenDecoder, known: Sequence[int]) -> list[int]:
    """Returns the last known tokens that have a clean text. Those of a character that a prompt does not complete are
    left out; what the answer adds to it forms no character."""
    shown = (token_id for token_id in reversed(known) if token_id not in decoder.hidden)
    return decoder.context_in(tuple(islice(shown, NUM_SEARCHED_TOKENS))[::-1])


def _context_in(decoder: TokenDecoder, tokens: list[int]) -> list[int]:
    for end in range(len(tokens), 0, -1):
        for start in range(end - 1, max(end - MAX_CONTEXT_TOKENS, 0) - 1, -1):
            if decoder.clean_text(tokens[start:end]):
                return tokens[start:end]
    # Behind wrong bytes there may be a space, which alone is no text: the next token does not complete them any more.
    for start in range(len(tokens) - 1, max(len(tokens) - MAX_CONTEXT_TOKENS, 0) - 1, -1):
        if (text := decoder.decode(tokens[start:])) and not text.endswith(INCOMPLETE):
            return tokens[start:]
    return [] if decoder.decode(tokens) else tokens


def _last_whole(decoder: TokenDecoder, known: list[int]) -> list[int]:
    """Returns the last known tokens, from one on that begins a character if there is any: a part of a character is
    decoded as more wrong bytes."""
    suffixes = [known[-number:] for number in range(1, min(len(known), MAX_CONTEXT_TOKENS) + 1)]
    return min(suffixes, key=lambda tokens: len(decoder.decode(tokens)) - len(tokens))
