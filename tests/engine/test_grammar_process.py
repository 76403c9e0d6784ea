"""Grammars in AsyncLLM: bad and hostile ones are refused by a process of their own, and an engine's death changes no
text."""

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from processes import child_that_runs, children_that_run
from shared_engine import run_alone, shared_engine

from blora.engine import AsyncLLM, InvalidRequest, SamplingParams, StructuredOutputsParams
from blora.engine.errors import QueueFull
from blora.engine.front_end.admission import Admission
from blora.engine.ipc.grammar_client import GrammarClient

LETTERS = StructuredOutputsParams(regex="[a-f]{40}!")
MODULE = "blora.engine.processes.grammar"


class FullLater:
    """An admission whose queue has room by the estimate that comes first, and none by the demand that comes then."""

    def __init__(self) -> None:
        self._is_estimate = True

    def check(self, _: Any) -> None:
        if not self._is_estimate:
            raise QueueFull("full")
        self._is_estimate = False


async def answer(llm: AsyncLLM, what: StructuredOutputsParams | None, **fields: Any) -> Any:
    given = {"temperature": 1.0, "max_tokens": 60, "seed": 1} | fields
    last = None
    async for output in llm.generate("a prompt", SamplingParams(**given, structured_outputs=what)):
        last = output
    assert last is not None
    return last.outputs[0]


@pytest.mark.slow
def test_texts_match_and_what_is_bad_is_refused(tiny_model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        free = await answer(llm, None)
        assert re.fullmatch("[a-f]{40}!", (await answer(llm, LETTERS)).text)
        several = await asyncio.gather(*(answer(llm, LETTERS, seed=seed) for seed in range(4)))
        assert len({row.text for row in several}) == 4
        for what in (
            StructuredOutputsParams(regex="(a"),
            StructuredOutputsParams(regex="(" * 30_000 + ")" * 30_000),
            StructuredOutputsParams(json={"type": "array", "uniqueItems": True}),
            StructuredOutputsParams(json="[" * 60_000),
            StructuredOutputsParams(grammar="start: start"),
        ):
            bad, beside = await asyncio.gather(answer(llm, what), answer(llm, None), return_exceptions=True)
            assert isinstance(bad, InvalidRequest)
            assert bad.field.startswith("structured_outputs")
            assert beside.token_ids == free.token_ids

    shared_engine.run(tiny_model, body, {})


def test_nothing_is_compiled_for_what_is_refused_anyway(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what, asked = StructuredOutputsParams(regex="[l-p]{7}!"), []
    check = GrammarClient.check

    async def noted(client: GrammarClient, *given: Any) -> Any:
        asked.append(given)
        return await check(client, *given)

    monkeypatch.setattr(GrammarClient, "check", noted)
    params = SamplingParams(max_tokens=20, structured_outputs=what)

    async def refused(llm: AsyncLLM, error: type[Exception], *prompts: Any) -> None:
        with pytest.raises(error):
            async for _ in llm.stream(list(prompts), params):
                pass
        assert asked == []

    async def body(llm: AsyncLLM) -> None:
        too_long = "a" * (llm._front_end.facts.max_model_len + 1)
        await refused(llm, InvalidRequest, too_long)
        await refused(llm, InvalidRequest, "short", too_long)
        with monkeypatch.context() as patch:
            patch.setattr(Admission, "check", FullLater().check)
            await refused(llm, QueueFull, "short")
        assert (await answer(llm, what)).finish_reason == "stop"
        assert len(asked) == 1

    shared_engine.run(tiny_model, body, {})


@pytest.mark.slow
def test_a_grammar_over_which_its_process_ends_is_refused_and_others_are_not(tiny_model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        await answer(llm, LETTERS)
        pid = child_that_runs(MODULE)
        os.kill(pid, signal.SIGSTOP)
        hostile = asyncio.create_task(answer(llm, StructuredOutputsParams(regex="[g-k]{30}")))
        await asyncio.sleep(0)
        assert (await answer(llm, LETTERS)).finish_reason == "stop"  # this one is known
        while not hostile.done() and children_that_run(MODULE):
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
        with pytest.raises(InvalidRequest, match="takes too long"):
            await hostile
        assert (await answer(llm, StructuredOutputsParams(regex="[g-k]{30}"))).finish_reason == "stop"

    run_alone(tiny_model, body)


@pytest.mark.slow
def test_the_death_of_an_engine_changes_no_text(tiny_model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        alone = await answer(llm, LETTERS)
        tokens = []
        params = SamplingParams(temperature=1.0, max_tokens=60, seed=1, structured_outputs=LETTERS)
        async for output in llm.generate("a prompt", params):
            tokens = list(output.outputs[0].token_ids)
            if len(tokens) == 10:
                os.kill(child_that_runs("blora.engine.processes.engine"), signal.SIGKILL)
        assert tokens == list(alone.token_ids)

    run_alone(tiny_model, body)
