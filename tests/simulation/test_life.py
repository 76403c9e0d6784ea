"""Facts about the life of an engine that a simulation shows at once."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from simulation.clock import run
from simulation.model import make_llm
from simulation.world import AdapterFiles, Sizes, World

from blora.engine import AsyncLLM, LoRARequest, QueueFull, SamplingParams

Body = Callable[[AsyncLLM, World], Awaitable[None]]
SIZES = Sizes(num_pages=32, max_num_seqs=8, max_num_batched_tokens=64, copied_pages=2)
LONG = SamplingParams(max_tokens=80, ignore_eos=True, seed=0)


def simulate(body: Body, sizes: Sizes = SIZES, **options: Any) -> None:
    async def main() -> None:
        world = World(0, sizes)
        async with make_llm(world, block_size=4, **options) as llm:
            await body(llm, world)
        assert not world.violations

    run(main)


async def answer(llm: AsyncLLM, request_id: str) -> str | None:
    async for output in llm.generate({"prompt_token_ids": [1, 2, 3]}, LONG, request_id):
        reason = output.outputs[0].finish_reason
    return reason


def test_an_abort_ends_the_request_with_exactly_this_id() -> None:
    async def body(llm: AsyncLLM, _: World) -> None:
        calls = [asyncio.create_task(answer(llm, request_id)) for request_id in ("1", "12", "x1")]
        await asyncio.sleep(0.02)
        await llm.abort("1")
        assert await asyncio.gather(*calls) == ["abort", "length", "length"]

    simulate(body)


def test_an_engine_that_has_ended_serves_nothing_though_its_front_end_lives() -> None:
    async def body(llm: AsyncLLM, world: World) -> None:
        told: list[bool] = []
        llm.on_serving_change(told.append)
        assert llm.is_serving and world.engine is not None
        world.engine.kill()
        await asyncio.sleep(1e-3)
        assert not llm.is_serving and llm.is_running
        await asyncio.sleep(5.0)
        assert llm.is_serving and told == [False, True]

    simulate(body)


def test_a_request_that_is_done_leaves_nothing() -> None:
    async def body(llm: AsyncLLM, world: World) -> None:
        assert await answer(llm, "a") == "length"
        await asyncio.sleep(1.0)
        assert world.core is not None and not llm._connection._calls
        world.core.check_idle()
        llm.check_idle()

    simulate(body)


ONE_SEAT = replace(SIZES, max_num_seqs=1)


async def stand_still(world: World, seconds: float) -> None:
    assert world.engine is not None
    world.engine.stand_still()
    await asyncio.sleep(seconds)
    world.engine.go_on()


def test_what_outlives_the_limit_of_the_queue_is_dropped_before_it_is_computed() -> None:
    async def body(llm: AsyncLLM, world: World) -> None:
        running = asyncio.create_task(answer(llm, "runs"))
        await asyncio.sleep(0.02)
        waiting = [asyncio.create_task(answer(llm, f"waits {number}")) for number in range(2)]
        await asyncio.sleep(0.01)
        await stand_still(world, 2.5)
        assert await running == "length"
        for call in waiting:
            with pytest.raises(QueueFull, match="has waited 2.0 s to be begun") as raised:
                await call
            assert raised.value.retry_after
        info = await llm.get_info()
        assert (info.num_expired, info.num_waiting, info.num_running) == (2, 0, 0)
        assert await answer(llm, "later") == "length"

    simulate(body, ONE_SEAT, max_queue_seconds=1.0)


def test_the_death_of_an_engine_is_no_reason_to_drop_what_waits() -> None:
    async def body(llm: AsyncLLM, world: World) -> None:
        calls = [asyncio.create_task(answer(llm, str(number))) for number in range(3)]
        await asyncio.sleep(0.02)
        assert world.engine is not None
        world.engine.kill()
        await asyncio.sleep(5.0)
        assert await asyncio.gather(*calls) == ["length"] * 3

    simulate(body, ONE_SEAT, max_queue_seconds=0.5)


def test_calls_of_a_batch_wait_for_one_another() -> None:
    async def body(llm: AsyncLLM, _: World) -> None:
        prompts = [{"prompt_token_ids": [1, 2, number]} for number in range(20)]
        ends = [
            row.outputs[0].finish_reason async for rows in llm.stream(prompts, LONG) for row in rows if row.finished
        ]
        assert ends == ["length"] * 20

    simulate(body, ONE_SEAT, max_queue_seconds=0.1)


async def ask_by_path(llm: AsyncLLM, use: LoRARequest) -> None:
    async for _ in llm.generate([1, 2], LONG, lora_request=use):
        pass


@pytest.mark.parametrize("take", [ask_by_path, AsyncLLM.add_lora])
def test_files_that_change_while_another_call_loads_them_are_news(
    take: Callable[[AsyncLLM, LoRARequest], Coroutine[Any, Any, Any]],
) -> None:
    async def body(llm: AsyncLLM, world: World) -> None:
        use, later = LoRARequest("q", 1, "/sim/one"), list[asyncio.Task[Any]]()
        read = world._read

        def read_and_change(process: Any, path: str, found: AdapterFiles | None) -> None:
            read(process, path, found)
            if not later:  # this load has not ended
                world.files[path] = AdapterFiles("new", 1)
                later.append(asyncio.create_task(take(llm, use)))

        world.files["/sim/one"] = AdapterFiles("old", 1)
        world._read = read_and_change  # type: ignore[method-assign]
        await take(llm, use)
        await later[0]
        assert [info.digest for info in await llm.list_adapters()] == ["new"]

    simulate(body)
