"""Plan: which requests arrive when. The same traffic and seed give the same plan, byte for byte as JSON lines."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..trace import Arrival, TraceShape, make_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request. Seconds are since the start of the run."""

    seconds: float  # when it arrives
    prompt: Sequence[int] | str
    max_tokens: int
    adapter: str = ""  # empty: the base model
    tenant: str = ""
    deadline: float | None = None  # seconds from its arrival to the end of its answer
    priority: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)  # further fields of SamplingParams
    cancel_after: int | None = None  # the client leaves after so many tokens
    cancel_seconds: float | None = None  # the client leaves so many seconds after its arrival
    read_pause: float = 0.0  # seconds that the client rests after each message
    expected: str | None = None  # the right answer, where there is one
    check: str = ""  # the task of the demo that compares with it; empty: the same text


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests of one kind. Answers are greedy and as long as planned unless `sampling` says otherwise."""

    shape: TraceShape
    vocab_size: int  # prompts are random token ids below it
    adapters: Sequence[str] = ("",)  # by the trace's number of the adapter
    tenant: str = ""
    start: float = 0.0  # second at which the trace begins
    deadline: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "ignore_eos": True})


def make_plan(*traffics: Traffic) -> list[Planned]:
    """Returns the requests of all kinds of traffic, by arrival."""
    planned = [request for traffic in traffics for request in _requests(traffic)]
    return sorted(planned, key=lambda request: request.seconds)


def _requests(traffic: Traffic) -> Iterator[Planned]:
    draw = random.Random(f"prompts {traffic.tenant} {traffic.shape.seed}")
    for arrival in make_trace(traffic.shape):
        yield Planned(
            seconds=traffic.start + arrival.seconds,
            prompt=_prompt(traffic, arrival, draw),
            max_tokens=arrival.output_len,
            adapter=traffic.adapters[arrival.adapter],
            tenant=traffic.tenant,
            deadline=traffic.deadline,
            sampling=traffic.sampling,
        )


def _prompt(traffic: Traffic, arrival: Arrival, draw: random.Random) -> list[int]:
    """Returns random token ids after those that all prompts of the adapter begin with."""
    shared = random.Random(f"prefix {traffic.tenant} {arrival.adapter} {traffic.shape.seed}")
    lengths = ((shared, arrival.prefix_len), (draw, arrival.input_len))
    return [token for source, length in lengths for token in source.choices(range(traffic.vocab_size), k=length)]


def write_plan(path: Path, plan: Iterable[Planned]) -> None:
    path.write_text("".join(json.dumps(asdict(request)) + "\n" for request in plan))


def read_plan(path: Path) -> list[Planned]:
    return [Planned(**json.loads(line)) for line in path.read_text().splitlines()]


def at_speed(plan: Iterable[Planned], factor: float) -> list[Planned]:
    """Returns the same requests, arriving `factor` times as fast."""
    return [replace(request, seconds=request.seconds / factor) for request in plan]
