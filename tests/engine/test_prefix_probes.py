"""Gate I1: a tenant cannot find out by the prefix cache what another has sent.

The attacker sees more than a clock would show: how many tokens of its own prompt were cached.
"""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from shared_engine import shared_engine

from blora.engine import AsyncLLM, SamplingParams, Tenant
from blora.engine.identity.caller import salt_of

pytestmark = pytest.mark.slow  # it starts an engine process
ONE = SamplingParams(temperature=0, max_tokens=1)
VICTIM, ATTACKER = (Tenant(name, salt=salt_of(name), is_proven=True) for name in ("victim", "attacker"))
NUM_PROBES = 12
SYSTEM = "You are the helper of a small shop; never tell its prices. "


async def num_cached(llm: AsyncLLM, prompt: object, tenant: Tenant, adapter: str | None = None) -> int:
    async for output in llm.generate(prompt, ONE, lora_request=adapter, tenant=tenant):  # type: ignore[arg-type]
        found = output.num_cached_tokens
    return found


def auc(of_sent: Sequence[int], of_others: Sequence[int]) -> float:
    """The probability that a probe of what was sent shows more than one of what was not; a tie is half."""
    pairs = [(a, b) for a in of_sent for b in of_others]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


async def probed(llm: AsyncLLM, attacker: Tenant, adapter: str | None, seed: int) -> float:
    """How well an attacker tells prompts that the victim has just sent from others."""
    draw = random.Random(seed)
    drawn = [([draw.randrange(200) for _ in range(17)], draw.random() < 0.5) for _ in range(NUM_PROBES)]
    await asyncio.gather(*(num_cached(llm, prompt, VICTIM, adapter) for prompt, is_sent in drawn if is_sent))
    found = await asyncio.gather(*(num_cached(llm, prompt, attacker, adapter) for prompt, _ in drawn))
    of_sent, of_others = (
        [number for number, (_, is_sent) in zip(found, drawn, strict=True) if is_sent is wanted]
        for wanted in (True, False)
    )
    assert of_sent and of_others
    return auc(of_sent, of_others)


def test_a_probe_tells_nothing_across_tenants(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    async def body(llm: AsyncLLM) -> None:
        for seed, adapter in enumerate((None, "r4")):
            assert await probed(llm, ATTACKER, adapter, seed) == 0.5
            assert await probed(llm, VICTIM, adapter, seed + 10) == 1.0  # within a tenant; so the probe works
        # Without salts, as with --share-prefixes or without identities, tenants share.
        open_one, open_other = Tenant("one"), Tenant("other")
        await num_cached(llm, [9] * 17, open_one)
        assert await num_cached(llm, [9] * 17, open_other) == 16

    shared_engine.run(tiny_model, body, {"r4": tiny_adapters["r4"]})


def test_a_clients_salt_cannot_reach_into_a_tenant(tiny_model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        prompt = [3] * 17
        await num_cached(llm, prompt, VICTIM)
        for salt in ("victim", salt_of("victim").hex(), salt_of("victim").decode(errors="surrogateescape")):
            salted = {"prompt_token_ids": prompt, "cache_salt": salt}
            assert await num_cached(llm, salted, ATTACKER) == await num_cached(llm, salted, Tenant("nobody")) == 0
        mine = {"prompt_token_ids": prompt, "cache_salt": "mine"}
        assert [await num_cached(llm, mine, VICTIM) for _ in range(2)] == [0, 16]

    shared_engine.run(tiny_model, body, {})


def test_tenants_share_a_named_system_prompt_and_nothing_behind_it(tiny_model: Path) -> None:
    async def body(llm: AsyncLLM) -> None:
        await llm.share_prompts([SYSTEM])
        num_shared = len(SYSTEM.encode()) // 4 * 4
        try:
            for question in ("What is it?", "And this?"):
                await num_cached(llm, SYSTEM + question, VICTIM)
                found = await num_cached(llm, SYSTEM + question, ATTACKER)
                assert num_shared - 4 <= found <= num_shared
            assert await num_cached(llm, SYSTEM + question, ATTACKER) > num_shared
            salted = {"prompt": SYSTEM + question, "cache_salt": "mine"}  # who asks for a salt gets it from the start
            assert await num_cached(llm, salted, ATTACKER) == 0
        finally:
            await llm.share_prompts([])
        assert await num_cached(llm, SYSTEM + "new?", Tenant("third", salt=salt_of("third"))) == 0

    shared_engine.run(tiny_model, body, {})
