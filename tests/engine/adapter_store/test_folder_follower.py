"""FolderFollower: what happens over one folder keeps no other from being followed."""

import asyncio
import logging

import pytest

from blora.engine.adapter_store.watched_folder import FolderFollower
from blora.engine.errors import AdapterRejected, EngineUnavailable


@pytest.mark.parametrize("failure", [AdapterRejected("bad", ["it is bad"]), SyntaxError("odd"), MemoryError("large")])
def test_a_folder_that_fails_in_any_way_is_told_of_once_and_the_others_are_loaded(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    loaded, tried = [], []

    async def load(name: str) -> None:
        tried.append(name)
        if name == "bad":
            raise failure
        loaded.append(name)

    looks = [{"bad": "1"}, {"bad": "1"}, {"bad": "1", "good": "1"}]
    asyncio.run(follow(looks, load))
    assert loaded == ["good"] and tried.count("bad") == 1
    told = [record for record in caplog.records if "the watched adapter bad" in record.getMessage()]
    assert len(told) == 1 and told[0].levelno >= logging.WARNING
    assert "not followed any more" not in caplog.text


def test_what_fails_for_want_of_an_engine_is_tried_again() -> None:
    tried = []

    async def load(name: str) -> None:
        tried.append(name)
        if len(tried) == 1:
            raise EngineUnavailable("it is being restarted")

    asyncio.run(follow([{"a": "1"}], load))
    assert tried == ["a", "a"]


async def follow(looks: list[dict[str, str]], load: object) -> None:
    """The last look is what is found from then on."""
    num_looks = 0

    async def look() -> dict[str, str]:
        nonlocal num_looks
        num_looks += 1
        return looks[min(num_looks, len(looks)) - 1]

    follower = FolderFollower(look, load, load)  # type: ignore[arg-type]
    follower.start(0.001)
    async with asyncio.timeout(10):
        while num_looks < 12:
            await asyncio.sleep(0.001)
    await follower.stop()
