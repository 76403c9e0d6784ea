"""Outputs of the engine -> protobuf messages. A part of convert.py.

Outputs come in pieces, whose conversion takes about a millisecond each; an answer at once is made of their bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message

from blora.proto.v1 import generation_pb2

from ..ipc.turns import Turns
from ..outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from .pieces import MAX_SAMPLES, SAMPLE_COST

FINISH_REASONS = {
    None: generation_pb2.FINISH_REASON_UNSPECIFIED,
    "stop": generation_pb2.FINISH_REASON_STOP,
    "length": generation_pb2.FINISH_REASON_LENGTH,
    "abort": generation_pb2.FINISH_REASON_ABORT,
    "error": generation_pb2.FINISH_REASON_ERROR,
}
LENGTH_DELIMITED = 2  # protobuf's wire type of a field that holds a message


class StreamConverter:
    """Converts the pieces of one stream. Each response holds only facts about the prompt that no earlier one held."""

    def __init__(self) -> None:
        self._is_first = True
        self._positions = _PromptPositions()

    def response(self, piece: RequestOutput) -> generation_pb2.GenerateStreamResponse:
        prompt = _prompt_info(piece) if self._is_first else None
        self._is_first = False
        return generation_pb2.GenerateStreamResponse(
            prompt=prompt,
            samples=map(_sample, piece.outputs),
            prompt_logprobs=self._positions.of(piece),
            timings=_timings(piece.metrics) if piece.finished else None,
        )


class Answer:
    """A GenerateResponse, which is made while its outputs come. The bytes of a message are those of its parts one after
    another; of a field that is not repeated the last value counts."""

    def __init__(self) -> None:
        self._prompt: generation_pb2.PromptInfo | None = None
        self._timings: generation_pb2.Timings | None = None
        self._positions = _PromptPositions()
        self._prompt_logprobs: list[bytes] = []
        self._samples: dict[int, _SampleParts] = {}

    @property
    def is_empty(self) -> bool:
        return self._prompt is None

    def add(self, piece: RequestOutput) -> None:
        """piece: of the outputs of a stream, or of the only one."""
        self._prompt, self._timings = _prompt_info(piece), _timings(piece.metrics)
        positions = self._positions.of(piece)
        if positions:
            self._prompt_logprobs.append(generation_pb2.GenerateResponse(prompt_logprobs=positions).SerializeToString())
        for sample in piece.outputs:
            self._samples.setdefault(sample.index, _SampleParts()).add(sample)

    async def whole(self, turns: Turns) -> "WholeAnswer":
        """Puts it together, in several turns of the event loop if it has many samples."""
        parts = [generation_pb2.GenerateResponse(prompt=self._prompt, timings=self._timings).SerializeToString()]
        for number, index in enumerate(sorted(self._samples), 1):
            parts += self._samples[index].serialized()
            if number % MAX_SAMPLES == 0:
                await turns.take(SAMPLE_COST * MAX_SAMPLES)
        return WholeAnswer(b"".join([*parts, *self._prompt_logprobs]))


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    content: bytes

    def SerializeToString(self) -> bytes:
        """Has the name that messages have."""
        return self.content


class BatchAnswer:
    """A BatchGenerateResponse."""

    def __init__(self, index: int, field: int, content: bytes) -> None:
        """field: the number of the field that holds the content."""
        self._index, self._field, self._content = index, field, content

    @staticmethod
    def answered(index: int, answer: WholeAnswer) -> "BatchAnswer":
        field = generation_pb2.BatchGenerateResponse.RESPONSE_FIELD_NUMBER
        return BatchAnswer(index, field, answer.content)

    @staticmethod
    def refused(index: int, status: Message) -> "BatchAnswer":
        field = generation_pb2.BatchGenerateResponse.ERROR_FIELD_NUMBER
        return BatchAnswer(index, field, status.SerializeToString())

    def SerializeToString(self) -> bytes:
        """Has the name that messages have."""
        index = generation_pb2.BatchGenerateResponse(index=self._index).SerializeToString()
        key = _varint(self._field << 3 | LENGTH_DELIMITED)
        return b"".join([index, key, _varint(len(self._content)), self._content])


class _SampleParts:
    """A Sample of an answer. There may be megabytes of it, which are copied only once."""

    def __init__(self) -> None:
        self._repeated: list[bytes] = []
        self._texts: list[str] = []
        self._last: CompletionOutput | None = None

    def add(self, part: CompletionOutput) -> None:
        message = _sample(part)
        self._repeated.append(
            generation_pb2.Sample(token_ids=message.token_ids, logprobs=message.logprobs).SerializeToString()
        )
        self._texts.append(part.text)
        self._last = part

    def serialized(self) -> list[bytes]:
        """Returns the parts of the answer's field that holds this sample: its key, its length, its content."""
        assert self._last is not None  # parts are made for the first one
        facts = _sample(replace(self._last, text="".join(self._texts), token_ids=[], logprobs=None))
        content = [facts.SerializeToString(), *self._repeated]
        key = _varint(generation_pb2.GenerateResponse.SAMPLES_FIELD_NUMBER << 3 | LENGTH_DELIMITED)
        return [key, _varint(sum(map(len, content))), *content]


class _PromptPositions:
    """The positions of a prompt whose logprobs were converted."""

    def __init__(self) -> None:
        self._number = 0

    def of(self, piece: RequestOutput) -> list[generation_pb2.PositionLogprobs]:
        """Converts those of the next piece. An aborted request has logprobs for only a part of its prompt."""
        first, self._number = self._number, self._number + len(piece.prompt_logprobs or ())
        return _positions(piece.prompt_token_ids[first : self._number], piece.prompt_logprobs)


def _varint(value: int) -> bytes:
    """Returns a number in pieces of seven bits, the lowest first; the highest bit of a byte tells that more follow."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _prompt_info(output: RequestOutput) -> generation_pb2.PromptInfo:
    return generation_pb2.PromptInfo(
        request_id=output.request_id,
        num_prompt_tokens=len(output.prompt_token_ids),
        num_cached_tokens=output.num_cached_tokens,
    )


def _timings(metrics: RequestMetrics | None) -> generation_pb2.Timings | None:
    if metrics is None:
        return None
    return generation_pb2.Timings(
        queued_seconds=_between(metrics.queued_ts, metrics.scheduled_ts),
        prefill_seconds=_between(metrics.scheduled_ts, metrics.first_token_ts),
        first_token_seconds=_between(metrics.queued_ts, metrics.first_token_ts),
        decode_seconds=_between(metrics.first_token_ts, metrics.last_token_ts),
    )


def _between(begin: float, end: float) -> float:
    """Returns the seconds between two times; 0 if one of them has not come."""
    return max(end - begin, 0.0) if begin and end else 0.0


def _sample(output: CompletionOutput) -> generation_pb2.Sample:
    return generation_pb2.Sample(
        index=output.index,
        text=output.text,
        token_ids=output.token_ids,
        logprobs=_positions(output.token_ids, output.logprobs),
        cumulative_logprob=output.cumulative_logprob,
        finish_reason=FINISH_REASONS[output.finish_reason],
        error=output.error,
        **_stop_reason(output.stop_reason),
    )


def _stop_reason(reason: int | str | None) -> dict[str, Any]:
    if reason is None:
        return {}
    return {"stop_string": reason} if isinstance(reason, str) else {"stop_token_id": reason}


def _positions(
    token_ids: Sequence[int], candidates: Sequence[dict[int, Logprob] | None] | None
) -> list[generation_pb2.PositionLogprobs]:
    if candidates is None:
        return []
    return [_position(token_id, found or {}) for token_id, found in zip(token_ids, candidates, strict=True)]


def _position(token_id: int, candidates: Mapping[int, Logprob]) -> generation_pb2.PositionLogprobs:
    position = generation_pb2.PositionLogprobs(token=_token(token_id, candidates.get(token_id)))
    add = position.alternatives.add  # is twice as fast as messages that are made and then copied
    for _, other in sorted((logprob.rank, other) for other, logprob in candidates.items() if other != token_id):
        logprob = candidates[other]
        add(token_id=other, logprob=logprob.logprob, rank=logprob.rank, text=logprob.decoded_token)
    return position


def _token(token_id: int, logprob: Logprob | None) -> generation_pb2.TokenLogprob:
    if logprob is None:
        return generation_pb2.TokenLogprob(token_id=token_id)
    return generation_pb2.TokenLogprob(
        token_id=token_id, logprob=logprob.logprob, rank=logprob.rank, text=logprob.decoded_token
    )
