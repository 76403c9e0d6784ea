"""Oracle: the answer of each request alone, and what no call may come to."""

from dataclasses import dataclass, field
from typing import Any

from simulation.runner import EOS, FIRST_CHARACTER, draw, logprob_of

from blora.engine.errors import (
    AdapterError,
    DeadlineExceeded,
    EngineFault,
    EngineUnavailable,
    InvalidRequest,
    QueueFull,
)
from blora.engine.ipc.messages import AddRequest

TYPED = (AdapterError, DeadlineExceeded, EngineFault, EngineUnavailable, InvalidRequest, QueueFull)


@dataclass(slots=True)
class Sample:
    """What a client has seen of one sample."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    num_ends: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    token_ids: list[int]
    text: str
    finish_reason: str
    stop_reason: int | str | None


def alone(request: AddRequest) -> Answer:
    """The answer of a request for one sample, computed without any other."""
    sampling = request.sampling
    named = frozenset(sampling.stop_token_ids or ())
    all_stops = named | request.eos_token_ids
    stops = named if sampling.ignore_eos else all_stops
    token_ids, text = list(request.prompt_token_ids), ""
    for count in range(1, request.max_tokens + 1):
        kept = all_stops if count <= sampling.min_tokens else frozenset[int]()
        token_id = draw(token_ids, request.adapters, request.activation, request.seed, request.sample_index, kept)
        token_ids.append(token_id)
        output = token_ids[len(request.prompt_token_ids) :]
        is_stop, keeps = token_id in stops, sampling.include_stop_str_in_output
        if token_id != EOS and (not is_stop or keeps):
            text += chr(token_id + FIRST_CHARACTER)
        found = [(len(text) - len(stop), stop) for stop in sampling.stop_strings if text.endswith(stop)]
        if found and count > sampling.min_tokens:
            at, stop = min(found)
            return Answer(output, text[:at] + (stop if keeps else ""), "stop", stop)
        if is_stop:
            is_usual = token_id in request.eos_token_ids and not sampling.ignore_eos
            return Answer(output, text, "stop", None if is_usual else token_id)
    return Answer(output, text, "length", None)


def faults_of_sample(sample: Sample, request: AddRequest) -> list[str]:
    """What is wrong with a sample that has ended, or that its client has left."""
    answer, faults = alone(request), list[str]()
    is_whole = sample.finish_reason in ("stop", "length")
    expected = answer.token_ids if is_whole else answer.token_ids[: len(sample.token_ids)]
    if sample.token_ids != expected:
        faults.append(f"tokens {sample.token_ids}, alone {answer.token_ids}")
    if is_whole and (sample.text, sample.finish_reason, sample.stop_reason) != (
        answer.text,
        answer.finish_reason,
        answer.stop_reason,
    ):
        faults.append(f"{sample}, alone {answer}")
    if request.sampling.logprobs is not None and len(sample.logprobs) != len(sample.token_ids):
        faults.append(f"{len(sample.logprobs)} logprobs of {len(sample.token_ids)} tokens")
    for index, entry in enumerate(sample.logprobs):
        known = [*request.prompt_token_ids, *sample.token_ids[:index]]
        told = logprob_of(known, sample.token_ids[index], request.sampling.logprobs or 0)
        if {token_id: entry[token_id].logprob for token_id in entry} != dict(
            zip(told.token_ids, told.logprobs, strict=True)
        ):
            faults.append(f"logprobs of token {index}: {entry}")
    return faults


def faults_of_prompt_logprobs(found: list[Any] | None, request: AddRequest, is_whole: bool) -> list[str]:
    wanted, prompt = request.sampling.prompt_logprobs, request.prompt_token_ids
    if wanted is None or not found:
        return []
    told = [logprob_of(prompt[:index], prompt[index], wanted) for index in range(1, len(prompt))]
    expected = [None, *(dict(zip(entry.token_ids, entry.logprobs, strict=True)) for entry in told)]
    shown = [entry and {token_id: value.logprob for token_id, value in entry.items()} for entry in found]
    if shown != expected[: len(shown)] or is_whole and len(shown) != len(expected):
        return [f"prompt logprobs {shown}, alone {expected}"]
    return []
