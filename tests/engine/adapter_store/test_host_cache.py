"""The host cache: adapters beyond its limit are read again, are what was loaded or fail alone, and hold nobody up."""

import asyncio
import hashlib
import os
import random
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import ENGINE, child_that_runs
from safetensors.numpy import load_file, save_file
from settled import check_settled
from shared_engine import run_alone, shared_engine

from blora.engine import LLM, AdapterNotFound, AdapterRejected, AsyncLLM, QueueFull, SamplingParams
from blora.engine.adapter_store.loader_client import LoaderClient, PackedAdapter
from blora.engine.adapter_store.source import Source
from blora.engine.adapter_store.upload import UploadedFile

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = replace(GREEDY, max_tokens=200)
SMALL = "1"  # byte: what nobody uses goes at once
WEIGHTS = "adapter_model.safetensors"


def scale(folder: Path, by: float) -> Path:
    """Makes another adapter of one."""
    save_file({name: tensor * by for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


def fifty(original: Path, folder: Path) -> dict[str, Path]:
    copies = {f"a{n}": Path(shutil.copytree(original, folder / str(n))) for n in range(50)}
    return {name: scale(copy, 0.5 + n / 20) for n, (name, copy) in enumerate(copies.items())}


@pytest.fixture
def folders(tiny_adapters: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Two adapters whose files may be changed."""
    return {name: Path(shutil.copytree(tiny_adapters[name], tmp_path / name)) for name in ("r4", "r8")}


def answer(llm: LLM, adapter: str | None, prompt: str = "a prompt") -> list[int]:
    (output,) = llm.generate(prompt, GREEDY, adapter, use_tqdm=False)
    return output.outputs[0].token_ids


# In process.


def test_50_adapters_in_memory_for_5(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    adapters = fifty(tiny_adapters["r4"], tmp_path)
    names = list(adapters)
    roomy = make_llm(adapters=adapters, host_cache=None)
    num_bytes = roomy.get_adapter("a0").num_bytes
    limit = 5 * num_bytes
    llm = make_llm(adapters=adapters, host_cache=limit, memory=str(8 * num_bytes))  # evicts and preempts, too
    assert sum(info.in_host_memory for info in llm.list_adapters()) == 5
    draw = random.Random(0)
    for _ in range(6):
        picks = [draw.choice(names) for _ in range(20)]
        texts = [f"prompt {index}" for index in range(20)]
        expected, found = (
            [output.outputs[0].token_ids for output in engine.generate(texts, GREEDY, picks, use_tqdm=False)]
            for engine in (roomy, llm)
        )
        assert found == expected
        llm.check_idle()
        info = llm.get_info()
        assert info.num_host_bytes <= limit and info.num_host_adapters <= 5
    assert info.num_host_reads > 50


def test_a_changed_folder_fails_its_own_requests_only(
    make_llm: Callable[..., LLM], folders: dict[str, Path], tmp_path: Path
) -> None:
    llm = make_llm(adapters=folders, host_cache=SMALL)
    expected = {name: answer(llm, name) for name in (None, "r4", "r8")}
    loaded = llm.get_adapter("r4")
    assert not loaded.in_host_memory
    kept = shutil.copytree(folders["r4"], tmp_path / "kept")
    scale(folders["r4"], 2.0)
    found = llm.inspect_adapter(folders["r4"]).digest
    with pytest.raises(
        AdapterRejected, match=rf"(?s)no longer what was loaded, whose digest is {loaded.digest}.*{found}"
    ):
        answer(llm, "r4")
    with pytest.raises(AdapterRejected, match="no longer what was loaded"):
        llm.warm_adapter("r4")
    assert answer(llm, "r8") == expected["r8"] and answer(llm, None) == expected[None]
    shutil.rmtree(folders["r4"])
    with pytest.raises(AdapterRejected, match="cannot be read"):
        answer(llm, "r4")
    assert llm.get_info().num_host_failures == 3
    shutil.copytree(kept, folders["r4"])
    assert answer(llm, "r4") == expected["r4"]


def test_versions_that_can_be_had_no_more_stay_or_are_not_activated(
    make_llm: Callable[..., LLM], folders: dict[str, Path]
) -> None:
    llm = make_llm(host_cache=SMALL)
    llm.load_adapter("mine", folders["r4"])
    llm.load_adapter("mine", folders["r8"])
    expected = answer(llm, "mine")
    scale(folders["r4"], 2.0)
    with pytest.raises(AdapterRejected, match="no longer what was loaded"):
        llm.activate_adapter("mine", 1)
    assert llm.get_adapter("mine").version == 2 and answer(llm, "mine") == expected

    llm.load_adapter("other", folders["r8"])
    llm.pin_adapter("other")  # or it would have gone before its folder is overwritten
    scale(folders["r8"], 2.0)
    llm.load_adapter("other", folders["r8"])
    assert llm.get_adapter("other@1").in_host_memory and not llm.get_adapter("other").in_host_memory
    assert llm.activate_adapter("other", 1).version == 1 and answer(llm, "other") == expected


def test_pinned_ones_stay_until_they_are_unpinned(make_llm: Callable[..., LLM], folders: dict[str, Path]) -> None:
    llm = make_llm(adapters=folders, host_cache=SMALL)
    assert llm.pin_adapter("r4").in_host_memory
    answer(llm, "r4")
    assert llm.get_adapter("r4").in_host_memory
    assert not llm.pin_adapter("r4", False).in_host_memory
    warm = llm.warm_adapter("r4")
    assert warm.resident and not warm.in_host_memory


def test_rows_of_one_call_end_with_the_adapter_that_cannot_be_read(
    make_llm: Callable[..., LLM], folders: dict[str, Path]
) -> None:
    llm = make_llm(adapters=folders, host_cache=SMALL)
    shutil.rmtree(folders["r4"])
    with pytest.raises(AdapterRejected):
        llm.generate(["x", "y"], GREEDY, ["r8", "r4"], use_tqdm=False)
    llm.check_idle()
    assert len(answer(llm, "r8")) == 8


# Behind a process.


@pytest.fixture(autouse=True)
def _no_gate_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoaderClient, "read_again", LoaderClient.read_again)


class Gate:
    """From now on, until the test ends, what is read again waits for it."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()
        self.num_waiting = 0
        read_again = LoaderClient.read_again

        async def wait(loader: LoaderClient, source: Source) -> PackedAdapter:
            self.num_waiting += 1
            await self._is_open.wait()
            return await read_again(loader, source)

        LoaderClient.read_again = wait  # type: ignore[method-assign]

    async def reached(self) -> None:
        while not self.num_waiting:
            await asyncio.sleep(0.005)

    def open(self) -> None:
        self._is_open.set()


async def tokens(llm: AsyncLLM, adapter: Any, sampling: SamplingParams = GREEDY, **options: Any) -> list[int]:
    outputs = [output async for output in llm.generate("a prompt", sampling, lora_request=adapter, **options)]
    return outputs[-1].outputs[0].token_ids


async def finish_reason(llm: AsyncLLM, adapter: str, **options: Any) -> str | None:
    outputs = [output async for output in llm.generate("a prompt", LONG, lora_request=adapter, **options)]
    return outputs[-1].outputs[0].finish_reason


def run(
    model: Path, adapters: dict[str, Path], body: Callable[[AsyncLLM], Coroutine[Any, Any, None]], **more: Any
) -> None:
    """In an engine of its own where it needs other options."""

    async def settling(llm: AsyncLLM) -> None:
        await body(llm)
        await check_settled(llm)

    if more:
        run_alone(model, settling, adapters=adapters, **{"host_cache": SMALL} | more)
    else:
        shared_engine.run(model, body, adapters, host_cache=SMALL)


def test_50_adapters_in_memory_for_5_under_traffic(
    tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path: Path, make_llm: Callable[..., LLM]
) -> None:
    adapters = fifty(tiny_adapters["r4"], tmp_path)
    direct = make_llm(adapters=adapters)
    expected = {name: answer(direct, name) for name in adapters}
    num_bytes = direct.get_adapter("a0").num_bytes
    draw = random.Random(0)

    async def user(llm: AsyncLLM) -> None:
        for _ in range(12):
            name = draw.choice(list(adapters))
            assert await tokens(llm, name) == expected[name]

    async def body(llm: AsyncLLM) -> None:
        await asyncio.gather(*(user(llm) for _ in range(10)))
        info = await llm.get_info()
        assert info.num_host_bytes <= info.max_host_bytes == 5 * num_bytes
        assert info.num_host_uses == 120 and 50 <= info.num_host_reads <= 120 - info.num_host_hits
        assert sum(adapter.in_host_memory for adapter in await llm.list_adapters()) == 5

    run(tiny_model, adapters, body, host_cache=5 * num_bytes, memory=str(12 * num_bytes))


def test_requests_of_a_changed_adapter_fail_alone(tiny_model: Path, folders: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        expected = await tokens(llm, "r8", LONG)
        loaded = await llm.get_adapter("r4")
        assert not loaded.in_host_memory
        scale(folders["r4"], 2.0)
        found = (await llm.inspect_adapter(folders["r4"])).digest
        other = asyncio.create_task(tokens(llm, "r8", LONG))
        failures = await asyncio.gather(*(tokens(llm, "r4") for _ in range(5)), return_exceptions=True)
        for failure in failures:
            assert isinstance(failure, AdapterRejected)
            assert loaded.digest in str(failure) and found in str(failure) and "no longer" in str(failure)
        shutil.rmtree(folders["r4"])
        with pytest.raises(AdapterRejected, match="cannot be read"):
            await tokens(llm, "r4")
        with pytest.raises(AdapterRejected, match="cannot be read"):
            await llm.pin_adapter("r4")
        assert await other == expected and not (await llm.get_adapter("r4")).pinned

    run(tiny_model, folders, body)


def test_who_needs_the_same_adapter_waits_for_one_read_and_nobody_else_waits(
    tiny_model: Path, folders: dict[str, Path]
) -> None:
    async def body(llm: AsyncLLM) -> None:
        expected = {name: await tokens(llm, name) for name in ("r4", "r8", None)}
        await llm.pin_adapter("r8")
        before, gate = await llm.get_info(), Gate()
        waiting = [asyncio.create_task(tokens(llm, "r4")) for _ in range(20)]
        waiting.append(asyncio.create_task(tokens(llm, {"r8": 1.0, "r4": 0.5})))
        await gate.reached()
        for name in ("r8", None):
            assert await tokens(llm, name) == expected[name]
        assert (await llm.load_adapter("more", folders["r8"])).version == 1
        assert not any(task.done() for task in waiting)
        gate.open()
        assert [await task for task in waiting[:20]] == [expected["r4"]] * 20
        await waiting[20]
        assert (await llm.get_info()).num_host_reads == before.num_host_reads + 1
        await llm.pin_adapter("r8", False)

    run(tiny_model, folders, body)


def test_requests_may_end_while_their_adapter_is_read(tiny_model: Path, folders: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        gate = Gate()
        aborted = asyncio.create_task(finish_reason(llm, "r4", request_id="mine"))
        cancelled = asyncio.create_task(finish_reason(llm, "r4"))
        late = asyncio.create_task(asyncio.wait_for(finish_reason(llm, "r4"), 0.05))
        await gate.reached()
        await llm.abort("mine")
        assert await aborted == "abort"  # at once
        cancelled.cancel()
        with pytest.raises(TimeoutError):
            await late
        await asyncio.gather(cancelled, return_exceptions=True)
        llm.check_integrity()
        unloading = asyncio.create_task(llm.unload_adapter("r4"))  # whose read nobody waits for any more
        await asyncio.sleep(0.02)
        gate.open()
        await unloading
        assert "r4" not in [info.name for info in await llm.list_adapters()]

    run(tiny_model, folders, body)


def test_reads_that_nobody_waits_for_any_more_are_left_out(tiny_model: Path, folders: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        before, gate = await llm.get_info(), Gate()
        first = asyncio.create_task(tokens(llm, "r4"))
        await gate.reached()
        second = asyncio.create_task(tokens(llm, "r8"))  # behind the first
        await asyncio.sleep(0.02)
        second.cancel()
        gate.open()
        assert len(await first) == 8
        await asyncio.sleep(0.02)
        assert gate.num_waiting == 1 and (await llm.get_info()).num_host_reads == before.num_host_reads + 1

    run(tiny_model, folders, body)


def test_an_adapter_is_unloaded_while_it_is_read_for_a_request(tiny_model: Path, folders: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        expected = await tokens(llm, "r4")
        gate = Gate()
        waiting = asyncio.create_task(tokens(llm, "r4"))
        await gate.reached()
        unloading = asyncio.create_task(llm.unload_adapter("r4"))
        await asyncio.sleep(0.02)
        with pytest.raises(AdapterNotFound):
            await tokens(llm, "r4")
        gate.open()
        assert await waiting == expected
        await unloading

        await llm.load_adapter("r4", folders["r4"])
        gate = Gate()
        waiting = asyncio.create_task(finish_reason(llm, "r4"))
        await gate.reached()
        aborting = asyncio.create_task(llm.unload_adapter("r4", abort=True))
        assert await waiting == "abort"
        gate.open()
        await aborting

    run(tiny_model, folders, body)


def test_waiting_requests_count_as_accepted(tiny_model: Path, folders: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        gate = Gate()
        waiting = [asyncio.create_task(tokens(llm, "r4")) for _ in range(3)]
        await gate.reached()
        with pytest.raises(QueueFull):
            await tokens(llm, None)
        draining = asyncio.create_task(llm.drain())
        await asyncio.sleep(0.02)
        assert not draining.done()
        gate.open()
        await draining
        assert [len(await task) for task in waiting] == [8, 8, 8]

    run(tiny_model, folders, body, max_num_queued_reqs=3)


@pytest.mark.parametrize("is_read_after", [True, False])
def test_the_engine_dies_while_an_adapter_is_read(
    tiny_model: Path, folders: dict[str, Path], is_read_after: bool
) -> None:
    async def body(llm: AsyncLLM) -> None:
        expected = {name: await tokens(llm, name) for name in ("r4", "r8")}
        gate = Gate()
        waiting = asyncio.create_task(tokens(llm, "r4"))
        await gate.reached()
        os.kill(child_that_runs(ENGINE), signal.SIGKILL)
        while llm.is_serving:
            await asyncio.sleep(0.001)
        if not is_read_after:
            gate.open()
        while not llm.is_serving:
            await asyncio.sleep(0.01)
        llm.check_integrity()
        gate.open()
        assert await waiting == expected["r4"]
        for name in ("r8", "r4"):
            assert await tokens(llm, name) == expected[name]
        assert not (await llm.pin_adapter("r8", False)).pinned  # which this engine may not have heard of

    run(tiny_model, folders, body)


def test_an_engine_that_has_none_of_the_images_is_told_of_versions_and_pins(
    tiny_model: Path, folders: dict[str, Path]
) -> None:
    async def body(llm: AsyncLLM) -> None:
        await llm.load_adapter("mine", folders["r4"])
        await llm.load_adapter("mine", folders["r8"])
        await llm.pin_adapter("r8")
        expected = await tokens(llm, "mine@1")
        os.kill(child_that_runs(ENGINE), signal.SIGKILL)
        while llm.is_serving:
            await asyncio.sleep(0.005)
        while not llm.is_serving:
            await asyncio.sleep(0.005)
        assert (await llm.get_adapter("r8")).pinned and not (await llm.get_adapter("r4")).in_host_memory
        await llm.pin_adapter("r4", False)
        assert (await llm.activate_adapter("mine", 1)).version == 1
        assert await tokens(llm, "mine") == expected
        await llm.unload_adapter("mine")
        await llm.unload_adapter("r4")
        await llm.pin_adapter("r8", False)

    run(tiny_model, folders, body)


def test_uploads_are_read_again_from_a_folder_of_ours(
    tiny_model: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    contents = {name: (folders["r4"] / name).read_bytes() for name in ("adapter_config.json", WEIGHTS)}
    files = [UploadedFile(name, len(part), hashlib.sha256(part).hexdigest()) for name, part in contents.items()]

    async def chunks() -> AsyncIterator[bytes]:
        for part in contents.values():
            yield part

    def spool() -> list[Path]:
        return list(tmp_path.glob("blora-uploads-*/adapter-*"))

    async def body(llm: AsyncLLM) -> None:
        expected = await tokens(llm, "r8")
        await llm.upload_adapter("mine", files, chunks())
        assert not (await llm.get_adapter("mine")).in_host_memory
        first = await tokens(llm, "mine")
        assert await tokens(llm, "mine") == first and len(spool()) == 1
        await llm.upload_adapter("again", files, chunks())
        assert len(spool()) == 1  # the same content
        (spool()[0] / WEIGHTS).write_bytes(b"something else")
        with pytest.raises(AdapterRejected, match=r"(?s)upload:again.*no longer what was loaded"):
            await tokens(llm, "mine")
        assert await tokens(llm, "r8") == expected
        await llm.unload_adapter("mine")
        assert len(spool()) == 1
        await llm.unload_adapter("again")
        assert not spool()
        await llm.upload_adapter("last", files, chunks())

    run(tiny_model, {"r8": folders["r8"]}, body, adapter_upload_bytes=1 << 20)
    assert not spool()


def test_roots_hold_when_an_adapter_is_read_again(tiny_model: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        root = tmp_path / "root"
        await llm.load_adapter("mine", root / "r4")
        shutil.move(root / "r4", tmp_path / "outside")
        (root / "r4").symlink_to(tmp_path / "outside")
        with pytest.raises(AdapterRejected, match="lies outside the allowed folders"):
            await tokens(llm, "mine")

    shutil.copytree(folders["r4"], tmp_path / "root" / "r4")
    run(tiny_model, {}, body, adapter_roots=[tmp_path / "root"])


@pytest.mark.parametrize("wish", ["much", 0, -1, True, "1.5"])
def test_a_limit_is_bytes_or_a_fraction(tiny_model: Path, wish: Any) -> None:
    with pytest.raises(ValueError, match="host_cache"):
        AsyncLLM(str(tiny_model), host_cache=wish)
