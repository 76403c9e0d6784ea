"""Adapters by lora_int_id, as vLLM's engines take them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shared_engine import shared_engine

from blora.engine import LLM, AdapterNotFound, AdapterRejected, AsyncLLM, InvalidRequest, LoRARequest, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def test_an_adapter_is_added_listed_pinned_and_removed_by_its_id(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    engine = make_llm(adapters={"r4": tiny_adapters["r4"]}).llm_engine
    assert engine.list_loras() == set()
    request = LoRARequest("mine", 7, str(tiny_adapters["r8"]))
    assert engine.add_lora(request) is True and engine.add_lora(request) is True
    assert engine.add_lora(LoRARequest("r4", 9)) is True  # loaded already: it needs no path
    assert engine.list_loras() == {7, 9}
    assert [version.number for version in engine.get_adapter("mine").versions] == [1]
    assert engine.generate("x", GREEDY, "mine", use_tqdm=False)[0].finished
    assert engine.pin_lora(7) is True and engine.get_adapter("mine").pinned
    assert engine.remove_lora(7) is True and engine.remove_lora(7) is False
    assert engine.list_loras() == {9} and [info.name for info in engine.list_adapters()] == ["r4"]
    with pytest.raises(AdapterNotFound, match="lora_int_id=7"):
        engine.pin_lora(7)


def test_an_id_is_that_of_the_newest_weights(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm()
    for int_id, name in enumerate(("r4", "r8", "r8")):
        llm.generate("x", GREEDY, LoRARequest("mine", int_id, str(tiny_adapters[name])), use_tqdm=False)
    assert llm.list_loras() == {1, 2}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (LoRARequest("nobody", 1), AdapterNotFound),
        (LoRARequest("nobody", 1, "/nowhere"), AdapterRejected),
        (LoRARequest("../x", 1, "/nowhere"), InvalidRequest),
        ("r4", InvalidRequest),
        (None, InvalidRequest),
    ],
)
def test_what_cannot_be_added_is_refused(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], wrong: Any, error: type[Exception]
) -> None:
    llm = make_llm(adapters={"r4": tiny_adapters["r4"]})
    with pytest.raises(error):
        llm.add_lora(wrong)
    assert llm.list_loras() == set()


def test_an_id_of_two_names_means_neither(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm()
    for name in ("r4", "r8"):
        llm.add_lora(LoRARequest(name, 1, str(tiny_adapters[name])))
    with pytest.raises(InvalidRequest, match="1 is the id of r4, r8"):
        llm.remove_lora(1)
    assert len(llm.list_adapters()) == 2 and llm.list_loras() == {1}


@pytest.mark.slow
def test_ids_behind_a_process(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        request = LoRARequest("mine", 7, str(tiny_adapters["r8"]))
        assert await llm.add_lora(request) is True and await llm.add_lora(request) is True
        assert await llm.list_loras() == {7}
        assert [output async for output in llm.generate("x", GREEDY, lora_request=request)][-1].finished
        assert await llm.pin_lora(7) is True and (await llm.get_adapter("mine")).pinned
        assert await llm.remove_lora(7) is True and await llm.remove_lora(7) is False
        assert await llm.list_loras() == set()
        with pytest.raises(AdapterNotFound):
            await llm.pin_lora(7)

    shared_engine.run(tiny_model, body, {})
