"""AsyncLLM with a real engine process and a real loader: aborts, failures and restarts leave nothing behind."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pytest
from processes import ENGINE, LOADER, child_that_runs, is_there
from settled import check_settled

from blora.engine import (
    LLM,
    AdapterNotFound,
    AdapterRejected,
    AsyncLLM,
    DeadlineExceeded,
    EngineStartError,
    EngineUnavailable,
    InvalidRequest,
    LoRARequest,
    QueueFull,
    ReaderTooSlow,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    UserTokenizer,
)
from blora.engine.front_end import unread
from blora.engine.ipc import engine_supervisor
from blora.engine.ipc.channel import ChannelClosed, Child, start_child
from blora.engine.ipc.messages import DoneReply

pytestmark = pytest.mark.slow

Result = TypeVar("Result")
Run = Callable[[Coroutine[Any, Any, Result]], Result]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
OPTIONS: dict[str, Any] = {"memory": "2MB", "block_size": 4, "max_num_batched_tokens": 64, "threads": 1}


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def shared(runner: asyncio.Runner, tiny_model: Path, tiny_adapters: dict[str, Path]) -> Iterator[AsyncLLM]:
    """One engine for the tests of this file: it has to survive them all."""
    llm = AsyncLLM(str(tiny_model), adapters={name: str(path) for name, path in tiny_adapters.items()}, **OPTIONS)
    runner.run(llm.start())
    yield llm
    runner.run(llm.shutdown())


@pytest.fixture
def llm(runner: asyncio.Runner, shared: AsyncLLM) -> Iterator[AsyncLLM]:
    yield shared
    runner.run(check_settled(shared))


async def last(llm: AsyncLLM, prompt: Any, sampling: SamplingParams = GREEDY, **options: Any) -> RequestOutput:
    output = [output async for output in llm.generate(prompt, sampling, **options)][-1]
    assert output.finished
    return output


async def tokens(llm: AsyncLLM, prompt: str, adapter: Any = None, sampling: SamplingParams = GREEDY) -> list[int]:
    return (await last(llm, prompt, sampling, lora_request=adapter)).outputs[0].token_ids


def test_mixed_requests_equal_the_engine_in_process(
    runner: asyncio.Runner, llm: AsyncLLM, make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    uses: list[Any] = [None, *tiny_adapters, {"r8": 0.5, "r4": 2.0}]
    batch = [(f"prompt {index}", use) for index in range(3) for use in uses]
    direct = make_llm(adapters={name: str(path) for name, path in tiny_adapters.items()})
    expected = direct.generate([p for p, _ in batch], GREEDY, lora_request=[a for _, a in batch], use_tqdm=False)

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(tokens(llm, prompt, name) for prompt, name in batch))

    assert runner.run(together()) == [output.outputs[0].token_ids for output in expected]


def test_deltas_add_up_and_cumulative_outputs_grow(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def texts(kind: RequestOutputKind) -> list[str]:
        sampling = replace(GREEDY, output_kind=kind)
        return [output.outputs[0].text async for output in llm.generate("grow", sampling)]

    deltas = runner.run(texts(RequestOutputKind.DELTA))
    cumulative = runner.run(texts(RequestOutputKind.CUMULATIVE))
    final = runner.run(texts(RequestOutputKind.FINAL_ONLY))
    assert "".join(deltas) == cumulative[-1] == final[0] and len(final) == 1
    assert all(later.startswith(earlier) for earlier, later in zip(cumulative, cumulative[1:], strict=False))


def test_a_reset_empties_the_prefix_cache(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def check() -> None:
        seen = []
        for _ in range(3):
            seen.append((await last(llm, "a prompt of four blocks")).num_cached_tokens)
            if len(seen) == 2:
                assert await llm.reset_prefix_cache()
        assert seen == [0, 20, 0]

    runner.run(check())


def test_a_request_ends_once_when_its_deadline_passes(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def check() -> None:
        now, engine = asyncio.get_running_loop().time(), child_that_runs(ENGINE)
        with pytest.raises(DeadlineExceeded):
            await last(llm, "x", deadline=now)
        assert len((await last(llm, "x", deadline=now + 1000)).outputs[0].token_ids) == 8
        os.kill(engine, signal.SIGSTOP)  # an engine that stands still does not hold anybody up
        try:
            with pytest.raises(DeadlineExceeded):
                await last(llm, "x", replace(LONG, n=3), deadline=asyncio.get_running_loop().time() + 0.1)
            begun = llm.generate("x", LONG, first_token_deadline=asyncio.get_running_loop().time() + 0.1)
            with pytest.raises(DeadlineExceeded):
                await anext(begun)
        finally:
            os.kill(engine, signal.SIGCONT)
        begun = llm.generate("x", LONG, first_token_deadline=asyncio.get_running_loop().time() + 100)
        assert [output async for output in begun][-1].finished
        for deadline in (float("nan"), "soon", True):
            with pytest.raises(InvalidRequest, match="^deadline"):
                await last(llm, "x", deadline=deadline)
            with pytest.raises(InvalidRequest, match="first_token_deadline"):
                await last(llm, "x", first_token_deadline=deadline)

    runner.run(check())


def test_bad_requests_are_refused_at_the_first_iteration(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    bad = replace(GREEDY, top_p=float("nan"))
    with pytest.raises(InvalidRequest, match="top_p"):
        runner.run(last(llm, "x", bad))
    with pytest.raises(InvalidRequest, match="prompt"):
        runner.run(last(llm, ""))
    with pytest.raises(InvalidRequest, match="prompt"):
        runner.run(last(llm, [260]))
    with pytest.raises(AdapterNotFound):
        runner.run(last(llm, "x", lora_request="nobody"))


def test_odd_but_valid_types_are_taken_and_harm_nobody(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    """A value that the engine process cannot decode would end it, and with it all requests."""
    odd = replace(
        GREEDY, top_p=np.float64(0.5), stop_token_ids=b"\x01", logit_bias=MappingProxyType({np.int64(1).item(): 0.5})
    )
    engine = child_that_runs(ENGINE)
    assert len(runner.run(tokens(llm, "odd", sampling=odd))) >= 1
    assert len(runner.run(tokens(llm, "odd", sampling=replace(GREEDY, stop_token_ids=range(2))))) >= 1
    assert child_that_runs(ENGINE) == engine


@pytest.mark.parametrize("num_outputs", [0, 1, 5])
def test_aborting_ends_a_request_at_any_phase(runner: asyncio.Runner, llm: AsyncLLM, num_outputs: int) -> None:
    async def abort_after() -> RequestOutput:
        outputs = []
        async for output in llm.generate("abort me", LONG, "mine", lora_request="r4"):
            outputs.append(output)
            if len(outputs) >= num_outputs:
                await llm.abort(["mine", "unknown"])
        return outputs[-1]

    output = runner.run(abort_after())
    assert output.outputs[0].finish_reason == "abort"
    assert len(output.outputs[0].token_ids) < 200


def test_a_generator_that_is_closed_aborts(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def leave() -> None:
        stream = llm.generate("leave", replace(LONG, n=3), lora_request="r8")
        await anext(stream)
        await stream.aclose()
        llm.check_idle()  # nothing of the request is left in the front end; the fixture looks at the engine

    runner.run(leave())


def test_a_cancelled_task_aborts(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def cancel() -> None:
        tasks = [asyncio.create_task(tokens(llm, f"cancel {index}", "r16", LONG)) for index in range(20)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True))

    runner.run(cancel())


def test_the_id_of_an_unfinished_request_is_not_given_twice(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def twice() -> None:
        stream = llm.generate("one", LONG, "same")
        await anext(stream)
        with pytest.raises(InvalidRequest, match="request_id"):
            await last(llm, "two", request_id="same")
        await stream.aclose()
        await last(llm, "three", request_id="same")

    runner.run(twice())


def test_unloading_waits_for_running_requests_and_refuses_new_ones(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path]
) -> None:
    async def unload() -> None:
        await llm.load_adapter("mine", tiny_adapters["r4"])
        expected = await tokens(llm, "in use", "r4", LONG)
        running = asyncio.create_task(tokens(llm, "in use", "mine", LONG))
        await asyncio.sleep(0.05)
        unloading = asyncio.create_task(llm.unload_adapter("mine"))
        await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        with pytest.raises(AdapterNotFound):
            await tokens(llm, "too late", "mine")
        await unloading
        assert await running == expected

    runner.run(unload())


def test_unloading_the_only_name_of_weights_returns_when_they_are_free(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path]
) -> None:
    async def unload() -> None:
        before = (await llm.get_info()).num_host_adapters
        running = asyncio.create_task(tokens(llm, "in use", "r2", LONG))
        await asyncio.sleep(0.1)
        await llm.unload_adapter("r2")
        assert running.done() or len(await running) == 200
        assert (await llm.get_info()).num_host_adapters == before - 1
        await llm.load_adapter("r2", tiny_adapters["r2"])

    runner.run(unload())


def test_replacing_under_traffic_never_mixes_versions(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path]
) -> None:
    names = ["r1", "r4", "r8"]
    prompt = "a prompt long enough to leave blocks in the prefix cache"

    async def replace_all() -> None:
        expected = {name: await tokens(llm, prompt, name) for name in names}
        for index in range(30):
            name = names[index % 3]
            await llm.load_adapter("changing", tiny_adapters[name])
            running = asyncio.create_task(tokens(llm, prompt, "changing"))
            await asyncio.sleep(0)
            await llm.load_adapter("changing", tiny_adapters[names[(index + 1) % 3]])
            assert await running == expected[name]
        await llm.unload_adapter("changing")

    runner.run(replace_all())


def test_loading_and_unloading_the_same_weights_at_once_settles(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path]
) -> None:
    async def churn() -> None:
        await llm.unload_adapter("r16")
        for _ in range(10):
            await llm.load_adapter("r16", tiny_adapters["r16"])
            running = asyncio.create_task(tokens(llm, "churn", "r16"))
            await asyncio.sleep(0)
            unloading = asyncio.create_task(llm.unload_adapter("r16"))
            await asyncio.sleep(0.01)
            await llm.load_adapter("r16", tiny_adapters["r16"])
            await asyncio.gather(running, unloading)
            await llm.unload_adapter("r16")
        await llm.load_adapter("r16", tiny_adapters["r16"])

    runner.run(churn())


def test_bad_adapters_are_refused_while_requests_run_on(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((tiny_adapters["r4"] / "adapter_config.json").read_bytes())
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    fifo = tmp_path / "fifo"
    fifo.mkdir()
    os.mkfifo(fifo / "adapter_config.json")

    async def load_bad_ones() -> None:
        expected = await tokens(llm, "undisturbed", "r4", LONG)
        running = asyncio.create_task(tokens(llm, "undisturbed", "r4", LONG))
        for folder in (broken, fifo, tmp_path / "missing"):
            with pytest.raises(AdapterRejected):
                await llm.load_adapter("bad", folder)
        with pytest.raises(AdapterNotFound):
            await tokens(llm, "x", "bad")
        assert await running == expected

    runner.run(load_bad_ones())


def test_a_lora_request_with_a_path_loads_it(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path]
) -> None:
    async def ask() -> None:
        request = LoRARequest("by-path", 1, str(tiny_adapters["r8"]))
        assert await tokens(llm, "hello", request) == await tokens(llm, "hello", "r8")
        other = LoRARequest("by-path", 1, str(tiny_adapters["r4"]))
        with pytest.raises(InvalidRequest, match="load_inplace"):
            await tokens(llm, "hello", other)
        assert await tokens(llm, "hello", replace(other, load_inplace=True)) == await tokens(llm, "hello", "r4")
        await llm.unload_adapter("by-path")

    runner.run(ask())


def test_a_loader_that_dies_costs_only_its_load(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path]
) -> None:
    async def kill_loader() -> None:
        loader = child_that_runs(LOADER)
        loading = asyncio.create_task(llm.load_adapter("again", tiny_adapters["r64"]))
        await asyncio.sleep(0)
        os.kill(loader, signal.SIGKILL)
        with pytest.raises(AdapterRejected, match="loader ended"):
            await loading
        await llm.load_adapter("again", tiny_adapters["r64"])
        await llm.unload_adapter("again")

    runner.run(kill_loader())


def test_a_loader_that_died_while_idle_costs_nothing(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path]
) -> None:
    async def kill_idle_loader() -> None:
        await llm.load_adapter("again", tiny_adapters["r64"])
        loader = child_that_runs(LOADER)
        os.kill(loader, signal.SIGKILL)
        while is_there(loader):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # the event loop knows, too
        await llm.load_adapter("again", tiny_adapters["r64"])
        with pytest.raises(AdapterRejected):
            await llm.load_adapter("again", "/" + "a" * 5000)
        await llm.load_adapter("again", tiny_adapters["r64"])
        await llm.unload_adapter("again")

    runner.run(kill_idle_loader())


def test_an_engine_that_dies_is_restarted_with_its_adapters(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    states: list[bool] = []
    llm.on_serving_change(states.append)

    async def ask() -> None:
        expected = await tokens(llm, "before and after", "r8")
        await llm.pin_adapter("r1")
        os.kill(child_that_runs(ENGINE), signal.SIGSTOP)  # otherwise it might finish before it is killed
        running = [asyncio.create_task(tokens(llm, f"kept {index}", "r4", LONG)) for index in range(4)]
        await asyncio.sleep(0.1)
        kill_engine()
        while llm.is_serving:
            await asyncio.sleep(0.01)
        early = asyncio.create_task(tokens(llm, "before and after", "r8"))
        kept = await asyncio.gather(*running)
        assert await early == expected
        assert kept == [await tokens(llm, f"kept {index}", "r4", LONG) for index in range(4)]
        assert (await llm.get_adapter("r1")).pinned
        await llm.pin_adapter("r1", False)

    runner.run(ask())
    assert states[-2:] == [False, True]


async def until_serving(llm: AsyncLLM) -> None:
    async with asyncio.timeout(250):
        while not llm.is_serving:
            await asyncio.sleep(0.05)


def kill_engine() -> None:
    os.kill(child_that_runs(ENGINE), signal.SIGKILL)


def test_a_slow_reader_misses_nothing_when_the_engine_dies(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def read_slowly() -> None:
        told: list[int] = []
        async for output in llm.generate("slow", replace(LONG, output_kind=RequestOutputKind.DELTA)):
            if not told:
                kill_engine()
                while llm.is_serving:
                    await asyncio.sleep(0.01)
            told += output.outputs[0].token_ids
        assert told == await tokens(llm, "slow", sampling=LONG)

    runner.run(asyncio.wait_for(read_slowly(), 250))


def test_a_request_of_which_a_part_cannot_be_sent_is_given_to_the_next_engine(
    runner: asyncio.Runner, llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, calls = Child.send, []

    def fail_second(child: Child[Any], message: Any) -> None:
        calls.append(message)
        if len(calls) == 2:
            kill_engine()
            raise ChannelClosed
        send(child, message)

    async def ask() -> None:
        expected = await last(llm, "three samples", replace(GREEDY, n=3))
        monkeypatch.setattr(Child, "send", fail_second)
        output = await last(llm, "three samples", replace(GREEDY, n=3))
        assert [sample.token_ids for sample in output.outputs] == [sample.token_ids for sample in expected.outputs]

    runner.run(ask())


def test_a_restart_that_fails_is_tried_again_and_keeps_the_size(
    runner: asyncio.Runner, llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError("no more processes"), EngineStartError("no memory")]

    async def start_at_last(module: str, incoming: Any) -> Child[Any]:
        if failures:
            raise failures.pop()
        return await start_child(module, incoming)

    async def restart() -> None:
        size = (await llm.get_info()).num_pages
        monkeypatch.setattr(llm._supervisor, "_start_process", start_at_last)
        kill_engine()
        while llm.is_serving:
            await asyncio.sleep(0.01)
        await until_serving(llm)
        assert not failures and (await llm.get_info()).num_pages == size

    runner.run(restart())


def test_listing_while_adapters_are_replaced(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path]
) -> None:
    async def replace_often() -> None:
        for index in range(20):
            await llm.load_adapter("moving", tiny_adapters[("r1", "r8")[index % 2]])
        await llm.unload_adapter("moving")

    async def both() -> None:
        for name in ("r1", "r8"):  # so that each replacement frees an adapter
            await llm.unload_adapter(name)
        work = asyncio.create_task(replace_often())
        while not work.done():
            listed = await llm.list_adapters()
            assert len(listed) in (len(tiny_adapters) - 2, len(tiny_adapters) - 1)
        await work
        for name in ("r1", "r8"):
            await llm.load_adapter(name, tiny_adapters[name])

    runner.run(both())


def test_those_who_ask_for_one_path_together_load_it_once(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = llm.load_adapter

    async def counted(name: str, path: str, **options: Any) -> Any:
        loads.append(name)
        return await load(name, path, **options)

    async def together() -> None:
        monkeypatch.setattr(llm, "load_adapter", counted)
        request = LoRARequest("together", 1, str(tiny_adapters["r8"]))
        results = await asyncio.gather(*(tokens(llm, "hello", request) for _ in range(5)))
        assert len({tuple(result) for result in results}) == 1
        await llm.unload_adapter("together")

    runner.run(together())
    assert loads == ["together"]


def test_a_conversation_is_the_prompt_of_its_template(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def chat() -> str:
        outputs = [output async for output in llm.chat([{"role": "user", "content": "hello"}], GREEDY)]
        return outputs[-1].outputs[0].text

    assert runner.run(chat()) == runner.run(last(llm, "user: hello\n")).outputs[0].text


def test_shutting_down_ends_whatever_waits(
    runner: asyncio.Runner, tiny_model: Path, tiny_adapters: dict[str, Path]
) -> None:
    async def shut_down() -> None:
        llm = AsyncLLM(str(tiny_model), adapters={"mine": str(tiny_adapters["r4"])}, **OPTIONS)
        await llm.start()
        running = asyncio.create_task(tokens(llm, "running", "mine", LONG))
        await asyncio.sleep(0.05)
        waiting = [
            asyncio.create_task(work)
            for work in (
                llm.unload_adapter("mine"),
                llm.load_adapter("one", tiny_adapters["r8"]),
                llm.load_adapter("two", tiny_adapters["r1"]),
            )
        ]
        await asyncio.sleep(0)
        loader = child_that_runs(LOADER)
        await asyncio.wait_for(llm.shutdown(), 100)
        results = await asyncio.wait_for(asyncio.gather(running, *waiting, return_exceptions=True), 100)
        assert all(isinstance(result, EngineUnavailable) for result in results[2:]), results
        assert not is_there(loader)

    runner.run(shut_down())


def test_hundreds_of_adapters_survive_a_restart(
    runner: asyncio.Runner, tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    """There are more adapters than descriptors that may wait in a socket."""
    num_adapters = 350
    names = [f"adapter-{index}" for index in range(num_adapters)]
    for index, name in enumerate(names):
        folder = shutil.copytree(tiny_adapters["r1"], tmp_path / name)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": index + 1}))

    async def restart() -> None:
        async with AsyncLLM(str(tiny_model), adapters={name: tmp_path / name for name in names}, **OPTIONS) as llm:
            expected = await tokens(llm, "hello", names[-1])
            kill_engine()
            while llm.is_serving:
                await asyncio.sleep(0.01)
            await until_serving(llm)
            assert await tokens(llm, "hello", names[-1]) == expected
            assert len(await llm.list_adapters()) == num_adapters

    runner.run(asyncio.wait_for(restart(), 250))


def test_a_stream_that_nobody_reads_ends_when_too_many_logprobs_wait(
    runner: asyncio.Runner, llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "MAX_UNREAD", 100)
    monkeypatch.setattr(unread, "MAX_ALWAYS_ALLOWED", 5)
    sampling = replace(LONG, logprobs=3, output_kind=RequestOutputKind.DELTA)

    async def body() -> None:
        stream = llm.generate("nobody reads this", sampling)
        await anext(stream)
        whole = await last(llm, "whoever does not stream has all", replace(LONG, logprobs=3))
        assert len(whole.outputs[0].logprobs or ()) == 200
        while llm._front_end.outputs.num_unfinished:
            await asyncio.sleep(0.01)
        with pytest.raises(ReaderTooSlow, match="read faster"):
            await anext(stream)
        read = [output async for output in llm.generate("somebody reads this", sampling)]
        assert sum(len(output.outputs[0].logprobs or ()) for output in read) == 200

    runner.run(asyncio.wait_for(body(), 250))


def test_draining_finishes_what_runs_and_refuses_the_rest(
    runner: asyncio.Runner, tiny_model: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, stopped = Child.stop, dict[int, int | None]()  # by process id: the status it ended with

    async def stop_noted(child: Child[Any], grace: float) -> None:
        await stop(child, grace)
        stopped[child.process.pid] = child.process.returncode

    monkeypatch.setattr(Child, "stop", stop_noted)
    monkeypatch.setattr(engine_supervisor, "GRACE", 200.0)  # on a busy machine an engine may take long to end

    async def drain() -> None:
        async with AsyncLLM(
            str(tiny_model), adapters={"mine": tiny_adapters["r4"]}, adapter_roots=[], max_num_queued_reqs=3, **OPTIONS
        ) as llm:
            with pytest.raises(AdapterRejected, match="adapter-root"):
                await llm.load_adapter("other", tiny_adapters["r8"])
            with pytest.raises(QueueFull):
                await last(llm, "too many", replace(GREEDY, n=4))
            running = asyncio.create_task(tokens(llm, "running", "mine", LONG))
            while not llm._front_end.outputs.num_unfinished:
                await asyncio.sleep(0.01)
            draining = asyncio.create_task(llm.drain())
            await asyncio.sleep(0)
            assert not llm.is_serving
            with pytest.raises(EngineUnavailable):
                await tokens(llm, "late")
            await draining
            assert len(await running) == 200
            engine = child_that_runs(ENGINE)
        assert stopped[engine] == 0

    runner.run(drain())


def test_a_drain_before_the_start_changes_nothing_and_one_without_time_ends_requests(
    runner: asyncio.Runner, tiny_model: Path
) -> None:
    async def drain_early() -> None:
        llm = AsyncLLM(tiny_model, **OPTIONS)
        with pytest.raises(EngineUnavailable, match=r"await start\(\) first"):
            await llm.drain()
        async with llm:
            assert len(await tokens(llm, "hello")) == 8
            running = asyncio.create_task(tokens(llm, "not finished", sampling=LONG))
            while not llm._front_end.outputs.num_unfinished:
                await asyncio.sleep(0.01)
            await llm.drain(0)
            with pytest.raises(EngineUnavailable, match="within 0.0 s"):
                await running
            await llm.drain()

    runner.run(drain_early())


def test_a_pin_that_another_engine_has_no_room_for_ends(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def ask() -> None:
        await tokens(llm, "hello", "r8")  # makes the adapter resident
        news = llm.watch_adapters()
        await anext(news)
        await llm.pin_adapter("r8")
        digest = (await llm.get_adapter("r8")).digest
        reply: asyncio.Future[DoneReply] = asyncio.get_running_loop().create_future()
        reply.set_result(DoneReply(0, is_done=False))
        llm._adapters._check_pin(digest, reply)
        await llm.pin_adapter("r8", False)
        events = [await asyncio.wait_for(anext(news), 100) for _ in range(2)]
        assert [event.kind for event in events] == ["pinned", "unpinned"]
        assert not (await llm.get_adapter("r8")).pinned

    runner.run(ask())


def test_a_model_that_cannot_be_served_says_why(runner: asyncio.Runner, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing"):
        runner.run(AsyncLLM(str(tmp_path / "missing")).start())
    with pytest.raises(EngineStartError, match="^memory: 10 bytes"):
        runner.run(AsyncLLM(str(tiny_model), memory=10).start())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.gguf").touch()
    for name, reason in (("empty", r"no config\.json"), ("empty.gguf", "as GGUF")):
        with pytest.raises(EngineStartError, match=reason):
            runner.run(AsyncLLM(tmp_path / name).start())


@pytest.mark.parametrize(
    "sampling", [SamplingParams(temperature=-1), SamplingParams(max_tokens=0), SamplingParams(bad_words=[""])]
)
def test_a_refused_call_loads_nothing(
    runner: asyncio.Runner, llm: AsyncLLM, tiny_adapters: dict[str, Path], sampling: SamplingParams
) -> None:
    async def ask() -> None:
        request = LoRARequest("unwanted", 1, str(tiny_adapters["r8"]))
        with pytest.raises(InvalidRequest):
            await tokens(llm, "hello", request, sampling)
        assert "unwanted" not in [adapter.name for adapter in await llm.list_adapters()]

    runner.run(ask())


def test_rows_of_a_stream_grow_together(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def ask() -> None:
        adapters = [None, "r8", "r4", None]
        expected = [await tokens(llm, f"prompt {row}", adapter) for row, adapter in enumerate(adapters)]
        rows: dict[str, list[int]] = {str(row): [] for row in range(len(adapters))}
        num_together = 0
        async for outputs in llm.stream([f"prompt {row}" for row in range(len(adapters))], GREEDY, adapters):
            num_together = max(num_together, len(outputs))
            for output in outputs:
                rows[output.request_id] += output.outputs[0].token_ids
        assert list(rows.values()) == expected and num_together > 1

    runner.run(ask())


def test_a_stream_is_accepted_whole_or_not_at_all(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def ask() -> None:
        for prompts, adapters in ((["fine", ""], None), (["fine", "fine"], [None, "nobody"]), (None, None)):
            with pytest.raises((InvalidRequest, AdapterNotFound)):
                await anext(llm.stream(prompts, GREEDY, adapters))  # type: ignore[arg-type]
        assert [outputs async for outputs in llm.stream([], GREEDY)] == []

    runner.run(ask())


def test_a_closed_stream_ends_all_its_rows(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def leave() -> None:
        stream = llm.stream(["one", "two"], LONG, [None, "r8"])
        await anext(stream)
        await stream.aclose()  # the fixture checks that nothing is left

    runner.run(leave())


def test_what_is_asked_of_an_engine_that_is_not_started_says_why(tiny_model: Path) -> None:
    llm = AsyncLLM(str(tiny_model), **OPTIONS)
    with pytest.raises(EngineUnavailable, match="not started"):
        llm.get_tokenizer()


def test_the_tokenizer_may_be_awaited(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    async def ask() -> UserTokenizer:
        return await llm.get_tokenizer()

    tokenizer = runner.run(ask())
    assert tokenizer is llm.get_tokenizer()
    assert tokenizer("hello").input_ids == tokenizer.encode("hello")


def test_the_id_of_a_request_is_a_text(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    for label in (5, b"id", ["id"]):
        with pytest.raises(InvalidRequest, match="request_id"):
            runner.run(anext(llm.generate("hello", GREEDY, label)))  # type: ignore[arg-type]


def test_ids_to_abort_are_checked(runner: asyncio.Runner, llm: AsyncLLM) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        runner.run(llm.abort(5))  # type: ignore[arg-type]
