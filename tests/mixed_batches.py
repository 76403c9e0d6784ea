"""Random mixed batches: rows arrive while others decode, some are aborted half-way, and each row also runs alone."""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blora.engine import LLM, CompletionOutput, RequestOutput, SamplingParams
from blora.engine.front_end.adapter_choice import Adapter
from blora.engine.llm import RowStream

Growth = Generator[list[RequestOutput], None, None]  # the rows so far, whenever they grow
# Limits of what a row may say.
MASKS: list[dict[str, Any]] = [
    {"allowed_token_ids": range(60, 90)},
    {"bad_words": ["a", "bc", "\n"], "logit_bias": {64: 20.0, 65: 19.0}},
    {"allowed_token_ids": [64, 65, 66], "bad_words": ["aa", "ab", "b"], "temperature": 1.0, "seed": 3},
    {"min_tokens": 1, "stop_token_ids": range(8), "repetition_penalty": 1.2},
]
SHARED_PREFIXES = ["the same beginning of several prompts, ", "another one; "]


@dataclass(frozen=True)
class Row:
    prompt: str
    adapter: Adapter
    sampling: SamplingParams


def random_row(rng: random.Random, adapters: Sequence[str]) -> Row:
    prefix = rng.choice(["", *SHARED_PREFIXES])
    prompt = prefix + "".join(rng.choice("abcdefgh ,.") for _ in range(rng.randint(1, 40)))
    sampling = SamplingParams(
        temperature=0, max_tokens=rng.choice([1, 4, 12, 40]), logprobs=2, ignore_eos=rng.random() < 0.8
    )
    own = random.Random(prompt)  # the other random facts are what they were without masks
    if own.random() < 0.2:
        sampling = replace(sampling, **own.choice(MASKS))
    return Row(prompt, rng.choice([None, *adapters]), sampling)


class Solo:
    """Runs each row alone, in an engine without prefix cache in which nothing else ever runs at the same time."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._known: dict[str, CompletionOutput] = {}

    def run(self, row: Row) -> CompletionOutput:
        key = repr(row)
        if key not in self._known:
            output = self.llm.generate(row.prompt, row.sampling, lora_request=row.adapter, use_tqdm=False)[0]
            self._known[key] = output.outputs[0]
        return self._known[key]


@dataclass
class Troubles:
    """Counts of the events that must happen for a comparison to mean something."""

    num_preempted: int = 0
    num_cached: int = 0  # hits of the prefix cache
    num_evicted: int = 0  # evicted adapters

    def count(self, llm: LLM) -> None:
        info = llm.get_info()
        self.num_preempted += info.num_preemptions
        self.num_cached += info.num_cached_tokens
        self.num_evicted += info.num_evicted_adapters

    def are_many(self, least: int) -> bool:
        """How many there are depends on the speed of copies: a test goes on, within a bound, until there are many."""
        return min(self.num_preempted, self.num_cached, self.num_evicted) >= least

    def assert_many(self, least: int) -> None:
        assert self.are_many(least), self


def run_batch(llm: LLM, rows: Sequence[Row], rng: random.Random) -> dict[int, CompletionOutput]:
    """Runs rows that arrive a few at a time while others decode; aborts some half-way."""
    done: dict[int, CompletionOutput] = {}
    pending = list(enumerate(rows))
    streams: list[tuple[list[tuple[int, Row]], Growth, int]] = []
    while pending or streams:
        if pending and (not streams or rng.random() < 0.4):
            size = rng.choice([4, 32])
            part, pending = pending[:size], pending[size:]
            is_aborted = rng.random() < 0.2
            streams.append((part, _start(llm, [row for _, row in part]), rng.randint(1, 6) if is_aborted else 1000))
        part, outputs, patience = streams.pop(rng.randrange(len(streams)))
        news = next(outputs, None)
        if news is not None and patience > 1:
            done |= {part[int(entry.request_id)][0]: entry.outputs[0] for entry in news if entry.finished}
            streams.append((part, outputs, patience - 1))
        elif news is not None:
            outputs.close()
    return done


def _start(llm: LLM, rows: Sequence[Row]) -> Growth:
    adapters = [row.adapter for row in rows]
    return _accumulate(llm.stream([row.prompt for row in rows], [row.sampling for row in rows], lora_request=adapters))


def _accumulate(stream: RowStream) -> Growth:
    """Adds up a stream, whose outputs hold only the new part."""
    so_far: dict[str, CompletionOutput] = {}
    with stream:
        for outputs in stream:
            for output in outputs:
                news = output.outputs[0]
                known = so_far.get(output.request_id)
                output.outputs[0] = so_far[output.request_id] = news if known is None else _joined(known, news)
            yield outputs


def _joined(known: CompletionOutput, news: CompletionOutput) -> CompletionOutput:
    return replace(
        news,
        text=known.text + news.text,
        token_ids=known.token_ids + news.token_ids,
        logprobs=(known.logprobs or []) + (news.logprobs or []),
    )
