"""BoundedMatcher: evaluates regular expressions of strangers, all together within a limited time.

Python's matcher backtracks over all ways to match, which can take practically for ever. It handles signals meanwhile.
"""

import re
import signal
import time
from collections.abc import Callable
from types import FrameType

# CPU time of this process. All patterns of an adapter on all modules take some milliseconds, a rank and an alpha for
# each module of 80 layers a tenth of a second. Whoever waits for the loader waits for a hostile pattern, too.
MAX_SECONDS = 0.4


class PatternTooSlow(Exception):
    """The matcher's time is used up."""


class BoundedMatcher:
    """The matcher of one adapter. Only a main thread, such as the loader's, receives signals: in any other thread the
    time is not limited."""

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._left = seconds
        self._compiled: dict[str, re.Pattern[str]] = {}  # there can be more of them than re keeps

    def match(self, pattern: str, text: str) -> re.Match[str] | None:
        """Matches as re.match does. Raises PatternTooSlow."""
        return self._bounded(self._of(pattern).match, text)

    def fullmatch(self, pattern: str, text: str) -> re.Match[str] | None:
        """Matches as re.fullmatch does. Raises PatternTooSlow."""
        return self._bounded(self._of(pattern).fullmatch, text)

    def _of(self, pattern: str) -> re.Pattern[str]:
        if pattern not in self._compiled:
            self._compiled[pattern] = re.compile(pattern)
        return self._compiled[pattern]

    def _bounded(self, evaluate: Callable[[str], re.Match[str] | None], text: str) -> re.Match[str] | None:
        try:
            before = signal.signal(signal.SIGVTALRM, _stop)
        except ValueError:  # this is not the main thread
            return evaluate(text)
        began = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, max(self._left, 1e-6))  # 0 would be no limit
            return evaluate(text)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)  # what it says is left is rounded up, to more than there was
            self._left -= time.process_time() - began
            signal.signal(signal.SIGVTALRM, before)


def _stop(_: int, __: FrameType | None) -> None:
    raise PatternTooSlow
