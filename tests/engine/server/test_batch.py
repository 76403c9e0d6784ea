"""BatchGenerate, Tokenize, Detokenize and WatchLoad over a real connection, and the runner of batches."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc
import pytest
from fake_llm import LOAD, FakeLLM, ask, run, running

from blora.engine.errors import QueueFull
from blora.engine.server.batch import run_batch
from blora.proto.client import AsyncClient, Refusal
from blora.proto.v1 import generation_pb2, generation_pb2_grpc


def test_each_request_of_a_batch_has_its_own_end():
    llm = FakeLLM()
    requests = [{"prompt": "abc"}, {"prompt": "x", "adapter": "nobody"}, {"prompt": [5, 6], "max_tokens": 1, "n": 2}]
    answers = {end.index: end for end in ask(lambda client: list(client.generate_batch(requests)), llm)}
    assert answers[0].answer.text == "abc" and isinstance(answers[1].answer, Refusal)
    assert answers[1].answer.code == "NOT_FOUND" and "'nobody'" in answers[1].answer.message
    assert answers[1].answer.details.reason == "ADAPTER_NOT_FOUND"
    assert [sample.token_ids for sample in answers[2].answer.samples] == [(5,), (5,)]


def test_a_request_that_no_message_can_hold_is_named_before_anything_is_sent():
    def question(client):
        with pytest.raises(ValueError, match=r"^requests\[1\]: seed: "):
            client.generate_batch([{"prompt": "a"}, {"prompt": "a", "seed": "7"}])
        with pytest.raises(ValueError, match=r"^requests\[0\]: has no prompt"):
            client.generate_batch([{"text": "a"}])

    llm = FakeLLM()
    ask(question, llm)
    assert not llm.requests


def test_a_batch_goes_on_while_it_is_sent_and_empty_requests_fail_alone():
    async def body():
        async with running(FakeLLM()) as server, grpc.aio.insecure_channel(server.address) as channel:
            call = generation_pb2_grpc.GenerationServiceStub(channel).BatchGenerate()
            good = generation_pb2.BatchGenerateRequest(request={"text": "ab"})
            await call.write(good)
            first = await call.read()
            await call.write(generation_pb2.BatchGenerateRequest())
            second = await call.read()
            await call.done_writing()
            return first, second, await call.read()

    first, second, end = run(body())
    assert first.index == 0 and first.response.samples[0].text == "ab"
    assert second.index == 1 and second.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert end is grpc.aio.EOF


def test_a_client_that_leaves_a_batch_ends_its_requests():
    llm = FakeLLM()
    llm.num_tokens_before_pause = 0

    async def body():
        async with running(llm) as server, AsyncClient(server.address) as client:
            results = client.generate_batch([{"prompt": "abc"}] * 3)
            while len(llm.requests) < 3:
                await asyncio.sleep(0.01)
            results.cancel()
            while len(llm.closed) < 3:
                await asyncio.sleep(0.01)

    run(body())
    assert len(llm.closed) == len(llm.requests) == 3


def test_no_more_than_some_run_at_once_and_their_ends_are_taken_first():
    most, now = 0, 0

    async def orders() -> AsyncGenerator[int, None]:
        for number in range(50):
            yield number

    async def work(number: int) -> int:
        nonlocal most, now
        now += 1
        most = max(most, now)
        for _ in range(20):
            await asyncio.sleep(0)
        now -= 1
        if number == 7:
            raise ValueError(number)
        return 2 * number

    async def body():
        ends = {}
        async with aclosing(run_batch(orders(), work, 4)) as batch:
            async for ended in batch:
                try:
                    ends[ended.index] = ended.result()
                except ValueError:
                    ends[ended.index] = None
        return ends

    assert run(body()) == {number: None if number == 7 else 2 * number for number in range(50)}
    assert most == 4


def test_orders_that_fail_end_the_batch_and_its_work():
    ended = []

    async def orders() -> AsyncGenerator[int, None]:
        yield 1
        await asyncio.sleep(0)
        raise ConnectionError

    async def work(_: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def body():
        async for _ in run_batch(orders(), work, 4):
            pass

    with pytest.raises(ConnectionError):
        run(body())
    assert ended == [True]


def test_tokens_and_their_text():
    llm = FakeLLM()

    def question(client):
        tokens = client.tokenize("ab", "alice", with_texts=True)
        assert (tokens.token_ids, tokens.texts, tokens.max_model_len) == ((1, 97, 98), ("\x01", "a", "b"), 64)
        assert client.tokenize("ab", add_special_tokens=False).token_ids == (97, 98)
        assert client.tokenize([{"role": "user", "content": "x"}]).token_ids
        assert client.detokenize([1, 97], "alice") == "\x01a"
        assert client.detokenize([1, 97], skip_special_tokens=True) == "a"
        with pytest.raises(ValueError, match="token ids are no text"):
            client.tokenize([1, 2])
        with pytest.raises(grpc.RpcError) as caught:
            client.detokenize([1] * (FakeLLM.max_model_len + 1))
        return caught.value.code()

    assert ask(question, llm) is grpc.StatusCode.INVALID_ARGUMENT
    assert [request["adapter"] for request in llm.requests] == ["alice", None, None, "alice", None]


def test_routers_see_the_load_when_it_changes():
    def question(client):
        with client.watch_load(3) as load:
            return next(load), next(load)

    first, second = ask(question)
    assert (first.num_running, second.num_running) == (3, 0)
    assert first.resident_adapters == LOAD.resident_adapters and first.num_queued_tokens == 3


@pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(number):
    def question(client):
        with pytest.raises(grpc.RpcError) as caught:
            next(client.watch_load(number))
        return caught.value.code()

    assert ask(question) is grpc.StatusCode.INVALID_ARGUMENT


class FullLLM(FakeLLM):
    """Its queue is full for the first calls."""

    def __init__(self, retry_after):
        super().__init__()
        self.refusals = [retry_after] * 3

    def generate(self, *args, **kwargs):
        if self.refusals:
            return self._refuse(self.refusals.pop())
        return super().generate(*args, **kwargs)

    async def _refuse(self, retry_after):
        raise QueueFull("the queue is full", retry_after)
        yield


@pytest.mark.parametrize(
    ("retry_after", "fields", "num_refused"),
    [(0.01, {}, 0), (None, {}, 3), (0.01, {"max_first_token_seconds": 5.0}, 3)],
)
def test_a_full_queue_holds_a_batch_back_and_refuses_who_cannot_wait(retry_after, fields, num_refused):
    requests = [{"prompt": "ab", **fields}] * 5
    ends = ask(lambda client: list(client.generate_batch(requests)), FullLLM(retry_after))
    refused = [end.answer.code for end in ends if isinstance(end.answer, Refusal)]
    assert refused == ["RESOURCE_EXHAUSTED"] * num_refused
