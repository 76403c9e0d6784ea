"""The loader child and the downloads beside it: orders are bounded, cancelled ones are free, nobody waits for a hub."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import DOWNLOAD, LOADER, child_that_runs, children_that_run, is_there
from shared_engine import run_alone, shared_engine
from tiny import EOS, make_adapter, make_model

from blora.engine import AdapterRejected, AdapterReport, AsyncLLM, InvalidRequest, QueueFull
from blora.engine.adapter_store import download_client, loader_client
from blora.engine.adapter_store.upload import UploadedFile
from blora.engine.ipc.channel import Child, start_child
from blora.engine.ipc.messages import FromLoader

pytestmark = pytest.mark.slow

HUB_ID = "someone/adapter"


@contextlib.contextmanager
def stopped_loader() -> Iterator[int]:
    """Its process id. It goes on in the end."""
    loader = child_that_runs(LOADER)
    os.kill(loader, signal.SIGSTOP)
    try:
        yield loader
    finally:
        with contextlib.suppress(ProcessLookupError):  # it was killed
            os.kill(loader, signal.SIGCONT)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_a_cancelled_load_costs_neither_the_loader_nor_memory(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        before = descriptors()
        with stopped_loader() as loader:
            tasks = [asyncio.create_task(llm.load_adapter(name, tiny_adapters["r4"])) for name in ("one", "two")]
            await asyncio.sleep(0.05)
            for task in tasks:  # one is being read, two waits
                await cancel(task)
        info = await llm.load_adapter("three", tiny_adapters["r24"])
        assert info.ranks == (24,)  # and not what the loader said of the first
        assert child_that_runs(LOADER) == loader
        assert [info.name for info in await llm.list_adapters()] == ["r1", "three"]
        await llm.unload_adapter("three")
        assert descriptors() == before

    shared_engine.run(tiny_model, body, {"r1": tiny_adapters["r1"]})


def test_a_cancelled_upload_leaves_no_file_behind(
    tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def body(llm: AsyncLLM) -> None:
        content = b"{}"
        files = [UploadedFile("adapter_config.json", len(content), hashlib.sha256(content).hexdigest())]

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        with stopped_loader() as loader:
            task = asyncio.create_task(llm.upload_adapter("x", files, chunks()))
            while not list(tmp_path.iterdir()):
                await asyncio.sleep(0.01)
            await cancel(task)
        await llm.load_adapter("next", tiny_adapters["r4"])
        assert child_that_runs(LOADER) == loader and not list(tmp_path.iterdir())

    shared_engine.run(tiny_model, body, {"r1": tiny_adapters["r1"]}, adapter_upload_bytes=100)


def test_only_so_many_loads_wait(
    tiny_model: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_client, "MAX_WAITING", 2)

    async def body(llm: AsyncLLM) -> None:
        with stopped_loader():
            tasks = [asyncio.create_task(llm.load_adapter(f"a{index}", tiny_adapters["r4"])) for index in range(3)]
            await asyncio.sleep(0.05)
            with pytest.raises(QueueFull, match="2 adapters wait to be read"):
                await llm.load_adapter("more", tiny_adapters["r4"])
        assert len(await asyncio.gather(*tasks)) == 3

    shared_engine.run(tiny_model, body, {"r1": tiny_adapters["r1"]})


@pytest.mark.parametrize("is_starved", [True, False])
def test_a_loader_that_gets_no_core_is_given_more_time(
    tiny_model: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, is_starved: bool
) -> None:
    async def body(llm: AsyncLLM) -> None:
        # Only now: a busy machine may take longer to start a loader and read the first adapter.
        monkeypatch.setattr(loader_client, "READ_TIMEOUT", 0.2)
        monkeypatch.setattr(Child, "seconds_without_core", lambda _: time.monotonic() if is_starved else 0.0)
        with stopped_loader():
            load = asyncio.create_task(llm.load_adapter("one", tiny_adapters["r4"]))
            await asyncio.sleep(0.5)
        if is_starved:
            assert (await load).ranks == (4,)
        else:
            with pytest.raises(AdapterRejected, match=r"reading it took more than 0.2 s"):
                await load

    shared_engine.run(tiny_model, body, {"r1": tiny_adapters["r1"]})


def test_the_kernel_says_how_long_a_child_had_no_core() -> None:
    async def body() -> None:
        loader = await start_child(LOADER, FromLoader)
        while not loader.seconds_without_core():  # as soon as it was put on a core
            await asyncio.sleep(0.01)
        assert loader.seconds_without_core() < time.monotonic()  # the seconds that the machine has run
        await loader.stop(5.0)

    asyncio.run(asyncio.wait_for(body(), 60))


def test_memory_running_out_would_end_the_loader_first(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(_: AsyncLLM) -> None:
        assert Path(f"/proc/{child_that_runs(LOADER)}/oom_score_adj").read_text().strip() == "1000"

    shared_engine.run(tiny_model, body, {"r1": tiny_adapters["r1"]})


# What is expensive to judge is judged in the loader.


async def longest_stall(work: Coroutine[Any, Any, Any]) -> float:
    """Seconds that the event loop worked without coming back to others while it did the work."""
    longest, is_done = 0.0, False

    async def tick() -> None:
        nonlocal longest
        while not is_done:
            before = time.thread_time()
            await asyncio.sleep(0.002)  # some time for the loader, which is the nicest of all
            longest = max(longest, time.thread_time() - before)

    ticking = asyncio.create_task(tick())
    try:
        with contextlib.suppress(AdapterRejected, InvalidRequest):
            await work
    finally:
        is_done = True
        await ticking
    return longest


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with room for thousands of added tokens, and an adapter for it."""
    folder = tmp_path_factory.mktemp("wide")
    model = make_model(folder / "model", vocab_size=EOS + 5000)
    return model, make_adapter(model, folder / "adapter")


def texts() -> dict[str, dict[str, str]]:
    def tokens(number: int, **flags: Any) -> str:
        listed = [{"id": EOS + 1 + i, "content": f"<{i}>" + "x" * 200} | flags for i in range(number)]
        for index, token in enumerate(listed):
            token |= {"special": bool(index % 2)} if "special" not in flags else {}
        return json.dumps({"added_tokens": listed})

    return {
        "a template that is long": {"chat_template.jinja": "{% if a %}{{ b|trim }}{% endif %}" * 4000},
        "a template that does not end": {
            "chat_template.jinja": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        },
        "many tokens": {"tokenizer.json": tokens(4096, special=False)},
        "many tokens in turn": {"tokenizer.json": tokens(4096)},
    }


@pytest.mark.parametrize("kind", texts())
def test_no_text_of_an_adapter_holds_up_the_front_end(wide: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    model, adapter = wide
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    for name, content in texts()[kind].items():
        (folder / name).write_text(content)

    async def body(llm: AsyncLLM) -> None:
        reports: list[AdapterReport] = []

        async def inspect() -> None:
            reports.append(await llm.inspect_adapter(folder))

        assert await longest_stall(inspect()) < 0.5
        assert await longest_stall(llm.load_adapter("hostile", folder)) < 0.5
        is_loaded = bool(await llm.list_adapters())
        assert is_loaded == (not reports[0].problems)
        assert not is_loaded or "tokens" in kind

    shared_engine.run(model, body, {})


# The hub.


@pytest.fixture
def hub(tiny_adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as a download leaves it, without a network: links into a folder of contents."""
    cache, revision = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / revision, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    for file in tiny_adapters["r4"].iterdir():
        if file.is_file():
            shutil.copy(file, blobs / file.name)
            (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return repository


def test_clients_load_hub_ids_where_they_may(tiny_model: Path, hub: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        info = await llm.load_adapter("mine", HUB_ID)
        assert info.path == HUB_ID and info.report is not None and info.report.path == HUB_ID
        assert (await llm.inspect_adapter(HUB_ID)).digest == info.digest
        with pytest.raises(AdapterRejected, match="no folder is allowed"):
            await llm.load_adapter("folder", hub)
        with pytest.raises(AdapterRejected, match="'someone/else' is refused: is neither a folder nor"):
            await llm.load_adapter("missing", "someone/else")
        assert "is neither a folder" in (await llm.inspect_adapter("someone/else")).problems[0]

    run_alone(tiny_model, body, adapter_roots=[], adapter_hub=True)


def test_links_out_of_a_repository_are_refused(tiny_model: Path, tiny_adapters: dict[str, Path], hub: Path) -> None:
    (weights,) = hub.glob("snapshots/*/adapter_model.safetensors")
    weights.unlink()
    weights.symlink_to(tiny_adapters["r4"] / "adapter_model.safetensors")

    async def body(llm: AsyncLLM) -> None:
        with pytest.raises(AdapterRejected, match="lies outside the allowed folders"):
            await llm.load_adapter("mine", HUB_ID)

    run_alone(tiny_model, body, adapter_roots=[], adapter_hub=True)


@pytest.mark.usefixtures("hub")
def test_clients_load_no_hub_ids_where_they_may_not(tiny_model: Path, tmp_path: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        with pytest.raises(AdapterRejected, match="outside the allowed folders"):
            await llm.load_adapter("mine", HUB_ID)

    run_alone(tiny_model, body, adapter_roots=[tmp_path])


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One that is called and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "60")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield


@pytest.mark.usefixtures("silent_hub")
def test_a_download_holds_up_nobody_and_ends_with_who_asked(
    tiny_model: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_client, "MAX_WAITING", 1 - download_client.MAX_DOWNLOADS)

    async def body(llm: AsyncLLM) -> None:
        download = asyncio.create_task(llm.load_adapter("slow", HUB_ID))
        while not children_that_run(DOWNLOAD):
            await asyncio.sleep(0.01)
        await llm.load_adapter("quick", tiny_adapters["r4"])
        with pytest.raises(QueueFull, match="to be downloaded"):
            await llm.load_adapter("more", HUB_ID)
        assert not download.done()
        (child,) = children_that_run(DOWNLOAD)
        await cancel(download)
        assert not is_there(child) and not children_that_run(DOWNLOAD)
        assert [info.name for info in await llm.list_adapters()] == ["quick"]
        with monkeypatch.context() as patch:
            patch.setattr(download_client, "STALL_TIMEOUT", 0.2)
            with pytest.raises(AdapterRejected, match=r"downloading it went on no more for 0.2 s"):
                await llm.load_adapter("slow", HUB_ID)
        monkeypatch.setattr(download_client, "DOWNLOAD_TIMEOUT", 0.1)
        with pytest.raises(AdapterRejected, match=r"downloading it took more than 0.1 s"):
            await llm.load_adapter("slow", HUB_ID)

    run_alone(tiny_model, body)
