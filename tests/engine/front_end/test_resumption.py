"""What each engine is given: the unfinished samples in order, each with what was told of it."""

from collections.abc import Sequence
from typing import Any

import pytest

from blora.engine.front_end import resumption
from blora.engine.front_end.output_processor import OutputProcessor, UserRequest
from blora.engine.front_end.resumption import TOKENS_PER_MESSAGE, TOKENS_PER_TURN, Resumption
from blora.engine.front_end.suspects import Suspects
from blora.engine.ipc.messages import AddRequest
from blora.scheduler import (
    NO_EDITS,
    FinishReason,
    History,
    LogitEdits,
    Request,
    RequestOutputKind,
    RowUpdate,
    SamplingParams,
    TokenLogprob,
)

PROMPT = [5, 6, 7]


class OneTokenizer:
    def decode_token(self, token_id: int) -> str:
        return str(token_id)


class Front:
    """The parts of a front end that matter here."""

    def __init__(self) -> None:
        self.outputs = OutputProcessor(lambda _: None, lambda _: None, now=lambda: 9.0)
        self.resumption = Resumption(self.outputs, Suspects())

    def accept(self, *sample_ids: int, edits: LogitEdits = NO_EDITS, **sampling: Any) -> UserRequest:
        params = SamplingParams(n=len(sample_ids), detokenize=False, **sampling)
        user = UserRequest(
            request_id="user",
            prompt=None,
            prompt_token_ids=PROMPT,
            sampling=params,
            lora_request=None,
            output_kind=RequestOutputKind.DELTA,
            sample_ids=list(sample_ids),
            tokenizer=OneTokenizer(),  # type: ignore[arg-type]
        )
        self.outputs.add(user)
        leaders = [None, *[sample_ids[0]] * (len(sample_ids) - 1)]
        self.resumption.add(
            AddRequest.of(Request(sample_id, PROMPT, params, 4, 0, index, leader=leader, edits=edits))
            for index, (sample_id, leader) in enumerate(zip(sample_ids, leaders, strict=True))
        )
        return user

    def tell(self, sample_id: int, token_ids: Sequence[int], **fields: Any) -> None:
        list(self.outputs.process([RowUpdate(sample_id, tuple(token_ids), **fields)]))

    def take_all(self) -> list[AddRequest]:
        taken = []
        while self.resumption.has_to_give:
            taken += self.resumption.take()
        return taken


def test_the_first_engine_gets_requests_as_they_are() -> None:
    front = Front()
    front.accept(0)
    assert [(request.request_id, request.history) for request in front.take_all()] == [(0, None)]
    assert front.take_all() == []


def test_the_next_engine_gets_what_was_told() -> None:
    front = Front()
    front.accept(0)
    front.take_all()
    front.tell(0, [8], num_cached_tokens=2, num_preemptions=1, scheduled_ts=3.5)
    front.tell(0, [9], num_cached_tokens=2, num_preemptions=1, scheduled_ts=3.5)
    front.accept(1)
    front.resumption.lose_engine()
    again = front.take_all()
    assert [request.history for request in again] == [History([8, 9], 0, 2, 1, 3.5), None]
    request = again[0].to_request()
    assert (request.prompt_token_ids, request.token_ids) == (PROMPT, [5, 6, 7, 8, 9])
    assert (request.num_output_tokens, request.num_missing_tokens) == (2, 5)
    assert (request.num_cached_tokens, request.num_preemptions, request.scheduled_ts) == (2, 1, 3.5)


def test_prompt_logprobs_that_were_told_are_counted_once() -> None:
    front = Front()
    user = front.accept(0, 1, prompt_logprobs=0)
    scored = tuple(TokenLogprob((token_id,), (-1.0,), (1,)) for token_id in PROMPT[1:])
    front.tell(0, [], prompt_logprobs=scored)
    front.tell(1, [8])
    assert front.outputs.take(user) is not None  # a stream keeps none of those that it has shown
    front.resumption.lose_engine()
    told = [request.history.num_told_prompt_logprobs for request in front.take_all() if request.history is not None]
    assert told == [2, 0]


def test_leaders_come_before_their_followers_and_finished_samples_not_at_all() -> None:
    front = Front()
    front.accept(0, 1, 2)
    front.accept(3, 4)
    front.tell(0, [8], finish_reason=FinishReason.LENGTH)
    front.resumption.lose_engine()
    assert [(request.request_id, request.leader) for request in front.take_all()] == [(1, 0), (2, 0), (3, None), (4, 3)]


def test_what_has_ended_is_not_given() -> None:
    front = Front()
    aborted, removed = front.accept(0), front.accept(1)
    front.accept(2)
    front.outputs.fail(aborted, FinishReason.ABORT)
    front.outputs.remove(removed)
    front.resumption.remove(removed.sample_ids)
    assert [request.request_id for request in front.take_all()] == [2]
    with pytest.raises(RuntimeError, match=r"\[0\] have ended"):
        front.resumption.check_integrity([1, 2])


def test_a_death_while_requests_are_given_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "TOKENS_PER_TURN", 5)
    monkeypatch.setattr(resumption, "TOKENS_PER_MESSAGE", 0)
    front = Front()
    for sample_id in range(5):
        front.accept(sample_id)
    assert [request.request_id for request in front.resumption.take()] == [0, 1]
    front.accept(5)
    front.resumption.lose_engine()
    assert [request.request_id for request in front.take_all()] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "edits", [LogitEdits(), LogitEdits(bytearray(8 * 9000)), LogitEdits(None, bytearray(8 * 9000), bytearray(4 * 9000))]
)
def test_a_turn_of_the_loop_gives_a_bounded_part_of_many_samples(edits: LogitEdits) -> None:
    front = Front()
    front.accept(*range(200), edits=edits)
    largest = TOKENS_PER_TURN // (TOKENS_PER_MESSAGE + len(PROMPT) + edits.num_tokens)
    taken = front.resumption.take()
    assert len(taken) == largest + 1 < 70
    assert [request.request_id for request in (*taken, *front.take_all())] == list(range(200))
