"""All ways to use adapters in one batch: sums, scales, activated ones, base rows, salts, samples, versions that change.

A row equals its solo run in every batch. The prefix cache gives it its own KV, whatever ran before.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from compare import assert_same_tokens
from mixed_batches import Troubles
from tiny import make_adapter

from blora.engine import LLM, RequestOutput, SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blind_forecast")]

INVOCATION = "<go>"
BLOCK = 4
PLAIN = ("r1", "r2", "r4", "r8", "pattern", "lora-bias")
ACTIVATED = ("activated", "values")
EXCLUSIVE = ("dora",)  # these kinds take neither partner nor scale
NAMES = (*PLAIN, *ACTIVATED, *EXCLUSIVE)
# Memory and adapters in use: ample memory; then adapters are swapped; then requests are preempted.
MEMORY = [("2MB", NAMES), ("160KB", NAMES), ("62KB", ("r1", "r2", "values"))]


@dataclasses.dataclass(frozen=True)
class Row:
    prompt: str
    uses: tuple[tuple[str, float], ...]  # name and scale, in order
    salt: str
    sampling: SamplingParams

    def run(self, llm: LLM) -> RequestOutput:
        return run(llm, [self])[0]


def run(llm: LLM, rows: list[Row]) -> list[RequestOutput]:
    prompts = [{"prompt": row.prompt, "cache_salt": row.salt} for row in rows]
    uses = [dict(row.uses) or None for row in rows]
    return llm.generate(prompts, [row.sampling for row in rows], lora_request=uses, use_tqdm=False)


def random_uses(rng: random.Random, loaded: Sequence[str]) -> tuple[tuple[str, float], ...]:
    kind = rng.random()
    if kind < 0.2:
        return ()
    if kind < 0.5:
        return ((rng.choice([name for name in loaded if name in ACTIVATED]), rng.choice([1.0, 1.0, 0.5])),)
    if kind < 0.6 and EXCLUSIVE[0] in loaded:
        return ((rng.choice(EXCLUSIVE), 1.0),)
    plain = [name for name in loaded if name in PLAIN]
    names = rng.sample(plain, min(rng.choice([1, 1, 2, 3]), len(plain)))
    return tuple((name, rng.choice([1.0, 1.0, 0.5, -0.75, 2.0, 0.0])) for name in names)


def random_row(rng: random.Random, loaded: Sequence[str] = NAMES) -> Row:
    uses = random_uses(rng, loaded)
    text = rng.choice(["", "the same beginning of several prompts, ", "another one; "])
    text += "".join(rng.choice("abcd ,") for _ in range(rng.randint(1, 12)))
    if rng.random() < 0.5 or (uses and uses[0][0] in ACTIVATED):
        text += INVOCATION + "".join(rng.choice("ab<") for _ in range(rng.randint(0, 9)))
    num_samples = rng.choice([1, 1, 3])
    sampling = SamplingParams(
        n=num_samples,
        temperature=0.9 if num_samples > 1 else 0.0,
        seed=rng.randint(0, 3),
        max_tokens=rng.choice([1, 6, 20, 40]),
        ignore_eos=True,
        logprobs=2,
    )
    return Row(text, uses, rng.choice(["", "", "salt"]), sampling)


@pytest.fixture(scope="session")
def adapters(
    tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("uses")
    tokens = list(LLM(str(tiny_model), memory="1MB").get_tokenizer().encode(INVOCATION))
    fields: dict[str, dict[str, Any]] = {
        "activated": {"r": 6, "alora_invocation_tokens": tokens},
        "lora-bias": {"r": 4, "lora_bias": True, "target_modules": ["k_proj", "up_proj"]},
        "dora": {"r": 4, "use_dora": True},
        "values": {"r": 3, "target_modules": ["v_proj", "down_proj"], "alora_invocation_tokens": tokens},
    }
    made = {name: make_adapter(tiny_model, folder / name, 11, **these) for name, these in fields.items()}
    return {name: str(path) for name, path in {**tiny_adapters, **made}.items() if name in NAMES}


@pytest.mark.grid
def test_every_row_of_a_random_batch_is_its_solo_run(
    make_llm: Callable[..., LLM], adapters: dict[str, str], cases: Callable[[int, int], int], backend: str
) -> None:
    solo = make_llm(adapters=adapters, enable_prefix_caching=False)
    expected: dict[str, RequestOutput] = {}
    is_bitwise = backend == "cpu"
    num_compared, troubles, seed, least = 0, Troubles(), 0, cases(5, 21)
    while num_compared < cases(90, 500) or (not troubles.are_many(least) and seed < 100):  # samples
        rng = random.Random(seed)
        memory, loaded = MEMORY[seed % 3]
        llm = make_llm(
            adapters={name: adapters[name] for name in loaded},
            memory=memory,
            max_num_batched_tokens=rng.choice([5, 17, 64, 300]),
            max_num_seqs=rng.choice([4, 12, 32]),
            adapter_copy_bytes=rng.choice([1, 20_000, 10_000_000]),
        )
        rows = [random_row(rng, loaded) for _ in range(rng.randint(8, 32))]
        for row, output in zip(rows, run(llm, rows), strict=True):
            if repr(row) not in expected:
                expected[repr(row)] = row.run(solo)
            for alone, sample in zip(expected[repr(row)].outputs, output.outputs, strict=True):
                if is_bitwise:
                    assert sample.token_ids == alone.token_ids, (seed, row)
                    assert sample.logprobs == alone.logprobs, (seed, row)
                elif row.sampling.temperature == 0:
                    assert_same_tokens(alone, sample, (seed, row))
                num_compared += 1
        troubles.count(llm)
        seed += 1
    troubles.assert_many(least)


class ExpectedHits:
    """The hits of a prefix cache that drops nothing: blocks of equal tokens computed by equal adapters, from the start
    of the prompt. It is written plainly, without keys that build on each other."""

    def __init__(self) -> None:
        self._known: set[object] = set()

    def find(self, row: Row, prompt: list[int], activation: int) -> int:
        """Returns the number of tokens found. The last token of a prompt is always computed."""
        num_blocks = (len(prompt) - 1) // BLOCK
        hits = 0
        while hits < num_blocks and self._identity(row, prompt[: (hits + 1) * BLOCK], activation) in self._known:
            hits += 1
        return hits * BLOCK

    def add(self, row: Row, token_ids: list[int], activation: int) -> None:
        for end in range(BLOCK, len(token_ids) + 1, BLOCK):
            self._known.add(self._identity(row, token_ids[:end], activation))

    def _identity(self, row: Row, token_ids: list[int], activation: int) -> object:
        in_force = tuple(row.uses if position >= activation else () for position in range(len(token_ids)))
        return row.salt, tuple(token_ids), in_force


def test_the_prefix_cache_finds_what_is_the_same_and_nothing_else(
    make_llm: Callable[..., LLM], adapters: dict[str, str]
) -> None:
    llm = make_llm(adapters=adapters, memory="8MB")
    invocation = llm.get_tokenizer().encode(INVOCATION)
    expected, rng, num_shared = ExpectedHits(), random.Random(5), 0
    for _ in range(300):
        row = random_row(rng)
        row = dataclasses.replace(row, sampling=dataclasses.replace(row.sampling, n=1, max_tokens=6))
        output = row.run(llm)
        prompt = output.prompt_token_ids
        is_activated = bool(row.uses) and row.uses[0][0] in ACTIVATED
        activation = max(at for at in range(len(prompt)) if prompt[at : at + 4] == invocation) if is_activated else 0
        hits = expected.find(row, prompt, activation)
        assert output.num_cached_tokens == hits, row
        num_shared += hits
        expected.add(
            row, (prompt + output.outputs[0].token_ids)[:-1], activation
        )  # the last output token is not computed
    assert num_shared > 1000


@pytest.fixture
def versions(tiny_model: Path, tmp_path: Path, make_llm: Callable[..., LLM]) -> list[str]:
    """Returns adapters of one shape; every second one is activated."""
    invocation = list(make_llm().get_tokenizer().encode(INVOCATION))
    fields: list[dict[str, Any]] = [{}, {"alora_invocation_tokens": invocation}]
    return [str(make_adapter(tiny_model, tmp_path / str(seed), seed, r=4, **fields[seed % 2])) for seed in range(6)]


@pytest.mark.grid
def test_no_token_of_a_replaced_adapter_comes_from_a_warm_prefix(
    make_llm: Callable[..., LLM], versions: list[str], cases: Callable[[int, int], int]
) -> None:
    num_replacements = cases(50, 500)
    sampling = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=2)
    prompts = ["a warm prefix of many blocks, " + INVOCATION + tail for tail in (" one", " two", "")]
    fresh = make_llm(enable_prefix_caching=False)
    expected: dict[str | None, list[RequestOutput]] = {None: fresh.generate(prompts, sampling, use_tqdm=False)}
    for path in versions:
        fresh.load_adapter("live", path)
        expected[path] = fresh.generate(prompts, sampling, lora_request="live", use_tqdm=False)
    assert len({tuple(outputs[0].outputs[0].token_ids) for outputs in expected.values()}) == len(expected)

    llm, rng, num_stale = make_llm(memory="1MB"), random.Random(0), 0
    llm.load_adapter("live", versions[0])
    active: str = versions[0]
    for _ in range(num_replacements):
        use = rng.choice(["live", "live", None])
        stream = llm.stream(prompts, sampling, lora_request=use)
        was_active = active if use else None
        started = [next(stream)]  # admitted, so it finishes with the version it began with
        active = rng.choice(versions)
        llm.load_adapter("live", active)
        after = llm.stream(prompts, sampling, lora_request="live")
        num_stale += _num_different(expected[was_active], [*started, *stream])
        num_stale += _num_different(expected[active], list(after))
    assert num_stale == 0
    assert llm.get_info().num_cached_tokens > num_replacements


def _num_different(expected: list[RequestOutput], news: list[list[RequestOutput]]) -> int:
    """Returns the number of rows that differ from the expected ones, near ties aside."""
    tokens: dict[int, list[int]] = {index: [] for index in range(len(expected))}
    for outputs in news:
        for output in outputs:
            tokens[int(output.request_id)] += output.outputs[0].token_ids
    num_different = 0
    for index, output in enumerate(expected):
        sample = output.outputs[0]
        try:
            assert_same_tokens(sample, dataclasses.replace(sample, token_ids=tokens[index]))
        except AssertionError:
            num_different += 1
    return num_different
