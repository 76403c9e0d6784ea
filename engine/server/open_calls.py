"""OpenCalls: how many calls of a door are being answered. A server ends when there are none."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class OpenCalls:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self.number = 0
        self._none_open = asyncio.Event()
        self._none_open.set()

    def begin(self) -> None:
        self.number += 1
        self._none_open.clear()

    def end(self) -> None:
        self.number -= 1
        if not self.number:
            self._none_open.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()

    async def wait_for_none(self, seconds: float) -> None:
        """Returns when all calls are answered, at the latest after these seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_open.wait(), seconds)
