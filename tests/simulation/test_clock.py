"""The virtual clock: time passes only where something waits for it, and a wait for nothing is an error."""

import asyncio

import pytest
from simulation.clock import START, Standstill, run


def test_a_day_passes_at_once_and_in_order() -> None:
    async def main() -> list[tuple[str, float]]:
        loop, seen = asyncio.get_running_loop(), list[tuple[str, float]]()

        async def wait(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, round(loop.time() - START, 6)))

        await asyncio.gather(wait("day", 86400.0), wait("first", 0.25), wait("second", 0.25))
        return seen

    assert run(main) == [("first", 0.25), ("second", 0.25), ("day", 86400.0)]


def test_a_timeout_ends_in_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 60.0)
        return asyncio.get_running_loop().time()

    assert run(main) == pytest.approx(START + 60.0)


def test_a_wait_for_nothing_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Standstill, match="no timer"):
        run(main)


def test_tasks_that_wake_each_other_for_ever_are_an_error() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Standstill, match="rounds"):
        run(main)
