"""Stopwatch: measures functions of a running engine step by step, each without the watched functions that it calls.

It replaces functions and restores them when it is closed. The time of an unwatched function counts for its caller.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Parts = Mapping[str, float]  # label -> seconds


@dataclass(frozen=True, slots=True)
class Record:
    """The times from one start to the next."""

    start: float  # time.monotonic()
    # label -> seconds, without inner calls that have their own labels
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


class Stopwatch:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self._inner: list[float] = []  # seconds of watched calls inside each open watched call
        self._replaced: list[tuple[Any, str, Any, bool]] = []

    def watch(
        self, owner: Any, name: str, label: str, starts_record: bool = False, parts: Callable[[], Parts] | None = None
    ) -> None:
        """Watches the function `name` of `owner`: an object, a class or a module. A missing name is ignored. parts:
        called after each call; returns the parts of its time that belong to other labels."""
        function = getattr(owner, name, None)
        if function is None:
            return
        self._replaced.append((owner, name, function, name in vars(owner)))
        setattr(owner, name, self._timed(function, label, starts_record, parts))

    def _timed(
        self, function: Callable[..., Any], label: str, starts_record: bool, parts: Callable[[], Parts] | None
    ) -> Callable[..., Any]:
        @functools.wraps(function, assigned=())
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            if starts_record:
                self.records.append(Record(started))
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                elapsed, inner = time.monotonic() - started, self._inner.pop()
                if self._inner:
                    self._inner[-1] += elapsed
                if self.records:
                    self._count({label: elapsed - inner})
                    shares = parts() if parts is not None else {}
                    self._count({label: -sum(shares.values()), **shares})

        return call

    def _count(self, seconds: Parts) -> None:
        for label, share in seconds.items():
            self.records[-1].seconds[label] += share

    def __enter__(self) -> "Stopwatch":
        return self

    def __exit__(self, *_: object) -> None:
        while self._replaced:
            owner, name, function, is_own = self._replaced.pop()
            if is_own:
                setattr(owner, name, function)
            else:
                delattr(owner, name)
