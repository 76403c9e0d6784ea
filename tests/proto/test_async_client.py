"""The client for asyncio: the same calls as the synchronous one, and what both do about a connection."""

import asyncio
import inspect

import grpc
import pytest
from fake_llm import FakeLLM, ask, run, running

from blora.proto.client import AsyncClient, Client
from blora.proto.connection import Connection, service_config


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    def signatures(kind):
        functions = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: list(inspect.signature(function).parameters.values())
            for name, function in functions
            if not name.startswith("_")
        }

    assert signatures(Client) == signatures(AsyncClient)
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


def test_calls_of_every_shape():
    llm = FakeLLM()

    async def body():
        async with running(llm) as server, AsyncClient(server.address, timeout=50, tenant="acme") as client:
            assert (await client.generate("ab", max_tokens=1)).text == "a"
            async with client.generate_stream("abc", n=1) as stream:
                assert "".join([sample.text async for sample in stream]) == "abc"
            assert stream.prompt.num_prompt_tokens == 3
            assert {end.index async for end in client.generate_batch([{"prompt": "a"}, {"prompt": "b"}])} == {0, 1}
            assert (await client.load_adapter("bob", "/adapters/bob")).report.kind == "LoRA"
            assert [adapter.name for adapter in await client.list_adapters()] == ["alice", "bob"]
            async with client.watch_adapters() as news:
                assert (await anext(news)).revision == 6
            assert (await client.info()).vocab_size == 1 << 17
            await client.abort("a")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.get_adapter("nobody")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    run(body())
    assert {request["tenant"] for request in llm.requests} == {"acme"} and llm.aborted == ["a"]


def test_an_upload(tmp_path):
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(3 << 20))
    llm = FakeLLM()

    async def body():
        async with running(llm) as server, AsyncClient(server.address, timeout=50) as client:
            return await client.upload_adapter("bob", tmp_path)

    assert run(body()).name == "bob"
    assert len(llm.uploaded[1]) == (3 << 20) + 2


def test_a_call_has_its_own_timeout_and_metadata_and_a_watch_none():
    llm = FakeLLM()
    llm.num_tokens_before_pause = 0

    def question(client):
        with pytest.raises(grpc.RpcError) as caught:
            client.generate("a", timeout=0.05, metadata=[("x-tenant-id", "other")])
        return caught.value.code()

    assert ask(question, llm) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert llm.requests[0]["tenant"] == "other"

    def watch(client):
        with Client(client.target, timeout=0.2) as hasty, hasty.watch_adapters() as news:
            seen = [next(news) for _ in range(6)]
            with pytest.raises(grpc.RpcError) as caught:
                hasty.generate("a")
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return len(seen), news._call.is_active()

    llm = FakeLLM()
    llm.num_tokens_before_pause = 0
    assert ask(watch, llm) == (6, True)


def test_a_token_goes_with_every_call_and_is_not_shown():
    connection = Connection(target="x", token="secret", tenant="acme", metadata=[("a", "b")])
    metadata = connection.call_metadata([("c", "d")])
    assert metadata == (("x-tenant-id", "acme"), ("authorization", "Bearer secret"), ("a", "b"), ("c", "d"))
    assert "secret" not in repr(connection)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"attempts": 0}, "attempts"),
        ({"attempts": 6}, "attempts"),
        ({"private_key": b"x"}, "private_key"),
        ({"credentials": grpc.local_channel_credentials(), "root_certificates": b"x"}, "credentials"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_contradict_each_other(arguments, reason):
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=f"^{reason}: "):
            kind("127.0.0.1:1", **arguments)


class StutteringServer:
    """Fails with UNAVAILABLE: a first call at once, later ones as they say."""

    def __init__(self, num_failures: int, num_messages: int) -> None:
        self.num_failures, self.num_messages, self.num_calls = num_failures, num_messages, 0

    async def answer(self, _: bytes, context: grpc.aio.ServicerContext) -> None:
        self.num_calls += 1
        for _ in range(self.num_messages):
            await context.write(b"")
        if self.num_calls <= self.num_failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "stutter")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(("num_messages", "num_calls"), [(0, 2), (1, 1)])
def test_a_stream_is_tried_again_before_its_first_message_only(kind, num_messages, num_calls, monkeypatch):
    quick = service_config(3).replace('"0.5s"', '"0.01s"')
    monkeypatch.setattr("blora.proto.connection.service_config", lambda _: quick)
    servicer = StutteringServer(1, num_messages)

    def ask_here(target):
        with Client(target, timeout=50, attempts=3) as client:
            return list(client.generate_stream("a"))

    async def body():
        server = grpc.aio.server()
        handler = grpc.unary_stream_rpc_method_handler(servicer.answer)
        handlers = grpc.method_handlers_generic_handler("blora.v1.GenerationService", {"GenerateStream": handler})
        server.add_generic_rpc_handlers((handlers,))
        target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            if kind is Client:
                await asyncio.to_thread(ask_here, target)
            else:
                async with AsyncClient(target, timeout=50, attempts=3) as client:
                    assert [sample async for sample in client.generate_stream("a")] == []
        finally:
            await server.stop(None)

    if num_messages:
        with pytest.raises(grpc.RpcError, match="stutter"):
            run(body())
    else:
        run(body())
    assert servicer.num_calls == num_calls
