"""Malformed requests: bytes that are no message, mutated messages, values out of bounds, unknown methods. Each with the
status codes that are right for it."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from blora.proto.v1 import adapters_pb2, engine_pb2, generation_pb2

REFUSED = frozenset({"INVALID_ARGUMENT"})
# What a request may get that came out of a mutation as a message: it may be right, or name what is not there.
ANYTHING_TYPED = frozenset({"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"})
TOO_LARGE, UNKNOWN_METHOD = frozenset({"RESOURCE_EXHAUSTED"}), frozenset({"UNIMPLEMENTED"})

GENERATION, ADAPTERS, ENGINE = (f"/blora.v1.{name}Service/" for name in ("Generation", "Adapter", "Engine"))
METHODS: Sequence[tuple[str, type[Message]]] = (
    (f"{GENERATION}Generate", generation_pb2.GenerateRequest),
    (f"{GENERATION}GenerateStream", generation_pb2.GenerateStreamRequest),
    (f"{GENERATION}Tokenize", generation_pb2.TokenizeRequest),
    (f"{GENERATION}Detokenize", generation_pb2.DetokenizeRequest),
    (f"{ADAPTERS}LoadAdapter", adapters_pb2.LoadAdapterRequest),
    (f"{ADAPTERS}GetAdapter", adapters_pb2.GetAdapterRequest),
    (f"{ADAPTERS}PinAdapter", adapters_pb2.PinAdapterRequest),
    (f"{ADAPTERS}ActivateAdapter", adapters_pb2.ActivateAdapterRequest),
    (f"{ENGINE}Abort", engine_pb2.AbortRequest),
)
NAN, INFINITY = float("nan"), float("inf")
BAD_SAMPLING: Sequence[dict[str, Any]] = (
    *({name: value} for name in ("temperature", "top_p", "min_p") for value in (NAN, INFINITY, -INFINITY, -1.0)),
    *({name: NAN} for name in ("presence_penalty", "frequency_penalty", "repetition_penalty")),
    *({"top_p": value} for value in (0.0, 1.1, 1e308)),
    *({"n": value} for value in (0, -1, 10**6, 2**31 - 1, 2**32 - 1, 2**63 - 1)),
    *({"max_tokens": value} for value in (0, -1, -(2**63))),
    *({"top_k": value} for value in (-2, -(2**31))),
    *({"logprobs": value} for value in (21, -1, 2**31 - 1)),
    {"prompt_logprobs": 2**31 - 1},
    {"min_tokens": 9, "max_tokens": 8},
    {"stop": [""]},
    {"stop_token_ids": [2**32 - 1]},
    {"logit_bias": {2**32 - 1: 1.0}},
    {"logit_bias": {1: NAN}},
    {"allowed_token_ids": [2**32 - 1]},
)
BAD_FIELDS: Sequence[dict[str, Any]] = (
    {},
    {"text": ""},
    {"token_ids": generation_pb2.TokenIds()},
    {"token_ids": generation_pb2.TokenIds(ids=[2**32 - 1])},
    {"token_ids": generation_pb2.TokenIds(ids=[1] * 20_000)},
    {"text": "fine", "cache_salt": "x" * 129},
    {"text": "fine", "request_id": "x" * 129},
    {"text": "fine", "adapters": [generation_pb2.AdapterUse(name="")]},
    {"chat": generation_pb2.ChatMessages()},
)


@dataclass(frozen=True, slots=True)
class Malformed:
    method: str
    data: bytes
    expected: frozenset[str]


def malformed_requests(draw: random.Random, count: int) -> Iterator[Malformed]:
    makers = (_random_bytes, _mutated, _out_of_bounds, _unknown_method)
    for _ in range(count):
        (make,) = draw.choices(makers, weights=(35, 35, 25, 5))
        yield make(draw)


def too_large(num_bytes: int) -> Malformed:
    """A message beyond what the server reads."""
    return Malformed(METHODS[0][0], bytes(num_bytes), TOO_LARGE)


def _random_bytes(draw: random.Random) -> Malformed:
    method, message = draw.choice(METHODS)
    return _judged(method, message, draw.randbytes(int(2 ** draw.uniform(0, 16))))


def _mutated(draw: random.Random) -> Malformed:
    method, message = METHODS[draw.randrange(2)]
    data = bytearray(_as(message, _good(draw)).SerializeToString())
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                data[place] = draw.randrange(256)
            case 1:
                del data[place : place + draw.randint(1, 4)]
            case 2:
                data[place:place] = draw.randbytes(draw.randint(1, 4))
            case _:
                data += data[place:]
        data = data or bytearray(1)
    return _judged(method, message, bytes(data))


def _judged(method: str, message: type[Message], data: bytes) -> Malformed:
    try:
        message.FromString(data)
    except DecodeError:
        return Malformed(method, data, REFUSED)
    return Malformed(method, data, ANYTHING_TYPED)


def _out_of_bounds(draw: random.Random) -> Malformed:
    request = generation_pb2.GenerateRequest(text="fine")
    if draw.random() < 0.75:
        request.sampling.MergeFrom(generation_pb2.SamplingParams(**draw.choice(BAD_SAMPLING)))
    else:
        request = generation_pb2.GenerateRequest(**draw.choice(BAD_FIELDS))
    method, message = METHODS[draw.randrange(2)]
    return Malformed(method, _as(message, request).SerializeToString(), REFUSED)


def _as(kind: type[Message], request: generation_pb2.GenerateRequest) -> Message:
    return request if kind is generation_pb2.GenerateRequest else kind(request=request)


def _unknown_method(draw: random.Random) -> Malformed:
    names = ("Generates", "", "Shutdown", "../Generate", "generate")
    service = draw.choice((GENERATION, "/blora.v2.GenerationService/", "/grpc.Nothing/"))
    return Malformed(service + draw.choice(names), draw.randbytes(20), UNKNOWN_METHOD)


def _good(draw: random.Random) -> generation_pb2.GenerateRequest:
    sampling = generation_pb2.SamplingParams(
        max_tokens=1, temperature=0.5, top_p=0.9, seed=draw.randrange(100), stop=["xyz"], logprobs=1, n=1
    )
    return generation_pb2.GenerateRequest(text="a good request", adapter="", sampling=sampling, request_id="label")
