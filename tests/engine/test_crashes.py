"""Engine processes that crash or stand: everybody else gets the tokens of an undisturbed run, and what crashes alone is
set aside. The faults are planted in the real engine process, by content: see faulty_engine.py."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty_engine
import pytest
from processes import children_of
from settled import check_settled

from blora.engine import (
    AdapterRejected,
    AdapterSetAside,
    AsyncLLM,
    EngineInfo,
    RequestOutput,
    SamplingParams,
    StructuredOutputsParams,
)
from blora.engine.ipc import engine_process

pytestmark = pytest.mark.slow

TESTS = Path(faulty_engine.__file__).parent
OPTIONS: dict[str, Any] = {"memory": "2MB", "block_size": 4, "max_num_batched_tokens": 64, "threads": 1}
OPTIONS["stall_seconds"] = 1.0
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
GUILTY, INNOCENT = [77, 5, 6], [[index, 9, 8, 7] for index in range(1, 4)]
LONGEST = 250.0
Body = Callable[[AsyncLLM, EngineInfo, list[list[int]]], Coroutine[Any, Any, None]]


class Faults:
    """The file of planted faults."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.plant()

    def plant(self, *faults: dict[str, Any]) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(faults))
        new.replace(self._path)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    path = tmp_path_factory.mktemp("faults") / "faults.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(faulty_engine.FAULTS, str(path))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        patch.setattr(engine_process, "MODULE", "faulty_engine")
        yield Faults(path)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def shared(runner: asyncio.Runner, faults: Faults, tiny_model: Path) -> Iterator[AsyncLLM]:
    """One engine after another for all tests of this file: each start takes longer than the tests themselves."""
    faults.plant()
    llm = AsyncLLM(str(tiny_model), **OPTIONS)
    runner.run(llm.start())
    yield llm
    runner.run(llm.shutdown())


@pytest.fixture
def serve(runner: asyncio.Runner, faults: Faults, shared: AsyncLLM) -> Callable[[Body], None]:
    async def run(body: Body) -> None:
        before, expected = await shared.get_info(), await innocent(shared)
        await body(shared, before, expected)
        faults.plant()
        assert await innocent(shared) == expected
        for info in await shared.list_adapters():
            await shared.unload_adapter(info.name)
        await check_settled(shared)

    return lambda body: runner.run(asyncio.wait_for(run(body), LONGEST))


async def last(llm: AsyncLLM, token_ids: list[int], adapter: str | None = None, **changes: Any) -> RequestOutput:
    prompt = {"prompt_token_ids": token_ids}
    sampling = replace(GREEDY, **changes)
    return [output async for output in llm.generate(prompt, sampling, lora_request=adapter)][-1]


async def innocent(llm: AsyncLLM) -> list[list[int]]:
    outputs = await asyncio.gather(*(last(llm, prompt) for prompt in INNOCENT))
    return [output.outputs[0].token_ids for output in outputs]


def test_a_request_that_crashes_engines_is_set_aside_and_the_others_go_on(
    serve: Callable[[Body], None], faults: Faults
) -> None:
    async def body(llm: AsyncLLM, before: EngineInfo, expected: list[list[int]]) -> None:
        faults.plant({"at": "execute", "what": GUILTY[0], "how": "segv"})
        guilty = asyncio.create_task(last(llm, GUILTY))
        assert await innocent(llm) == expected
        output = (await guilty).outputs[0]
        assert output.finish_reason == "error" and "crashed" in str(output.error)
        info = await llm.get_info()
        assert info.num_crashes - before.num_crashes in (2, 3)  # it may have been alone at once
        assert info.num_requests_set_aside - before.num_requests_set_aside == 1

    serve(body)


@pytest.mark.parametrize("how", ["segv", "raise"])
def test_a_grammar_over_which_engines_crash_is_blamed_on_its_request(
    how: str, serve: Callable[[Body], None], faults: Faults
) -> None:
    async def body(llm: AsyncLLM, before: EngineInfo, expected: list[list[int]]) -> None:
        faults.plant({"at": "compile", "what": GUILTY[0], "how": how})
        what = StructuredOutputsParams(regex="[a-f]{9}")
        rows = asyncio.create_task(innocent(llm))
        output = (await last(llm, GUILTY, structured_outputs=what)).outputs[0]
        assert output.finish_reason == "error"
        assert await rows == expected
        info = await llm.get_info()
        assert info.num_crashes - before.num_crashes == (2 if how == "segv" else 0)
        assert info.num_requests_set_aside - before.num_requests_set_aside == (how == "segv")
        assert len((await last(llm, INNOCENT[0], structured_outputs=what)).outputs[0].token_ids) == 9

    serve(body)


def test_an_adapter_whose_registration_crashes_is_set_aside(
    serve: Callable[[Body], None], tiny_adapters: dict[str, Path], faults: Faults
) -> None:
    async def body(llm: AsyncLLM, before: EngineInfo, expected: list[list[int]]) -> None:
        digest = (await llm.load_adapter("bad", tiny_adapters["r8"])).digest
        await llm.load_adapter("good", tiny_adapters["r4"])
        good = (await last(llm, [5, 6, 7], "good")).outputs[0].token_ids
        await llm.unload_adapter("bad")
        faults.plant({"at": "register", "what": digest, "how": "exit"})
        load = asyncio.create_task(llm.load_adapter("bad", tiny_adapters["r8"]))
        assert await innocent(llm) == expected
        with pytest.raises(AdapterRejected, match="set aside: the engine crashed 2 times over this adapter"):
            await load
        with pytest.raises(AdapterRejected, match="set aside"):
            await llm.load_adapter("other", tiny_adapters["r8"])
        assert (await last(llm, [5, 6, 7], "good")).outputs[0].token_ids == good
        info = await llm.get_info()
        assert info.num_crashes - before.num_crashes == 2
        assert info.num_adapters_set_aside - before.num_adapters_set_aside == 1

    serve(body)


def test_an_adapter_that_the_next_engine_cannot_take_does_not_keep_it_from_starting(
    serve: Callable[[Body], None], tiny_adapters: dict[str, Path], faults: Faults
) -> None:
    async def body(llm: AsyncLLM, before: EngineInfo, expected: list[list[int]]) -> None:
        digest = (await llm.load_adapter("bad", tiny_adapters["r1"])).digest
        await llm.load_adapter("good", tiny_adapters["r4"])
        faults.plant({"at": "register", "what": digest, "how": "raise"})
        os.kill(engine_pid(llm), signal.SIGKILL)
        assert await innocent(llm) == expected
        assert (await last(llm, [5, 6, 7], "good")).outputs[0].finish_reason == "length"
        with pytest.raises(AdapterSetAside, match="'bad' is set aside: .* could not take it"):
            await last(llm, [5, 6, 7], "bad")
        with pytest.raises(AdapterSetAside):
            await llm.pin_adapter("bad")
        assert "could not take it" in (await llm.get_adapter("bad")).set_aside
        assert not (await llm.load_adapter("bad", tiny_adapters["r2"])).set_aside
        assert (await last(llm, [5, 6, 7], "bad")).outputs[0].finish_reason == "length"
        faults.plant()
        await llm.unload_adapter("bad")
        await llm.load_adapter("bad", tiny_adapters["r1"])
        assert (await last(llm, [5, 6, 7], "bad")).outputs[0].finish_reason == "length"
        assert (await llm.get_info()).num_crashes == before.num_crashes

    serve(body)


def test_an_engine_that_stands_is_replaced(serve: Callable[[Body], None]) -> None:
    async def body(llm: AsyncLLM, before: EngineInfo, expected: list[list[int]]) -> None:
        running, pid = asyncio.create_task(innocent(llm)), engine_pid(llm)
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGSTOP)
        assert await running == expected
        assert pid not in children_of(os.getpid())
        info = await llm.get_info()
        assert (info.num_stalls, info.num_crashes) == (before.num_stalls + 1, before.num_crashes)

    serve(body)


def engine_pid(llm: AsyncLLM) -> int:
    return llm._supervisor._engine.child.process.pid
