"""Health: when a server's reported health changes, on the clock of a load."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

LONGEST = 60.0  # seconds to wait for a change
SERVING = health_pb2.HealthCheckResponse.SERVING


class Health:
    """Changes since it began to watch: (seconds of the event loop's clock, whether it serves)."""

    def __init__(self) -> None:
        self.changes: list[tuple[float, bool]] = []
        self._news = asyncio.Condition()

    async def note(self, is_serving: bool) -> None:
        async with self._news:
            self.changes.append((asyncio.get_running_loop().time(), is_serving))
            self._news.notify_all()

    async def wait(self, is_serving: bool, since: float) -> float:
        """Returns the seconds from `since` until the health was this, for the first time after it. Raises
        TimeoutError."""
        async with asyncio.timeout(LONGEST), self._news:
            while not (found := [at for at, what in self.changes if what == is_serving and at >= since]):
                await self._news.wait()
            return found[0] - since


@asynccontextmanager
async def watched(address: str) -> AsyncIterator[Health]:
    health = Health()
    async with grpc.aio.insecure_channel(address) as channel:

        async def watch() -> None:
            request = health_pb2.HealthCheckRequest(service="blora.v1.GenerationService")
            async for answer in health_pb2_grpc.HealthStub(channel).Watch(request):
                await health.note(answer.status == SERVING)

        watching = asyncio.create_task(watch())
        try:
            await health.wait(True, 0.0)
            yield health
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
