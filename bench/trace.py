"""Traces of requests as in S-LoRA (arXiv 2311.03285, section 7.1): gamma arrivals, power-law popularity. No engine."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceShape:
    """The parameters of a trace. rate: requests per second. alpha: adapter i gets requests in proportion to
    i ** -alpha. cv: coefficient of variation of the times between arrivals; 1 is a Poisson process. Lengths are uniform
    between their bounds."""

    adapters: int
    rate: float
    seconds: float
    alpha: float
    cv: float = 1.0
    input_len: tuple[int, int] = (8, 512)  # tokens
    output_len: tuple[int, int] = (8, 512)
    prefix_len: int = 0  # tokens that all prompts of an adapter begin with, before those of input_len
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    seconds: float  # since the start of the trace
    adapter: int
    input_len: int  # tokens
    output_len: int
    prefix_len: int = 0
    tenant: str = ""


def make_trace(shape: TraceShape) -> list[Arrival]:
    draw = random.Random(f"trace {shape.seed}")
    weights = [(adapter + 1) ** -shape.alpha for adapter in range(shape.adapters)]
    regularity = shape.cv**-2  # shape of the gamma distribution, whose mean is regularity * scale
    arrivals: list[Arrival] = []
    now = draw.gammavariate(regularity, 1 / (shape.rate * regularity))
    while now < shape.seconds:
        (adapter,) = draw.choices(range(shape.adapters), weights)
        lengths = draw.randint(*shape.input_len), draw.randint(*shape.output_len)
        arrivals.append(Arrival(now, adapter, *lengths, shape.prefix_len))
        now += draw.gammavariate(regularity, 1 / (shape.rate * regularity))
    return arrivals
