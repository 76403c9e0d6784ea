"""Mixed load: requests of every kind that the engine computes, each with an answer that the oracle knows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from blora.bench.load import Planned, Traffic, make_plan
from blora.bench.trace import TraceShape

from .room import Room

VOCAB_SIZE = 250  # of the tiny model's letters

GREEDY: Mapping[str, Any] = {"temperature": 0.0, "ignore_eos": True}
KINDS: Sequence[Mapping[str, Any]] = (
    GREEDY,
    {"temperature": 0.9, "seed": 7, "ignore_eos": True},
    {"temperature": 1.2, "seed": 11, "n": 3, "top_k": 40, "ignore_eos": True},
    {**GREEDY, "logprobs": 2},
    {**GREEDY, "n": 2, "presence_penalty": 0.5, "logprobs": 0},
    {"temperature": 0.7, "seed": 5, "stop": ["e", "qu"], "top_p": 0.9},
    {**GREEDY, "stop": ["never comes"], "min_tokens": 4},
)


def mixed_plan(
    room: Room,
    adapters: Sequence[str],
    rate: float,
    seconds: float,
    *,
    input_len: tuple[int, int] = (4, 80),
    output_len: tuple[int, int] = (16, 160),
    **fields: Any,
) -> list[Planned]:
    """Requests for the base model and the adapters, drawn from the room. fields: of every request."""
    names = ["", *adapters]
    shape = TraceShape(
        adapters=len(names),
        rate=rate,
        seconds=seconds,
        alpha=0.5,
        input_len=input_len,
        output_len=output_len,
        seed=room.rng.randrange(1 << 30),
    )
    plan = make_plan(Traffic(shape=shape, vocab_size=VOCAB_SIZE, adapters=names))
    return [replace(planned, sampling=room.rng.choice(KINDS), **fields) for planned in plan]
