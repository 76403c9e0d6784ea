"""Health: reports through grpc.health.v1 whether the server serves, with one status for "" and every service.

The status is NOT_SERVING until the engine has started, during a restart, and for good once the server drains.
"""

import asyncio
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

NAME = health.SERVICE_NAME


class Health:
    def __init__(self, services: Sequence[str]) -> None:
        self._services = ("", *services)
        self._servicer = health.aio.HealthServicer()
        self._publishing: set[asyncio.Task[None]] = set()  # keeps them alive: the event loop holds tasks only weakly

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, is_serving: bool) -> None:
        """Sets the status of all services. Has no effect after `drain`, so that an engine that comes back attracts no
        new requests."""
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if is_serving else statuses.NOT_SERVING
        for service in self._services:
            await self._servicer.set(service, status)

    def set_soon(self, is_serving: bool) -> None:
        """Sets the status without waiting, for the engine's callback, which cannot wait."""
        task = asyncio.get_running_loop().create_task(self.set(is_serving))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def drain(self) -> None:
        await self._servicer.enter_graceful_shutdown()
