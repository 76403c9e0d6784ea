"""AdapterService, EngineService, health and reflection over a real connection, and the shapes of messages."""

import asyncio
import hashlib
from dataclasses import asdict, fields, replace

import grpc
import pytest
from fake_llm import INFO, REPORT, FakeLLM, adapter_info, ask, run, running
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from blora.adapters.report import AdapterReport, LayerReport, ModuleReport
from blora.engine.adapter_store.source import FILE_PATTERNS
from blora.engine.front_end.validator import UNSERVED
from blora.engine.outputs import (
    AdapterEvent,
    AdapterInfo,
    AdapterUsage,
    AdapterVersion,
    EngineInfo,
    LoadSnapshot,
    Tokens,
)
from blora.engine.server import convert
from blora.engine.server.service import AdapterServicer, EngineServicer, GenerationServicer
from blora.proto import results
from blora.proto.calls import CONFIG_FILE, DIVIDED_WEIGHTS, SIGNATURE_FILE, TOKENIZER_FILES, WEIGHTS_FILE
from blora.proto.v1 import adapters_pb2, adapters_pb2_grpc, engine_pb2, generation_pb2
from blora.scheduler import SamplingParams, StructuredOutputsParams

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
REPORT_READ = results.read(results.AdapterReport, convert.report(REPORT))
NAMES = {servicer.NAME for servicer in (GenerationServicer, AdapterServicer, EngineServicer)}


def test_an_adapters_life():
    def question(client):
        loaded = client.load_adapter("bob", "/adapters/bob", pinned=True)
        assert (loaded.name, loaded.path, loaded.pinned) == ("bob", "/adapters/bob", True)
        assert loaded.report == REPORT_READ and client.get_adapter("bob").report is None
        assert [adapter.name for adapter in client.list_adapters()] == ["alice", "bob"]
        assert not client.pin_adapter("bob", pinned=False).pinned
        assert client.pin_adapter("bob").pinned
        assert client.get_adapter("bob").name == "bob"
        assert client.activate_adapter("bob", 1).version == 1
        assert client.warm_adapter("bob").resident
        assert client.unload_adapter("bob", abort=True).num_requests == 0
        assert client.load_adapter("bob", "/adapters/bob").name == "bob"
        assert client.unload_adapter("bob").num_requests == 3
        assert [adapter.name for adapter in client.list_adapters()] == ["alice"]

    ask(question)


def test_thousands_of_adapters_are_one_answer():
    llm = FakeLLM()
    names = [f"{index:04d}" for index in range(1000)]
    llm.adapters = {name: adapter_info(name) for name in reversed(names)}
    assert [adapter.name for adapter in ask(lambda client: client.list_adapters(), llm)] == names

    def watch(client):
        return next(client.watch_adapters())

    first = ask(watch, llm)
    assert [adapter.name for adapter in first.adapters] == names
    assert first.adapters[7] == results.read(results.AdapterInfo, convert.adapter(llm.adapters["0007"]), report=None)


def test_adapters_are_listed_by_name():
    llm = FakeLLM()
    llm.adapters = {name: adapter_info(name) for name in "cab"}
    assert ask(lambda client: [adapter.name for adapter in client.list_adapters()], llm) == ["a", "b", "c"]


def test_what_is_known_of_an_adapter():
    adapter = ask(lambda client: client.get_adapter("alice"))
    assert list(adapter.ranks) == [4, 8] and list(adapter.modules) == ["q_proj"]
    assert [(kept.number, kept.active) for kept in adapter.versions] == [(1, False), (2, True)]
    assert adapter.num_bytes == 1 << 40 and list(adapter.warnings) == ["all weights are zero"]


def test_an_upload_sends_the_files_of_a_folder(tmp_path):
    contents = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(3 << 20), "chat_template.jinja": b"t"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("stays here")
    llm = FakeLLM()
    adapter = ask(lambda client: client.upload_adapter("bob", tmp_path, pinned=True), llm)
    assert (adapter.name, adapter.path, adapter.pinned) == ("bob", "upload:bob", True)
    assert adapter.report == REPORT_READ
    files, content = llm.uploaded
    assert content == b"".join(contents.values())
    assert [(file.name, file.num_bytes) for file in files] == [(name, len(c)) for name, c in contents.items()]
    assert [file.sha256 for file in files] == [hashlib.sha256(c).hexdigest() for c in contents.values()]


HEADER = adapters_pb2.UploadHeader(name="bob", files=[adapters_pb2.UploadedFile(name="adapter_config.json")])


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([], "header"),
        ([{}], "header"),
        ([{"chunk": b"x"}], "header"),
        ([{"header": adapters_pb2.UploadHeader(name="bob")}], "files"),
        ([{"header": adapters_pb2.UploadHeader(files=HEADER.files)}], "name"),
        ([{"header": HEADER}, {"header": HEADER}], "chunk"),
        ([{"header": HEADER}, {}], "chunk"),
    ],
)
def test_malformed_uploads(parts, field):
    def question(client):
        with grpc.insecure_channel(client.target) as channel, pytest.raises(grpc.RpcError) as caught:
            upload = adapters_pb2_grpc.AdapterServiceStub(channel).UploadAdapter
            upload(adapters_pb2.UploadAdapterRequest(**part) for part in parts)
        return caught.value

    error = ask(question)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and error.details().startswith(f"{field}: ")


def test_the_files_of_a_client_are_those_that_the_server_takes():
    assert {CONFIG_FILE, WEIGHTS_FILE, *DIVIDED_WEIGHTS, *TOKENIZER_FILES, SIGNATURE_FILE} == set(FILE_PATTERNS)


def test_a_router_gets_a_snapshot_and_then_events():
    def question(client):
        call = client.watch_adapters()
        news = [next(call), next(call)]
        call.cancel()
        return news

    first, second = ask(question)
    assert (first.revision, second.revision) == (6, 7)
    assert [adapter.name for adapter in first.adapters] == ["alice"]
    assert second == results.AdapterEvent(7, "removed", "alice", 2, "ab" * 32)


def test_a_report_comes_with_a_load_and_without_one():
    def question(client):
        loaded = client.load_adapter("bob", "/adapters/bob")
        assert loaded.report == REPORT_READ
        assert replace(loaded, report=None) == client.get_adapter("bob")
        return client.inspect_adapter(REPORT.path), client.inspect_adapter("/adapters/bad")

    good, bad = ask(question)
    assert good == REPORT_READ
    assert list(bad.problems) == ["a tensor is missing", "so is another"] and not bad.digest


def test_the_answer_of_a_load_has_the_report():
    info = replace(adapter_info("bob"), report=REPORT)
    assert convert.loaded(info).report == convert.report(REPORT)


def test_pin_pins_when_it_is_not_told_what_to_do():
    assert convert.pin_arguments(adapters_pb2.PinAdapterRequest(name="a")) == ("a", True)


@pytest.mark.parametrize("call", ["get_adapter", "unload_adapter", "pin_adapter"])
@pytest.mark.parametrize(
    ("name", "code"), [("nobody", grpc.StatusCode.NOT_FOUND), ("", grpc.StatusCode.INVALID_ARGUMENT)]
)
def test_names_that_mean_nothing(call, name, code):
    def question(client):
        with pytest.raises(grpc.RpcError) as caught:
            getattr(client, call)(name)
        return caught.value.code()

    assert ask(question) is code


@pytest.mark.parametrize(("name", "version"), [("", 1), ("alice", 0)])
def test_activating_needs_a_name_and_a_version(name, version):
    def question(client):
        with pytest.raises(grpc.RpcError) as caught:
            client.activate_adapter(name, version)
        return caught.value.code()

    assert ask(question) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("name", "path"), [("", "/a"), ("a", "")])
def test_loading_needs_a_name_and_a_path(name, path):
    def question(client):
        with pytest.raises(grpc.RpcError) as caught:
            client.load_adapter(name, path)
        return caught.value.code()

    assert ask(question) is grpc.StatusCode.INVALID_ARGUMENT


def test_info():
    info = ask(lambda client: client.info())
    assert {field.name: getattr(info, field.name) for field in fields(EngineInfo)} == asdict(INFO)


def test_abort_passes_the_ids_on():
    llm = FakeLLM()
    ask(lambda client: client.abort("a", "unknown"), llm)
    assert llm.aborted == ["a", "unknown"]


IN_PROCESS = {
    "output_kind",
    "spaces_between_special_tokens",
    "skip_clone",
    "skip_reading_prefix_cache",
    "routed_experts_prompt_start",
}


@pytest.mark.parametrize(
    ("message", "ours", "ours_alone"),
    [
        (adapters_pb2.Adapter, AdapterInfo, {"report"}),
        (adapters_pb2.AdapterVersion, AdapterVersion, set()),
        (adapters_pb2.AdapterUsage, AdapterUsage, set()),
        (adapters_pb2.AdapterEvent, AdapterEvent, {"revision"}),
        (adapters_pb2.AdapterReport, AdapterReport, {"text"}),
        (adapters_pb2.ModuleReport, ModuleReport, set()),
        (adapters_pb2.LayerReport, LayerReport, set()),
        (engine_pb2.GetInfoResponse, EngineInfo, set()),
        (engine_pb2.WatchLoadResponse, LoadSnapshot, set()),
        (generation_pb2.TokenizeResponse, Tokens, set()),
        (generation_pb2.StructuredOutputs, StructuredOutputsParams, set()),
        (generation_pb2.SamplingParams, SamplingParams, {*IN_PROCESS, *UNSERVED}),
    ],
)
def test_messages_have_the_fields_of_our_types(message, ours, ours_alone):
    assert set(message.DESCRIPTOR.fields_by_name) == {field.name for field in fields(ours)} - ours_alone


def test_health_follows_the_engine():
    llm = FakeLLM()

    async def body():
        async with running(llm) as server, grpc.aio.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for is_serving, status in [(True, SERVING), (False, NOT_SERVING), (True, SERVING)]:
                llm.set_serving(is_serving)
                await asyncio.sleep(0)
                assert await _statuses(health) == {status}

    run(body())


def test_health_watch_tells_of_a_drain_for_good():
    llm = FakeLLM()

    async def body():
        async with running(llm) as server, grpc.aio.insecure_channel(server.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            await server._health.drain()
            assert (await watch.read()).status == NOT_SERVING
            llm.set_serving(True)
            await asyncio.sleep(0.05)
            assert await _statuses(health_pb2_grpc.HealthStub(channel)) == {NOT_SERVING}
            watch.cancel()

    run(body())


async def _statuses(health):
    requests = [health_pb2.HealthCheckRequest(service=name) for name in ("", *NAMES)]
    return {(await health.Check(request)).status for request in requests}


def test_reflection_lists_the_services():
    answer = run(_reflect(reflection_pb2.ServerReflectionRequest(list_services="")))
    assert {service.name for service in answer.list_services_response.service} >= NAMES | {"grpc.health.v1.Health"}


def test_reflection_describes_a_service():
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=GenerationServicer.NAME)
    answer = run(_reflect(request))
    assert b"GenerateStream" in answer.file_descriptor_response.file_descriptor_proto[0]


async def _reflect(request):
    async with running(FakeLLM()) as server, grpc.aio.insecure_channel(server.address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        return await call.read()
