"""Outputs in pieces: small ones, which say together what the whole output says."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blora.engine.ipc.turns import SHARE, Turns
from blora.engine.outputs import CompletionOutput, Logprob, RequestOutput
from blora.engine.server import convert_output, pieces
from blora.engine.server.convert_output import Answer, StreamConverter
from blora.proto.v1 import generation_pb2


def candidates(token_id: int, number: int) -> dict[int, Logprob]:
    return {token_id: Logprob(-0.5, 2, "own")} | {100 + i: Logprob(-1.0 - i, 3 + i, f"{i}") for i in range(number)}


@st.composite
def samples(draw: st.DrawFn, index: int) -> CompletionOutput:
    token_ids = draw(st.lists(st.integers(0, 99), max_size=9))
    has_logprobs = draw(st.booleans())
    return CompletionOutput(
        index,
        draw(st.text(max_size=9)),
        token_ids,
        -1.25 if has_logprobs else None,
        [candidates(token_id, draw(st.integers(0, 6))) for token_id in token_ids] if has_logprobs else None,
        draw(st.sampled_from([None, "stop", "length", "error"])),
        draw(st.sampled_from([None, 7, "stop"])),
        error=draw(st.sampled_from([None, "why"])),
    )


@st.composite
def outputs(draw: st.DrawFn) -> RequestOutput:
    prompt = draw(st.lists(st.integers(0, 99), min_size=1, max_size=9))
    told = draw(st.integers(0, len(prompt)))  # an aborted request has logprobs for only a part of its prompt
    named = [None, *(candidates(token_id, draw(st.integers(0, 6))) for token_id in prompt[1:])]
    return RequestOutput(
        "id",
        None,
        prompt,
        [draw(samples(index)) for index in range(draw(st.integers(0, 3)))],
        True,
        prompt_logprobs=draw(st.sampled_from([None, named[:told]])),
        num_cached_tokens=2,
    )


def whole(output: RequestOutput) -> generation_pb2.GenerateResponse:
    """The answer of an output that is one piece, field by field."""
    return generation_pb2.GenerateResponse(
        prompt=convert_output._prompt_info(output),
        samples=[convert_output._sample(sample) for sample in output.outputs],
        prompt_logprobs=convert_output._positions(
            output.prompt_token_ids[: len(output.prompt_logprobs or ())], output.prompt_logprobs
        ),
    )


def answer_of(parts: list[RequestOutput]) -> generation_pb2.GenerateResponse:
    answer = Answer()
    for part in parts:
        answer.add(part)
    return generation_pb2.GenerateResponse.FromString(asyncio.run(_content(answer)))


async def _content(answer: Answer) -> bytes:
    return (await answer.whole(Turns())).SerializeToString()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_SAMPLES": 2, "MAX_LOGPROBS": 10, "MAX_TOKENS": 3, "MAX_CHARACTERS": 4}.items():
        monkeypatch.setattr(pieces, name, value)


@settings(max_examples=200, deadline=None)
@given(output=outputs())
def test_the_pieces_of_an_output_make_the_same_answer(output: RequestOutput) -> None:
    parts = list(pieces.pieces(output))
    assert answer_of(parts) == whole(output)
    for part in parts:
        assert pieces._num_logprobs(part) <= 10 or sum(len(sample.logprobs or ()) for sample in part.outputs) == 1
        assert all(len(sample.text) <= 4 for sample in part.outputs)
        assert all(len(sample.token_ids) <= 3 or sample.logprobs for sample in part.outputs)


@settings(max_examples=200, deadline=None)
@given(output=outputs())
def test_the_messages_of_a_stream_say_together_what_the_answer_says(output: RequestOutput) -> None:
    converter, wanted = StreamConverter(), whole(output)
    messages = [converter.response(part) for part in pieces.pieces(output)]
    assert [message.HasField("prompt") for message in messages] == [True] + [False] * (len(messages) - 1)
    assert [one for message in messages for one in message.prompt_logprobs] == list(wanted.prompt_logprobs)
    for sample in wanted.samples:
        parts = [one for message in messages for one in message.samples if one.index == sample.index]
        assert "".join(part.text for part in parts) == sample.text
        assert [token for part in parts for token in part.token_ids] == list(sample.token_ids)
        assert [one for part in parts for one in part.logprobs] == list(sample.logprobs)
        *first, last = parts
        assert (last.finish_reason, last.error, last.cumulative_logprob) == (
            (sample.finish_reason, sample.error, sample.cumulative_logprob)
        )
        assert not any(part.finish_reason or part.HasField("cumulative_logprob") for part in first)


def test_outputs_of_a_stream_are_one_answer() -> None:
    first = RequestOutput("id", None, [1, 2], [CompletionOutput(1, "a", [5], -1.0, [candidates(5, 1)])], False)
    other = CompletionOutput(0, "b", [6, 7], -2.0, [candidates(6, 1)] * 2, "stop")
    end = CompletionOutput(1, "", [8], -3.0, [candidates(8, 0)], "length")
    answer = answer_of([first, replace(first, outputs=[other, end], finished=True, num_cached_tokens=1)])
    assert [(sample.index, sample.text, list(sample.token_ids)) for sample in answer.samples] == [
        (0, "b", [6, 7]),
        (1, "a", [5, 8]),
    ]
    assert [sample.cumulative_logprob for sample in answer.samples] == [-2.0, -3.0]
    assert [len(sample.logprobs) for sample in answer.samples] == [2, 2]
    assert answer.prompt.num_cached_tokens == 1


def test_a_thousand_samples_are_many_pieces_and_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    many = [CompletionOutput(index, "ab", [5, 6], finish_reason="length") for index in range(1000)]
    output = RequestOutput("id", None, [1, 2], many, True, prompt_logprobs=[None, candidates(2, 1)])
    parts = list(pieces.pieces(output))
    assert max(map(pieces.cost, parts)) <= SHARE
    assert len(parts) > 20
    assert answer_of(parts) == whole(output)


def test_long_fields_have_long_lengths() -> None:
    token_ids = list(range(100_000))
    sample = CompletionOutput(0, "x" * 100_000, token_ids, finish_reason="length")
    output = RequestOutput("id", None, [1], [sample], True)
    (answered,) = answer_of([output]).samples
    assert (answered.text, list(answered.token_ids)) == (sample.text, token_ids)
