"""An engine process that tests share while they ask for the same options: its start takes longer than most tests."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from settled import check_settled

from blora.engine import AsyncLLM

Body = Callable[[AsyncLLM], Coroutine[Any, Any, None]]
OPTIONS: dict[str, Any] = {"memory": "2MB", "block_size": 4, "max_num_batched_tokens": 64, "threads": 1}
LONGEST = 250.0  # seconds: beside others a loader, nicer than all, hardly gets a core


class SharedEngine:
    """Keeps one. A test gets it without adapters, and has to leave nothing in it; one that fails ends it."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._llm: AsyncLLM | None = None
        self._made_of: object = None

    def run(self, model: Path, body: Body, adapters: Mapping[str, Path], **options: Any) -> None:
        """options: beside those of all tests."""
        self._runner = self._runner or asyncio.Runner()
        self._runner.run(asyncio.wait_for(self._serve(model, body, adapters, OPTIONS | options), LONGEST))

    def close(self) -> None:
        if self._runner is not None:
            self._runner.run(self._end())
            self._runner.close()
            self._runner = None

    async def _serve(self, model: Path, body: Body, adapters: Mapping[str, Path], options: dict[str, Any]) -> None:
        llm = await self._started(model, options)
        try:
            for name, folder in adapters.items():
                await llm.load_adapter(name, folder)
            await body(llm)
            for info in await llm.list_adapters():
                await llm.unload_adapter(info.name)
            await check_settled(llm)
        except BaseException:
            await self._end()
            raise

    async def _started(self, model: Path, options: dict[str, Any]) -> AsyncLLM:
        if self._llm is None or self._made_of != (model, options):
            await self._end()
            llm = AsyncLLM(str(model), **options)
            await llm.start()
            self._llm, self._made_of = llm, (model, options)
        return self._llm

    async def _end(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            await llm.shutdown()


shared_engine = SharedEngine()


def run_alone(model: Path, body: Body, **options: Any) -> None:
    """In an engine of its own."""

    async def whole() -> None:
        async with AsyncLLM(str(model), **OPTIONS | options) as llm:
            await body(llm)

    asyncio.run(asyncio.wait_for(whole(), LONGEST))
