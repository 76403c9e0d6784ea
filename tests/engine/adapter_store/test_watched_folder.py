"""A watched folder: what settles in it is loaded, what changes becomes a version, what goes is unloaded."""

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from blora.engine import AdapterNotFound, AsyncLLM, SamplingParams
from blora.engine.adapter_store.watched_folder import Changes, FolderComparison, look_into

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
OPTIONS: dict[str, Any] = {"memory": "2MB", "block_size": 4, "max_num_batched_tokens": 64, "threads": 1}
NOTHING = Changes([], [])


def test_what_is_the_same_twice_is_loaded_once() -> None:
    comparison = FolderComparison()
    assert comparison.compare({"a": "1"}) == NOTHING
    assert comparison.compare({"a": "1", "b": "1"}) == Changes(["a"], [])
    assert comparison.compare({"a": "1", "b": "2"}) == NOTHING  # it is still being written
    assert comparison.compare({"a": "1", "b": "2"}) == Changes(["b"], [])
    assert comparison.compare({"a": "1", "b": "2"}) == NOTHING


def test_what_changes_is_loaded_again_when_it_has_settled() -> None:
    comparison = FolderComparison()
    for fingerprint, changes in [("1", NOTHING), ("1", Changes(["a"], [])), ("2", NOTHING), ("3", NOTHING)]:
        assert comparison.compare({"a": fingerprint}) == changes
    assert comparison.compare({"a": "3"}) == Changes(["a"], [])


def test_what_is_missed_twice_is_unloaded_once() -> None:
    comparison = FolderComparison()
    for look, changes in [({"a": "1"}, NOTHING), ({"a": "1"}, Changes(["a"], [])), ({}, NOTHING)]:
        assert comparison.compare(look) == changes
    assert comparison.compare({"a": "1"}) == NOTHING  # it was away for a moment
    assert comparison.compare({}) == NOTHING
    assert comparison.compare({}) == Changes([], ["a"])
    assert comparison.compare({}) == NOTHING


def test_what_failed_for_no_fault_of_its_own_is_told_again() -> None:
    comparison = FolderComparison()
    comparison.compare({"a": "1"})
    comparison.compare({"a": "1"})
    comparison.retry("a")
    assert comparison.compare({"a": "1"}) == Changes(["a"], [])


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    (tmp_path / "watched").mkdir()
    return tmp_path / "watched"


def test_a_look_finds_whole_adapters_and_opens_nothing(watched: Path, tiny_adapters: dict[str, Path]) -> None:
    shutil.copytree(tiny_adapters["r4"], watched / "good")
    shutil.copytree(tiny_adapters["r4"], watched / ".hidden")
    shutil.copytree(tiny_adapters["r4"], watched / "half")
    (watched / "half/adapter_model.safetensors").unlink()
    (watched / "a file").write_text("x")
    shutil.copytree(tiny_adapters["r4"], watched / "fifo")
    (watched / "fifo/adapter_model.safetensors").unlink()
    os.mkfifo(watched / "fifo/adapter_model.safetensors")
    (watched / "loop").symlink_to("loop")
    shutil.copytree(tiny_adapters["r4"], watched / "org/sql")
    shutil.copytree(tiny_adapters["r4"], watched / "org/deep/down")
    shutil.copytree(tiny_adapters["r4"], watched / "half/best")
    shutil.copytree(tiny_adapters["r4"], watched / "only/checkpoint-9")
    shutil.copytree(tiny_adapters["r4"], watched / "shards")
    one_shard = "adapter_model-00001-of-00001.safetensors"
    (watched / "shards/adapter_model.safetensors").rename(watched / "shards" / one_shard)
    for number in (1, 2):
        shutil.copytree(tiny_adapters["r4"], watched / f"run/checkpoint-{number}")
    before = look_into(watched)
    assert set(before) == {"good", "fifo", "org/sql", "only", "shards"}
    os.utime(watched / "good/adapter_config.json", ns=(0, 0))
    after = look_into(watched)
    assert after["good"] != before["good"] and after["fifo"] == before["fifo"]


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.01)


async def version_of(llm: AsyncLLM, name: str) -> int:
    try:
        return (await llm.get_adapter(name)).version
    except AdapterNotFound:
        return 0


def run(tiny_model: Path, watched: Path, body: Callable[[AsyncLLM], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        options = OPTIONS | {"adapter_watch": watched, "adapter_watch_interval": 0.02}
        async with AsyncLLM(str(tiny_model), **options) as llm:
            await body(llm)

    asyncio.run(asyncio.wait_for(whole(), 250))


def place(source: Path, target: Path) -> None:
    """As it is to be done: copied beside, and renamed into its place."""
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    shutil.copytree(source, new)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def test_folders_come_change_and_go_under_traffic(
    tiny_model: Path, tiny_adapters: dict[str, Path], watched: Path
) -> None:
    async def tokens(llm: AsyncLLM, name: str) -> list[int]:
        return [o async for o in llm.generate("hello", GREEDY, lora_request=name)][-1].outputs[0].token_ids

    async def body(llm: AsyncLLM) -> None:
        place(tiny_adapters["r4"], watched / "mine")
        await until(lambda: is_version(llm, "mine", 1))
        first = await tokens(llm, "mine")
        running = asyncio.create_task(tokens(llm, "mine"))
        place(tiny_adapters["r8"], watched / "mine")
        await until(lambda: is_version(llm, "mine", 2))
        assert await running == await tokens(llm, "mine@1") == first != await tokens(llm, "mine")
        assert (await llm.get_adapter("mine")).path == str(watched / "mine")
        shutil.copytree(watched / "mine", watched / "org/mine")
        await until(lambda: is_version(llm, "org/mine", 1))
        assert await tokens(llm, "org/mine") == await tokens(llm, "mine")
        shutil.rmtree(watched / "org")
        await until(lambda: is_version(llm, "org/mine", 0))
        shutil.rmtree(watched / "mine")
        await until(lambda: is_version(llm, "mine", 0))
        await until(lambda: is_freed(llm))

    run(tiny_model, watched, body)


async def is_freed(llm: AsyncLLM) -> bool:
    """Names go at once, images when the engine has let go of them."""
    return (await llm.get_info()).num_host_adapters == 0


async def is_version(llm: AsyncLLM, name: str, number: int) -> bool:
    return await version_of(llm, name) == number


def test_a_half_written_adapter_is_not_served_and_is_taken_when_it_is_whole(
    tiny_model: Path, tiny_adapters: dict[str, Path], watched: Path
) -> None:
    content = (tiny_adapters["r4"] / "adapter_model.safetensors").read_bytes()

    async def body(llm: AsyncLLM) -> None:
        folder = watched / "slow"
        folder.mkdir()
        shutil.copy(tiny_adapters["r4"] / "adapter_config.json", folder)
        with (folder / "adapter_model.safetensors").open("wb", buffering=0) as file:
            for first in range(0, len(content), 2000):
                file.write(content[first : first + 2000])
                await asyncio.sleep(0.06)  # long enough to look the same twice
                if first + 2000 < len(content):
                    assert await version_of(llm, "slow") == 0
        await until(lambda: is_version(llm, "slow", 1))

    run(tiny_model, watched, body)


def test_a_folder_that_leads_out_and_one_that_is_broken_harm_nobody(
    tiny_model: Path, tiny_adapters: dict[str, Path], watched: Path
) -> None:
    async def body(llm: AsyncLLM) -> None:
        (watched / "link").symlink_to(tiny_adapters["r4"])
        (watched / "loop").symlink_to("loop")
        place(tiny_adapters["r4"], watched / "broken")
        (watched / "broken/adapter_model.safetensors").write_bytes(b"x" * 100)
        place(tiny_adapters["r4"], watched / "good")
        await until(lambda: is_version(llm, "good", 1))
        await asyncio.sleep(0.1)
        assert [info.name for info in await llm.list_adapters()] == ["good"]
        place(tiny_adapters["r8"], watched / "broken")
        await until(lambda: is_version(llm, "broken", 1))

    run(tiny_model, watched, body)


def test_a_watched_folder_that_goes_away_keeps_what_is_loaded(
    tiny_model: Path, tiny_adapters: dict[str, Path], watched: Path
) -> None:
    async def body(llm: AsyncLLM) -> None:
        place(tiny_adapters["r4"], watched / "mine")
        await until(lambda: is_version(llm, "mine", 1))
        watched.rename(watched.with_name("away"))
        await asyncio.sleep(0.1)
        assert await version_of(llm, "mine") == 1
        watched.with_name("away").rename(watched)
        shutil.rmtree(watched / "mine")
        await until(lambda: is_version(llm, "mine", 0))

    run(tiny_model, watched, body)


def test_a_watched_folder_that_is_none_is_refused_at_once(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapter_watch: .* is not a folder"):
        AsyncLLM(str(tiny_model), adapter_watch=tmp_path / "missing")
