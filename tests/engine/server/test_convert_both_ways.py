"""What a client of Python asks for is what the engine is asked for: any request, through the bytes of the wire."""

import asyncio
from typing import Any

import pytest
from fake_llm import FakeLLM
from hypothesis import given, settings
from hypothesis import strategies as st

from blora.engine.errors import InvalidRequest
from blora.engine.ipc.turns import Turns
from blora.engine.outputs import LoRARequest
from blora.engine.server import convert
from blora.engine.server.long_lists import long_lists
from blora.proto import calls
from blora.proto.v1 import generation_pb2
from blora.scheduler import RequestOutputKind, SamplingParams, StructuredOutputsParams

INTEGERS = st.integers(-(2**63), 2**63 - 1)
COUNTS = st.integers(0, 2**63 - 1)
NUMBERS = st.floats(allow_nan=False)
TOKENS = st.integers(0, 2**32 - 1)
TEXTS = st.text(max_size=5)
SAMPLING = {
    **dict.fromkeys(("n", "top_k", "seed", "max_tokens", "min_tokens", "truncate_prompt_tokens"), INTEGERS),
    **dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty"), NUMBERS),
    **dict.fromkeys(("logprobs", "prompt_logprobs", "stream_interval"), COUNTS),
    **dict.fromkeys(("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output"), st.booleans()),
    **dict.fromkeys(("stop", "bad_words"), st.lists(TEXTS, min_size=1, max_size=3)),
    **dict.fromkeys(("stop_token_ids", "allowed_token_ids"), st.lists(TOKENS, min_size=1, max_size=3)),
    "logit_bias": st.dictionaries(TOKENS, NUMBERS, min_size=1, max_size=3),
}
STRUCTURED = st.one_of(
    *(st.fixed_dictionaries({name: TEXTS}) for name in ("json", "regex", "grammar", "structural_tag")),
    st.fixed_dictionaries({"choice": st.lists(TEXTS, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"json_object": st.booleans()}),
)
ADAPTERS = st.none() | st.text(min_size=1, max_size=5) | st.dictionaries(
    st.text(min_size=1, max_size=5), NUMBERS, min_size=1, max_size=3
)  # fmt: skip
DEFAULTS = SamplingParams(temperature=0.25, top_k=7, seed=3)
MOST_LISTED = FakeLLM().most_listed()
RUNNER = asyncio.Runner()  # as many event loops as cases would take seconds
LISTS = ("stop", "bad_words", "stop_token_ids")


def through_the_wire(request: generation_pb2.GenerateRequest) -> convert.GenerateCall:
    return call_of(convert.parse(generation_pb2.GenerateRequest, request.SerializeToString()))


def call_of(request: generation_pb2.GenerateRequest) -> convert.GenerateCall:
    lists = RUNNER.run(long_lists(request.sampling, MOST_LISTED, Turns()))
    return convert.generate_call(request, DEFAULTS, RequestOutputKind.DELTA, MOST_LISTED, lists)


@settings(max_examples=40)
@given(sampling=st.fixed_dictionaries({}, optional=SAMPLING), structured=st.none() | STRUCTURED)
def test_parameters_arrive_as_they_were_given(sampling: dict[str, Any], structured: dict[str, Any] | None) -> None:
    """What is not given is the model's default, and zero is a value."""
    arrived = through_the_wire(calls.generate_request("x", None, **sampling, structured_outputs=structured))
    expected = {name: tuple(value) if name in LISTS else value for name, value in sampling.items()}
    if structured is not None:
        expected["structured_outputs"] = StructuredOutputsParams(**structured)
    for name in SamplingParams.__dataclass_fields__.keys() - {"output_kind"}:
        assert getattr(arrived.sampling_params, name) == expected.get(name, getattr(DEFAULTS, name)), name


@given(
    prompt=TEXTS | st.lists(TOKENS, max_size=4),
    adapter=ADAPTERS,
    priority=st.integers(-(2**31), 2**31 - 1),
    salt=TEXTS,
    seconds=st.none() | st.floats(1e-9, 1e9),
)
def test_the_rest_of_a_request_arrives(prompt: Any, adapter: Any, priority: int, salt: str, seconds: Any) -> None:
    arrived = through_the_wire(
        calls.generate_request(prompt, adapter, priority=priority, cache_salt=salt, max_first_token_seconds=seconds)
    )
    key = "prompt" if isinstance(prompt, str) else "prompt_token_ids"
    assert arrived.prompt == {key: prompt} | ({"cache_salt": salt} if salt else {})
    assert (arrived.priority, arrived.first_token_seconds) == (priority, seconds)
    if isinstance(adapter, dict):
        assert isinstance(arrived.adapter, list) and all(isinstance(use, LoRARequest) for use in arrived.adapter)
        assert {use.lora_name: use.lora_scale for use in arrived.adapter} == adapter  # type: ignore[union-attr]
    else:
        assert arrived.adapter == adapter


@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_refusal(data: bytes) -> None:
    for kind in (generation_pb2.GenerateRequest, generation_pb2.SamplingParams):
        message = data if kind is generation_pb2.GenerateRequest else b"\x32" + bytes([len(data)]) + data
        try:
            assert call_of(convert.parse(generation_pb2.GenerateRequest, message)).prompt is not None
        except InvalidRequest:
            continue


def test_too_many_choices_are_refused_before_they_are_copied() -> None:
    request = calls.generate_request("x", None, structured_outputs={"choice": ["a"] * ((1 << 15) + 1)})
    with pytest.raises(InvalidRequest, match="structured_outputs.choice"):
        through_the_wire(request)
