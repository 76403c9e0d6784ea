"""The tokens of prompts, the text of tokens and the load, of a real engine; and watchers of the load."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_llm import LOAD
from shared_engine import shared_engine

from blora.engine import AdapterNotFound, AsyncLLM, InvalidRequest, LimitReached, LoadSnapshot, SamplingParams
from blora.engine.requests import load_watch
from blora.engine.requests.load_watch import LoadWatch

LONG = "a long text of many words. " * 1000  # is read in a child


@pytest.mark.slow
def test_tokens_are_those_of_a_request_and_lead_back_to_the_text(tiny_model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        (answer,) = [o async for o in llm.generate("Hello, world", SamplingParams(max_tokens=1))][-1:]
        tokens = await llm.tokenize("Hello, world", with_texts=True)
        assert tokens.token_ids == answer.prompt_token_ids and tokens.texts is not None
        assert tokens.max_model_len == llm.max_model_len and len(tokens.texts) == len(tokens.token_ids)
        assert await llm.detokenize(tokens.token_ids, skip_special_tokens=True) == "Hello, world"
        bare = await llm.tokenize("Hello, world", add_special_tokens=False)
        assert bare.texts is None and await llm.detokenize(bare.token_ids) == "Hello, world"
        with pytest.raises(InvalidRequest, match="token_ids: .* is no token"):
            await llm.detokenize([1 << 31])
        with pytest.raises(InvalidRequest, match="token_ids"):
            await llm.detokenize([1] * (llm.max_model_len + 1))
        with pytest.raises(AdapterNotFound):
            await llm.tokenize("a", lora_request="nobody")
        with pytest.raises(InvalidRequest):
            await llm.tokenize(LONG)  # more than the model reads

    shared_engine.run(tiny_model, body, {})


@pytest.mark.slow
def test_the_load_is_told_when_a_request_and_an_adapter_come(tiny_model: Path, tiny_adapters: Any) -> None:
    async def body(llm: AsyncLLM) -> None:
        async with aclosing(llm.watch_load(10)) as news:
            idle = await anext(news)
            assert idle.is_serving and idle.num_running == 0 and 0 < idle.num_free_pages <= idle.num_pages
            name = next(iter(tiny_adapters))
            await llm.pin_adapter(name)
            while f"{name}@1" not in (seen := await anext(news)).resident_adapters:
                assert seen.num_pages == idle.num_pages
            assert seen.num_free_pages < idle.num_pages
            await llm.pin_adapter(name, False)

    shared_engine.run(tiny_model, body, tiny_adapters)


@pytest.mark.slow
def test_a_watcher_can_tell_rates_by_counts(tiny_model: Path, tiny_adapters: Any) -> None:
    async def body(llm: AsyncLLM) -> None:
        async with aclosing(llm.watch_load(10)) as news:
            idle = await anext(news)
            async for _ in llm.generate([5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True)):
                pass
            while (seen := await anext(news)).num_requests == idle.num_requests:
                pass
        assert seen.num_requests == idle.num_requests + 1
        assert seen.num_generated_tokens == idle.num_generated_tokens + 4
        assert seen.num_prompt_tokens == idle.num_prompt_tokens + 3
        assert (seen.num_engine_deaths, seen.num_crashes) == (0, 0)

    shared_engine.run(tiny_model, body, tiny_adapters)


def test_watchers_share_looks_and_hear_of_changes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_watch, "MOST_PER_SECOND", 200.0)
    looks, is_over = 0, False

    async def look() -> LoadSnapshot:
        nonlocal looks
        looks += 1
        return replace(LOAD, num_running=looks // 3)

    def check() -> None:
        if is_over:
            raise LimitReached("over")

    async def listen(watch: LoadWatch) -> list[int]:
        async with aclosing(watch.watch(200.0)) as news:
            return [(await anext(news)).num_running for _ in range(3)]

    async def body() -> None:
        nonlocal is_over
        watch = LoadWatch(look, check)
        heard = await asyncio.gather(*(listen(watch) for _ in range(100)))
        assert all(numbers == sorted(set(numbers)) for numbers in heard) and looks < 100
        waiting = asyncio.create_task(listen(watch))
        await asyncio.sleep(0)
        is_over = True
        watch.wake()
        with pytest.raises(LimitReached):
            await waiting

    asyncio.run(asyncio.wait_for(body(), 100))


def test_only_so_many_watch() -> None:
    async def look() -> LoadSnapshot:
        return LOAD

    async def body() -> None:
        watch = LoadWatch(look, lambda: None)
        watchers = [watch.watch(1.0) for _ in range(load_watch.MAX_WATCHERS + 1)]
        for one in watchers[:-1]:
            await anext(one)
        with pytest.raises(LimitReached):
            await anext(watchers[-1])
        for one in watchers:
            await one.aclose()
        async with aclosing(watch.watch(1.0)) as again:
            await anext(again)

    asyncio.run(asyncio.wait_for(body(), 100))
