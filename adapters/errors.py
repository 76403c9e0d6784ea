"""What can be wrong with an adapter, as types."""

from collections.abc import Sequence


class AdapterError(Exception):
    """Any fault of an adapter; its message may be shown to a client."""


class AdapterNotFound(AdapterError, LookupError):
    """No adapter is registered under this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no adapter is loaded under the name {name!r}")
        self.name = name


class AdapterRejected(AdapterError, ValueError):
    """The folder cannot be served as asked; `problems` lists everything that did not fit."""

    SHOWN = 20  # a wrong base model misses every tensor; the first ones tell

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        more = len(self.problems) - self.SHOWN
        lines = [*self.problems[: self.SHOWN], *([f"and {more} more"] if more > 0 else [])]
        super().__init__(f"adapter {source!r} is refused: " + "; ".join(lines))


class AdapterTooLarge(AdapterError):
    """The adapter needs more pages than the arena can give it."""
