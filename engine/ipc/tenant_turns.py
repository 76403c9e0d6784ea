"""TenantTurns: the order in which those who wait for one worker get it. Tenants take turns, so that one of them holds
up another by no more than what it does in one turn."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..errors import QueueFull

MAX_TENANTS = 256  # that wait at once; clients can invent more, and those take turns as one
OTHERS = "(others)"


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    tenant: str
    size: int
    is_next: "asyncio.Future[None]"  # cancelled with the one who waits


class TenantTurns:
    """what: waits, for messages. most: the sum of the sizes that may wait. A tenant alone may fill half of it, so that
    another one always finds room."""

    def __init__(self, what: str, most: int) -> None:
        self._what, self._most = what, most
        self._places: dict[str, deque[_Place]] = {}  # by tenant; the first one is next
        self._sizes: Counter[str] = Counter()  # of what waits, by tenant
        self._is_taken = False

    @asynccontextmanager
    async def turn(self, tenant: str, size: int) -> AsyncGenerator[None, None]:
        """Waits for a turn, which lasts as long as the `with` block. Raises QueueFull."""
        if self._is_taken:
            await self._wait(tenant, size)
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, tenant: str, size: int) -> None:
        tenant = tenant if tenant in self._places or len(self._places) < MAX_TENANTS else OTHERS
        num_waiting = self._sizes.total()
        if num_waiting + size > self._most or self._sizes[tenant] + size > self._most // 2:
            raise QueueFull(f"{num_waiting} characters of {self._what} wait; at most {self._most} do, half of a tenant")
        place = _Place(tenant, size, asyncio.get_running_loop().create_future())
        self._places.setdefault(tenant, deque()).append(place)
        self._sizes[tenant] += size
        try:
            await place.is_next
        except asyncio.CancelledError:
            if not place.is_next.cancelled():  # it has just been given a turn
                self._pass_on()
            elif place in self._places.get(tenant, ()):
                self._remove(place)
            raise

    def _remove(self, place: _Place) -> None:
        self._places[place.tenant].remove(place)
        if not self._places[place.tenant]:
            del self._places[place.tenant]
        self._sizes[place.tenant] -= place.size
        if not self._sizes[place.tenant]:
            del self._sizes[place.tenant]

    def _pass_on(self) -> None:
        self._is_taken = False
        while self._places and not self._is_taken:
            tenant, places = next(iter(self._places.items()))
            place = places[0]
            self._remove(place)
            if not place.is_next.cancelled():
                self._is_taken = True
                place.is_next.set_result(None)
                if places:  # the tenant goes to the end
                    self._places[tenant] = self._places.pop(tenant)
