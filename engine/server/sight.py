"""Sight: what a caller sees of adapters and of the engine. What others do is an operator's to see.

An operator sees everything; a tenant sees the adapters that it may use, and of those that it has not loaded only what
they are: not where they lie, who uses them, or whether they are in memory.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from dataclasses import replace
from pathlib import Path

from ..identity.caller import Caller
from ..outputs import AdapterEvent, AdapterInfo, AdapterSnapshot, AdapterUsage, EngineInfo

# Facts that clients need; all else of EngineInfo is load and counts.
FACTS = frozenset({"model", "dtype", "vocab_size", "max_model_len", "block_size", "version"})
OF_USE = ("resident", "evicted", "pinned", "unpinned")  # kinds of events


class Sight:
    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def of(self, info: AdapterInfo) -> AdapterInfo:
        if self._caller.is_operator:
            return info
        report = None if info.report is None else replace(info.report, path="")
        seen = replace(info, path="", versions=tuple(replace(kept, path="") for kept in info.versions), report=report)
        return seen if self._owns(info) else _as_what_it_is(seen)

    def of_all(self, infos: Iterable[AdapterInfo]) -> list[AdapterInfo]:
        if self._caller.is_operator:
            return list(infos)
        return [self.of(info) for info in infos if self._caller.may_use(info.name)]

    async def of_news(
        self, news: AsyncIterable[AdapterSnapshot | AdapterEvent]
    ) -> AsyncGenerator[AdapterSnapshot | AdapterEvent, None]:
        """What a watching caller is told. The revisions of a tenant count what it is told, and nothing else."""
        if self._caller.is_operator:
            async for item in news:
                yield item
            return
        own: set[str] = set()  # names of its own, as far as it was told
        revision = 0
        async for item in news:
            if isinstance(item, AdapterSnapshot):
                own = {info.name for info in item.adapters if self._owns(info)}
                yield AdapterSnapshot(revision, tuple(self.of_all(item.adapters)))
            elif self._caller.may_use(item.name) and (item.name in own or item.kind not in OF_USE):
                revision += 1
                yield replace(item, revision=revision)

    def _owns(self, info: AdapterInfo) -> bool:
        return bool(info.owner) and info.owner == self._caller.tenant.name


def _as_what_it_is(info: AdapterInfo) -> AdapterInfo:
    """An adapter without its use, which is that of others."""
    return replace(
        info,
        owner="",
        pinned=False,
        resident=False,
        num_requests=0,
        usage=AdapterUsage(),
        num_copies=0,
        num_copied_bytes=0,
        copy_seconds=0.0,
        in_host_memory=True,
        set_aside="",
    )


def name_of(model: str) -> str:
    """The last part of a path; the id of a model of the hub as it is."""
    path = Path(model)
    return path.name if path.is_absolute() or path.exists() else model


def facts_alone(info: EngineInfo) -> EngineInfo:
    """An engine without its load and counts, which are 0 or unset, and without the folder that its model lies in."""
    facts = {name: getattr(info, name) for name in FACTS} | {"model": name_of(info.model)}
    return EngineInfo(**facts, num_pages=0, page_bytes=0, num_free_pages=0, num_running=0, num_waiting=0)
