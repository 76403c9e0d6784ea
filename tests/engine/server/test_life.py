"""Start, drain and stop, and the cost of imports. Signals go to a separate process."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from fake_llm import FakeLLM, run, running
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blora.engine.errors import EngineStartError
from blora.engine.server.server import Server, serve
from blora.engine.server.times import ServerTimes
from blora.proto.client import Client
from blora.proto.v1 import generation_pb2, generation_pb2_grpc

TESTS = Path(__file__).parents[2]
SCRIPT = """
import asyncio, sys
from fake_llm import FakeLLM
from blora.engine.server.server import serve

llm = FakeLLM()
llm.num_tokens_before_pause = 1

async def main():
    asyncio.get_running_loop().call_later({resume_after}, llm.resume.set)
    return await serve(llm, "127.0.0.1", 0, lambda address: print(address, flush=True))

status = asyncio.run(main())
print("shut down" if llm.has_shut_down else "left running", flush=True)
sys.exit(status)
"""


@pytest.fixture
def start_server(monkeypatch):
    """Starts a server process whose streams pause after one token; returns the process and its address."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    processes = []

    def start(resume_after):
        script = SCRIPT.format(resume_after=resume_after)
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(start_server, number):
    process, address = start_server(resume_after=2)
    with Client(address, timeout=100) as client:
        stream = iter(client.generate_stream("abc"))
        text = next(stream).text
        process.send_signal(number)
        text += "".join(sample.text for sample in stream)
    out, _ = process.communicate(timeout=100)
    assert (text, out, process.returncode) == ("abc", "shut down\n", 0)


def test_the_second_signal_stops_at_once(start_server):
    process, address = start_server(resume_after=600)
    with Client(address, timeout=100) as client:
        stream = iter(client.generate_stream("abc"))
        next(stream)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            _generate_until_refused(client)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    out, _ = process.communicate(timeout=100)
    assert (out, process.returncode) == ("shut down\n", 1)


def _generate_until_refused(client):
    """Generates until the server refuses, because a signal takes a moment to arrive."""
    while True:
        client.generate("a", max_tokens=1)


def test_a_drain_refuses_new_requests_and_finishes_those_that_run():
    llm = FakeLLM()
    llm.num_tokens_before_pause = 1

    async def body():
        async with running(llm) as server, grpc.aio.insecure_channel(server.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            request = generation_pb2.GenerateRequest(text="abc")
            runs = aiter(stub.GenerateStream(generation_pb2.GenerateStreamRequest(request=request)))
            await anext(runs)
            drain = asyncio.create_task(server.drain())
            await asyncio.sleep(0.05)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Generate(request)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not drain.done()
            llm.resume.set()
            rest = [message.samples[0].text async for message in runs]
            await drain
            return rest

    assert run(body()) == ["b", "c"]
    assert not llm.closed


def test_a_drain_ends_what_does_not_finish_in_time():
    llm = FakeLLM()
    llm.num_tokens_before_pause = 1

    async def body():
        times = ServerTimes(shutdown_timeout=0.05)
        async with running(llm, times) as server, grpc.aio.insecure_channel(server.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            request = generation_pb2.GenerateRequest(text="abc")
            runs = aiter(stub.GenerateStream(generation_pb2.GenerateStreamRequest(request=request)))
            await anext(runs)
            drain = asyncio.create_task(server.drain())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(runs)
            await drain
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await stub.Generate(generation_pb2.GenerateRequest(text="abc"))
            return [(error.value.code(), error.value.details()) for error in (caught, late)]

    unavailable = grpc.StatusCode.UNAVAILABLE
    assert run(body()) == [(unavailable, "not finished in time"), (unavailable, "the engine is draining")]
    assert llm.has_shut_down


def test_in_the_grace_health_says_no_and_requests_are_served():
    async def body():
        times = ServerTimes(drain_grace=60.0)
        async with running(FakeLLM(), times) as server, grpc.aio.insecure_channel(server.address) as channel:
            drain = asyncio.create_task(server.drain())
            async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
                if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            answer = await stub.Generate(generation_pb2.GenerateRequest(text="abc"))
            drain.cancel()
            return answer.samples[0].text

    assert run(body()) == "abc"


def test_a_grace_is_a_part_of_the_timeout():
    llm = FakeLLM()

    async def body():
        async with running(llm, ServerTimes(drain_grace=3600.0, shutdown_timeout=0.05)) as server:
            await server.drain()

    run(body())
    assert llm.is_draining


def test_whoever_leaves_does_so_before_the_connections_are_closed():
    llm = FakeLLM()
    left = []

    async def body():
        async def leave_at_once(address):
            async with grpc.aio.insecure_channel(address) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                await stub.Generate(generation_pb2.GenerateRequest(text="a"))
                os.kill(os.getpid(), signal.SIGTERM)

        tasks = []
        announce = lambda address: tasks.append(asyncio.create_task(leave_at_once(address)))  # noqa: E731
        return await serve(llm, "127.0.0.1", 0, announce, leave=left.append)

    assert (run(body()), left) == (0, [0])


def test_before_the_engine_has_started_the_server_listens_and_says_so():
    llm = FakeLLM()

    async def body():
        server = Server(llm, "127.0.0.1", 0)
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                await stub.Generate(generation_pb2.GenerateRequest(text="a"))
        await server.stop()
        return health.status, caught.value.code()

    assert run(body()) == (health_pb2.HealthCheckResponse.NOT_SERVING, grpc.StatusCode.UNAVAILABLE)
    assert not llm.requests


def test_an_engine_that_does_not_start_is_reported_and_shut_down():
    llm = FakeLLM()
    llm.error = EngineStartError("no such model")
    with pytest.raises(EngineStartError):
        run(serve(llm, "127.0.0.1", 0, print))
    assert llm.has_shut_down


def test_a_signal_while_the_engine_starts_ends_the_start():
    llm = FakeLLM()

    async def start():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    llm.start = start
    assert run(serve(llm, "127.0.0.1", 0, print)) == 0
    assert llm.has_shut_down


def test_two_servers_do_not_share_a_port():
    async def body():
        async with running(FakeLLM()) as server:
            port = int(server.address.rpartition(":")[2])
            with pytest.raises(OSError, match="cannot listen"):
                await Server(FakeLLM(), "127.0.0.1", port).start()

    run(body())


def test_an_address_of_ipv6_is_bracketed():
    async def body():
        return Server(FakeLLM(), "::1", 50051).address

    assert run(body()) == "[::1]:50051"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("blora.engine.cli.main", ["torch", "transformers", "numpy", "msgspec", "grpc"]),
        ("blora.engine.cli.client_command", ["torch", "transformers", "numpy", "msgspec", "grpc_health"]),
        ("blora.engine.server.server", ["torch", "transformers"]),
    ],
)
def test_imports_do_without(module, absent):
    script = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {module}"
    subprocess.run([sys.executable, "-c", script], check=True)
