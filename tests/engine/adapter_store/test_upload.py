"""Uploads: an adapter that comes as bytes is one that was loaded from a folder; anything else leaves nothing behind."""

import asyncio
import hashlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import LOADER, child_that_runs, is_there
from safetensors.numpy import load, save
from shared_engine import run_alone, shared_engine

from blora.engine import AdapterRejected, AsyncLLM, InvalidRequest, QueueFull, SamplingParams
from blora.engine.adapter_store import intake as module
from blora.engine.adapter_store import loader_client
from blora.engine.adapter_store.upload import NUM_FREE_CHUNKS, IncomingAdapter, UploadedFile
from blora.engine.errors import PermissionDenied
from blora.engine.identity.tenant import Tenant

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
NAMES = ["adapter_config.json", "adapter_model.safetensors"]
MAX_BYTES = 1 << 20


def announced(contents: dict[str, bytes], **changes: Any) -> list[UploadedFile]:
    files = [
        UploadedFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()
    ]
    return [UploadedFile(**{"name": f.name, "num_bytes": f.num_bytes, "sha256": f.sha256} | changes) for f in files]


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for first in range(0, len(content), size):
        yield content[first : first + size]


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in NAMES}


def test_uploaded_bytes_are_what_a_folder_would_be(
    tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    """In pieces of any size."""
    root = tmp_path / "root"
    root.mkdir()

    async def tokens(llm: AsyncLLM, adapter: str) -> list[int]:
        return [o async for o in llm.generate("hello", GREEDY, lora_request=adapter)][-1].outputs[0].token_ids

    async def body(llm: AsyncLLM) -> None:
        contents = read(tiny_adapters["r4"])
        for size in (1 << 20, 1000, 64):
            name, content = f"in-{size}", b"".join(contents.values())
            info = await llm.upload_adapter(name, announced(contents), pieces(content, size))
            loaded = await llm.get_adapter("r4")
            assert (info.digest, info.path, info.version) == (loaded.digest, f"upload:{name}", 1)
            assert info.report is not None and info.report.path == f"upload:{name}" and info.report.applied_tensors
            assert await tokens(llm, name) == await tokens(llm, "r4")
            assert not list(root.iterdir())

    options = {"adapter_roots": [root], "adapter_upload_bytes": MAX_BYTES}
    run_alone(tiny_model, body, adapters={"r4": tiny_adapters["r4"]}, **options)


def test_weights_in_several_files_are_taken(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    config, weights = read(tiny_adapters["r4"]).values()
    tensors = load(weights)
    parts = [{name: tensors[name] for name in sorted(tensors)[i::2]} for i in range(2)]
    contents = {NAMES[0]: config}
    contents |= {f"adapter_model-0000{i + 1}-of-00002.safetensors": save(part) for i, part in enumerate(parts)}

    async def body(llm: AsyncLLM) -> None:
        info = await llm.upload_adapter("mine", announced(contents), pieces(b"".join(contents.values()), 500))
        loaded = await llm.get_adapter("r4")
        assert info.report is not None and loaded.ranks == info.ranks
        assert info.report.applied_tensors == tuple(sorted(tensors))

    shared_engine.run(tiny_model, body, {"r4": tiny_adapters["r4"]}, adapter_upload_bytes=MAX_BYTES)


def test_what_is_no_adapter_is_refused_as_a_folder_would_be(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def refusal(llm: AsyncLLM, contents: dict[str, bytes]) -> str:
        with pytest.raises(AdapterRejected) as caught:
            await llm.upload_adapter("bad", announced(contents), pieces(b"".join(contents.values()), 500))
        return str(caught.value)

    async def body(llm: AsyncLLM) -> None:
        contents = read(tiny_adapters["r4"])
        num_descriptors = len(list(Path("/proc/self/fd").iterdir()))
        assert "not valid JSON" in await refusal(llm, contents | {NAMES[0]: b"{"})
        assert "no valid safetensors" in await refusal(llm, contents | {NAMES[1]: bytes(100)})
        assert "adapter_model.safetensors cannot be read" in await refusal(llm, {NAMES[0]: contents[NAMES[0]]})
        assert not await llm.list_adapters()
        assert len(list(Path("/proc/self/fd").iterdir())) <= num_descriptors + 6  # those of the loader, which runs now

    shared_engine.run(tiny_model, body, {}, adapter_upload_bytes=MAX_BYTES)


def test_uploads_are_refused_unless_allowed_and_too_many_at_once(
    tiny_model: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_UPLOADS", 1)
    monkeypatch.setattr(module, "UPLOAD_TIMEOUT", 0.2)
    files = announced(read(tiny_adapters["r4"]))

    async def silence() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async def body(llm: AsyncLLM) -> None:
        stalled = asyncio.create_task(llm.upload_adapter("slow", files, silence()))
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull):
            await llm.upload_adapter("more", files, silence())
        with pytest.raises(AdapterRejected, match=r"took more than 0.2 s"):
            await stalled
        intake = llm._adapters._intake
        monkeypatch.setattr(intake, "_sources", replace(intake._sources, upload_bytes=0))
        with pytest.raises(AdapterRejected, match="no uploads are taken"):
            await llm.upload_adapter("mine", files, silence())

    shared_engine.run(tiny_model, body, {}, adapter_upload_bytes=MAX_BYTES)


def test_what_an_operator_loads_during_an_upload_is_not_replaced_by_it(
    tiny_model: Path, tiny_adapters: dict[str, Path]
) -> None:
    contents = read(tiny_adapters["r4"])

    async def body(llm: AsyncLLM) -> None:
        async def meanwhile() -> AsyncIterator[bytes]:
            await llm.upload_adapter("new", announced(others), pieces(b"".join(others.values()), 1 << 20))
            yield b"".join(contents.values())

        others = read(tiny_adapters["r24"])
        with pytest.raises(PermissionDenied):
            await llm.upload_adapter("new", announced(contents), meanwhile(), owner=Tenant("red"))
        kept = await llm.get_adapter("new")
        assert (kept.version, kept.ranks, kept.owner) == (1, (24,), "")
        while llm._adapters._policy.num_going:  # until the engine has freed what was refused
            await asyncio.sleep(0.01)

    shared_engine.run(tiny_model, body, {}, adapter_upload_bytes=MAX_BYTES)


def test_a_loader_that_is_killed_over_an_upload_leaves_nothing_behind(
    tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def body(llm: AsyncLLM) -> None:
        monkeypatch.setattr(loader_client, "READ_TIMEOUT", 0.5)
        contents = read(tiny_adapters["r4"])
        loader = child_that_runs(LOADER)
        os.kill(loader, signal.SIGSTOP)
        upload = asyncio.create_task(
            llm.upload_adapter("mine", announced(contents), pieces(b"".join(contents.values()), 500))
        )
        while not list(tmp_path.glob("blora-uploads-*/adapter-*")):
            await asyncio.sleep(0.01)
        with pytest.raises(AdapterRejected, match=r"reading it took more than 0.5 s"):
            await upload
        assert not is_there(loader) and not list(tmp_path.glob("blora-uploads-*/adapter-*"))

    shared_engine.run(tiny_model, body, {"r4": tiny_adapters["r4"]}, adapter_upload_bytes=MAX_BYTES)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "../../etc/passwd"}, "is none of"),
        ({"name": "adapter_model.bin"}, "is none of"),
        ({"name": ""}, "is none of"),
        ({"sha256": "AB" * 32}, "sha256"),
        ({"sha256": ""}, "sha256"),
        ({"num_bytes": 0}, "without its size"),
        ({"num_bytes": -1}, "without its size"),
        ({"name": NAMES[0]}, "twice"),
    ],
)
def test_a_list_of_files_that_is_none_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        IncomingAdapter(announced(dict.fromkeys(NAMES, b"x"), **changes), MAX_BYTES)


def test_what_is_announced_too_large_is_refused_before_it_comes() -> None:
    with pytest.raises(AdapterRejected, match="4611686018427387904 bytes are announced, at most 1048576"):
        IncomingAdapter(announced({NAMES[1]: b"x"}, num_bytes=1 << 62), MAX_BYTES)


def taken(files: Iterable[UploadedFile], content: bytes) -> None:
    incoming = IncomingAdapter(list(files), MAX_BYTES)
    try:
        incoming.add(content)
        incoming.finish()
    finally:
        incoming.close()


def test_bytes_that_were_not_announced_are_refused() -> None:
    files = announced({NAMES[0]: b"12", NAMES[1]: b"345"})
    taken(files, b"12345")
    with pytest.raises(AdapterRejected, match="more bytes came"):
        taken(files, b"123456")
    with pytest.raises(AdapterRejected, match="adapter_model.safetensors came without its last 1 bytes"):
        taken(files, b"1234")
    with pytest.raises(AdapterRejected, match="adapter_config.json has another sha256"):
        taken(files, b"x2345")
    with pytest.raises(AdapterRejected, match=r"(?s)adapter_config.json came without its last 2 bytes\n.*last 3 bytes"):
        taken(files, b"")


def test_chunks_with_hardly_any_bytes_are_refused_before_they_cost_much() -> None:
    file = UploadedFile("adapter_config.json", 8192, "0" * 64)
    incoming = IncomingAdapter([file], MAX_BYTES)
    for _ in range(NUM_FREE_CHUNKS + 2):
        incoming.add(b"")
    with pytest.raises(InvalidRequest, match="chunk: the chunks are too many for 8192 bytes"):
        incoming.add(b"")
    incoming.close()
