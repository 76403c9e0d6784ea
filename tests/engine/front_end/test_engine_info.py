"""EngineInfo: an engine in process and one in another process give the same figures."""

import asyncio
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from blora.engine import LLM, AsyncLLM, EngineInfo, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
PROMPT = "a prompt of some blocks"
OPTIONS: dict[str, Any] = {"memory": "2MB", "block_size": 4, "max_num_batched_tokens": 64, "host_cache": "1MB"}


def without_times(info: EngineInfo) -> EngineInfo:
    return replace(info, **{field.name: 0.0 for field in fields(info) if field.name.endswith("_seconds")})


async def of_another_process(model: Path, backend: str, adapters: dict[str, Path]) -> EngineInfo:
    async with AsyncLLM(str(model), backend=backend, adapters=adapters, **OPTIONS) as llm:
        for name in (None, "r4", "r4"):
            async for _ in llm.generate(PROMPT, GREEDY, lora_request=name):
                pass
        llm.check_idle()
        return await llm.get_info()


@pytest.mark.slow
def test_the_same_requests_are_told_alike(
    make_llm: Callable[..., LLM], tiny_model: Path, tiny_adapters: dict[str, Path], backend: str
) -> None:
    adapters = {name: tiny_adapters[name] for name in ("r4", "r8")}
    llm = make_llm(adapters=adapters, **OPTIONS)
    for name in (None, "r4", "r4"):
        llm.generate(PROMPT, GREEDY, lora_request=name, use_tqdm=False)
    info = llm.get_info()
    assert without_times(info) == without_times(asyncio.run(of_another_process(tiny_model, backend, adapters)))
    assert info.num_pages * info.page_bytes <= 2_000_000 and info.num_free_pages == info.num_pages
    assert (info.num_requests, info.num_generated_tokens) == (3, 12)
    assert 0 < info.num_cached_tokens < info.num_prompt_tokens
    assert (info.num_adapter_uses, info.num_adapter_hits) == (2, 1) and info.num_copied_pages > 0
    assert (info.num_host_adapters, info.num_host_uses, info.num_host_hits) == (2, 2, 2)
    assert info.num_host_bytes == sum(adapter.num_bytes for adapter in llm.list_adapters())


def test_what_is_unloaded_is_not_counted(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm(adapters={"r4": tiny_adapters["r4"]})
    llm.unload_adapter("r4")
    info = llm.get_info()
    assert (info.num_host_adapters, info.num_host_bytes) == (0, 0)
