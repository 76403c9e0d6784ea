"""The status code of each error, as a client sees it."""

import logging

import grpc
import pytest
from fake_llm import FakeLLM, ask, run, running
from google.rpc import status_pb2

from blora.engine import errors
from blora.engine.server import rpc, status
from blora.engine.server.message_sizes import largest_message, largest_of_all
from blora.proto.client import Client
from blora.proto.connection import service_config
from blora.proto.rich_errors import KEY, ErrorDetails, details_in, details_of
from blora.proto.v1 import adapters_pb2, engine_pb2, generation_pb2

CASES = [
    (errors.InvalidRequest("n", "is too large"), grpc.StatusCode.INVALID_ARGUMENT, "n: is too large"),
    (errors.AdapterNotFound("bob"), grpc.StatusCode.NOT_FOUND, "'bob'"),
    (errors.AdapterRejected("bob", ["rank"]), grpc.StatusCode.FAILED_PRECONDITION, "rank"),
    (errors.AdapterTooLarge("too large"), grpc.StatusCode.FAILED_PRECONDITION, "too large"),
    (errors.QueueFull("queue is full"), grpc.StatusCode.RESOURCE_EXHAUSTED, "queue is full"),
    (errors.Unauthenticated("no token"), grpc.StatusCode.UNAUTHENTICATED, "no token"),
    (errors.PermissionDenied("not yours"), grpc.StatusCode.PERMISSION_DENIED, "not yours"),
    (errors.LimitReached("256 clients"), grpc.StatusCode.RESOURCE_EXHAUSTED, "256 clients"),
    (errors.MessageTooLarge("9 bytes"), grpc.StatusCode.RESOURCE_EXHAUSTED, "9 bytes"),
    (errors.DeadlineExceeded("too late"), grpc.StatusCode.DEADLINE_EXCEEDED, "too late"),
    (errors.EngineUnavailable("restarting"), grpc.StatusCode.UNAVAILABLE, "restarting"),
    (ValueError("/secret/path of 0xdeadbeef"), grpc.StatusCode.INTERNAL, status.UNEXPECTED),
]
CALLS = {
    "stream": lambda client: list(client.generate_stream("a")),
    "unary": lambda client: client.generate("a"),
    "load": lambda client: client.load_adapter("bob", "/adapters/bob"),
    "info": lambda client: client.info(),
}


def refusal(call, llm):
    """Returns the code and the text that a client gets."""

    def question(client):
        with pytest.raises(grpc.RpcError) as caught:
            call(client)
        return caught.value.code(), caught.value.details()

    return ask(question, llm)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("error", "code", "text"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_codes(error, code, text, call):
    llm = FakeLLM()
    llm.error = error
    seen_code, details = refusal(call, llm)
    assert seen_code is code and text in details
    assert "secret" not in details


def test_the_unexpected_is_logged(caplog):
    llm = FakeLLM()
    llm.error = ZeroDivisionError("of the server")
    with caplog.at_level(logging.ERROR):
        refusal(CALLS["unary"], llm)
    assert "ZeroDivisionError: of the server" in caplog.text and "Traceback" in caplog.text


def test_every_typed_error_has_a_code():
    """AdapterError is only a base class, and EngineStartError never reaches a client."""
    typed = {getattr(errors, name) for name in errors.__all__} - {errors.AdapterError, errors.EngineStartError}
    assert set(status.STATUS_CODES) == typed | {status.RequestFailed}


def test_an_unknown_adapter_does_not_fall_back():
    code, _ = refusal(lambda client: client.generate("a", "nobody"), FakeLLM())
    assert code is grpc.StatusCode.NOT_FOUND


def test_long_reasons_fit_into_the_trailers():
    llm = FakeLLM()
    llm.error = errors.AdapterRejected("bob", ["é" * 2000] * 20)
    code, details = refusal(CALLS["load"], llm)
    assert code is grpc.StatusCode.FAILED_PRECONDITION and details.startswith("adapter 'bob'")


METHODS = [
    f"/{service.full_name}/{method.name}"
    for module in (adapters_pb2, engine_pb2, generation_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\xffshort"])
def test_bytes_that_are_no_message_are_the_clients_mistake(data):
    codes = run(_codes(METHODS, data))
    assert len(codes) == len(METHODS) and set(codes.values()) == {grpc.StatusCode.INVALID_ARGUMENT}


def test_text_that_is_no_text_is_the_clients_mistake():
    text = b"\x12\x02\xff\xfe"
    inner = ["/blora.v1.GenerationService/GenerateStream", "/blora.v1.GenerationService/BatchGenerate"]
    codes = run(_codes(["/blora.v1.GenerationService/Generate"], text))
    codes |= run(_codes(inner, b"\x0a\x04" + text))
    assert set(codes.values()) == {grpc.StatusCode.INVALID_ARGUMENT}


async def _codes(methods, data):
    codes = {}
    async with running(FakeLLM()) as server, grpc.aio.insecure_channel(server.address) as channel:
        for method in methods:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(data)
            codes[method] = caught.value.code()
    return codes


LARGEST, OF_ALL = largest_message(FakeLLM.max_model_len), largest_of_all(FakeLLM.max_model_len)
UPLOAD = "/blora.v1.AdapterService/UploadAdapter"  # takes chunks of a megabyte


@pytest.mark.parametrize(
    ("methods", "num_bytes"), [([method for method in METHODS if method != UPLOAD], LARGEST + 1), (METHODS, OF_ALL + 1)]
)
def test_a_message_larger_than_any_that_fits_the_model_is_refused_before_it_is_parsed(methods, num_bytes, monkeypatch):
    monkeypatch.setattr(rpc, "parse", lambda *_: pytest.fail("parsed"))
    assert set(run(_codes(methods, b"\xff" * num_bytes)).values()) == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_the_largest_message_is_read():
    assert largest_message(8192) == 8192 * 16 + 65536
    answer = ask(lambda client: client.generate("x" * (LARGEST - 50), max_tokens=1), FakeLLM())
    assert answer.prompt.num_prompt_tokens > 2_000_000


@pytest.mark.parametrize("call", [CALLS["stream"], CALLS["unary"]], ids=["stream", "unary"])
def test_a_refusal_says_when_to_try_again(call):
    def question(client):
        with pytest.raises(grpc.RpcError) as caught:
            call(client)
        return caught.value.trailing_metadata()

    llm = FakeLLM()
    llm.error = errors.QueueFull("queue is full", 2.5)
    metadata = dict(ask(question, llm))
    assert details_in(metadata.items()) == ErrorDetails("QUEUE_FULL", {}, 2.5)
    assert metadata["grpc-retry-pushback-ms"] == "2500"
    for error, reason in (errors.QueueFull("never fits"), "QUEUE_FULL"), (errors.LimitReached("full"), "LIMIT_REACHED"):
        llm.error = error
        metadata = dict(ask(question, llm))
        assert details_in(metadata.items()) == ErrorDetails(reason)
        assert metadata["grpc-retry-pushback-ms"] == "-1"


@pytest.mark.parametrize("call", [CALLS["stream"], CALLS["unary"]], ids=["stream", "unary"])
def test_a_client_tries_again_what_met_no_server_and_not_what_a_full_one_refuses(call, monkeypatch):
    quick = service_config(3).replace('"0.5s"', '"0.01s"')
    monkeypatch.setattr("blora.proto.connection.service_config", lambda _: quick)

    def question(client):
        with Client(client.target, timeout=100, attempts=3) as patient:
            return call(patient)

    unavailable = ReluctantLLM(errors.EngineUnavailable("restarting"))
    ask(question, unavailable)
    assert unavailable.num_asked == 3
    full = ReluctantLLM(errors.QueueFull("wait", 0.01))
    with pytest.raises(grpc.RpcError, match="wait"):
        ask(question, full)
    assert full.num_asked == 1


class ReluctantLLM(FakeLLM):
    """Refuses the first two requests."""

    def __init__(self, refusal):
        super().__init__()
        self.refusal, self.num_asked = refusal, 0

    def _raise(self):
        self.num_asked += 1
        if self.num_asked <= 2:
            raise self.refusal


@pytest.mark.parametrize(
    ("error", "details"),
    [
        (errors.InvalidRequest("n", "is too large"), ErrorDetails("INVALID_REQUEST", {"n": "is too large"})),
        (errors.AdapterNotFound("bob"), ErrorDetails("ADAPTER_NOT_FOUND")),
        (errors.EngineUnavailable("restarting"), ErrorDetails("ENGINE_UNAVAILABLE")),
        (ZeroDivisionError("secret"), ErrorDetails("INTERNAL")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_programs_read_the_reason_and_the_field(error, details):
    def question(client):
        with pytest.raises(grpc.RpcError) as caught:
            client.info()
        return caught.value

    llm = FakeLLM()
    llm.error = error
    failed = ask(question, llm)
    assert details_of(failed) == details
    packed = status_pb2.Status.FromString(dict(failed.trailing_metadata())[KEY])
    assert (packed.code, packed.message) == (failed.code().value[0], failed.details())  # as grpcio-status wants it


def test_the_longest_refusal_fits_into_the_trailers():
    llm = FakeLLM()
    llm.error = errors.InvalidRequest("é" * 1000, "é" * 10_000)
    code, _ = refusal(CALLS["info"], llm)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
