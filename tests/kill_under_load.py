"""Kills engines under a mixed load: every stream has to end as it does undisturbed, to the bits of its logprobs."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from blora.engine import AsyncLLM, CompletionOutput, RequestOutput, SamplingParams
from blora.engine.front_end.adapter_choice import Adapter
from blora.scheduler import RequestOutputKind

PAUSE = 0.01  # seconds between looks at an engine that is on its way
CONSTRAINTS: list[dict[str, Any]] = [
    {},
    {"stop": ["a", "th", "\n"]},
    {"stop": "e", "include_stop_str_in_output": True, "min_tokens": 5},
    {"bad_words": ["a", "bc"], "logit_bias": {64: 20.0, 65: 19.0}},
    {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
    {"stop_token_ids": range(8), "min_tokens": 12},
]


@dataclass(frozen=True)
class Job:
    prompt: str
    adapter: Adapter
    sampling: SamplingParams


def random_job(rng: random.Random, adapters: Sequence[str]) -> Job:
    sampling = SamplingParams(
        n=rng.choice([1, 1, 3]),
        temperature=rng.choice([0.0, 0.8]),
        seed=rng.getrandbits(63),
        max_tokens=rng.randint(12, 120),
        ignore_eos=rng.random() < 0.8,
        logprobs=rng.choice([None, 2]),
        prompt_logprobs=rng.choice([None, None, 1]),
        output_kind=rng.choice(list(RequestOutputKind)),
        stream_interval=rng.choice([None, 7]),
        **rng.choice(CONSTRAINTS),
    )
    prompt = "".join(rng.choice("abcdefgh ,.") for _ in range(rng.randint(1, 120)))
    composed = {name: rng.choice([0.5, 2.0]) for name in rng.sample(adapters, 2)}
    return Job(prompt, rng.choice([None, *adapters, composed]), sampling)


@dataclass
class Answer:
    """What a user was told of a job, put together."""

    samples: list[CompletionOutput] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)

    def add(self, output: RequestOutput, kind: RequestOutputKind) -> int:
        """Takes the next output. Returns the number of tokens that are new. Fails if it repeats or leaves out any."""
        num_before = sum(len(sample.token_ids) for sample in self.samples)
        if kind is RequestOutputKind.DELTA:
            self.prompt_logprobs += output.prompt_logprobs or []
            for sample in output.outputs:
                self._append(sample)
        else:
            for before, sample in zip(self.samples, output.outputs, strict=False):
                assert sample.token_ids[: len(before.token_ids)] == before.token_ids
                assert sample.text.startswith(before.text)
            self.samples = [replace(sample, token_ids=list(sample.token_ids)) for sample in output.outputs]
            self.prompt_logprobs = list(output.prompt_logprobs or [])
        return sum(len(sample.token_ids) for sample in self.samples) - num_before

    def _append(self, piece: CompletionOutput) -> None:
        known = {sample.index: sample for sample in self.samples}
        before = known.get(piece.index)
        if before is not None:
            text, token_ids = before.text + piece.text, [*before.token_ids, *piece.token_ids]
            logprobs = None if piece.logprobs is None else [*(before.logprobs or []), *piece.logprobs]
            piece = replace(piece, text=text, token_ids=token_ids, logprobs=logprobs)
        self.samples = [sample for _, sample in sorted({**known, piece.index: piece}.items())]


class Load:
    def __init__(self, llm: AsyncLLM, jobs: Sequence[Job]) -> None:
        self._llm = llm
        self._jobs = jobs
        self.num_told = 0  # tokens
        self._told_more = asyncio.Event()

    async def run(self) -> list[Answer]:
        return await asyncio.gather(*map(self._answer, self._jobs))

    async def _answer(self, job: Job) -> Answer:
        answer = Answer()
        async for output in self._llm.generate(job.prompt, job.sampling, lora_request=job.adapter):
            self.num_told += answer.add(output, job.sampling.output_kind)
            self._told_more.set()
        return answer

    async def told(self, num_tokens: int) -> None:
        """Returns when so many tokens have been told."""
        while self.num_told < num_tokens:
            self._told_more.clear()
            await self._told_more.wait()


def difference(answer: Answer, wanted: Answer) -> str:
    """Returns the first field that differs."""
    pairs = [("prompt_logprobs", answer.prompt_logprobs, wanted.prompt_logprobs)]
    for one, other in zip(answer.samples, wanted.samples, strict=False):
        fields = one.__dataclass_fields__
        pairs += [(f"sample {one.index}, {name}", getattr(one, name), getattr(other, name)) for name in fields]
    return next((f"{name}: {one}, not {other}" for name, one, other in pairs if one != other), "the number of samples")


async def kill_under_load(
    llm: AsyncLLM, kill: Callable[[], None], adapters: Sequence[str], seed: int, num_kills: int, num_jobs: int
) -> None:
    """Runs random jobs undisturbed, and again while the engine is killed after random numbers of told tokens. Raises
    AssertionError for an answer that differs."""
    rng = random.Random(seed)
    jobs = [random_job(rng, adapters) for _ in range(num_jobs)]
    calm = Load(llm, jobs)
    expected = await calm.run()
    load = Load(llm, jobs)
    answers = asyncio.create_task(load.run())
    for num_tokens in sorted(rng.sample(range(calm.num_told), num_kills)):
        told = asyncio.create_task(load.told(num_tokens))
        await asyncio.wait([told, answers], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        kill()
        while llm.is_serving:
            await asyncio.sleep(PAUSE)
        llm.check_integrity()
        while not llm.is_serving:
            await asyncio.sleep(PAUSE)
    for job, answer, wanted in zip(jobs, await answers, expected, strict=True):
        assert answer == wanted, f"seed {seed}: {job}: {difference(answer, wanted)}"
