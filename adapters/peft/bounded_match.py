"""BoundedMatcher: regular expressions of strangers, evaluated for a limited time together.

Python's matcher goes back over all ways to match, which can be more than ever end; it does look at signals meanwhile.
"""

import re
import signal
from collections.abc import Callable
from types import FrameType

MAX_SECONDS = 1.0  # of this process's work; all patterns of an adapter on all modules take some milliseconds


class PatternTooSlow(Exception):
    """The time is used up."""


class BoundedMatcher:
    """Of one adapter. Only the main thread receives signals, as that of the loader: in any other nothing is limited."""

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._left = seconds

    def match(self, pattern: str, text: str) -> re.Match[str] | None:
        """Raises PatternTooSlow."""
        return self._bounded(lambda: re.match(pattern, text))

    def fullmatch(self, pattern: str, text: str) -> re.Match[str] | None:
        """Raises PatternTooSlow."""
        return self._bounded(lambda: re.fullmatch(pattern, text))

    def _bounded(self, evaluate: Callable[[], re.Match[str] | None]) -> re.Match[str] | None:
        try:
            before = signal.signal(signal.SIGVTALRM, _stop)
        except ValueError:  # this is another thread
            return evaluate()
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, max(self._left, 1e-6))  # 0 would be no limit
            return evaluate()
        finally:
            self._left = signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0]
            signal.signal(signal.SIGVTALRM, before)


def _stop(_: int, __: FrameType | None) -> None:
    raise PatternTooSlow
