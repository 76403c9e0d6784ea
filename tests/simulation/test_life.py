"""Facts about the life of an engine that a simulation shows at once."""

import asyncio
from collections.abc import Awaitable, Callable

from simulation.clock import run
from simulation.model import make_llm
from simulation.world import Sizes, World

from blora.engine import AsyncLLM, SamplingParams

Body = Callable[[AsyncLLM, World], Awaitable[None]]
SIZES = Sizes(num_pages=32, max_num_seqs=8, max_num_batched_tokens=64, copied_pages=2)
LONG = SamplingParams(max_tokens=80, ignore_eos=True, seed=0)


def simulate(body: Body) -> None:
    async def main() -> None:
        world = World(0, SIZES)
        async with make_llm(world, block_size=4) as llm:
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
