"""`blora top`: a server's load on a terminal: rows, queue, tokens, arena and adapters, drawn again each second.

Uses only blora.proto, and needs no engine.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from blora.proto.client import Client

from . import terminal
from .connection_flags import open_client

CLEAR = "\x1b[H\x1b[2J"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor
MOST_ADAPTERS = 1000  # that are compared


@dataclass(frozen=True, slots=True)
class Picture:
    """What a server tells at a time."""

    time: float
    info: Any  # a GetInfoResponse
    adapters: Sequence[Any]  # Adapter messages, the most used first


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
            return float(max(getattr(after.info, field) - getattr(before.info, field), 0) / seconds)

        return cls(*map(rate, ("num_prompt_tokens", "num_generated_tokens", "num_requests", "num_refused")))


def run(args: argparse.Namespace) -> int:
    return terminal.guarded(lambda: _watch(args))


def _watch(args: argparse.Namespace) -> int:
    with open_client(args, args.target, timeout=10) as client:
        before = take(client)
        if args.once:
            time.sleep(min(args.interval, 1.0))
            _draw(before, take(client), args)
            return 0
        is_terminal = sys.stdout.isatty()
        print(HIDE if is_terminal else "", end="")
        try:
            while True:
                time.sleep(args.interval)
                after = take(client)
                print(CLEAR if is_terminal else "", end="")
                _draw(before, after, args)
                before = after
        finally:
            print(SHOW if is_terminal else "", end="")


def take(client: Client) -> Picture:
    info, adapters = client.info(), client.list_adapters()
    busiest = sorted(adapters, key=lambda adapter: (-adapter.num_requests, -adapter.usage.num_requests, adapter.name))
    return Picture(time.monotonic(), info, busiest[:MOST_ADAPTERS])


def _draw(before: Picture, after: Picture, args: argparse.Namespace) -> None:
    size = shutil.get_terminal_size((100, 40))
    room = None if args.once else size.lines - 1
    lines = list(screen(before, after, args.target, size.columns))
    print("\n".join(line[: size.columns] for line in lines[:room]), flush=True)


def screen(before: Picture, after: Picture, target: str, width: int) -> Iterator[str]:
    info, rates = after.info, Rates.between(before, after)
    hits = f"{info.num_cached_tokens / info.num_prompt_tokens:.0%}" if info.num_prompt_tokens else "-"
    yield f"blora {info.version}  {info.model}  {info.dtype}  {target}"
    yield ""
    queue = f"{info.num_waiting:>6} waiting {info.num_queued_tokens:>9} tokens queued"
    yield f"requests  {info.num_running:>6} running {queue}"
    yield f"          {rates.requests:>6.1f} ended/s {rates.refused:>6.1f} refused/s"
    yield f"tokens    {rates.answer_tokens:>6.1f} generated/s {rates.prompt_tokens:>8.1f} prompt/s   prefix hits {hits}"
    yield f"engine    {info.num_engine_deaths} deaths, {info.num_crashes} crashes, {info.num_preemptions} preemptions"
    yield ""
    yield from arena(after, width)
    yield ""
    yield from adapters(before, after)


def arena(picture: Picture, width: int) -> Iterator[str]:
    """The arena as a bar: pages of resident adapters, pages of requests, free ones."""
    info = picture.info
    num_adapters = min(sum(a.num_pages for a in picture.adapters if a.resident), info.num_pages)
    num_used = info.num_pages - info.num_free_pages
    num_requests = max(num_used - num_adapters, 0)
    cells = max(min(width - 12, 80), 10)
    a, r = (round(cells * num / max(info.num_pages, 1)) for num in (num_adapters, num_requests))
    bar = ("A" * a + "#" * r)[:cells].ljust(cells, ".")
    yield f"arena     [{bar}]"
    total = size_text(info.num_pages * info.page_bytes)
    yield f"          A adapters {num_adapters}, # requests {num_requests}, . free of {info.num_pages} pages, {total}"


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
