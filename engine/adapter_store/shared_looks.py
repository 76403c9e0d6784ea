"""SharedLooks: looks at the files of adapters whose paths come with requests, so that new weights are noticed.

A look takes a few `stat` calls, which a slow disk may answer late: another process does them. One look runs at a time,
and all callers that come meanwhile share the next one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

Look = Callable[[Sequence[str]], Awaitable[Mapping[str, str]]]


class SharedLooks:
    def __init__(self, look: Look) -> None:
        """look: returns the fingerprint of each folder."""
        self._look = look
        self._turn = asyncio.Lock()
        self._next: dict[str, None] = {}  # the folders of the next look
        self._task: asyncio.Task[Mapping[str, str]] | None = None  # the look that has not begun

    async def look_at(self, folders: Collection[str]) -> Mapping[str, str]:
        """The fingerprints of the folders, and of others, as they are after this call. A caller that is cancelled
        cancels no look. Raises what a look raises."""
        self._next |= dict.fromkeys(folders)
        return await asyncio.shield(self.begin())

    def begin(self) -> "asyncio.Task[Mapping[str, str]]":
        """The next look, which begins in its turn."""
        if self._task is None:
            self._task = asyncio.create_task(self._take_turn())
            self._task.add_done_callback(_note_failure)
        return self._task

    async def _take_turn(self) -> Mapping[str, str]:
        async with self._turn:
            folders, self._next, self._task = list(self._next), {}, None
            return await self._look(folders)


def _note_failure(look: "asyncio.Task[Mapping[str, str]]") -> None:
    """The callers get it; asyncio would report it when all of them have gone."""
    if not look.cancelled():
        look.exception()
