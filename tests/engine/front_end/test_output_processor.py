"""OutputProcessor: a step's updates are worked on in pieces, between which requests may end."""

from typing import Any

import pytest

from blora.engine.front_end import named_logprobs, output_processor
from blora.engine.front_end.output_processor import OutputProcessor, Progress, UserRequest
from blora.engine.outputs import RequestOutput
from blora.scheduler import FinishReason, RequestOutputKind, RowUpdate, SamplingParams, TokenLogprob


class Spelling:
    """A tokenizer as far as logprobs need one."""

    def decode_token(self, token_id: int) -> str:
        return f"<{token_id}>"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_processor, "FULL", 20)
    monkeypatch.setattr(named_logprobs, "MAX_IN_PIECE", 4)


def request(first_id: int, n: int = 1, kind: RequestOutputKind = RequestOutputKind.DELTA, **fields: Any) -> UserRequest:
    return UserRequest(
        request_id=f"request {first_id}",
        prompt=None,
        prompt_token_ids=[1, 2, 3],
        sampling=SamplingParams(n=n, logprobs=9, detokenize=False, **fields),
        lora_request=None,
        output_kind=kind,
        sample_ids=list(range(first_id, first_id + n)),
        tokenizer=Spelling(),  # type: ignore[arg-type]
    )


def entry(token_id: int, num_others: int = 9) -> TokenLogprob:
    others = range(100, 100 + num_others)
    return TokenLogprob((token_id, *others), (-0.5,) * (1 + num_others), (1, *range(1, num_others + 1)))


def update(sample_id: int, token_id: int, **fields: Any) -> RowUpdate:
    return RowUpdate(sample_id, (token_id,), (entry(token_id),), **fields)


def processor() -> tuple[OutputProcessor, list[UserRequest]]:
    ended: list[UserRequest] = []
    return OutputProcessor(lambda _: None, ended.append), ended


def token_ids(output: RequestOutput | None) -> dict[int, list[int]]:
    return {} if output is None else {sample.index: sample.token_ids for sample in output.outputs}


def test_a_large_step_is_many_pieces_and_says_the_same() -> None:
    outputs, ended = processor()
    users = [request(0, n=3), request(3)]
    for user in users:
        outputs.add(user)
    updates = [update(sample_id, 7 + sample_id, finish_reason=FinishReason.LENGTH) for sample_id in range(4)]
    pieces = list(outputs.process(updates))
    assert len(pieces) > 4 and all(piece.cost < 200 for piece in pieces)
    assert {user for piece in pieces for user in piece.grown} == set(users) == set(ended)
    first, second = (outputs.take(user) for user in users)
    assert token_ids(first) == {0: [7], 1: [8], 2: [9]} and token_ids(second) == {0: [10]}
    assert first is not None and first.outputs[1].logprobs is not None
    (named,) = first.outputs[1].logprobs
    assert {token_id: logprob.decoded_token for token_id, logprob in named.items()} == {
        token_id: f"<{token_id}>" for token_id in (8, *range(100, 109))
    }


def test_a_request_that_ends_between_two_pieces_gets_nothing_of_the_rest() -> None:
    outputs, _ = processor()
    users = [request(0), request(1)]
    for user in users:
        outputs.add(user)
    work = outputs.process([update(0, 7), update(1, 8)])
    grown: dict[UserRequest, None] = {}
    while users[0] not in grown:
        grown |= next(work).grown
    outputs.fail(users[1], FinishReason.ABORT)
    rest = Progress()
    for piece in work:
        rest.grown |= piece.grown
    assert users[1] not in rest.grown
    assert token_ids(outputs.take(users[0])) == {0: [7]}
    last = outputs.take(users[1])
    assert token_ids(last) == {0: []} and last is not None and last.outputs[0].finish_reason == "abort"


def test_what_a_stream_has_shown_is_not_kept() -> None:
    outputs, _ = processor()
    user = request(0, prompt_logprobs=9)
    outputs.add(user)
    list(outputs.process([RowUpdate(0, prompt_logprobs=(entry(2), entry(3))), update(0, 7)]))
    assert user.num_unread_logprobs == 30
    first = outputs.take(user)
    assert first is not None and first.prompt_logprobs is not None and len(first.prompt_logprobs) == 3
    assert (user.num_unread_logprobs, user.prompt_logprobs, user.samples[0].logprobs) == (0, [], [])
    list(outputs.process([update(0, 8)]))
    second = outputs.take(user)
    assert second is not None and second.outputs[0].logprobs is not None and len(second.outputs[0].logprobs) == 1


def test_what_is_no_stream_is_kept_and_bounds_nobody() -> None:
    outputs, _ = processor()
    user = request(0, kind=RequestOutputKind.CUMULATIVE)
    outputs.add(user)
    for number in (1, 2, 3):
        list(outputs.process([update(0, number)]))
        output = outputs.take(user)
        assert output is not None and output.outputs[0].logprobs is not None
        assert len(output.outputs[0].logprobs) == number and user.num_unread_logprobs == 0


def test_dropped_news_are_not_shown() -> None:
    outputs, _ = processor()
    user = request(0)
    outputs.add(user)
    list(outputs.process([update(0, 7)]))
    outputs.drop_news(user)
    assert outputs.take(user) is None and user.num_unread_logprobs == 0
