"""Where and when an AsyncLLM may be used: it starts by itself, in one event loop of one process."""

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import ENGINE, children_that_run

from blora.engine import (
    AsyncLLM,
    EngineStartError,
    EngineUnavailable,
    SamplingParams,
    UnsupportedModel,
    WrongEventLoop,
    WrongProcess,
)

pytestmark = pytest.mark.slow  # it starts engines

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
OPTIONS: dict[str, Any] = {"memory": "2MB", "block_size": 4, "max_num_batched_tokens": 64, "threads": 1}
LONG = 100  # seconds, which nothing here takes


async def tokens(llm: AsyncLLM, prompt: str = "hello") -> list[int]:
    return [output async for output in llm.generate(prompt, GREEDY)][-1].outputs[0].token_ids


def uses(llm: AsyncLLM) -> list[Callable[[], Coroutine[Any, Any, Any]]]:
    return [
        lambda: tokens(llm),
        lambda: anext(llm.stream(["x"])),  # type: ignore[list-item, return-value]
        lambda: anext(llm.watch_adapters()),  # type: ignore[list-item, return-value]
        lambda: llm.load_adapter("a", "a"),
        lambda: llm.unload_adapter("a"),
        llm.list_adapters,
        llm.get_info,
        llm.check_health,
        llm.reset_prefix_cache,
    ]


async def raised(use: Callable[[], Coroutine[Any, Any, Any]]) -> BaseException | None:
    try:
        await asyncio.wait_for(use(), LONG)
    except BaseException as error:
        return error
    return None


async def all_raise(llm: AsyncLLM, kind: type[Exception], text: str) -> None:
    for use in uses(llm):
        error = await raised(use)
        assert type(error) is kind and text in str(error), error


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def llm(runner: asyncio.Runner, tiny_model: Path) -> Iterator[AsyncLLM]:
    llm = AsyncLLM(tiny_model, **OPTIONS)
    runner.run(llm.start())
    yield llm
    runner.run(llm.shutdown())


def test_another_event_loop_is_refused_while_the_first_one_lives(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    expected = runner.run(tokens(llm))
    asyncio.run(all_raise(llm, WrongEventLoop, "run_coroutine_threadsafe"))
    for use in (llm.start, llm.shutdown, llm.drain, lambda: llm.abort("x")):
        assert isinstance(asyncio.run(raised(use)), WrongEventLoop)
    assert runner.run(tokens(llm)) == expected


def test_another_thread_hands_its_work_over(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def serve() -> Any:
        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(tokens(llm), loop).result(LONG))

    assert runner.run(serve()) == runner.run(tokens(llm))


def test_a_forked_child_is_told_to_be_spawned(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            asyncio.run(all_raise(llm, WrongProcess, "spawn"))
            assert isinstance(asyncio.run(raised(llm.shutdown)), WrongProcess)
            os.write(writing, b"well")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read() == "well"
    os.waitpid(child, 0)
    assert len(runner.run(tokens(llm))) == 4


def test_health_of_an_engine_that_runs(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    runner.run(llm.check_health())
    assert (llm.is_running, llm.is_stopped, llm.errored) == (True, False, False)


def test_it_starts_by_itself_and_ends_with_its_event_loop(tiny_model: Path) -> None:
    llm = AsyncLLM(tiny_model, **OPTIONS)
    others = children_that_run(ENGINE)

    async def first() -> None:
        given_up = asyncio.create_task(tokens(llm))
        calls = [asyncio.create_task(work) for work in (tokens(llm), tokens(llm), llm.check_health())]
        await asyncio.sleep(0)
        given_up.cancel()
        answers = await asyncio.gather(*calls)
        assert len(answers[0]) == 4 and answers[0] == answers[1]
        assert len(children_that_run(ENGINE)) == len(others) + 1
        await llm.start()  # has been done

    asyncio.run(asyncio.wait_for(first(), LONG))
    assert children_that_run(ENGINE) == others
    assert llm.errored
    asyncio.run(all_raise(llm, WrongEventLoop, "which is closed"))
    asyncio.run(llm.shutdown())


def test_after_shutdown_everything_is_refused(tiny_model: Path) -> None:
    async def use() -> None:
        llm = AsyncLLM(tiny_model, **OPTIONS)
        await llm.shutdown()
        await llm.shutdown()
        await all_raise(llm, EngineUnavailable, "was shut down")
        assert isinstance(await raised(llm.start), EngineStartError)
        assert llm.is_stopped and "was shut down" in str(llm.dead_error)

    asyncio.run(use())


def test_a_start_that_fails_is_told_to_every_call(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")

    async def use() -> None:
        llm = AsyncLLM(tmp_path)
        first = await asyncio.gather(tokens(llm), llm.get_info(), return_exceptions=True)
        assert [type(error) for error in [*first, await raised(llm.list_adapters)]] == [UnsupportedModel] * 3
        assert llm.errored

    asyncio.run(use())


def test_a_start_that_is_cancelled_is_told_to_who_waits(tiny_model: Path) -> None:
    async def use() -> None:
        llm = AsyncLLM(tiny_model, **OPTIONS)
        starting, waiting = asyncio.create_task(llm.start()), asyncio.create_task(tokens(llm))
        await asyncio.sleep(0.1)
        starting.cancel()
        results = await asyncio.wait_for(asyncio.gather(starting, waiting, return_exceptions=True), LONG)
        assert [type(result) for result in results] == [asyncio.CancelledError, EngineUnavailable]

    asyncio.run(use())


def test_every_public_coroutine_says_when_it_may_run() -> None:
    by_themselves = {"start", "shutdown", "drain", "abort", "get_statistics"}
    for name, method in inspect.getmembers(AsyncLLM, inspect.isfunction):
        if inspect.iscoroutinefunction(method) and not name.startswith("_") and name not in by_themselves:
            assert hasattr(method, "__wrapped__"), f"{name} needs @once_started"
