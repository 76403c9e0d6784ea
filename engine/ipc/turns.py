"""Turns: shares the turns of an event loop between long pieces of work, so that no turn takes long.

A turn runs everything that is ready. If each of many tasks gave way only after its own few milliseconds, they would
hold up a turn for as long as all of them together.
"""

import asyncio
from collections import deque

# The costs of pieces are estimates in microseconds. Two shares of one object can meet in one turn, and the engine's
# updates and the server's messages have one object each, so this keeps turns below 10 ms.
SHARE = 2000


class Turns:
    """Belongs to one event loop. Pieces run in the order in which they were announced."""

    def __init__(self) -> None:
        self._left = SHARE  # of the present turn
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._is_ending = False  # whether the end of the present turn is scheduled

    async def take(self, cost: int) -> None:
        """Returns in the turn in which a piece of work may run. A piece that costs more than a share has it alone."""
        self._end_turn_soon()
        if not self._waiting and self._fits(cost):
            self._left -= cost
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((cost, turn))
        await turn

    def _fits(self, cost: int) -> bool:
        return min(cost, SHARE) <= self._left

    def _end_turn_soon(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._left, self._is_ending = SHARE, False
        while self._waiting and (self._waiting[0][1].done() or self._fits(self._waiting[0][0])):
            cost, turn = self._waiting.popleft()
            if not turn.done():  # otherwise its task was cancelled
                self._left -= cost
                turn.set_result(None)
        if self._left < SHARE:
            self._end_turn_soon()
