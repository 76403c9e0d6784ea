"""Detokenizer: turns the tokens of one sample into text as they come, and finds the stop string that ends it.

No part of a stop string is ever shown: text that could be the beginning of one is held back until it cannot be. A
special token ends the text, too, where a stop string names it, whether or not special tokens are shown.
"""

from collections.abc import Mapping, Sequence

from blora.scheduler import SamplingParams

from .stop_strings import StopStrings
from .tokenizer import Tokenizer

# Characters that stand for hidden tokens in the searched text: half a pair of UTF-16, which no decoded text has.
FIRST_SYMBOL, NUM_SYMBOLS = 0xD800, 0x800


class Detokenizer:
    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> None:
        self._stream = tokenizer.decode_stream(prompt_token_ids, sampling.skip_special_tokens)
        stops = sampling.stop_strings
        hidden = tokenizer.special_contents if stops and sampling.skip_special_tokens else {}
        self._symbols = _symbols(hidden, stops)
        symbols = {hidden[token_id]: symbol for token_id, symbol in self._symbols.items()}
        self._stops = StopStrings(_patterns(stops, symbols)) if stops else None
        self._unshown = str.maketrans(dict.fromkeys(symbols.values()))
        self._min_tokens = sampling.min_tokens
        self._keeps_stop = sampling.include_stop_str_in_output
        self._num_tokens = 0
        self._held = ""  # what could be the beginning of a stop string, with the symbols of hidden tokens
        self.text = ""  # the text that may be shown: all that cannot be the beginning of a stop string any more
        self.stop_string: str | None = None  # the one that ended the text

    def push(self, token_ids: Sequence[int], is_last_shown: bool = True) -> int:
        """Adds tokens; returns how many of them were used, which is fewer than all if a stop string ended the text.

        is_last_shown: False if the last token is a stop token, which is no part of the text.
        """
        for index, token_id in enumerate(token_ids):
            self._num_tokens += 1
            if is_last_shown or index < len(token_ids) - 1:
                self._add(self._symbols.get(token_id) or self._stream.push(token_id))
                if self.stop_string is not None:
                    return index + 1
        return len(token_ids)

    def finish(self) -> None:
        """Releases the text held back, because no token follows."""
        if self.stop_string is None:
            self._add(self._stream.flush())
            self._show(self._held)
            self._held = ""

    def _add(self, new: str) -> None:
        if self._stops is None:
            self.text += new
        elif new:
            self._search(self._stops, self._held + new, len(self._held))

    def _search(self, stops: StopStrings, text: str, num_known: int) -> None:
        """Shows of a text what is before a stop string, or before what could become one."""
        found = stops.find(text, num_known) if self._num_tokens > self._min_tokens else None
        if found is None:
            at = len(text) - stops.num_beginning(text)
            self._held = text[at:]
            self._show(text[:at])
            return
        at, self.stop_string = found
        self._held = ""
        self._show(text[:at])
        if self._keeps_stop:
            self.text += self.stop_string

    def _show(self, text: str) -> None:
        self.text += text.translate(self._unshown) if self._unshown else text


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
