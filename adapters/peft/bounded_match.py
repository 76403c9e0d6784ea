"""BoundedMatcher: evaluates regular expressions of strangers, all together within a limited time.

Python's matcher backtracks over all ways to match, which can take practically for ever. It handles signals meanwhile.
"""

import re
import signal
from collections.abc import Callable
from types import FrameType

MAX_SECONDS = 1.0  # CPU time of this process; all patterns of an adapter on all modules take a few milliseconds


class PatternTooSlow(Exception):
    """The matcher's time is used up."""


class BoundedMatcher:
    """The matcher of one adapter. Only a main thread, such as the loader's, receives signals: in any other thread the
    time is not limited."""

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._left = seconds

    def match(self, pattern: str, text: str) -> re.Match[str] | None:
        """Matches as re.match does. Raises PatternTooSlow."""
        return self._bounded(lambda: re.match(pattern, text))

    def fullmatch(self, pattern: str, text: str) -> re.Match[str] | None:
        """Matches as re.fullmatch does. Raises PatternTooSlow."""
        return self._bounded(lambda: re.fullmatch(pattern, text))

    def _bounded(self, evaluate: Callable[[], re.Match[str] | None]) -> re.Match[str] | None:
        try:
            before = signal.signal(signal.SIGVTALRM, _stop)
        except ValueError:  # this is not the main thread
            return evaluate()
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, max(self._left, 1e-6))  # 0 would be no limit
            return evaluate()
        finally:
            self._left = signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0]
            signal.signal(signal.SIGVTALRM, before)


def _stop(_: int, __: FrameType | None) -> None:
    raise PatternTooSlow
