"""The life of adapters beside running requests: warm, pinned, replaced, unloaded, watched; all references come back."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from processes import ENGINE, child_that_runs
from shared_engine import run_alone, shared_engine

from blora.engine import (
    LLM,
    AdapterNotFound,
    AdapterTooLarge,
    AsyncLLM,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
    SamplingParams,
)
from blora.engine.adapter_store import catalog, feed
from blora.engine.llm import RowStream
from blora.engine.outputs import AdapterEvent, AdapterSnapshot

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = ["a prompt that many share", "another one", "x"]
CONTENTS = ["r1", "r4", "r8", "r24"]
NAMES = ["a", "b", "c"]


def run(
    model: Path,
    body: Callable[[AsyncLLM], Coroutine[Any, Any, None]],
    adapters: Mapping[str, Path] = MappingProxyType({}),
    memory: str = "400KB",
) -> None:
    shared_engine.run(model, body, adapters, memory=memory)


async def tokens(llm: AsyncLLM, prompt: str, adapter: str | None, sampling: SamplingParams = GREEDY) -> list[int]:
    output = [output async for output in llm.generate(prompt, sampling, lora_request=adapter)][-1]
    return output.outputs[0].token_ids


# In process.


def test_a_warm_adapter_is_resident_and_not_pinned(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    llm = make_llm(adapters={"mine": tiny_adapters["r4"]})
    assert not llm.get_adapter("mine").resident
    info = llm.warm_adapter("mine")
    assert info.resident and not info.pinned and info.num_copies == 1
    assert info.num_copied_bytes == info.num_bytes and 0 < info.copy_seconds < 10
    llm.check_idle()
    llm.warm_adapter("mine")
    llm.generate("x", GREEDY, "mine", use_tqdm=False)
    assert llm.get_adapter("mine").num_copies == 1


def test_what_there_is_no_room_to_warm_says_so(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm(adapters={"mine": tiny_adapters["r24"], "other": tiny_adapters["r4"]}, memory="110KB")
    llm.pin_adapter("mine")
    with pytest.raises(AdapterTooLarge, match="no room now to warm"):
        llm.warm_adapter("other")
    llm.unload_adapter("mine")


def test_unloading_may_abort(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm(adapters={"mine": tiny_adapters["r4"], "alias": tiny_adapters["r4"]})
    with llm.stream(["x"] * 3, replace(GREEDY, n=2), ["mine", "alias", None]) as stream:
        next(stream)
        llm.unload_adapter("mine", abort=True)
        reasons: dict[str, set[str | None]] = {}
        for outputs in stream:
            for output in outputs:
                ended = {sample.finish_reason for sample in output.outputs if sample.finished()}
                reasons.setdefault(output.request_id, set()).update(ended)
    assert reasons == {"0": {"abort"}, "1": {"length"}, "2": {"length"}}


def test_what_requests_use_is_counted_by_name(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm(adapters={"mine": tiny_adapters["r4"], "idle": tiny_adapters["r8"]})
    for _ in range(2):
        llm.generate("eight or more", replace(GREEDY, n=2), "mine", use_tqdm=False)
    llm.load_adapter("mine", tiny_adapters["r8"])
    llm.generate("x", GREEDY, "mine@1", use_tqdm=False)
    stream = llm.stream("x", GREEDY, "mine")
    next(stream)
    stream.close()
    usage = llm.get_adapter("mine").usage
    assert (usage.num_requests, usage.num_prompt_tokens) == (4, 2 * len("eight or more") + 2)
    assert usage.num_generated_tokens == 2 * 2 * 12 + 12 + 1 and usage.num_cached_tokens == 12
    assert usage.queue_seconds > 0 and usage.last_used > 0
    assert llm.get_adapter("idle").usage.num_requests == 0
    llm.unload_adapter("mine")
    llm.load_adapter("mine", tiny_adapters["r4"])
    assert llm.get_adapter("mine").usage.num_requests == 0


class Traffic:
    """Random requests and random operations on the names they use, one after another, in one thread."""

    def __init__(self, llm: LLM, adapters: dict[str, Path], seed: int) -> None:
        self.llm, self.adapters = llm, adapters
        self.random = random.Random(seed)
        self.expected: dict[tuple[str, str], list[int]] = {}  # (digest, prompt) -> greedy tokens
        for content in CONTENTS:
            digest = llm.load_adapter(content, adapters[content]).digest
            for prompt in PROMPTS:
                (output,) = llm.generate(prompt, GREEDY, content, use_tqdm=False)
                self.expected[digest, prompt] = output.outputs[0].token_ids
            llm.unload_adapter(content)
        self.streams: list[tuple[RowStream, list[int], dict[int, list[int]]]] = []
        self.num_compared = 0

    def operate(self) -> None:
        name, llm = self.random.choice(NAMES), self.llm
        match self.random.randrange(7):
            case 0 | 1:
                llm.load_adapter(name, self.adapters[self.random.choice(CONTENTS)])
            case 2:
                llm.unload_adapter(name, abort=self.random.random() < 0.5)
            case 3:
                versions = llm.get_adapter(name).versions
                llm.activate_adapter(name, self.random.choice(versions).number)
            case 4:
                llm.pin_adapter(name, self.random.random() < 0.3)
            case 5:
                llm.unload_adapter(f"{name}@{self.random.choice(llm.get_adapter(name).versions).number}")
            case 6:
                llm.warm_adapter(name)

    def begin(self) -> None:
        name, prompt = self.random.choice(NAMES), self.random.choice(PROMPTS)
        expected = self.expected[self.llm.get_adapter(name).digest, prompt]
        stream = self.llm.stream(prompt, replace(GREEDY, n=self.random.choice([1, 1, 2, 3])), name)
        self.streams.append((stream, expected, {}))

    def advance(self) -> None:
        """One step; a wrong token of any version shows in the comparison of what has grown so far."""
        entry = self.random.choice(self.streams)
        stream, expected, seen = entry
        if self.random.random() < 0.05:
            stream.close()
            self.streams.remove(entry)
            return
        outputs = next(stream, [])
        for output in outputs:
            for sample in output.outputs:
                grown = seen.setdefault(sample.index, [])
                grown += sample.token_ids
                assert grown == expected[: len(grown)]
                self.num_compared += 1
        if any(output.finished for output in outputs):
            self.streams.remove(entry)


@pytest.mark.grid
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_many_operations_under_traffic_give_every_reference_back(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], cases: Callable[[int, int], int]
) -> None:
    num_operations = cases(320, 2000)
    llm = make_llm(memory="400KB")
    traffic = Traffic(llm, tiny_adapters, seed=0)
    num_refused = 0
    for index in range(num_operations):
        for act in [traffic.operate, *([traffic.begin] if len(traffic.streams) < 6 else [])]:
            try:
                act()
            except (AdapterNotFound, AdapterTooLarge, InvalidRequest):
                num_refused += 1
        for _ in range(3 if traffic.streams else 0):
            if traffic.streams:
                traffic.advance()
        if index % 20 == 0:
            llm.check_integrity()
    while traffic.streams:
        traffic.advance()
    for info in llm.list_adapters():
        assert info.num_requests == 0
        llm.unload_adapter(info.name)
    llm.check_idle()
    assert llm.get_info().num_host_adapters == 0
    assert traffic.num_compared > num_operations // 2 and num_refused < num_operations


# Behind a process.


def digest_of(llm: AsyncLLM, label: str) -> str:
    """What the name of an adapter meant when the request was accepted, which may be some turns of the loop after the
    call."""
    (user,) = [user for user in llm._requests._readers if user.request_id == label]
    ((_, digest),) = user.adapters
    return digest


@pytest.mark.grid
def test_operations_under_traffic_neither_mix_versions_nor_lock_up(
    tiny_model: Path, tiny_adapters: dict[str, Path], cases: Callable[[int, int], int]
) -> None:
    most_operations = cases(260, 2000)
    rng = random.Random(1)

    async def body(llm: AsyncLLM) -> None:
        expected = {}
        for content in CONTENTS:
            digest = (await llm.load_adapter(content, tiny_adapters[content])).digest
            expected |= {(digest, prompt): await tokens(llm, prompt, content) for prompt in PROMPTS}
            await llm.unload_adapter(content)
        num_finished = num_operations = num_begun = 0

        async def user() -> None:
            nonlocal num_finished, num_begun
            while num_operations < most_operations:
                name, prompt = rng.choice(NAMES), rng.choice(PROMPTS)
                try:
                    num_begun += 1
                    sampling, label = replace(GREEDY, n=rng.choice([1, 2])), str(num_begun)
                    outputs = llm.generate(prompt, sampling, label, lora_request=name)
                    async for output in outputs:
                        digest = digest_of(llm, label)
                        for sample in output.outputs:
                            assert sample.token_ids == expected[digest, prompt][: len(sample.token_ids)]
                        if rng.random() < 0.02:
                            break
                    await outputs.aclose()
                    num_finished += 1
                    await asyncio.sleep(0.02)  # on one core the loader, nicest of all, would hardly come to work
                except AdapterNotFound:
                    await asyncio.sleep(0.002)

        async def operator() -> None:
            nonlocal num_operations
            while num_operations < most_operations:
                num_operations += 1
                name, kind = rng.choice(NAMES), rng.randrange(5)
                try:
                    if kind <= 2:
                        await llm.load_adapter(name, tiny_adapters[rng.choice(CONTENTS)])
                    elif kind == 3:
                        await llm.unload_adapter(name, abort=rng.random() < 0.5)
                    else:
                        versions = (await llm.get_adapter(name)).versions
                        number = rng.choice(versions).number if versions else 1
                        await llm.activate_adapter(name, number)
                except AdapterNotFound:
                    continue

        await asyncio.gather(*(user() for _ in range(6)), *(operator() for _ in range(3)))
        for info in await llm.list_adapters():
            await llm.unload_adapter(info.name)
        info = await llm.get_info()
        assert (info.num_running, info.num_waiting, info.num_free_pages) == (0, 0, info.num_pages)
        assert info.num_host_adapters == 0
        llm.check_idle()
        assert num_finished > most_operations // 7

    run(tiny_model, body)


def test_a_request_is_aborted_with_its_adapter(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        long = replace(GREEDY, max_tokens=200)
        await llm.load_adapter("kept", tiny_adapters["r4"])
        outputs = llm.generate("x", long, lora_request="r4")
        await anext(outputs)
        other = asyncio.create_task(tokens(llm, "x", "r8"))
        await asyncio.sleep(0)
        await llm.unload_adapter("r4", abort=True)
        last = [output async for output in outputs][-1]
        assert last.outputs[0].finish_reason == "abort" and len(last.outputs[0].token_ids) < 200
        assert len(await other) == 12
        r8 = await llm.get_adapter("r8")
        assert (r8.usage.num_requests, r8.usage.num_generated_tokens) == (1, 12)
        assert r8.num_copied_bytes == r8.num_bytes
        await tokens(llm, "x", None)
        info, r4 = await llm.get_info(), await llm.get_adapter("kept")
        assert (info.num_requests, info.num_generated_tokens) == (3, 12 + 12 + len(last.outputs[0].token_ids))
        assert info.queue_seconds >= r8.usage.queue_seconds > 0
        assert info.copy_seconds == pytest.approx(r8.copy_seconds + r4.copy_seconds) and r4.copy_seconds > 0

    adapters = {name: tiny_adapters[name] for name in ("r4", "r8")}
    run_alone(tiny_model, body, adapters=adapters, memory="400KB")  # whose counts begin here


def test_warming_is_known_to_the_engine(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        await llm.warm_adapter("r4")
        while not (await llm.get_adapter("r4")).resident:
            await asyncio.sleep(0.01)
        info = await llm.get_adapter("r4")
        assert info.num_copies == 1 and not info.pinned
        await tokens(llm, "x", "r4")
        assert (await llm.get_adapter("r4")).num_copies == 1

    run(tiny_model, body, adapters={"r4": tiny_adapters["r4"]})


async def some(news: AsyncGenerator[Any, None], number: int) -> list[Any]:
    return [await asyncio.wait_for(anext(news), 100) for _ in range(number)]


def told(event: AdapterEvent) -> tuple[str, str, int]:
    return event.kind, event.name, event.version


def test_who_watches_gets_everything_and_then_what_happens(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        news = llm.watch_adapters()
        (first,) = await some(news, 1)
        assert isinstance(first, AdapterSnapshot) and [info.name for info in first.adapters] == ["r4"]
        waiting = asyncio.create_task(some(news, 7))
        await asyncio.sleep(0.01)
        await llm.load_adapter("new", tiny_adapters["r4"])
        await llm.load_adapter("new", tiny_adapters["r4"])  # the same weights are no news
        await llm.load_adapter("new", tiny_adapters["r8"])
        await llm.activate_adapter("new", 1)
        await llm.unload_adapter("new")
        events = await waiting
        assert [told(event) for event in events[:5]] == [
            ("loaded", "new", 1),
            ("activated", "new", 1),
            ("loaded", "new", 2),
            ("activated", "new", 2),
            ("activated", "new", 1),
        ]
        assert {told(event) for event in events[5:]} == {("removed", "new", 1), ("removed", "new", 2)}
        assert [event.revision for event in events] == list(range(first.revision + 1, first.revision + 8))

    run(tiny_model, body, adapters={"r4": tiny_adapters["r4"]})


def test_those_who_watch_and_the_names_are_bounded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_WATCHERS", 2)

    async def body(llm: AsyncLLM) -> None:
        watchers = [llm.watch_adapters() for _ in range(3)]
        for watcher in watchers[:2]:
            await anext(watcher)
        with pytest.raises(LimitReached, match="2 clients watch"):
            await anext(watchers[2])
        await watchers[0].aclose()
        await anext(llm.watch_adapters())
        monkeypatch.setattr(catalog, "MAX_NAMES", 0)
        with pytest.raises(LimitReached, match="0 names"):
            await llm.load_adapter("more", "/nothing")

    run(tiny_model, body)


def test_who_watches_sees_where_adapters_are(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        news = llm.watch_adapters()
        await some(news, 1)
        await llm.warm_adapter("r4")
        assert [told(event) for event in await some(news, 2)] == [("resident", "alias", 1), ("resident", "r4", 1)]
        await llm.warm_adapter("r24")
        events = {told(event) for event in await some(news, 3)}
        assert events == {("evicted", "alias", 1), ("evicted", "r4", 1), ("resident", "r24", 1)}
        await llm.pin_adapter("r24")
        await llm.pin_adapter("r24")  # which is no news
        await llm.pin_adapter("r24", False)
        await llm.pin_adapter("r24")
        with pytest.raises(AdapterTooLarge):
            await llm.pin_adapter("r4")  # which is never told
        await llm.load_adapter("r24", tiny_adapters["r4"])  # a pin ends with what its name means
        kinds = ["pinned", "unpinned", "pinned", "unpinned", "loaded", "activated"]
        assert [event.kind for event in await some(news, 6)] == kinds
        await llm.unload_adapter("r4")
        assert (await some(news, 1))[0].kind == "removed"

    adapters = {"r4": "r4", "alias": "r4", "r24": "r24"}
    run(tiny_model, body, memory="110KB", adapters={name: tiny_adapters[path] for name, path in adapters.items()})


def test_another_engine_is_another_beginning_for_who_watches(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        news = llm.watch_adapters()
        await some(news, 1)
        await tokens(llm, "x", "r4")
        (event,) = await some(news, 1)
        os.kill(child_that_runs(ENGINE), signal.SIGKILL)
        while llm.is_serving:
            await asyncio.sleep(0.01)
        while not llm.is_serving:
            await asyncio.sleep(0.01)
        (again,) = await some(news, 1)  # whoever read slowly was not sent away
        assert isinstance(again, AdapterSnapshot) and again.revision > event.revision
        assert not again.adapters[0].resident

    run(tiny_model, body, adapters={"r4": tiny_adapters["r4"]})


def test_who_falls_behind_gets_everything_again(
    tiny_model: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "MAX_EVENTS", 8)

    async def body(llm: AsyncLLM) -> None:
        news = llm.watch_adapters()
        await some(news, 1)
        for _ in range(5):
            await llm.activate_adapter("mine", 1)
            await llm.activate_adapter("mine", 2)
        (again,) = await some(news, 1)
        await llm.activate_adapter("mine", 1)
        (event,) = await some(news, 1)
        assert isinstance(again, AdapterSnapshot) and event.revision == again.revision + 1
        assert told(event) == ("activated", "mine", 1)

    async def two_versions(llm: AsyncLLM) -> None:
        for name in ("r4", "r8"):
            await llm.load_adapter("mine", tiny_adapters[name])
        await body(llm)

    run_alone(tiny_model, two_versions)


@pytest.mark.parametrize("how", ["drain", "shutdown"])
def test_a_watch_ends_with_the_engine(tiny_model: Path, how: str) -> None:
    async def body(llm: AsyncLLM) -> None:
        news = llm.watch_adapters()
        await some(news, 1)
        waiting = asyncio.create_task(some(news, 1))
        await asyncio.sleep(0.01)
        await getattr(llm, how)()
        with pytest.raises(EngineUnavailable):
            await waiting

    run_alone(tiny_model, body)


def test_what_there_is_no_room_to_pin_is_loaded_all_the_same(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        await llm.pin_adapter("r24")
        with pytest.raises(AdapterTooLarge, match="no room now to pin adapter 'r4@1'"):
            await llm.load_adapter("r4", tiny_adapters["r4"], pinned=True)
        info = await llm.get_adapter("r4")
        assert info.version == 1 and not info.pinned
        await llm.unload_adapter("r24")
        assert (await llm.pin_adapter("r4")).pinned

    run(tiny_model, body, memory="110KB", adapters={"r24": tiny_adapters["r24"]})


def test_a_root_that_is_no_folder_is_refused_at_once(tiny_model: Path, tmp_path: Path) -> None:
    for root in (tmp_path / "missing", tiny_model / "config.json"):
        with pytest.raises(ValueError, match="adapter_roots: .* is not a folder"):
            AsyncLLM(str(tiny_model), adapter_roots=[root])
