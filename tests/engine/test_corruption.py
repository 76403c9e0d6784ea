"""Every kind of broken adapter beside a hundred good ones under traffic: only the broken one is refused, with the
reason."""

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from processes import ENGINE, LOADER, child_that_runs, seconds_at_work
from safetensors.numpy import load, save

from blora.engine import AdapterNotFound, AdapterRejected, AsyncLLM, SamplingParams
from blora.engine.server.status import status_of

sys.path.insert(0, str(Path(__file__).parent.parent / "adapters/peft"))
from test_checkpoint import CONFIG, CORRUPTIONS, WEIGHTS  # the corpus: a change to a folder, and the expected reason

pytestmark = pytest.mark.slow

NUM_GOOD = 100
LIMIT = 1200  # seconds: where other programs keep all cores busy the loader gets 2 % of one
MAX_SECONDS = 5.0  # of the loader's work, to refuse an adapter
PROMPT = "a prompt of several blocks"
GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
OPTIONS: dict[str, Any] = {"memory": "1MB", "block_size": 4, "max_num_batched_tokens": 256, "threads": 1}


@pytest.fixture(scope="module")
def good(tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of ranks 1 to 8, each with its own weights."""
    folder, source = tmp_path_factory.mktemp("good"), tiny_adapters["r4"]
    config, shapes = json.loads((source / CONFIG).read_text()), load((source / WEIGHTS).read_bytes())
    made = {f"good-{index}": folder / str(index) for index in range(NUM_GOOD)}
    for seed, path in enumerate(made.values()):
        rank, random = 1 + seed % 8, np.random.default_rng(seed)
        path.mkdir()
        (path / CONFIG).write_text(json.dumps(config | {"r": rank}))
        tensors = {name: random.normal(0, 0.3, _shape(name, old.shape, rank)) for name, old in shapes.items()}
        (path / WEIGHTS).write_bytes(save({name: tensor.astype(np.float32) for name, tensor in tensors.items()}))
    return made


def _shape(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, int]:
    return (rank, shape[1]) if ".lora_A." in name else (shape[0], rank)


async def tokens(llm: AsyncLLM, adapter: str) -> list[int]:
    return [o async for o in llm.generate(PROMPT, GREEDY, lora_request=adapter)][-1].outputs[0].token_ids


async def all_tokens(llm: AsyncLLM, names: list[str]) -> dict[str, list[int]]:
    return dict(zip(names, await asyncio.gather(*(tokens(llm, name) for name in names)), strict=True))


async def refuse(llm: AsyncLLM, name: str, folder: Path, reason: str) -> None:
    loader = child_that_runs(LOADER)
    before = seconds_at_work(loader)
    with pytest.raises(AdapterRejected) as caught:
        await llm.load_adapter(name, folder)
    # The loader has a lower priority than the traffic, so its time without a core does not count against the adapter.
    assert seconds_at_work(loader) - before < MAX_SECONDS
    assert reason in str(caught.value)
    assert status_of(caught.value)[0] is grpc.StatusCode.FAILED_PRECONDITION
    report = await llm.inspect_adapter(folder)
    assert report.problems == caught.value.problems


async def spoil_all(llm: AsyncLLM, source: Path, place: Path) -> None:
    for index, (kind, (spoil, reason)) in enumerate(CORRUPTIONS.items()):
        folder = Path(shutil.copytree(source, place / str(index)))
        spoil(folder)
        name = "good-0" if index % 2 else "bad"  # a name in use keeps its meaning
        try:
            await refuse(llm, name, folder, reason)
        except AssertionError as error:
            raise AssertionError(kind) from error
        with pytest.raises(AdapterNotFound):
            await tokens(llm, "bad")


@pytest.mark.timeout(LIMIT)
def test_only_the_broken_adapter_is_refused_and_a_hundred_good_ones_answer_the_same(
    tiny_model: Path, tiny_adapters: dict[str, Path], good: dict[str, Path], tmp_path: Path
) -> None:
    async def body(llm: AsyncLLM) -> None:
        names, is_done, num_rounds = list(good), False, 0
        expected = await all_tokens(llm, names)
        assert len({tuple(answer) for answer in expected.values()}) > NUM_GOOD // 2
        engine = child_that_runs(ENGINE)

        async def traffic() -> None:
            nonlocal num_rounds
            while not is_done:
                assert await all_tokens(llm, names) == expected
                num_rounds += 1
                await asyncio.sleep(0.5)  # on one core the loader, with its low priority, would hardly run

        serving = asyncio.create_task(traffic())
        await spoil_all(llm, tiny_adapters["r4"], tmp_path)
        is_done = True
        await serving
        assert num_rounds and await all_tokens(llm, names) == expected
        assert child_that_runs(ENGINE) == engine  # no process was restarted
        assert [info.name for info in await llm.list_adapters()] == sorted(names)
        info = await llm.get_info()
        assert (info.num_running, info.num_waiting, info.num_free_pages) == (0, 0, info.num_pages)

    run(tiny_model, body, adapters=good)


def run(tiny_model: Path, body: Callable[[AsyncLLM], Any], **options: Any) -> None:
    async def whole() -> None:
        async with AsyncLLM(str(tiny_model), **OPTIONS | options) as llm:
            await body(llm)

    asyncio.run(asyncio.wait_for(whole(), LIMIT - 50))


def test_the_corpus_is_large() -> None:
    assert len(CORRUPTIONS) >= 100
