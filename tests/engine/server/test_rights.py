"""Callers and what each may do, over a real connection: a matrix of callers and RPCs."""

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest
from fake_llm import INFO, LOAD, FakeLLM, adapter_info, run, running, running_http
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from blora.engine.identity.filed_identities import FiledIdentities
from blora.engine.identity.identities_file import IdentitiesFile
from blora.engine.outputs import AdapterEvent, AdapterSnapshot, AdapterUsage
from blora.engine.server.access import Access
from blora.engine.server.http.app import GENERATING, GOTTEN, POSTED
from blora.proto.v1 import adapters_pb2, engine_pb2, generation_pb2

OK, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND
DENIED, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
TOKENS = {"tenant": "t" * 32, "uploader": "u" * 32, "operator": "o" * 32}
FILE = """
identities:
  - {{tenant: acme, token_sha256: [{tenant}], adapters: ["public/*"], priorities: [0, 5]}}
  - tenant: builder
    token_sha256: [{uploader}]
    adapters: ["public/*"]
    may_upload: ["builder/*"]
    weight: 2
    quotas: {{requests: 3, upload_bytes: 100}}
  - {{tenant: operations, token_sha256: [{operator}], operator: true}}
"""
UPLOAD = [
    adapters_pb2.UploadAdapterRequest(
        header=adapters_pb2.UploadHeader(
            name="builder/new", files=[adapters_pb2.UploadedFile(name="adapter_config.json", num_bytes=2, sha256="0")]
        )
    ),
    adapters_pb2.UploadAdapterRequest(chunk=b"{}"),
]
STREAM = generation_pb2.GenerateStreamRequest(request=generation_pb2.GenerateRequest(text="a"))
PUBLIC, OWN, SECRET = "public/one", "builder/own", "secret/one"


def named(message, name, **fields):
    return message(name=name, **fields)


# RPC -> a message for each kind of adapter, and the code for each caller: a tenant, one that may upload, an operator.
# Nobody without a known token gets anywhere. Whether an adapter that one may not use exists shows nowhere.
A, G, E = "AdapterService", "GenerationService", "EngineService"
MATRIX = [
    (G, "Generate", generation_pb2.GenerateRequest(text="a"), (OK, OK, OK)),
    (G, "Generate", generation_pb2.GenerateRequest(text="a", adapter=PUBLIC), (OK, OK, OK)),
    (G, "Generate", generation_pb2.GenerateRequest(text="a", adapter=OWN), (NOT_FOUND, OK, OK)),
    (G, "Generate", generation_pb2.GenerateRequest(text="a", adapter=SECRET), (NOT_FOUND, NOT_FOUND, OK)),
    (G, "Generate", generation_pb2.GenerateRequest(text="a", adapter="secret/two@1"), (NOT_FOUND, NOT_FOUND, OK)),
    (G, "Generate", generation_pb2.GenerateRequest(text="a", priority=-1), (DENIED, DENIED, OK)),
    (G, "Generate", generation_pb2.GenerateRequest(text="a", priority=6), (DENIED, OK, OK)),
    (
        G,
        "GenerateStream",
        generation_pb2.GenerateStreamRequest(request=generation_pb2.GenerateRequest(text="a")),
        (OK, OK, OK),
    ),
    (G, "BatchGenerate", [generation_pb2.BatchGenerateRequest(request={"text": "a"})], (OK, OK, OK)),
    (G, "Tokenize", generation_pb2.TokenizeRequest(text="a", adapter=OWN), (NOT_FOUND, OK, OK)),
    (G, "Detokenize", generation_pb2.DetokenizeRequest(token_ids=[97], adapter=SECRET), (NOT_FOUND, NOT_FOUND, OK)),
    (E, "WatchLoad", engine_pb2.WatchLoadRequest(), (DENIED, DENIED, OK)),
    (A, "LoadAdapter", named(adapters_pb2.LoadAdapterRequest, "builder/new", path="/x"), (DENIED, DENIED, OK)),
    (A, "UploadAdapter", UPLOAD, (DENIED, OK, OK)),
    (A, "InspectAdapter", adapters_pb2.InspectAdapterRequest(path="/x"), (DENIED, DENIED, OK)),
    (A, "ListAdapters", adapters_pb2.ListAdaptersRequest(), (OK, OK, OK)),
    (A, "WatchAdapters", adapters_pb2.WatchAdaptersRequest(), (OK, OK, OK)),
    (A, "GetAdapter", named(adapters_pb2.GetAdapterRequest, PUBLIC), (OK, OK, OK)),
    (A, "GetAdapter", named(adapters_pb2.GetAdapterRequest, SECRET), (NOT_FOUND, NOT_FOUND, OK)),
    (E, "GetInfo", engine_pb2.GetInfoRequest(), (OK, OK, OK)),
    (E, "Abort", engine_pb2.AbortRequest(request_ids=["x"]), (OK, OK, OK)),
]
for rpc, message in {
    "ActivateAdapter": adapters_pb2.ActivateAdapterRequest(version=1),
    "WarmAdapter": adapters_pb2.WarmAdapterRequest(),
    "UnloadAdapter": adapters_pb2.UnloadAdapterRequest(),
    "PinAdapter": adapters_pb2.PinAdapterRequest(),
}.items():
    for name, codes in {
        PUBLIC: (DENIED, DENIED, OK),
        OWN: (NOT_FOUND, OK, OK),
        SECRET: (NOT_FOUND, NOT_FOUND, OK),
        "secret/none": (NOT_FOUND, NOT_FOUND, NOT_FOUND),
    }.items():
        asked = type(message)()
        asked.CopyFrom(message)
        asked.name = name
        MATRIX.append((A, rpc, asked, codes))
STREAMED = ("GenerateStream", "WatchAdapters", "WatchLoad")


@pytest.fixture
def identities(tmp_path):
    path = tmp_path / "identities.yaml"
    path.write_text(FILE.format(**{name: hashlib.sha256(t.encode()).hexdigest() for name, t in TOKENS.items()}))
    return FiledIdentities(IdentitiesFile(path))


class ThreeAdapters(FakeLLM):
    """One for all, one that the builder has loaded, one of the operators."""

    def __init__(self):
        super().__init__()
        self.restore()

    def restore(self):
        self.adapters = {PUBLIC: adapter_info(PUBLIC), SECRET: adapter_info(SECRET)}
        self.adapters["secret/two@1"] = adapter_info("secret/two@1")
        self.adapters[OWN] = replace(adapter_info(OWN), owner="builder", num_requests=2, resident=True)
        self.adapters[PUBLIC] = replace(self.adapters[PUBLIC], num_requests=5, resident=True, pinned=True)

    async def watch_load(self, _=1.0):
        yield LOAD

    async def watch_adapters(self):
        yield AdapterSnapshot(6, tuple(await self.list_adapters()))
        for revision, (name, kind) in enumerate(
            [(SECRET, "loaded"), (PUBLIC, "resident"), (OWN, "resident"), (SECRET, "removed"), (PUBLIC, "loaded")], 7
        ):
            yield AdapterEvent(revision, kind, name, 2, "ab" * 32)


@asynccontextmanager
async def connected(llm, identities):
    async with (
        running(llm, access=Access(identities=identities)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield channel


async def code(channel, service, rpc, message, metadata):
    method = f"/blora.v1.{service}/{rpc}"
    try:
        if isinstance(message, list):
            await channel.stream_unary(method)(iter([part.SerializeToString() for part in message]), metadata=metadata)
        elif rpc in STREAMED:
            async for _ in channel.unary_stream(method)(message.SerializeToString(), metadata=metadata):
                pass
        else:
            await channel.unary_unary(method)(message.SerializeToString(), metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return OK, ""


def of(caller):
    return (("authorization", f"Bearer {TOKENS[caller]}"),)


async def column(identities, *metadata):
    found = []
    for service, rpc, message, _ in MATRIX:
        async with connected(ThreeAdapters(), identities) as channel:
            found.append((await code(channel, service, rpc, message, metadata))[0])
    return found


@pytest.mark.parametrize("caller", TOKENS)
def test_a_caller_may_do_what_its_rights_say(caller, identities):
    index = list(TOKENS).index(caller)
    found = run(column(identities, *of(caller)))
    wrong = [
        (rpc, str(message), got, codes[index])
        for (_, rpc, message, codes), got in zip(MATRIX, found, strict=True)
        if got is not codes[index]
    ]
    assert not wrong


def test_nobody_gets_anywhere_without_a_token(identities):
    assert set(run(column(identities))) == {UNKNOWN}
    assert set(run(column(identities, ("authorization", "Bearer " + "x" * 32)))) == {UNKNOWN}


def test_every_rpc_has_its_row():
    """What reflection tells of, but for health and reflection themselves, which everybody may ask."""

    async def body():
        async with running(FakeLLM()) as server, grpc.aio.insecure_channel(server.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
            return [service.name async for a in stub.ServerReflectionInfo(iter(asked))
                    for service in a.list_services_response.service]  # fmt: skip

    ours = {name for name in run(body()) if not name.startswith("grpc.")}
    modules = (adapters_pb2, engine_pb2, generation_pb2)
    services = {s.full_name: s for module in modules for s in module.DESCRIPTOR.services_by_name.values()}
    assert ours == services.keys()
    rpcs = {(name.rpartition(".")[2], method.name) for name in ours for method in services[name].methods}
    assert rpcs == {(service, rpc) for service, rpc, _, _ in MATRIX}


def ask(identities, caller, question, llm=None):
    async def body():
        async with connected(llm or ThreeAdapters(), identities) as channel:
            return await question(channel, of(caller))

    return run(body())


def test_what_does_not_exist_and_what_is_forbidden_read_alike(identities):
    async def question(channel, metadata):
        texts = {}
        for name in (SECRET, "secret/none"):
            for service, rpc, message in [
                (G, "Generate", generation_pb2.GenerateRequest(text="a", adapter=name)),
                (A, "GetAdapter", adapters_pb2.GetAdapterRequest(name=name)),
                (A, "UnloadAdapter", adapters_pb2.UnloadAdapterRequest(name=name)),
            ]:
                texts[rpc, name] = [str(part).replace(name, "NAME") for part in await code(
                    channel, service, rpc, message, metadata)]  # fmt: skip
        return texts

    texts = ask(identities, "tenant", question)
    for rpc in ("Generate", "GetAdapter", "UnloadAdapter"):
        assert texts[rpc, SECRET] == texts[rpc, "secret/none"]


def test_a_list_shows_what_one_may_use_and_nothing_of_others(identities):
    async def question(channel, metadata):
        answer = await channel.unary_unary("/blora.v1.AdapterService/ListAdapters")(b"", metadata=metadata)
        return {adapter.name: adapter for adapter in adapters_pb2.ListAdaptersResponse.FromString(answer).adapters}

    seen = ask(identities, "uploader", question)
    assert seen.keys() == {PUBLIC, OWN}
    assert seen[OWN].owner == "builder" and seen[OWN].num_requests == 2 and seen[OWN].resident
    public = seen[PUBLIC]
    assert not (public.num_requests or public.resident or public.pinned or public.owner or public.num_copies)
    assert public.usage == adapters_pb2.AdapterUsage(**{n: getattr(AdapterUsage(), n) for n in AdapterUsage.__slots__})
    for adapter in seen.values():
        assert not adapter.path and not any(version.path for version in adapter.versions)
    assert ask(identities, "tenant", question).keys() == {PUBLIC}
    whole = ask(identities, "operator", question)
    assert (
        whole.keys() == {PUBLIC, OWN, SECRET, "secret/two@1"} and whole[SECRET].path and whole[PUBLIC].num_requests == 5
    )


def test_a_watch_tells_of_what_one_may_use(identities):
    async def question(channel, metadata):
        news = channel.unary_stream("/blora.v1.AdapterService/WatchAdapters")(b"", metadata=metadata)
        return [adapters_pb2.WatchAdaptersResponse.FromString(item) async for item in news]

    snapshot, *events = ask(identities, "uploader", question)
    assert {adapter.name for adapter in snapshot.snapshot.adapters} == {PUBLIC, OWN}
    assert [(item.event.name, item.revision) for item in events] == [(OWN, 1), (PUBLIC, 2)]
    assert [item.revision for item in ask(identities, "operator", question)] == [6, 7, 8, 9, 10, 11]
    assert SECRET.encode() not in b"".join(item.SerializeToString() for item in ask(identities, "tenant", question))


def test_load_and_counts_are_an_operators_to_see(identities):
    async def question(channel, metadata):
        answer = await channel.unary_unary("/blora.v1.EngineService/GetInfo")(b"", metadata=metadata)
        return engine_pb2.GetInfoResponse.FromString(answer)

    assert ask(identities, "operator", question).num_running == INFO.num_running
    seen = ask(identities, "tenant", question)
    facts = {"model", "dtype", "vocab_size", "max_model_len", "block_size", "version"}
    assert {field.name for field, _ in seen.ListFields()} == facts


@pytest.mark.parametrize(("caller", "whose"), [("tenant", "acme"), ("operator", None)])
def test_only_operators_end_the_requests_of_others(caller, whose, identities):
    llm = ThreeAdapters()

    async def question(channel, metadata):
        return await code(channel, E, "Abort", engine_pb2.AbortRequest(request_ids=["x"]), metadata)

    ask(identities, caller, question, llm)
    assert llm.aborted == ["x"] and llm.aborting_tenant == whose


@pytest.mark.parametrize(("claimed", "expected"), [("", OK), ("acme", OK), ("builder", DENIED), ("operations", DENIED)])
def test_the_tenant_comes_from_the_token(claimed, expected, identities):
    llm = ThreeAdapters()

    async def question(channel, metadata):
        request = generation_pb2.GenerateRequest(text="a")
        return await code(channel, G, "Generate", request, (*metadata, ("x-tenant-id", claimed)))

    assert ask(identities, "tenant", question, llm)[0] is expected
    assert [request["tenant"] for request in llm.requests] == (["acme"] if expected is OK else [])


def test_an_upload_beyond_the_quota_is_refused_before_it_is_read(identities):
    async def question(channel, metadata):
        header = adapters_pb2.UploadHeader()
        header.CopyFrom(UPLOAD[0].header)
        header.files[0].num_bytes = 101
        return await code(channel, A, "UploadAdapter", [adapters_pb2.UploadAdapterRequest(header=header)], metadata)

    found, text = ask(identities, "uploader", question)
    assert found is grpc.StatusCode.RESOURCE_EXHAUSTED and "100" in text


def test_identities_are_read_again_without_dropping_anything(identities, tmp_path, monkeypatch):
    monkeypatch.setattr("blora.engine.server.server.LOOK_INTERVAL", 0.01)
    path, llm = tmp_path / "identities.yaml", ThreeAdapters()
    (tmp_path / "system.txt").write_text("You are helpful.")
    llm.num_tokens_before_pause = 1

    async def body():
        async with connected(llm, identities) as channel:
            call = channel.unary_unary("/blora.v1.GenerationService/Generate")(
                generation_pb2.GenerateRequest(text="abc").SerializeToString(), metadata=of("tenant")
            )
            while not llm.requests:
                await asyncio.sleep(0.01)
            text = path.read_text()
            gone = text.replace(hashlib.sha256(TOKENS["tenant"].encode()).hexdigest(), "0" * 64)
            path.write_text(gone + "shared_prompts: [system.txt]\n")
            while not llm.shared_prompts:
                await asyncio.sleep(0.01)
            request = engine_pb2.GetInfoRequest()
            assert (await code(channel, E, "GetInfo", request, of("tenant")))[0] is UNKNOWN
            assert (await code(channel, E, "GetInfo", request, of("operator")))[0] is OK
            path.write_text("identities: [nonsense]")
            await asyncio.sleep(0.1)
            assert (await code(channel, E, "GetInfo", request, of("operator")))[0] is OK
            llm.resume.set()
            return await call

    assert run(body()) and llm.shared_prompts == ["You are helpful."]


# HTTP: the same callers, and the same rights. (method, path, body) -> the status for a tenant, one that may upload, an
# operator, and for nobody.
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "a"}]}
COMPLETION = {"model": "fake", "prompt": "a"}
HTTP_MATRIX = [
    ("POST", "/v1/chat/completions", CHAT, (200, 200, 200, 401)),
    ("POST", "/v1/chat/completions", CHAT | {"model": SECRET}, (404, 404, 200, 401)),
    ("POST", "/v1/chat/completions", CHAT | {"priority": -1}, (403, 403, 200, 401)),
    ("POST", "/v1/completions", COMPLETION, (200, 200, 200, 401)),
    ("POST", "/v1/completions", COMPLETION | {"model": OWN}, (404, 200, 200, 401)),
    ("POST", "/v1/completions", COMPLETION | {"model": SECRET, "stream": True}, (404, 404, 200, 401)),
    ("POST", "/v1/completions", COMPLETION | {"prompt": ["a", "b"], "model": SECRET}, (404, 404, 200, 401)),
    ("POST", "/v1/load_lora_adapter", {"lora_name": "builder/new", "lora_path": "/x"}, (403, 403, 200, 401)),
    ("POST", "/v1/unload_lora_adapter", {"lora_name": PUBLIC}, (403, 403, 200, 401)),
    ("POST", "/v1/unload_lora_adapter", {"lora_name": OWN}, (404, 200, 200, 401)),
    ("POST", "/v1/unload_lora_adapter", {"lora_name": SECRET}, (404, 404, 200, 401)),
    ("POST", "/tokenize", {"model": "fake", "prompt": "a"}, (200, 200, 200, 401)),
    ("POST", "/tokenize", {"model": SECRET, "prompt": "a"}, (404, 404, 200, 401)),
    ("POST", "/detokenize", {"model": "fake", "tokens": [97]}, (200, 200, 200, 401)),
    ("POST", "/detokenize", {"model": SECRET, "tokens": [97]}, (404, 404, 200, 401)),
    ("GET", "/v1/models", None, (200, 200, 200, 401)),
    ("GET", "/v1/models/{model:path}", None, (404, 404, 200, 401)),
    ("GET", "/health", None, (200, 200, 200, 200)),
    ("GET", "/ready", None, (200, 200, 200, 200)),
    ("GET", "/ping", None, (200, 200, 200, 200)),
    ("GET", "/version", None, (200, 200, 200, 200)),
    ("GET", "/load", None, (403, 403, 200, 401)),
    ("GET", "/metrics", None, (403, 403, 200, 401)),
]


@pytest.mark.parametrize("caller", [*TOKENS, "nobody"])
def test_rights_are_the_same_over_http(caller, identities):
    async def body():
        wrong, llm = [], ThreeAdapters()
        async with running_http(llm, access=Access(identities=identities)) as client:
            headers = {"authorization": f"Bearer {TOKENS[caller]}"} if caller in TOKENS else {}
            for method, path, asked, statuses in HTTP_MATRIX:
                llm.restore()
                target = path.replace("{model:path}", SECRET)
                answer = await client.request(method, target, json=asked, headers=headers)
                if answer.status_code != statuses[[*TOKENS, "nobody"].index(caller)]:
                    wrong.append((path, asked, answer.status_code, answer.text))
        return wrong

    assert not run(body())


def test_every_route_has_its_row():
    assert {route for _, route, _, _ in HTTP_MATRIX} == {*GENERATING, *POSTED, *GOTTEN}


def test_models_are_those_that_one_may_use(identities):
    async def body():
        async with running_http(ThreeAdapters(), access=Access(identities=identities)) as client:
            answer = await client.get("/v1/models", headers={"authorization": f"Bearer {TOKENS['uploader']}"})
            return {model["id"] for model in answer.json()["data"]}

    assert run(body()) == {"fake", PUBLIC, OWN}
