"""The death of an engine is a pause: the next one goes on with the same tokens."""

import os
import signal
from pathlib import Path

import pytest
from kill_under_load import kill_under_load
from processes import ENGINE, child_that_runs
from shared_engine import shared_engine

from blora.engine import AsyncLLM

pytestmark = pytest.mark.slow


def kill_engine() -> None:
    os.kill(child_that_runs(ENGINE), signal.SIGKILL)


def test_every_stream_ends_as_if_no_engine_had_been_killed(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        await kill_under_load(llm, kill_engine, list(tiny_adapters), seed=0, num_kills=2, num_jobs=24)

    shared_engine.run(tiny_model, body, tiny_adapters)
