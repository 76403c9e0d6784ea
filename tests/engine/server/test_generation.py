"""GenerationService over a real connection."""

import asyncio
import math
import time

import grpc
import numpy as np
import pytest
from fake_llm import FakeLLM, ask, run, running

from blora.engine.errors import InvalidRequest
from blora.engine.outputs import CompletionOutput, RequestOutput
from blora.engine.server import convert, service
from blora.proto.client import Client
from blora.proto.v1 import generation_pb2, generation_pb2_grpc
from blora.scheduler import RequestOutputKind, SamplingParams

LENGTH = "length"


def test_stream_holds_what_is_new():
    stream = {}

    def question(client):
        stream["it"] = client.generate_stream("hello", max_tokens=3)
        return list(stream["it"])

    samples = ask(question)
    assert [sample.text for sample in samples] == ["h", "e", "l"]
    assert [list(sample.token_ids) for sample in samples] == [[104], [101], [108]]
    assert [sample.finish_reason for sample in samples] == [None, None, LENGTH]
    assert stream["it"].prompt.num_prompt_tokens == 5
    assert stream["it"].prompt.num_cached_tokens == 2


def test_only_the_first_message_tells_of_the_prompt():
    async def body():
        async with running(FakeLLM()) as server, grpc.aio.insecure_channel(server.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            return [message async for message in stub.GenerateStream(streamed(text="abc"))]

    assert [message.HasField("prompt") for message in run(body())] == [True, False, False]


def test_unary_answers_everything_at_once():
    llm = FakeLLM()
    answer = ask(lambda client: client.generate([5, 6, 7], max_tokens=2), llm)
    (sample,) = answer.samples
    assert (list(sample.token_ids), sample.finish_reason) == ([5, 6], LENGTH)
    assert answer.prompt.num_prompt_tokens == 3
    assert llm.requests[0]["sampling"].output_kind is RequestOutputKind.FINAL_ONLY


def test_several_samples():
    samples = ask(lambda client: list(client.generate_stream("ab", n=2)))
    assert [(sample.index, sample.text) for sample in samples] == [(0, "a"), (1, "a"), (0, "b"), (1, "b")]


def test_logprobs():
    def question(client):
        return client.generate("ab", logprobs=2)

    (sample,) = ask(question).samples
    assert sample.cumulative_logprob == -3.0
    assert [position.token.token_id for position in sample.logprobs] == [97, 98]
    first = sample.logprobs[0]
    assert (first.token.logprob, first.token.rank, first.token.text) == (-1.5, 3, None)
    assert [(other.token_id, other.rank, other.text) for other in first.alternatives] == [(7, 1, "seven"), (9, 2, None)]


def test_without_logprobs_there_are_none():
    answer = ask(lambda client: client.generate("ab"))
    assert not answer.samples[0].logprobs and answer.samples[0].cumulative_logprob is None
    assert not answer.prompt_logprobs


def test_prompt_logprobs_of_a_stream_come_in_pieces_and_in_order():
    async def body():
        request = streamed(text="abcd", sampling={"prompt_logprobs": 0})
        async with running(FakeLLM()) as server, grpc.aio.insecure_channel(server.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            return [message async for message in stub.GenerateStream(request)]

    messages = run(body())
    assert [len(message.prompt_logprobs) for message in messages] == [1, 3, 0, 0]
    tokens = [position.token for message in messages for position in message.prompt_logprobs]
    assert [token.token_id for token in tokens] == [97, 98, 99, 100]
    assert [token.HasField("logprob") for token in tokens] == [False, True, True, True]


def test_prompt_logprobs_of_a_unary_answer():
    answer = ask(lambda client: client.generate("abcd", prompt_logprobs=0))
    assert [position.token.logprob for position in answer.prompt_logprobs] == [None, -0.25, -0.5, -0.75]


@pytest.mark.parametrize("stop_reason", [None, "END", 0, ""])
def test_stop_reasons(stop_reason):
    llm = FakeLLM()
    llm.finish_reason, llm.stop_reason = "stop", stop_reason
    (sample,) = ask(lambda client: client.generate("a"), llm).samples
    assert (sample.finish_reason, sample.stop_reason) == ("stop", stop_reason)


def test_a_failed_sample_is_told_inside_the_stream():
    llm = FakeLLM()
    llm.failed_samples = {1}
    last = ask(lambda client: list(client.generate_stream("a", n=2)), llm)
    assert [sample.finish_reason for sample in last] == [LENGTH, "error"]
    assert [sample.error for sample in last] == ["", "the logits of this row are not finite"]
    assert len(ask(lambda client: client.generate("a", n=2), llm).samples) == 2


@pytest.mark.parametrize("unary", [True, False])
def test_a_request_whose_samples_all_failed_is_an_internal_error(unary):
    llm, seen = FakeLLM(), []
    llm.failed_samples = {0, 1}

    def question(client):
        with pytest.raises(grpc.RpcError) as caught:
            if unary:
                client.generate("a", n=2)
            else:
                for sample in client.generate_stream("a", n=2):
                    seen.append(sample.finish_reason)
        return caught.value.code(), caught.value.details()

    code, details = ask(question, llm)
    assert code is grpc.StatusCode.INTERNAL and "not finite" in details
    assert seen == ([] if unary else ["error"] * 2)


def test_unset_is_the_models_default_and_zero_is_a_value():
    llm = FakeLLM()
    ask(lambda client: client.generate("a", temperature=0.0, max_tokens=7), llm)
    sampling = llm.requests[0]["sampling"]
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.0, 20, 7)


def test_every_sampling_parameter_arrives_as_it_was_given():
    llm = FakeLLM()
    given = {
        "n": 2,
        "temperature": 0.7,
        "top_k": -1,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": -(1 << 63),
        "presence_penalty": -0.3,
        "frequency_penalty": 0.1,
        "repetition_penalty": 1.1,
        "logit_bias": {3: -0.7},
        "max_tokens": 1 << 40,
        "min_tokens": 1,
        "stop": ("x", "y"),
        "stop_token_ids": (1, 2),
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "logprobs": 0,
        "prompt_logprobs": 1,
        "skip_special_tokens": False,
        "detokenize": False,
        "allowed_token_ids": [5, 3],
        "bad_words": ("no", " never"),
        "truncate_prompt_tokens": -1,
    }
    ask(lambda client: list(client.generate_stream("a", **given)), llm)
    assert llm.requests[0]["sampling"] == SamplingParams(**given, output_kind=RequestOutputKind.DELTA)


def test_one_string_is_not_taken_apart():
    llm = FakeLLM()
    ask(lambda client: client.generate("a", stop="END", bad_words="no"), llm)
    assert (llm.requests[0]["sampling"].stop, llm.requests[0]["sampling"].bad_words) == (("END",), ("no",))


def test_not_a_number_reaches_the_validator_as_such():
    llm = FakeLLM()
    ask(lambda client: client.generate("a", temperature=math.nan), llm)
    assert math.isnan(llm.requests[0]["sampling"].temperature)


def test_a_count_wider_than_32_bits_is_not_cut_short():
    """A parser cuts a value that does not fit its field: 2**32 + 1 samples must not become one."""
    llm = FakeLLM()
    llm.error = InvalidRequest("n", "is out of range")
    for n in ((1 << 32) + 1, (1 << 64) - 1):
        text = b"\x12\x01a"
        run(_call_with_bytes(llm, text + _sampling_bytes(n), "Generate"))
    assert [request["sampling"].n for request in llm.requests] == [(1 << 32) + 1, -1]


def _sampling_bytes(n):
    """Returns field 6 of GenerateRequest with field 1 of SamplingParams, as no conforming client would write it."""
    varint = b""
    while n > 127:
        varint += bytes([n & 127 | 128])
        n >>= 7
    inner = b"\x08" + varint + bytes([n])
    return b"\x32" + bytes([len(inner)]) + inner


def streamed(**fields):
    return generation_pb2.GenerateStreamRequest(request=generation_pb2.GenerateRequest(**fields))


async def _call_with_bytes(llm, data, method):
    async with running(llm) as server, grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_stream(f"/blora.v1.GenerationService/{method}")(data)
        try:
            return [message async for message in call]
        except grpc.aio.AioRpcError as error:
            return error


def test_the_tenant_comes_with_the_metadata():
    llm = FakeLLM()

    async def conversation() -> None:
        async with running(llm) as server:
            await asyncio.to_thread(generate_as, "acme", server.address)

    def generate_as(tenant: str, target: str) -> None:
        with Client(target, timeout=100, tenant=tenant) as client:
            client.generate("a")
            list(client.generate_stream("a"))

    run(conversation())
    ask(lambda client: client.generate("a"), llm)
    assert [request["tenant"] for request in llm.requests] == ["acme", "acme", ""]


def test_adapter_priority_and_salt():
    llm = FakeLLM()
    ask(lambda client: client.generate("a", "alice", priority=-3, cache_salt="s"), llm)
    ask(lambda client: client.generate([1]), llm)
    first, second = llm.requests
    assert (first["adapter"], first["priority"]) == ("alice", -3)
    assert first["prompt"] == {"prompt": "a", "cache_salt": "s"}
    assert (second["adapter"], second["prompt"]) == (None, {"prompt_token_ids": [1]})


def test_a_conversation_is_left_to_the_engine_which_knows_the_adapters_template():
    llm = FakeLLM()
    ask(lambda client: client.generate([{"role": "user", "content": "Hi"}], max_tokens=1), llm)
    assert llm.requests[0]["prompt"] == {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    "request_message",
    [
        generation_pb2.GenerateRequest(),
        generation_pb2.GenerateRequest(chat=generation_pb2.ChatMessages()),
        generation_pb2.GenerateRequest(chat={"messages": [{"content": "no role"}]}),
        generation_pb2.GenerateRequest(text="a", request_id="x" * 129),
        generation_pb2.GenerateRequest(text="a", request_id="new\nline"),
        generation_pb2.GenerateRequest(token_ids={"ids": [0] * (FakeLLM.max_model_len + 1)}),
        generation_pb2.GenerateRequest(text="a", sampling={"stop_token_ids": [0] * 257}),
        generation_pb2.GenerateRequest(text="a", sampling={"stop": ["x"] * 257}),
        generation_pb2.GenerateRequest(text="a", sampling={"bad_words": ["x"] * 513}),
        generation_pb2.GenerateRequest(text="a", adapters=[{"name": str(number)} for number in range(9)]),
    ],
)
def test_malformed_requests(request_message):
    llm = FakeLLM()
    in_stream = generation_pb2.GenerateStreamRequest(request=request_message)
    for method, message in [("Generate", request_message), ("GenerateStream", in_stream)]:
        error = run(_call_with_bytes(llm, message.SerializeToString(), method))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not llm.requests


def test_a_stream_without_its_request():
    error = run(_call_with_bytes(FakeLLM(), b"", "GenerateStream"))
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "request: is missing")


def test_labels_are_made_unique():
    llm = FakeLLM()
    answers = [ask(lambda client: client.generate("a", request_id="mine"), llm) for _ in range(2)]
    ids = [answer.prompt.request_id for answer in answers]
    assert ids == [request["id"] for request in llm.requests]
    assert ids[0] != ids[1] and all(request_id.startswith("mine-") for request_id in ids)
    assert len(service.unique_request_id("")) == 32


def test_a_client_that_cancels_closes_the_generator():
    llm = FakeLLM()
    llm.num_tokens_before_pause = 1

    async def body():
        async with running(llm) as server, grpc.aio.insecure_channel(server.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            call = stub.GenerateStream(streamed(text="abc"))
            await call.read()
            call.cancel()
            await _until(lambda: llm.closed)

    run(body())
    assert llm.closed == [llm.requests[0]["id"]]


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
def test_a_deadline_closes_the_generator(method):
    message = streamed(text="abc") if method == "GenerateStream" else generation_pb2.GenerateRequest(text="abc")
    llm = FakeLLM()
    llm.num_tokens_before_pause = 0

    async def body():
        async with running(llm) as server, grpc.aio.insecure_channel(server.address) as channel:
            call = channel.unary_unary(f"/blora.v1.GenerationService/{method}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(message.SerializeToString(), timeout=0.2)
            await _until(lambda: llm.closed)
            return caught.value.code()

    assert run(body()) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_deadline_comes_with_the_call():
    llm = FakeLLM()

    async def body():
        async with running(llm) as server:
            begun = asyncio.get_running_loop().time()
            for timeout in (100, None):
                await asyncio.to_thread(generate_within, timeout, server.address)
            return begun, asyncio.get_running_loop().time()

    def generate_within(timeout, target):
        with Client(target, timeout=timeout) as client:
            client.generate("a")
            list(client.generate_stream("a"))

    begun, ended = run(body())
    first, second, *others = [request["deadline"] for request in llm.requests]
    # On the wire a timeout is a number of few digits, rounded up.
    assert begun + 99 < first < second < ended + 105 and others == [None, None]


def test_the_wait_for_the_first_token_comes_with_the_request():
    llm = FakeLLM()

    async def body():
        async with running(llm) as server:
            begun = asyncio.get_running_loop().time()
            await asyncio.to_thread(generate_within, server.address)
            return begun, asyncio.get_running_loop().time()

    def generate_within(target):
        with Client(target, timeout=100) as client:
            client.generate("a", max_first_token_seconds=7.5)
            list(client.generate_stream("a"))
            for seconds in (0.0, -1.0, math.nan, math.inf):
                with pytest.raises(grpc.RpcError, match="max_first_token_seconds"):
                    client.generate("a", max_first_token_seconds=seconds)

    begun, ended = run(body())
    first, none = [request["first_token"] for request in llm.requests]
    assert begun + 7.5 <= first <= ended + 7.5 and none is None


def test_a_client_that_reads_slowly_and_leaves_closes_the_generator():
    """The handler waits in a write then, and not in the generator."""
    llm = FakeLLM()
    prompt = [1] * 100_000

    async def body():
        async with running(llm) as server, grpc.aio.insecure_channel(server.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            request = streamed(token_ids={"ids": prompt}, sampling={"max_tokens": len(prompt), "logprobs": 2})
            call = stub.GenerateStream(request)
            await call.read()
            await asyncio.sleep(0.5)
            call.cancel()
            await _until(lambda: llm.closed)

    run(body())
    assert len(llm.closed) == 1


def test_a_closed_stream_of_the_client_closes_the_generator():
    llm = FakeLLM()
    llm.num_tokens_before_pause = 1

    def question(client):
        with client.generate_stream("abc") as stream:
            next(iter(stream))
        deadline = time.monotonic() + 100
        while not llm.closed and time.monotonic() < deadline:
            time.sleep(0.01)
        return list(llm.closed)

    assert ask(question, llm) == [llm.requests[0]["id"]]


async def _until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def test_an_outcome_without_a_reason_is_still_a_failure():
    outcome = service.Outcome()
    outcome.note(RequestOutput("id", None, [1], [CompletionOutput(0, "", [], finish_reason="error")], True))
    with pytest.raises(service.RequestFailed):
        outcome.check()


def test_several_adapters_with_scales():
    llm = FakeLLM()
    llm.adapters["bob"] = llm.adapters["alice"]
    ask(lambda client: client.generate("hello", {"bob": 0.5, "alice": -2}), llm)
    assert [(use.lora_name, use.lora_scale) for use in llm.requests[0]["adapter"]] == [("bob", 0.5), ("alice", -2.0)]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"adapter": "alice", "adapters": [{"name": "bob"}]}, "adapters"),
        ({"adapters": [{"scale": 1.0}]}, "name"),
        ({"adapters": [{"name": "alice"}] * 2}, "named before"),
        ({"adapters": [{"name": "alice", "scale": math.nan}]}, "lora_scale"),
        ({"adapters": [{"name": str(index)} for index in range(9)]}, "at most 8"),
    ],
)
def test_adapters_that_cannot_be_meant_are_refused(fields, field):
    request = generation_pb2.GenerateRequest(text="x", **fields)

    async def body():
        async with running(FakeLLM()) as server, grpc.aio.insecure_channel(server.address) as channel:
            await generation_pb2_grpc.GenerationServiceStub(channel).Generate(request)

    with pytest.raises(grpc.RpcError) as caught:
        run(body())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in caught.value.details()


def test_an_adapter_use_without_a_scale_has_scale_one():
    request = generation_pb2.GenerateRequest(text="x", adapters=[{"name": "a"}, {"name": "b", "scale": 0.0}])
    call = convert.generate_call(request, SamplingParams(), RequestOutputKind.DELTA, FakeLLM().most_listed(), {})
    assert [use.lora_scale for use in call.adapter] == [1.0, 0.0]


def test_an_array_of_tokens_is_a_prompt():
    llm = FakeLLM()
    ask(lambda client: client.generate(np.array([5, 6, 7]), max_tokens=2), llm)
    assert llm.requests[0]["prompt"] == {"prompt_token_ids": [5, 6, 7]}


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_the_whole_vocabulary_is_not_sent(field):
    """A parser makes -1 of a number that is too wide for its field, too."""
    with pytest.raises(grpc.RpcError, match=f"{field}: -1 is below 0"):
        ask(lambda client: client.generate("a", **{field: -1}))
