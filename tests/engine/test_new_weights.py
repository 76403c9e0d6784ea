"""New weights in a folder whose path comes with each request: they are served, and nothing is read in vain."""

import asyncio
import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import LOOKOUT, child_that_runs, wait_until_ended
from shared_engine import shared_engine

from blora.engine import LLM, AdapterRejected, AsyncLLM, InvalidRequest, LoRARequest, SamplingParams
from blora.engine.adapter_store.shared_looks import SharedLooks

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPT = "a prompt long enough to leave blocks in the prefix cache"
WEIGHTS = "adapter_model.safetensors"


def replace_files(folder: Path, source: Path) -> None:
    """File by file, each at once."""
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        shutil.copyfile(file, folder / "new")
        (folder / "new").replace(folder / file.name)


def rewrite_files(folder: Path, source: Path) -> None:
    """In place, as PEFT's save_pretrained does."""
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


@pytest.fixture
def policy(tmp_path: Path, tiny_adapters: dict[str, Path]) -> Path:
    replace_files(tmp_path / "policy", tiny_adapters["r4"])
    return tmp_path / "policy"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were read."""
    read: list[Path] = []
    plain = LLM._read
    monkeypatch.setattr(LLM, "_read", lambda self, folder: (read.append(folder), plain(self, folder))[1])
    return read


def answer(llm: LLM, adapter: Any) -> list[int]:
    (output,) = llm.generate(PROMPT, GREEDY, adapter, use_tqdm=False)
    return output.outputs[0].token_ids


def numbers(llm: LLM, name: str = "policy") -> list[int]:
    return [version.number for version in llm.get_adapter(name).versions]


@pytest.mark.parametrize("overwrite", [replace_files, rewrite_files])
@pytest.mark.parametrize("int_id", [1, 2], ids=["same id", "next id"])
def test_a_folder_that_was_overwritten_serves_its_new_weights(
    make_llm: Callable[..., LLM],
    tiny_adapters: dict[str, Path],
    policy: Path,
    overwrite: Callable[[Path, Path], None],
    int_id: int,
) -> None:
    llm = make_llm(adapters=tiny_adapters)
    expected = {name: answer(llm, name) for name in ("r4", "r8")}
    assert expected["r4"] != expected["r8"]
    assert answer(llm, LoRARequest("policy", 1, str(policy))) == expected["r4"]
    overwrite(policy, tiny_adapters["r8"])
    assert answer(llm, LoRARequest("policy", int_id, str(policy))) == expected["r8"]
    assert answer(llm, "policy") == expected["r8"] and answer(llm, "policy@1") == expected["r4"]


def test_weights_that_look_the_same_but_for_their_times_are_new(make_llm: Callable[..., LLM], policy: Path) -> None:
    """Same size, same inode, same time of the last write: only the change of the inode itself tells."""
    llm = make_llm()
    before = answer(llm, LoRARequest("policy", 1, str(policy)))
    content, state = bytearray((policy / WEIGHTS).read_bytes()), (policy / WEIGHTS).stat()
    content[-64:] = bytes(64)  # a part of the last tensor
    (policy / WEIGHTS).write_bytes(content)
    os.utime(policy / WEIGHTS, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = answer(llm, LoRARequest("policy", 1, str(policy)))
    assert numbers(llm) == [1, 2] and after == answer(llm, "policy@2") and before == answer(llm, "policy@1")


def test_what_has_not_changed_is_not_read(make_llm: Callable[..., LLM], policy: Path, reads: list[Path]) -> None:
    llm = make_llm()
    request = LoRARequest("policy", 1, str(policy))
    for _ in range(3):
        llm.generate([PROMPT] * 3, GREEDY, request, use_tqdm=False)
        answer(llm, replace(request, lora_path=f"{policy}/"))
    assert len(reads) == 1
    for int_id in (2, 1, 2, 1):  # two users that count in their own ways
        answer(llm, replace(request, lora_int_id=int_id))
    assert len(reads) == 2 and numbers(llm) == [1]
    os.utime(policy / WEIGHTS)
    for _ in range(2):
        answer(llm, request)
    assert len(reads) == 3 and numbers(llm) == [1], "the digest tells that nothing has changed"


def test_a_name_with_a_slash_is_a_name(
    make_llm: Callable[..., LLM], policy: Path, tiny_adapters: dict[str, Path]
) -> None:
    llm = make_llm(adapters={"org/r8": tiny_adapters["r8"]}, adapter_weights={"org/r8": 2.0})
    assert answer(llm, "org/r8") == answer(llm, "org/r8@1") == answer(llm, {"org/r8": 1.0})
    request = LoRARequest("org/policy", 1, str(policy))
    old = answer(llm, request)
    replace_files(policy, tiny_adapters["r8"])
    assert answer(llm, request) == answer(llm, "org/policy@2") == answer(llm, "org/r8") != old


def test_another_id_brings_another_path(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], reads: list[Path]
) -> None:
    """The folders of a training run, one after another."""
    llm = make_llm(adapters=tiny_adapters)
    expected = [answer(llm, name) for name in ("r4", "r8", "r16")]
    reads.clear()
    steps = [LoRARequest("policy", index, str(tiny_adapters[name])) for index, name in enumerate(("r4", "r8", "r16"))]
    for _ in range(2):
        assert [answer(llm, step) for step in steps] == expected
        assert answer(llm, steps[-1]) == expected[-1]
    assert len(reads) == 6
    with pytest.raises(InvalidRequest, match="'policy' is loaded from another path; load_inplace=True or another"):
        answer(llm, replace(steps[0], lora_int_id=2))
    with pytest.raises(InvalidRequest, match="two paths in one batch"):
        llm.generate([PROMPT] * 2, GREEDY, steps[:2], use_tqdm=False)
    with pytest.raises(InvalidRequest, match="lora_int_id of 'policy': 'two' is not an integer"):
        answer(llm, replace(steps[0], lora_int_id="two"))  # type: ignore[arg-type]


def test_files_that_have_gone_or_are_refused_change_nothing(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], policy: Path
) -> None:
    llm = make_llm()
    request = LoRARequest("policy", 1, str(policy))
    expected = answer(llm, request)
    shutil.rmtree(policy)
    assert answer(llm, request) == expected, "nothing newer is there"
    replace_files(policy, tiny_adapters["r8"])
    (policy / WEIGHTS).write_bytes(b"")
    with pytest.raises(AdapterRejected, match="valid safetensors header"):
        answer(llm, request)
    assert answer(llm, "policy") == expected and numbers(llm) == [1]
    replace_files(policy, tiny_adapters["r8"])
    assert answer(llm, request) != expected and numbers(llm) == [1, 2]


def test_a_return_to_older_weights_lasts_until_the_files_change(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], policy: Path
) -> None:
    llm = make_llm()
    request = LoRARequest("policy", 1, str(policy))
    old = answer(llm, request)
    replace_files(policy, tiny_adapters["r8"])
    new = answer(llm, request)
    llm.activate_adapter("policy", 1)
    assert answer(llm, request) == old
    assert llm.load_adapter("policy", policy).version == 2, "its files are those of version 2"
    assert answer(llm, request) == new and numbers(llm) == [1, 2]
    llm.activate_adapter("policy", 1)
    replace_files(policy, tiny_adapters["r16"])
    assert answer(llm, request) not in (old, new) and numbers(llm) == [1, 3]


def test_new_added_tokens_count_when_the_prompt_is_checked(
    make_llm: Callable[..., LLM], tiny_model: Path, policy: Path, tmp_path: Path
) -> None:
    from tiny import VOCAB_SIZE, make_adapter

    llm = make_llm()
    request = LoRARequest("policy", 1, str(policy))
    answer(llm, request)
    tables = {"r": 4, "modules_to_save": ["embed_tokens", "lm_head"], "vocab_size": VOCAB_SIZE + 6}
    replace_files(policy, make_adapter(tiny_model, tmp_path / "wide", 3, **tables))
    prompt = {"prompt_token_ids": [70, VOCAB_SIZE + 5]}
    assert llm.generate(prompt, GREEDY, request, use_tqdm=False)[0].finished


def test_running_requests_finish_on_the_weights_with_which_they_began(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], policy: Path
) -> None:
    llm = make_llm(adapters=tiny_adapters)
    long = replace(GREEDY, max_tokens=40)
    request = LoRARequest("policy", 1, str(policy))
    expected = {name: llm.generate(PROMPT, long, name, use_tqdm=False)[0].outputs[0].token_ids for name in ("r4", "r8")}
    with llm.stream(PROMPT, long, request) as old:
        found = [token for _ in range(3) for output in next(old) for token in output.outputs[0].token_ids]
        replace_files(policy, tiny_adapters["r8"])
        (new,) = llm.generate(PROMPT, long, request, use_tqdm=False)
        found += [token for outputs in old for output in outputs for token in output.outputs[0].token_ids]
    assert found == expected["r4"] and new.outputs[0].token_ids == expected["r8"]
    assert new.num_cached_tokens in (0, (len(PROMPT) - 1) // 4 * 4), "of r8 itself, or nothing"


@contextlib.contextmanager
def overwriting(folder: Path, sources: Sequence[Path]) -> Iterator[None]:
    """Another program replaces the folder again and again, at last with the last source."""
    is_over = threading.Event()

    def overwrite() -> None:
        while not is_over.is_set():
            for source in sources:
                replace_files(folder, source)

    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        yield
    finally:
        is_over.set()
        writer.join()


@pytest.mark.slow
def test_a_folder_under_constant_change_gives_the_one_or_the_other(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], policy: Path
) -> None:
    """Rank and alpha differ, so that the weights of the one with the configuration of the other would show."""
    llm = make_llm(adapters=tiny_adapters)
    allowed = [answer(llm, name) for name in ("r4", "r8")]
    with overwriting(policy, [tiny_adapters[name] for name in ("r4", "r8")]):
        for int_id in range(4):
            with contextlib.suppress(AdapterRejected):
                assert answer(llm, LoRARequest("policy", int_id, str(policy))) in allowed
    assert answer(llm, LoRARequest("policy", 5, str(policy))) == allowed[1]


def test_looks_that_are_asked_for_together_are_one() -> None:
    looks: list[list[str]] = []

    async def look(folders: Any) -> dict[str, str]:
        looks.append(sorted(folders))
        await asyncio.sleep(0)
        if "broken" in folders:
            raise AdapterRejected("broken", ["does not answer"])
        return {folder: str(len(looks)) for folder in folders}

    async def body() -> None:
        shared = SharedLooks(look)
        first = asyncio.create_task(shared.look_at({"a"}))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # it has begun
        others = [asyncio.create_task(shared.look_at({name})) for name in "aab"]
        others[0].cancel()
        assert await first == {"a": "1"}
        assert [await other for other in others[1:]] == [{"a": "2", "b": "2"}] * 2
        with pytest.raises(AdapterRejected):
            await shared.look_at({"broken"})
        assert await shared.look_at({"c"}) == {"c": "4"}

    asyncio.run(body())
    assert looks == [["a"], ["a", "b"], ["broken"], ["c"]]


async def async_answer(llm: AsyncLLM, adapter: Any, sampling: SamplingParams = GREEDY) -> list[int]:
    return [output async for output in llm.generate(PROMPT, sampling, lora_request=adapter)][-1].outputs[0].token_ids


@pytest.mark.slow
def test_behind_a_process_the_new_weights_are_served_too(
    tiny_model: Path, tiny_adapters: dict[str, Path], policy: Path
) -> None:
    async def body(llm: AsyncLLM) -> None:
        long = replace(GREEDY, max_tokens=60)
        expected = {name: await async_answer(llm, name, long) for name in ("r4", "r8", "r16")}
        request = LoRARequest("policy", 1, str(policy))
        assert await async_answer(llm, request, long) == expected["r4"]
        running = llm.generate(PROMPT, long, lora_request=request)
        await anext(running)
        replace_files(policy, tiny_adapters["r8"])
        answers = await asyncio.gather(*(async_answer(llm, request, long) for _ in range(20)))
        assert answers == [expected["r8"]] * 20
        assert [output async for output in running][-1].outputs[0].token_ids == expected["r4"]
        assert (await llm.get_adapter("policy")).version == 2, "they load it once"
        assert await async_answer(llm, replace(request, lora_int_id=2), long) == expected["r8"]
        assert (await llm.load_adapter("policy", policy)).version == 2
        rewrite_files(policy, tiny_adapters["r16"])
        assert await async_answer(llm, replace(request, lora_int_id=3), long) == expected["r16"]
        other = LoRARequest("policy", 4, str(tiny_adapters["r4"]))
        assert await async_answer(llm, other, long) == expected["r4"]

    shared_engine.run(tiny_model, body, {name: tiny_adapters[name] for name in ("r4", "r8", "r16")})


@pytest.mark.slow
def test_a_slow_disk_holds_up_only_requests_with_a_path(
    tiny_model: Path, tiny_adapters: dict[str, Path], policy: Path
) -> None:
    async def body(llm: AsyncLLM) -> None:
        request = LoRARequest("policy", 1, str(policy))
        first = await async_answer(llm, request)
        assert await async_answer(llm, request) == first
        lookout = child_that_runs(LOOKOUT)
        os.kill(lookout, signal.SIGSTOP)
        waiting = [asyncio.create_task(async_answer(llm, request)) for _ in range(3)]
        assert await async_answer(llm, "policy") == first
        await llm.load_adapter("other", tiny_adapters["r8"])
        assert not any(task.done() for task in waiting)
        os.kill(lookout, signal.SIGCONT)
        assert await asyncio.gather(*waiting) == [first] * 3
        os.kill(lookout, signal.SIGKILL)
        wait_until_ended(lookout)
        with contextlib.suppress(AdapterRejected):  # it ended at work, as far as the client can tell
            await async_answer(llm, request)
        assert await async_answer(llm, request) == first and child_that_runs(LOOKOUT) != lookout

    shared_engine.run(tiny_model, body, {})
