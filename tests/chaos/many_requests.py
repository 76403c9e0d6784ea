"""Sends many requests through a whole front end and scheduler with a fake model, on a virtual clock, and prints how
many bytes of memory each leaves behind: `python -m chaos.many_requests COUNT`.

The first quarter of the requests fills caches and does not count.
"""

import asyncio
import gc
import sys

from processes import resident_bytes
from simulation.clock import run
from simulation.model import make_llm
from simulation.world import Sizes, World

from blora.engine import AsyncLLM, SamplingParams

BATCH = 64  # requests at once
SIZES = Sizes(num_pages=512, max_num_seqs=64, max_num_batched_tokens=512, copied_pages=8)


def main() -> None:
    count = int(sys.argv[1])
    print(f"{run(lambda: bytes_left(count)):.2f}")


async def bytes_left(count: int) -> float:
    """Returns the bytes that a request leaves."""
    world = World(0, SIZES)
    llm = make_llm(world, block_size=4, max_num_queued_reqs=BATCH * 2)
    await llm.start()
    await _send(llm, world, 0, count // 4)
    before = _resident()
    await _send(llm, world, count // 4, count)
    after = _resident()
    await llm.shutdown()
    return (after - before) / (count - count // 4)


async def _send(llm: AsyncLLM, world: World, first: int, last: int) -> None:
    for start in range(first, last, BATCH):
        await asyncio.gather(*(_ask(llm, number) for number in range(start, min(start + BATCH, last))))
        world.requests.clear()  # the oracle's own


async def _ask(llm: AsyncLLM, number: int) -> None:
    prompt = [number % 200, number // 200 % 200, number // 40_000 % 200]
    async for _ in llm.generate(prompt, SamplingParams(max_tokens=1, seed=number), str(number), tenant=str(number % 7)):
        pass


def _resident() -> int:
    gc.collect()
    return resident_bytes()


if __name__ == "__main__":
    main()
