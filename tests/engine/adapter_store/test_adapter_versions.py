"""Versions: new weights under a name, the old ones again, and one of them by number, while requests run."""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from processes import ENGINE, child_that_runs
from shared_engine import shared_engine

from blora.engine import LLM, AdapterNotFound, AsyncLLM, InvalidRequest, LoRARequest, SamplingParams

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPT = "a prompt long enough to leave blocks in the prefix cache"


def answer(llm: LLM, adapter: str) -> list[int]:
    (output,) = llm.generate(PROMPT, GREEDY, adapter, use_tqdm=False)
    return output.outputs[0].token_ids


def test_a_name_rolls_back_and_any_version_can_be_asked_for(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    llm = make_llm(adapters=tiny_adapters, max_adapter_versions=3)
    names = ["r4", "r8", "r16"]
    expected = [answer(llm, name) for name in names]
    for name in names:
        info = llm.load_adapter("mine", tiny_adapters[name])
    assert info.version == 3 and [kept.path for kept in info.versions] == [str(tiny_adapters[name]) for name in names]
    assert [kept.active for kept in info.versions] == [False, False, True]
    assert [answer(llm, f"mine@{number}") for number in (1, 2, 3)] == expected
    assert llm.activate_adapter("mine", 1).version == 1
    assert answer(llm, "mine") == expected[0]
    assert llm.get_adapter("mine@2").digest == llm.get_adapter("r8").digest
    assert [info.name for info in llm.list_adapters()] == sorted(["mine", *tiny_adapters])
    for reference in ("mine@4", "mine@0", "mine@"):
        with pytest.raises(AdapterNotFound):
            answer(llm, reference)


def test_old_versions_are_kept_up_to_a_number_and_then_freed(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    llm = make_llm()
    for name in ("r4", "r8", "r16"):
        llm.load_adapter("mine", tiny_adapters[name])
    assert [kept.number for kept in llm.get_adapter("mine").versions] == [2, 3]
    assert llm.get_info().num_host_adapters == 2
    llm.unload_adapter("mine@2")
    assert llm.get_info().num_host_adapters == 1
    with pytest.raises(AdapterNotFound):
        answer(llm, "mine@2")
    llm.unload_adapter("mine")
    assert llm.get_info().num_host_adapters == 0


def test_the_active_version_of_several_is_not_removed(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    llm = make_llm()
    llm.load_adapter("mine", tiny_adapters["r4"])
    llm.load_adapter("mine", tiny_adapters["r8"])
    with pytest.raises(InvalidRequest, match="version 2 of 'mine' is active"):
        llm.unload_adapter("mine@2")
    assert llm.unload_adapter("mine").version == 2 and not llm.list_adapters()


def test_a_version_is_no_name_to_load_under(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm()
    with pytest.raises(InvalidRequest, match="name"):
        llm.load_adapter("mine@1", tiny_adapters["r4"])
    with pytest.raises(InvalidRequest, match="name"):
        llm.generate("x", GREEDY, LoRARequest("mine@1", 1, str(tiny_adapters["r4"])), use_tqdm=False)


def test_an_old_version_can_be_pinned(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm()
    llm.load_adapter("mine", tiny_adapters["r4"])
    llm.load_adapter("mine", tiny_adapters["r8"])
    assert llm.pin_adapter("mine@1").pinned and not llm.get_adapter("mine").pinned
    answer(llm, "mine")  # which copies the pinned one, too
    assert llm.activate_adapter("mine", 1).pinned
    llm.activate_adapter("mine", 2)
    assert not llm.get_adapter("mine@1").pinned


def test_versions_change_under_traffic(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def tokens(llm: AsyncLLM, adapter: str, sampling: SamplingParams = GREEDY) -> list[int]:
        output = [output async for output in llm.generate(PROMPT, sampling, lora_request=adapter)][-1]
        return output.outputs[0].token_ids

    async def body(llm: AsyncLLM) -> None:
        long = replace(GREEDY, max_tokens=60)
        expected = {name: await tokens(llm, name, long) for name in ("r4", "r8")}
        await llm.load_adapter("mine", tiny_adapters["r4"])
        assert (await llm.load_adapter("mine", tiny_adapters["r8"])).version == 2
        for _ in range(5):
            running = asyncio.create_task(tokens(llm, "mine", long))
            await asyncio.sleep(0.01)
            await llm.activate_adapter("mine", 1)
            assert await tokens(llm, "mine", long) == await tokens(llm, "mine@1", long) == expected["r4"]
            assert await running == expected["r8"]
            assert (await llm.activate_adapter("mine", 2)).version == 2
            assert await tokens(llm, "mine", long) == expected["r8"]
        digest = (await llm.unload_adapter("mine@1")).digest
        assert digest == (await llm.get_adapter("r4")).digest
        with pytest.raises(InvalidRequest, match="active"):
            await llm.load_adapter("mine", tiny_adapters["r16"])
            await llm.unload_adapter("mine@3")
        assert (await llm.unload_adapter("mine")).version == 3
        info = await llm.get_info()
        assert info.num_free_pages == info.num_pages

    shared_engine.run(tiny_model, body, tiny_adapters)


def test_versions_survive_a_restart_of_the_engine(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        for name in ("r4", "r8"):
            await llm.load_adapter("kept", tiny_adapters[name])
        os.kill(child_that_runs(ENGINE), signal.SIGKILL)
        while llm.is_serving:
            await asyncio.sleep(0.01)
        while not llm.is_serving:
            await asyncio.sleep(0.01)
        outputs = [output async for output in llm.generate(PROMPT, GREEDY, lora_request="kept@1")]
        assert outputs[-1].finished
        assert (await llm.activate_adapter("kept", 1)).version == 1

    shared_engine.run(tiny_model, body, {})
