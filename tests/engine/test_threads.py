"""One LLM in many threads: every row is what it is alone, and every thread gets its own errors."""

import gc
import inspect
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from blora.engine import (
    LLM,
    AdapterNotFound,
    EngineBroken,
    EngineUnavailable,
    InvalidRequest,
    LoRARequest,
    RequestOutput,
    SamplingParams,
)
from blora.engine.kernels.library import load_kernels
from blora.engine.step.core import EngineCore
from blora.scheduler import RowUpdate

NAMES = ["r1", "r4", "r8", "pattern", "r64"]
LONG = 100  # seconds, which nothing here takes
OPTIONS: dict[str, Any] = {"backend": "cpu", "memory": "2MB", "block_size": 4, "max_num_batched_tokens": 64}
LONGER = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
Row = tuple[str, Any, SamplingParams]


@pytest.fixture(scope="module")
def shared(tiny_model: Path, tiny_adapters: dict[str, Path]) -> LLM:
    return LLM(tiny_model, adapters={name: tiny_adapters[name] for name in NAMES}, **OPTIONS)


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    yield shared
    shared.check_idle()


@pytest.fixture
def alone(tiny_model: Path) -> Iterator[LLM]:
    """An engine that no second thread has called yet."""
    yield LLM(tiny_model, **OPTIONS)
    gc.collect()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def row(rng: random.Random) -> Row:
    prompt = "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(1, 30)))
    adapter = rng.choice([None, *NAMES, {"r1": 0.5, "r64": 1.5}])
    sampling = SamplingParams(
        temperature=rng.choice([0.0, 1.0]), seed=rng.randrange(100), max_tokens=rng.randint(1, 12), logprobs=2
    )
    return prompt, adapter, sampling


def content(output: RequestOutput) -> Any:
    """Everything about an answer that has to be the same each time, log-probabilities bit for bit."""
    (sample,) = output.outputs
    return sample.text, sample.token_ids, sample.logprobs, sample.finish_reason, sample.error


def generate(llm: LLM, rows: list[Row]) -> list[Any]:
    prompts, adapters, sampling = (list(column) for column in zip(*rows, strict=True))
    return [content(output) for output in llm.generate(prompts, sampling, adapters, use_tqdm=False)]


def gather(llm: LLM, rows: list[Row]) -> list[Any]:
    """Does what `generate` does, by a stream."""
    prompts, adapters, sampling = (list(column) for column in zip(*rows, strict=True))
    tokens: list[list[int]] = [[] for _ in rows]
    with llm.stream(prompts, sampling, adapters) as stream:
        for news in stream:
            for output in news:
                tokens[int(output.request_id)] += output.outputs[0].token_ids
    return tokens


def test_rows_of_many_threads_are_what_they_are_alone(llm: LLM, pool: ThreadPoolExecutor) -> None:
    rng = random.Random(1)
    calls = [[row(rng) for _ in range(rng.randint(1, 4))] for _ in range(24)]
    expected = [[generate(llm, [one])[0] for one in rows] for rows in calls]
    together = threading.Barrier(8)

    def work(rows: list[Row], expected: list[Any], is_streamed: bool) -> bool:
        together.wait(LONG)
        if is_streamed:
            return gather(llm, rows) == [tokens for _, tokens, *_ in expected]
        return generate(llm, rows) == expected

    assert all(pool.map(work, calls, expected, [False, True, False] * 8, timeout=LONG))


def test_the_engine_thread_computes_with_as_many_threads(tiny_model: Path, pool: ThreadPoolExecutor) -> None:
    before, kernels = torch.get_num_threads(), load_kernels()
    assert kernels is not None
    try:
        llm = LLM(tiny_model, **OPTIONS, threads=2)
    finally:
        torch.set_num_threads(before)
    pool.submit(generate, llm, [("the first", None, SHORT)]).result(LONG)
    assert kernels.num_threads == 2
    assert llm._driver.run(torch.get_num_threads) == 2, "the reference kernels are torch's operations"


def test_a_thread_joins_while_the_first_one_reads(alone: LLM, pool: ThreadPoolExecutor) -> None:
    prompts = ["the first", "and another"]
    expected = [content(alone.generate(prompt, LONGER, use_tqdm=False)[0])[1] for prompt in prompts]
    stream = alone.stream(prompts[0], LONGER)
    tokens = list(next(stream)[0].outputs[0].token_ids)
    joining = pool.submit(alone.generate, prompts[1], LONGER, use_tqdm=False)
    for news in stream:
        tokens += news[0].outputs[0].token_ids
    assert [tokens, joining.result(LONG)[0].outputs[0].token_ids] == expected
    alone.check_idle()


def test_threads_share_a_stream(llm: LLM, pool: ThreadPoolExecutor) -> None:
    expected = content(llm.generate("shared", LONGER, use_tqdm=False)[0])[1]
    stream = llm.stream("shared", LONGER)

    def read() -> list[int]:
        return [token for news in stream for output in news for token in output.outputs[0].token_ids]

    parts = list(pool.map(lambda _: read(), range(4), timeout=LONG))
    assert sorted(token for part in parts for token in part) == sorted(expected)


def test_threads_fill_one_queue(llm: LLM, pool: ThreadPoolExecutor) -> None:
    rows = [row(random.Random(seed)) for seed in range(16)]
    expected = [generate(llm, [one])[0] for one in rows]

    def enqueue(one: Row) -> str:
        prompt, adapter, sampling = one
        return llm.enqueue([prompt], [sampling], [adapter], use_tqdm=False)[0]

    ids = list(pool.map(enqueue, rows, timeout=LONG))
    waiting = [pool.submit(llm.wait_for_completion, use_tqdm=False) for _ in range(2)]
    answers = {output.request_id: content(output) for call in waiting for output in call.result(LONG)}
    assert [answers[request_id] for request_id in ids] == expected


def test_an_error_goes_to_the_thread_that_caused_it(llm: LLM, pool: ThreadPoolExecutor) -> None:
    calls: list[tuple[Any, type[Exception] | None]] = [
        (lambda: llm.generate("x", SHORT, "nobody", use_tqdm=False), AdapterNotFound),
        (lambda: llm.generate("x", SamplingParams(temperature=-1.0), use_tqdm=False), InvalidRequest),
        (lambda: llm.get_adapter("nobody"), AdapterNotFound),
        (lambda: llm.generate(["x"], [SHORT, SHORT], use_tqdm=False), InvalidRequest),
        (lambda: llm.generate("x", SHORT, "r4", use_tqdm=False), None),
    ]
    expected = content(llm.generate("x", SHORT, "r4", use_tqdm=False)[0])
    for _ in range(4):
        for future, error in [(pool.submit(call), error) for call, error in calls]:
            if error is None:
                assert content(future.result(LONG)[0]) == expected
            else:
                with pytest.raises(error):
                    future.result(LONG)


def begin(llm: LLM, pool: ThreadPoolExecutor, num_calls: int) -> list["Future[Any]"]:
    """Begins calls, and returns once the engine has their requests."""
    calls = [pool.submit(llm.generate, f"call {index}", SHORT, use_tqdm=False) for index in range(num_calls)]
    while not any(call.done() for call in calls):
        info = llm.get_info()
        if info.num_running + info.num_waiting >= num_calls:
            return calls
    raise AssertionError("a call has ended")


def test_a_step_that_breaks_reaches_every_thread_that_waits(
    llm: LLM, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_broken = threading.Event()

    def step(_: EngineCore) -> list[RowUpdate]:
        if is_broken.is_set():
            raise EngineBroken("the GPU failed")
        return []

    monkeypatch.setattr(EngineCore, "step", step)
    calls = begin(llm, pool, 3)
    is_broken.set()
    for call in calls:
        with pytest.raises(EngineBroken, match="the GPU failed. An LLM has .* make another"):
            call.result(LONG)


def test_close_ends_the_calls_of_other_threads(
    tiny_model: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(tiny_model, **OPTIONS)
    monkeypatch.setattr(EngineCore, "step", lambda _: [])
    stream = llm.stream("mine", SHORT)
    calls = begin(llm, pool, 3)
    llm.close()
    llm.close()
    for call in calls:
        with pytest.raises(EngineUnavailable, match="closed"):
            call.result(LONG)
    with pytest.raises(EngineUnavailable, match="closed"):
        next(stream)
    stream.close()
    uses: list[Callable[[], Any]] = [
        lambda: llm.generate("x", SHORT, use_tqdm=False),
        lambda: llm.load_adapter("a", "a"),
        llm.list_adapters,
    ]
    for use in uses:
        with pytest.raises(EngineUnavailable, match="closed"):
            use()


def test_a_stream_dropped_in_any_thread_is_ended(llm: LLM, pool: ThreadPoolExecutor) -> None:
    expected = generate(llm, [("beside", "r8", SHORT)])

    def drop(index: int) -> bool:
        stream = llm.stream([f"dropped {index}", "too"], LONGER)
        if index % 2:
            next(stream)
        del stream
        return generate(llm, [("beside", "r8", SHORT)]) == expected

    assert all(pool.map(drop, range(16), timeout=LONG))


def test_a_stream_collected_within_a_step_is_ended_after_it(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [llm.stream("collected", LONGER)]
    streams[0].itself = streams[0]  # type: ignore[attr-defined]
    schedule = llm._core.scheduler.schedule

    def collect(now: float) -> Any:
        streams.clear()
        gc.collect()
        running = llm._core.scheduler.num_running + llm._core.scheduler.num_waiting
        assert running, "it ends no request while a step is planned"
        return schedule(now)

    monkeypatch.setattr(llm._core.scheduler, "schedule", collect)
    llm.generate("beside", SHORT, use_tqdm=False)


def test_adapters_come_and_go_beside_generation(
    llm: LLM, pool: ThreadPoolExecutor, tiny_adapters: dict[str, Path]
) -> None:
    expected = {name: generate(llm, [("x", name, SHORT)]) for name in ("r1", "r4")}
    folders = {name: tiny_adapters[name] for name in expected}

    def live(index: int) -> bool:
        kind = "r1" if index % 2 else "r4"
        name = f"mine-{index}"
        llm.load_adapter(name, folders[kind])
        answers = [generate(llm, [("x", name, SHORT)]) for _ in range(3)]
        llm.warm_adapter(name)
        llm.pin_adapter(name)
        answers.append(generate(llm, [("x", name, SHORT)]))
        llm.pin_adapter(name, False)
        assert llm.get_adapter(name).name == name
        llm.unload_adapter(name)
        with pytest.raises(AdapterNotFound):
            llm.generate("x", SHORT, name, use_tqdm=False)
        brought = llm.generate("x", SHORT, LoRARequest(name, 1, str(folders[kind])), use_tqdm=False)
        llm.unload_adapter(name)
        return all(answer == expected[kind] for answer in [*answers, [content(brought[0])]])

    assert all(pool.map(live, range(16), timeout=LONG))
    assert {info.name for info in llm.list_adapters()} == set(NAMES)


def test_a_forked_child_is_told_to_be_spawned(llm: LLM) -> None:
    stream = llm.stream("parent's", SHORT)
    uses: list[Callable[[], Any]] = [
        lambda: llm.generate("x", SHORT, use_tqdm=False),
        lambda: llm.stream("x"),
        lambda: next(stream),
        lambda: llm.load_adapter("a", "a"),
        llm.list_adapters,
        llm.close,
    ]
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, b"".join(_raised(use).encode() for use in uses))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read() == "WrongProcess True\n" * len(uses)
    os.waitpid(child, 0)
    assert [len(output.outputs[0].token_ids) for news in stream for output in news] == [1] * 4


def _raised(use: Callable[[], Any]) -> str:
    try:
        use()
    except BaseException as error:
        return f"{type(error).__name__} {'spawn' in str(error)}\n"
    return "nothing\n"


# Made of methods and streams that are in turn, of what never changes, and of files.
MADE_OF_OTHERS = {
    *("add_lora", "add_request", "chat", "close", "enqueue", "enqueue_chat", "generate", "get_default_sampling_params"),
    *("get_metrics", "has_unfinished_requests", "inspect_adapter", "load_adapter", "step", "stream"),
    "wait_for_completion",
}


def test_every_public_method_says_in_which_thread_it_runs() -> None:
    methods = dict(inspect.getmembers(LLM, inspect.isfunction))
    ours = {name for name, method in methods.items() if not name.startswith("_") and not hasattr(method, "__wrapped__")}
    assert ours == MADE_OF_OTHERS, "a method that touches the engine or the front end needs @in_turn"
