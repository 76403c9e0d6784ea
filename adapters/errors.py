"""The errors of adapters, as types.

An error hands its arguments to Exception as they are and makes its message of them in `__str__`, so that a copy, and
what another process gets by pickle, is made from the same arguments.
"""

from collections.abc import Sequence


class AdapterError(Exception):
    """Any fault of an adapter. Its message may be shown to a client."""


class AdapterNotFound(AdapterError, LookupError):
    """No adapter is registered under this name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"no adapter is loaded under the name {self.name!r:.140}"


class AdapterRejected(AdapterError, ValueError):
    """The folder cannot be served as requested; `problems` lists everything that does not fit."""

    SHOWN = 8  # problems in the message, which then has 10 lines at most

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__(source, self.problems)

    def __str__(self) -> str:
        more = len(self.problems) - self.SHOWN
        lines = [*self.problems[: self.SHOWN], *([f"and {more} more"] if more > 0 else [])]
        return f"adapter {self.source!r} is refused:" + (" " if len(lines) == 1 else "\n  ") + "\n  ".join(lines)


class AdapterTooLarge(AdapterError):
    """The adapter needs more pages than the arena can give it."""
