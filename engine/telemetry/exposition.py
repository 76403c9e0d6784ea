"""Exposition: the text of /metrics, and the little ASGI app that answers with it.

The app serves on `--metrics-port`, and the HTTP door mounts it, or calls `render`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from time import perf_counter
from typing import Any, TypeAlias

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from ..errors import EngineUnavailable, PermissionDenied, Unauthenticated
from ..front_end.statistics import Statistics
from .families import collect

Statistical: TypeAlias = Callable[[], Awaitable[Statistics]]  # AsyncLLM.get_statistics
Message: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
TURN = 0.002  # seconds of the event loop; streams wait for them
PLAIN = "text/plain; charset=utf-8"


class _Registry:
    """What prometheus_client's encoders take for a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def render(statistics: Statistics, prefix: str = "blora", accept: str = "") -> tuple[bytes, str]:
    """Returns the text of /metrics and its content type, made in several turns of the event loop. accept: the header of
    the request, by which scrapers ask for OpenMetrics."""
    encode, content_type = choose_encoder(accept)
    end = encode(_Registry([]))  # the last line of OpenMetrics, which each piece would have
    pieces, began = [], perf_counter()
    for family in collect(statistics, prefix):
        pieces.append(encode(_Registry([family])).removesuffix(end))
        if perf_counter() - began > TURN:
            await asyncio.sleep(0)
            began = perf_counter()
    return b"".join([*pieces, end]), content_type


class MetricsApp:
    """An ASGI app that answers GET /metrics, /health and nothing else."""

    def __init__(
        self, get_statistics: Statistical, prefix: str = "blora", check: Callable[[str | None], None] = lambda _: None
    ) -> None:
        """check: of the header authorization, for /metrics; raises Unauthenticated, PermissionDenied."""
        self._get_statistics, self._prefix, self._check = get_statistics, prefix, check

    async def __call__(self, scope: Message, _: object, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, body, content_type = await self._answer(scope)
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Message) -> tuple[int, bytes, str]:
        if scope["method"] not in ("GET", "HEAD"):
            return 405, b"only GET is served\n", PLAIN
        match scope["path"].rstrip("/"):
            case "/metrics":
                return await self._metrics(scope)
            case "/health":
                return await self._health()
        return 404, b"see /metrics\n", PLAIN

    async def _metrics(self, scope: Message) -> tuple[int, bytes, str]:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        accept = headers.get(b"accept", "")
        try:
            self._check(headers.get(b"authorization"))
            return 200, *await render(await self._get_statistics(), self._prefix, accept)
        except EngineUnavailable as error:
            return 503, f"{error}\n".encode(), PLAIN
        except Unauthenticated as error:
            return 401, f"{error}\n".encode(), PLAIN
        except PermissionDenied as error:
            return 403, f"{error}\n".encode(), PLAIN

    async def _health(self) -> tuple[int, bytes, str]:
        try:
            is_serving = (await self._get_statistics()).is_serving
        except EngineUnavailable:
            is_serving = False
        return (200, b"serving\n", PLAIN) if is_serving else (503, b"not serving\n", PLAIN)
