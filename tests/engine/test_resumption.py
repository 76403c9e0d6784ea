"""The death of an engine is a pause: the next one goes on with the same tokens."""

import asyncio
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kill_under_load import kill_under_load
from processes import ENGINE, child_that_runs
from shared_engine import run_alone, shared_engine

from blora.engine import AdapterSnapshot, AsyncLLM, EngineUnavailable, RequestOutput, SamplingParams

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = replace(GREEDY, max_tokens=200)


async def last(
    llm: AsyncLLM, adapter: str | None = None, sampling: SamplingParams = GREEDY, **fields: Any
) -> RequestOutput:
    return [output async for output in llm.generate("a prompt", sampling, lora_request=adapter, **fields)][-1]


async def tokens(llm: AsyncLLM, adapter: str | None = None, sampling: SamplingParams = GREEDY) -> list[int]:
    return (await last(llm, adapter, sampling)).outputs[0].token_ids


async def until(is_true: Any) -> None:
    while not is_true():
        await asyncio.sleep(0.005)


def kill_engine() -> None:
    os.kill(child_that_runs(ENGINE), signal.SIGKILL)


def test_every_stream_ends_as_if_no_engine_had_been_killed(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        before = (await llm.get_info()).num_engine_deaths
        await kill_under_load(llm, kill_engine, list(tiny_adapters), seed=0, num_kills=2, num_jobs=24)
        assert (await llm.get_info()).num_engine_deaths == before + 2

    shared_engine.run(tiny_model, body, tiny_adapters)


def test_what_was_begun_before_or_comes_meanwhile_is_finished_by_the_next_engine(
    tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_adapters["r8"], tmp_path / "moving")

    async def body(llm: AsyncLLM) -> None:
        for name in ("r4", "r8", "r16", "r24"):
            await llm.load_adapter(name, tiny_adapters[name])
        await llm.load_adapter("moving", folder)
        expected = {name: await tokens(llm, name, LONG) for name in ("r4", "r8", "r24")}
        news = llm.watch_adapters()
        first = await anext(news)
        os.kill(child_that_runs(ENGINE), signal.SIGSTOP)  # nothing is answered any more
        watching = asyncio.create_task(until_snapshot(news))
        old = asyncio.create_task(tokens(llm, "moving", LONG))
        kept = asyncio.create_task(tokens(llm, "r4", LONG))
        dropped = asyncio.create_task(last(llm, "r16", LONG, request_id="dropped"))
        await until(lambda: llm._front_end.outputs.num_unfinished == 3)
        unloading = asyncio.create_task(llm.unload_adapter("r16"))
        asked: list[asyncio.Task[Any]] = [
            asyncio.create_task(work)
            for work in (
                llm.pin_adapter("r4"),
                llm.warm_adapter("r8"),
                llm.get_info(),
                llm.list_adapters(),
                llm.reset_prefix_cache(),
                llm.load_adapter("moving", tiny_adapters["r24"]),
            )
        ]
        await until(lambda: len(llm._connection._calls) == len(asked) + 1)  # and what `unloading` has to describe
        kill_engine()
        await until(lambda: not llm.is_serving)
        with pytest.raises(EngineUnavailable, match="being restarted"):
            await llm.check_health()
        await llm.abort("dropped")
        assert (await dropped).outputs[0].finish_reason == "abort"
        fresh = asyncio.create_task(tokens(llm, "r8", LONG))
        loading = asyncio.create_task(llm.load_adapter("late", tiny_adapters["r8"]))
        llm.check_integrity()
        pinned, warmed, info, listed, is_reset, loaded = await asyncio.gather(*asked)
        assert pinned.pinned and warmed.name == "r8" and info.num_pages and is_reset
        assert {"r4", "r8", "r24", "moving"} <= {adapter.name for adapter in listed}
        assert (loaded.version, (await loading).name) == (2, "late")
        assert (await unloading).name == "r16"
        assert [await old, await kept, await fresh] == [expected["r8"], expected["r4"], expected["r8"]]
        assert await tokens(llm, "moving", LONG) == expected["r24"]
        assert (await watching).revision > first.revision
        await news.aclose()
        await llm.pin_adapter("r4", False)

    async def until_snapshot(news: Any) -> AdapterSnapshot:
        return await anext(piece async for piece in news if isinstance(piece, AdapterSnapshot))

    shared_engine.run(tiny_model, body, {})


def test_a_drain_finishes_what_another_engine_has_to_go_on_with(tiny_model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        expected = await tokens(llm, None, LONG)
        os.kill(child_that_runs(ENGINE), signal.SIGSTOP)
        running = asyncio.create_task(tokens(llm, None, LONG))
        await until(lambda: llm._front_end.outputs.num_unfinished)
        draining = asyncio.create_task(llm.drain())
        await until(lambda: not llm.is_serving)
        kill_engine()
        assert await running == expected
        await draining
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await tokens(llm)

    run_alone(tiny_model, body)


def test_a_shutdown_waits_for_no_other_engine(tiny_model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        running = asyncio.create_task(last(llm, None, LONG))
        await until(lambda: llm._front_end.outputs.num_unfinished)
        kill_engine()
        await until(lambda: not llm.is_serving)
        asking = asyncio.create_task(llm.get_info())
        await asyncio.sleep(0)
        await llm.shutdown()
        assert (await running).outputs[0].finish_reason == "abort"
        with pytest.raises(EngineUnavailable, match="shut down"):
            await asking

    run_alone(tiny_model, body)
