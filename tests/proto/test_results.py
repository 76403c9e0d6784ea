"""The clients' results: data with all fields of the messages, and their values."""

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blora.proto import results
from blora.proto.v1 import adapters_pb2, engine_pb2, generation_pb2

OF_MESSAGES: list[tuple[Any, Any, set[str]]] = [
    (results.PromptInfo, generation_pb2.PromptInfo, set()),
    (results.Timings, generation_pb2.Timings, set()),
    (results.TokenLogprob, generation_pb2.TokenLogprob, set()),
    (results.PositionLogprobs, generation_pb2.PositionLogprobs, set()),
    (results.Sample, generation_pb2.Sample, set()),
    (results.Generation, generation_pb2.GenerateResponse, set()),
    (results.Tokens, generation_pb2.TokenizeResponse, set()),
    (results.AdapterUsage, adapters_pb2.AdapterUsage, set()),
    (results.AdapterVersion, adapters_pb2.AdapterVersion, set()),
    (results.ModuleReport, adapters_pb2.ModuleReport, set()),
    (results.LayerReport, adapters_pb2.LayerReport, set()),
    (results.AdapterReport, adapters_pb2.AdapterReport, set()),
    (results.AdapterInfo, adapters_pb2.Adapter, {"report"}),
    (results.AdapterEvent, adapters_pb2.AdapterEvent, {"revision"}),
    (results.AdapterSnapshot, adapters_pb2.AdapterSnapshot, {"revision"}),
    (results.EngineInfo, engine_pb2.GetInfoResponse, set()),
    (results.LoadSnapshot, engine_pb2.WatchLoadResponse, set()),
]


@pytest.mark.parametrize(
    ("ours", "message", "ours_alone"), OF_MESSAGES, ids=lambda value: getattr(value, "__name__", "")
)
def test_results_have_all_fields_of_their_messages(ours: Any, message: Any, ours_alone: set[str]) -> None:
    """A oneof is one field: its value."""
    descriptor = message.DESCRIPTOR
    chosen = {one.name: {f.name for f in one.fields} for one in descriptor.oneofs if len(one.fields) > 1}
    expected = {field.name for field in descriptor.fields} - set().union(*chosen.values()) | chosen.keys()
    assert {field.name for field in fields(ours)} - ours_alone == expected


def test_what_is_unset_is_none_and_zero_is_a_value() -> None:
    unset = results.read(results.Sample, generation_pb2.Sample())
    assert (unset.cumulative_logprob, unset.stop_reason, unset.finish_reason) == (None, None, None)
    zero = generation_pb2.Sample(cumulative_logprob=0.0, stop_token_id=0, finish_reason=1)
    read = results.read(results.Sample, zero)
    assert (read.cumulative_logprob, read.stop_reason, read.finish_reason) == (0.0, 0, "stop")


def test_a_value_of_a_newer_server_has_no_name() -> None:
    assert results.read(results.Sample, generation_pb2.Sample(finish_reason=99)).finish_reason == "99"  # type: ignore[arg-type]


@given(
    text=st.text(),
    token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=5),
    logprob=st.none() | st.floats(width=32, allow_nan=False),
    stop=st.none() | st.text() | st.integers(0, 2**32 - 1),
    reason=st.integers(0, 4),
)
def test_any_answer_is_read_as_it_was_sent(
    text: str, token_ids: list[int], logprob: Any, stop: Any, reason: int
) -> None:
    token = generation_pb2.TokenLogprob(token_id=7, logprob=logprob, text=text)
    stopped = {} if stop is None else {"stop_string" if isinstance(stop, str) else "stop_token_id": stop}
    sample = generation_pb2.Sample(
        index=1, text=text, token_ids=token_ids, logprobs=[{"token": token}], finish_reason=reason, **stopped
    )
    sent = generation_pb2.GenerateResponse(samples=[sample]).SerializeToString()
    (read,) = results.generation(generation_pb2.GenerateResponse.FromString(sent)).samples
    names = {0: None, 1: "stop", 2: "length", 3: "abort", 4: "error"}
    assert (read.index, read.text, read.token_ids, read.stop_reason) == (1, text, tuple(token_ids), stop)
    assert read.finish_reason == names[reason]
    (position,) = read.logprobs
    assert (position.token, position.alternatives) == (results.TokenLogprob(7, logprob, None, text), ())
