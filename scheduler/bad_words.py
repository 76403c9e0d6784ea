"""BadWords: token sequences that an answer must not contain. Knows no text; the front end has made tokens of the words.

Only the last token of a sequence is kept from being drawn, and only where the answer ends in the tokens before it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence


class BadWords:
    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        """sequences: each of at least one token."""
        self._last_tokens: dict[tuple[int, ...], set[int]] = defaultdict(set)  # the tokens before -> the last one
        for sequence in sequences:
            self._last_tokens[tuple(sequence[:-1])].add(sequence[-1])
        self._lengths = sorted({len(beginning) for beginning in self._last_tokens})

    def __bool__(self) -> bool:
        return bool(self._last_tokens)

    def banned_after(self, token_ids: Sequence[int], num_prompt_tokens: int) -> set[int]:
        """Returns the tokens that would complete a sequence. token_ids: prompt and answer; a sequence lies in the
        answer as a whole."""
        banned: set[int] = set()
        for length in self._lengths:
            if length <= len(token_ids) - num_prompt_tokens:
                banned |= self._last_tokens.get(tuple(token_ids[len(token_ids) - length :]), set())
        return banned


NO_BAD_WORDS = BadWords(())
