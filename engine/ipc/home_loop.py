"""HomeLoop: the event loop that an object belongs to, with its tasks and connections: the first one that uses it."""

import asyncio

from ..errors import WrongEventLoop


class HomeLoop:
    """what: the object, for messages."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_here(self) -> bool:
        """Whether the running event loop is the object's. Before its first use, any is."""
        return self._loop in (None, asyncio.get_running_loop())

    def check(self) -> None:
        """Makes the running event loop the object's, if it has none. Raises WrongEventLoop in any other."""
        if not self.is_here:
            raise WrongEventLoop(
                f"this {self._what} belongs to another event loop{self._how_it_is}; use it inside one asyncio.run, and "
                "from other threads by asyncio.run_coroutine_threadsafe"
            )
        self._loop = asyncio.get_running_loop()

    @property
    def _how_it_is(self) -> str:
        return ", which is closed" if self._loop is not None and self._loop.is_closed() else ""
