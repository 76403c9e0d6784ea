"""StopStrings: finds stop strings in a text that grows, only where they can end and where they can begin."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping


class StopStrings:
    def __init__(self, patterns: Mapping[str, str]) -> None:
        """patterns: the text to search for -> the stop string that it stands for; at least one."""
        self._patterns = patterns
        self._sorted = sorted(patterns)
        self._max_length = max(map(len, patterns))
        self._first_characters = frozenset(pattern[0] for pattern in patterns)
        self._by_last_character: defaultdict[str, list[str]] = defaultdict(list)
        for pattern in patterns:
            self._by_last_character[pattern[-1]].append(pattern)

    def find(self, text: str, num_known: int) -> tuple[int, str] | None:
        """Returns where the first stop string begins, and which it is, among those that end in text[num_known:]. A
        character costs one look-up, however many stop strings there are that end with others."""
        found = [
            (end - len(pattern), self._patterns[pattern])
            for end in range(num_known + 1, len(text) + 1)
            for pattern in self._by_last_character.get(text[end - 1], ())
            if text.endswith(pattern, 0, end)
        ]
        return min(found, default=None)

    def num_beginning(self, text: str) -> int:
        """Returns the length of the longest suffix of the text with which a longer stop string begins."""
        starts = range(max(len(text) - self._max_length + 1, 0), len(text))
        return next((len(text) - start for start in starts if self._can_begin(text, start)), 0)

    def _can_begin(self, text: str, start: int) -> bool:
        if text[start] not in self._first_characters:
            return False
        beginning = text[start:]
        at = bisect_right(self._sorted, beginning)  # those that are longer and begin with it come next
        return at < len(self._sorted) and self._sorted[at].startswith(beginning)
