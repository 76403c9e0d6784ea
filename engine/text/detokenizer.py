"""Detokenizer: turns the tokens of one sample into text as they come, and finds the stop string that ends it.

No part of a stop string is ever shown: text that could be the beginning of one is held back until it cannot be. A
special token ends the text, too, where a stop string names it, whether or not special tokens are shown.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from blora.scheduler import SamplingParams

from .tokenizer import Tokenizer

# Characters that stand for hidden tokens in the searched text: half a pair of UTF-16, which no decoded text has.
FIRST_SYMBOL, NUM_SYMBOLS = 0xD800, 0x800


class Detokenizer:
    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> None:
        self._stream = tokenizer.decode_stream(prompt_token_ids, sampling.skip_special_tokens)
        stops = sampling.stop_strings
        hidden = tokenizer.special_contents if stops and sampling.skip_special_tokens else {}
        self._symbols = _symbols(hidden, stops)
        self._stops = _patterns(stops, {hidden[token_id]: symbol for token_id, symbol in self._symbols.items()})
        self._sorted_stops = sorted(self._stops)
        self._unshown = str.maketrans(dict.fromkeys(self._symbols.values()))
        self._min_tokens = sampling.min_tokens
        self._keeps_stop = sampling.include_stop_str_in_output
        self._num_tokens = 0
        self._text = ""  # all decoded text, the part held back included, and the symbols of hidden tokens
        self._num_checked = 0  # characters in which no stop string begins
        self.stop_string: str | None = None  # the one that ended the text

    @property
    def text(self) -> str:
        """The text that may be shown: all that cannot be the beginning of a stop string any more."""
        text = self._text if not self._stops or self.stop_string is not None else self._text[: self._num_checked]
        return text.translate(self._unshown) if self._symbols else text

    def push(self, token_ids: Sequence[int], is_last_shown: bool = True) -> int:
        """Adds tokens; returns how many of them were used, which is fewer than all if a stop string ended the text.

        is_last_shown: False if the last token is a stop token, which is no part of the text.
        """
        for index, token_id in enumerate(token_ids):
            self._num_tokens += 1
            if is_last_shown or index < len(token_ids) - 1:
                self._text += self._symbols.get(token_id) or self._stream.push(token_id)
            if self._find_stop():
                return index + 1
        return len(token_ids)

    def finish(self) -> None:
        """Releases the text held back, because no token follows."""
        if self.stop_string is None:
            self._text += self._stream.flush()
            if not self._find_stop():
                self._num_checked = len(self._text)

    def _find_stop(self) -> bool:
        if not self._stops:
            return False
        if self._num_tokens > self._min_tokens:
            starts = {pattern: self._text.find(pattern, self._num_checked) for pattern in self._stops}
            found = [(at, self._stops[pattern]) for pattern, at in starts.items() if at >= 0]
            if found:
                at, self.stop_string = min(found)
                self._text = self._text[:at] + (self.stop_string if self._keeps_stop else "")
                return True
        self._num_checked = max(self._num_checked, len(self._text) - self._longest_beginning())
        return False

    def _longest_beginning(self) -> int:
        """Returns the length of the longest suffix of the text that is a prefix of a stop string."""
        end = len(self._text)
        starts = range(max(self._num_checked, end - len(max(self._stops, key=len))), end)
        return next((end - start for start in starts if self._is_beginning(self._text[start:])), 0)

    def _is_beginning(self, text: str) -> bool:
        """Returns whether a stop string is longer than the text and begins with it. There may be many stop strings."""
        at = bisect_right(self._sorted_stops, text)  # those that begin with it come next
        return at < len(self._sorted_stops) and self._sorted_stops[at].startswith(text)


def _symbols(hidden: Mapping[int, str], stops: Sequence[str]) -> dict[int, str]:
    """Returns a symbol for each hidden token that a stop string contains, by id."""
    named = [token_id for token_id, content in hidden.items() if any(content in stop for stop in stops)]
    return {token_id: chr(FIRST_SYMBOL + index) for index, token_id in enumerate(named[:NUM_SYMBOLS])}


def _patterns(stops: Sequence[str], symbols: Mapping[str, str]) -> dict[str, str]:
    """Returns the stop string of each pattern to search for: itself, and itself with symbols for its special tokens.
    symbols: by content."""
    patterns = {stop: stop for stop in stops}
    for stop in stops:
        pattern = stop
        for content in sorted(symbols, key=len, reverse=True):  # one content may be a part of another
            pattern = pattern.replace(content, symbols[content])
        patterns[pattern] = stop
    return patterns
