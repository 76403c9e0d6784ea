"""StatsLine: a line of the log each ten seconds with throughput and load, in vLLM's words."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from ..errors import EngineUnavailable
from ..events import tell
from ..front_end.statistics import Statistics
from .exposition import Statistical

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a line compares with the one before."""

    time: float
    num_prompt_tokens: int
    num_answer_tokens: int
    num_queries: int  # of the prefix cache; counts of an engine, which begin again with the next one
    num_hits: int
    num_refused: int

    @classmethod
    def of(cls, statistics: Statistics, now: float) -> Self:
        seen, info = statistics.observations, statistics.info
        return cls(
            now,
            seen.num_prompt_tokens,
            seen.num_answer_tokens,
            info.num_prompt_tokens if info else 0,
            info.num_cached_tokens if info else 0,
            seen.refusals.total(),
        )


class StatsLine:
    def __init__(self, statistics: Statistics, now: float) -> None:
        self._last = Reading.of(statistics, now)

    def next(self, statistics: Statistics, now: float) -> tuple[str, bool]:
        """Returns the line since the last one, and whether anything moves."""
        last, here = self._last, Reading.of(statistics, now)
        self._last = here
        seconds = max(here.time - last.time, 1e-9)
        num_prompt = here.num_prompt_tokens - last.num_prompt_tokens
        num_answer = here.num_answer_tokens - last.num_answer_tokens
        num_refused = here.num_refused - last.num_refused
        parts = [
            f"Avg prompt throughput: {num_prompt / seconds:.1f} tokens/s",
            f"Avg generation throughput: {num_answer / seconds:.1f} tokens/s",
            *_load(statistics, last, here),
        ]
        if num_refused:
            parts.append(f"Refused: {num_refused} reqs")
        is_moving = bool(num_prompt or num_answer or num_refused or statistics.queue.num_unfinished)
        return ", ".join(parts), is_moving


def _load(statistics: Statistics, last: Reading, here: Reading) -> list[str]:
    info, adapters = statistics.info, statistics.adapters
    if info is None:
        return ["no engine answers now", f"Unfinished: {statistics.queue.num_unfinished} reqs"]
    num_queries, num_hits = here.num_queries - last.num_queries, here.num_hits - last.num_hits
    hit_rate = max(num_hits, 0) / num_queries if num_queries > 0 else 0.0
    return [
        f"Running: {info.num_running} reqs",
        f"Waiting: {info.num_waiting} reqs",
        f"KV cache usage: {1 - info.num_free_pages / info.num_pages:.1%}",
        f"Prefix cache hit rate: {hit_rate:.1%}",
        f"Adapters: {adapters.num_resident} resident of {adapters.num_known}",
    ]


@asynccontextmanager
async def stats_line(get_statistics: Statistical, interval: float) -> AsyncGenerator[None, None]:
    """Tells of an engine each `interval` seconds while the context is open."""
    telling = asyncio.create_task(_tell(get_statistics, interval))
    try:
        yield
    finally:
        telling.cancel()


async def _tell(get_statistics: Statistical, interval: float) -> None:
    loop = asyncio.get_running_loop()
    line: StatsLine | None = None
    while True:
        try:
            statistics = await get_statistics()
        except EngineUnavailable:  # before its start
            await asyncio.sleep(interval)
            continue
        if line is None:
            line = StatsLine(statistics, loop.time())
        else:
            text, is_moving = line.next(statistics, loop.time())
            tell(logger, "statistics", text, logging.INFO if is_moving else logging.DEBUG)
        await asyncio.sleep(interval)
