"""A client of a child process that is closed while the child starts leaves no process behind."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from simulation.clock import run

from blora.engine.adapter_store.download_client import DownloadClient
from blora.engine.adapter_store.lookout_client import LookoutClient
from blora.engine.errors import EngineUnavailable
from blora.engine.facts import Facts
from blora.engine.ipc.text_client import TextClient
from blora.engine.text.text_work import TextOrder, TextWork


class StartingChild:
    """Is its own `start_child`, and never answers."""

    def __init__(self) -> None:
        self.is_starting, self.may_start, self.is_stopped = asyncio.Event(), asyncio.Event(), False

    async def start(self, _module: str, _incoming: Any) -> Any:
        self.is_starting.set()
        await self.may_start.wait()
        return self

    def send(self, message: Any) -> None:
        pass

    async def receive(self) -> Any:
        await asyncio.sleep(1e6)

    async def stop(self, _grace: float) -> None:
        self.is_stopped = True


Call = Callable[[Any], tuple[Any, Coroutine[Any, Any, Any]]]


def look(start_child: Any) -> tuple[Any, Coroutine[Any, Any, Any]]:
    client = LookoutClient(start_child)
    return client, client.look_at(["/folder"])


def download(start_child: Any) -> tuple[Any, Coroutine[Any, Any, Any]]:
    client = DownloadClient(1 << 20, start_child)
    return client, client.locate("org/name")


def read(start_child: Any) -> tuple[Any, Coroutine[Any, Any, Any]]:
    client = TextClient(Path("model"), Facts(260, 96, 4, 12), 0, start_child)
    return client, client.read(TextOrder(work=TextWork(text="a"), text=None, runs_strange_template=False), "")


@pytest.mark.parametrize("begin", [look, download, read])
def test_it_is_stopped(begin: Call) -> None:
    async def main() -> None:
        child = StartingChild()
        client, work = begin(child.start)
        call = asyncio.create_task(work)
        await child.is_starting.wait()
        await client.close()
        child.may_start.set()
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(call, 1.0)
        assert child.is_stopped

    run(main)
