"""`blora top`: a server's load on a terminal: rows, queue, tokens, arena and adapters, drawn again when it changes.

Uses only blora.proto, and needs no engine.
"""

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from blora.proto.async_client import AsyncClient

from . import terminal
from .connection_flags import open_async_client

CLEAR = "\x1b[H\x1b[2J"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor
MOST_ADAPTERS = 1000  # that are compared
SHORTEST = 0.1  # seconds between two messages of a watch


@dataclass(frozen=True, slots=True)
class Picture:
    """What a server tells at a time."""

    time: float
    info: Any  # EngineInfo: its facts, which do not change
    load: Any  # LoadSnapshot
    adapters: Sequence[Any]  # AdapterInfo, the most used first


@dataclass(frozen=True, slots=True)
class Rates:
    """Of a second, between two pictures."""

    prompt_tokens: float
    answer_tokens: float
    requests: float
    refused: float

    @classmethod
    def between(cls, before: Picture, after: Picture) -> "Rates":
        seconds = max(after.time - before.time, 1e-3)

        def rate(field: str) -> float:  # a count begins again with each engine
            return float(max(getattr(after.load, field) - getattr(before.load, field), 0) / seconds)

        return cls(*map(rate, ("num_prompt_tokens", "num_generated_tokens", "num_requests", "num_refused")))


def run(args: argparse.Namespace) -> int:
    return terminal.guarded(lambda: asyncio.run(_watch(args)))


async def _watch(args: argparse.Namespace) -> int:
    interval = max(min(args.interval, 0.5) if args.once else args.interval, SHORTEST)
    is_terminal = sys.stdout.isatty() and not args.once
    async with open_async_client(args, args.target, timeout=10) as client, aclosing(pictures(client, interval)) as news:
        before = await anext(news)
        print(HIDE if is_terminal else "", end="")
        try:
            async for after in news:
                print(CLEAR if is_terminal else "", end="")
                _draw(before, after, args)
                if args.once:
                    break
                before = after
        finally:
            print(SHOW if is_terminal else "", end="")
    return 0


async def pictures(client: AsyncClient, interval: float) -> AsyncGenerator[Picture, None]:
    """Yields a picture whenever the load has changed, and one after a while in which it has not. Raises RpcError."""
    info = await client.info()
    async with client.watch_load(1 / interval) as loads:
        load, coming = await anext(loads), asyncio.ensure_future(anext(loads))
        try:
            while True:
                now, adapters = time.monotonic(), await client.list_adapters()
                yield Picture(now, info, load, sorted(adapters, key=_by_use)[:MOST_ADAPTERS])
                await asyncio.wait([coming], timeout=2 * interval)
                if coming.done():
                    load, coming = coming.result(), asyncio.ensure_future(anext(loads))
        finally:
            coming.cancel()


def _by_use(adapter: Any) -> tuple[int, int, str]:
    return -adapter.num_requests, -adapter.usage.num_requests, adapter.name


def _draw(before: Picture, after: Picture, args: argparse.Namespace) -> None:
    size = shutil.get_terminal_size((100, 40))
    room = None if args.once else size.lines - 1
    lines = list(screen(before, after, args.target, size.columns))
    print("\n".join(line[: size.columns] for line in lines[:room]), flush=True)


def screen(before: Picture, after: Picture, target: str, width: int) -> Iterator[str]:
    info, load, rates = after.info, after.load, Rates.between(before, after)
    hits = f"{load.num_cached_tokens / load.num_prompt_tokens:.0%}" if load.num_prompt_tokens else "-"
    state = "" if load.is_serving else "  (not serving now)"
    yield f"blora {info.version}  {info.model}  {info.dtype}  {target}{state}"
    yield ""
    queue = f"{load.num_waiting:>6} waiting {load.num_queued_tokens:>9} tokens queued"
    yield f"requests  {load.num_running:>6} running {queue}"
    yield f"          {rates.requests:>6.1f} ended/s {rates.refused:>6.1f} refused/s"
    yield f"tokens    {rates.answer_tokens:>6.1f} generated/s {rates.prompt_tokens:>8.1f} prompt/s   prefix hits {hits}"
    yield f"engine    {load.num_engine_deaths} deaths, {load.num_crashes} crashes, {load.num_preemptions} preemptions"
    yield ""
    yield from arena(after, width)
    yield ""
    yield from adapters(before, after)


def arena(picture: Picture, width: int) -> Iterator[str]:
    """The arena as a bar: pages of resident adapters, pages of requests, free ones."""
    load = picture.load
    num_adapters = min(sum(a.num_pages for a in picture.adapters if a.resident), load.num_pages)
    num_used = load.num_pages - load.num_free_pages
    num_requests = max(num_used - num_adapters, 0)
    cells = max(min(width - 12, 80), 10)
    a, r = (round(cells * num / max(load.num_pages, 1)) for num in (num_adapters, num_requests))
    bar = ("A" * a + "#" * r)[:cells].ljust(cells, ".")
    yield f"arena     [{bar}]"
    total = size_text(load.num_pages * picture.info.page_bytes)
    yield f"          A adapters {num_adapters}, # requests {num_requests}, . free of {load.num_pages} pages, {total}"


def adapters(before: Picture, after: Picture) -> Iterator[str]:
    done = {adapter.name: adapter.usage.num_generated_tokens for adapter in before.adapters}
    seconds = max(after.time - before.time, 1e-3)
    num_resident = sum(adapter.resident for adapter in after.adapters)
    yield f"adapters  {len(after.adapters)} loaded, {num_resident} resident"
    yield from _row(("NAME", "WHERE", "RUNNING", "REQUESTS", "TOKENS", "TOKENS/S", "SIZE"))
    for adapter in after.adapters:
        usage = adapter.usage
        rate = max(usage.num_generated_tokens - done.get(adapter.name, 0), 0) / seconds
        counts = (adapter.num_requests, usage.num_requests, usage.num_generated_tokens, f"{rate:.1f}")
        yield from _row((adapter.name, _place(adapter), *counts, size_text(adapter.num_bytes)))


def _row(cells: Iterable[Any]) -> Iterator[str]:
    name, place, *numbers = map(str, cells)
    yield f"{name:<28.28} {place:<9}" + "".join(f"{number:>11}" for number in numbers)


def size_text(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _place(adapter: Any) -> str:
    if adapter.set_aside:
        return "set aside"
    if adapter.resident:
        return "pinned" if adapter.pinned else "arena"
    return "host" if adapter.in_host_memory else "files"
