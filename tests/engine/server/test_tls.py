"""TLS and mTLS at both doors, and certificates that change while the server runs; the operators' own door."""

import asyncio
import ssl
import stat
from contextlib import asynccontextmanager, nullcontext

import grpc
import httpx
import pytest
from certificates import Authority, Identity
from fake_llm import HTTP, FakeLLM, run, running

from blora.engine.cli.identity_flags import access, operators_address
from blora.engine.cli.main import build_parser
from blora.engine.cli.telemetry_command import reader_check
from blora.engine.errors import PermissionDenied
from blora.engine.identity.filed_identities import FiledIdentities
from blora.engine.identity.identities import ApiKeys
from blora.engine.server.access import Access
from blora.engine.server.tls import Tls, TlsFiles
from blora.proto.client import AsyncClient, Client
from blora.proto.v1 import adapters_pb2, engine_pb2

AUTHORITY, OTHER = Authority(), Authority()
OK, DENIED = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def tls_in(folder, authority=AUTHORITY, **files):
    certificate, key = authority.identity("server").write(folder)
    return Tls(TlsFiles(certificate=certificate, key=key, **files))


async def grpc_code(target, root=AUTHORITY, client: Identity | None = None):
    own = (client.key, client.certificate) if client is not None else ()
    credentials = grpc.ssl_channel_credentials(root.certificate, *own)
    async with grpc.aio.secure_channel(target, credentials) as channel:
        return await code_over(channel)


async def code_over(channel, metadata=(), method="/blora.v1.EngineService/GetInfo", request=None):
    message = engine_pb2.GetInfoRequest() if request is None else request
    try:
        await channel.unary_unary(method)(message.SerializeToString(), metadata=metadata, timeout=50)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return OK


async def http_status(address, root=AUTHORITY, client=None):
    context = ssl.create_default_context(cadata=root.certificate.decode())
    if client is not None:
        context.load_cert_chain(*client)
    try:
        async with httpx.AsyncClient(verify=context) as asking:
            return (await asking.get(f"{address}/health")).status_code
    except (httpx.TransportError, ssl.SSLError):
        return None


@asynccontextmanager
async def served(tls):
    async with running(FakeLLM(), access=Access(tls=tls), http=HTTP) as server:
        yield server


def test_both_doors_speak_tls_and_nothing_else(tmp_path):
    async def body():
        async with served(tls_in(tmp_path)) as server:
            target, address = server.addresses
            assert address.startswith("https://")
            assert await grpc_code(target) is OK and await http_status(address) == 200
            assert await grpc_code(target, OTHER) is UNAVAILABLE and await http_status(address, OTHER) is None
            async with grpc.aio.insecure_channel(target) as channel:
                assert await code_over(channel) is UNAVAILABLE
            with pytest.raises(httpx.TransportError):
                async with httpx.AsyncClient() as asking:
                    await asking.get(f"http{address.removeprefix('https')}/health")

    run(body())


def test_clients_show_a_certificate_where_authorities_are_named(tmp_path):
    (tmp_path / "authorities.pem").write_bytes(AUTHORITY.certificate)
    (tmp_path / "client").mkdir()
    client = AUTHORITY.identity("client")
    files = client.write(tmp_path / "client")
    stranger = OTHER.identity("client")
    (tmp_path / "stranger").mkdir()

    async def body():
        async with served(tls_in(tmp_path, authorities=tmp_path / "authorities.pem")) as server:
            target, address = server.addresses
            assert await grpc_code(target, client=client) is OK
            assert await http_status(address, client=files) == 200
            for one, its in ((None, None), (stranger, stranger.write(tmp_path / "stranger"))):
                assert await grpc_code(target, client=one) is UNAVAILABLE
                assert await http_status(address, client=its) is None

    run(body())


def test_new_certificates_are_used_by_new_connections(tmp_path, monkeypatch):
    monkeypatch.setattr("blora.engine.server.server.LOOK_INTERVAL", 0.01)
    tls = tls_in(tmp_path)

    async def body():
        async with served(tls) as server:
            target, address = server.addresses
            root = grpc.ssl_channel_credentials(AUTHORITY.certificate)
            async with grpc.aio.secure_channel(target, root) as channel:
                assert await code_over(channel) is OK
                loaded = tls._loaded
                (tmp_path / "key.pem").write_bytes(b"half of a key")
                await asyncio.sleep(0.1)
                assert tls._loaded is loaded and await grpc_code(target) is OK
                OTHER.identity("server").write(tmp_path)
                while tls._loaded is loaded:
                    await asyncio.sleep(0.01)
                assert await code_over(channel) is OK  # it goes on with what it has
            assert await grpc_code(target, OTHER) is OK and await http_status(address, OTHER) == 200
            assert await grpc_code(target) is UNAVAILABLE and await http_status(address) is None

    run(body())


@pytest.mark.parametrize("broken", ["certificate.pem", "key.pem"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense", AUTHORITY.identity("another").key])
def test_files_that_cannot_be_used_are_named(broken, content, tmp_path):
    certificate, key = AUTHORITY.identity("server").write(tmp_path)
    if content is None:
        (tmp_path / broken).unlink()
    else:
        (tmp_path / broken).write_bytes(content)
    with pytest.raises(ValueError, match=broken):
        Tls(TlsFiles(certificate=certificate, key=key))


# The operators' own door.

UNLOAD = adapters_pb2.UnloadAdapterRequest(name="alice")
UNLOADS = "/blora.v1.AdapterService/UnloadAdapter"


@pytest.mark.parametrize("kind", ["unix", "port"])
def test_operators_have_a_door_of_their_own_and_no_right_at_the_others(kind, tmp_path):
    path = tmp_path / "admin.sock"
    who = Access(operators_address=f"unix:{path}" if kind == "unix" else "127.0.0.1:0")

    async def body():
        async with running(FakeLLM(), access=who, http=HTTP) as server:
            public, http, operators = server.addresses
            if kind == "unix":
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
            async with grpc.aio.insecure_channel(public) as channel:
                assert await code_over(channel, method=UNLOADS, request=UNLOAD) is DENIED
            async with httpx.AsyncClient(base_url=http) as asking:
                refused = await asking.post("/v1/unload_lora_adapter", json={"lora_name": "alice"})
                assert refused.status_code == 403
            async with grpc.aio.insecure_channel(operators.split()[0]) as channel:
                assert await code_over(channel, method=UNLOADS, request=UNLOAD) is OK

    run(body())


def test_a_key_gives_no_operators_right_where_operators_have_a_door():
    who = Access(identities=ApiKeys(["k" * 32]), operators_address="127.0.0.1:0")

    async def body():
        async with running(FakeLLM(), access=who) as server, grpc.aio.insecure_channel(server.address) as channel:
            key = (("authorization", "Bearer " + "k" * 32),)
            assert await code_over(channel, key) is OK
            assert await code_over(channel, key, UNLOADS, UNLOAD) is DENIED

    run(body())


# Flags.


def test_flags_of_the_doors(tmp_path):
    certificate, key = map(str, AUTHORITY.identity("server").write(tmp_path))
    flags = ["--ssl-certfile", certificate, "--ssl-keyfile", key, "--admin-port", "unix:/x"]
    parsed = access(build_parser().parse_args(["serve", "m", *flags]), "")
    assert parsed.tls is not None and parsed.operators_address == "unix:/x"
    (tmp_path / "i.yaml").write_text(f"identities: [{{tenant: a, token_sha256: [{'0' * 64}]}}]")
    filed = ["serve", "m", "--identities", str(tmp_path / "i.yaml")]
    assert isinstance(access(build_parser().parse_args(filed), "").identities, FiledIdentities)
    for also, key in ((["--api-key", certificate], ""), ([], "k" * 32)):
        with pytest.raises(ValueError, match="give one of them"):
            access(build_parser().parse_args([*filed, *also]), key)
    assert operators_address("9000") == "127.0.0.1:9000"
    for wrong in (["--ssl-certfile", certificate], ["--ssl-ca-certs", certificate], ["--share-prefixes"]):
        with pytest.raises(ValueError, match="--ssl|--share"):
            access(build_parser().parse_args(["serve", "m", *wrong]), "")
    for wrong in ("unix:", "x", "70000", "0.0.0.0:1"):
        with pytest.raises(SystemExit):
            build_parser().parse_args(["serve", "m", "--admin-port", wrong])


@pytest.mark.parametrize(("host", "is_open"), [("0.0.0.0", True), ("127.0.0.1", False), ("::", True), ("::1", False)])
def test_an_open_door_is_said_loudly(host, is_open, caplog):
    from blora.engine.server.server import Server

    async def body():
        Server(FakeLLM(), host, 0)
        Server(FakeLLM(), host, 0, access=Access(identities=ApiKeys(["k" * 32])))

    run(body())
    assert caplog.text.count("ANYBODY WHO REACHES THIS MACHINE") == is_open


def test_metrics_are_not_for_everybody_where_operators_have_a_door_of_their_own():
    for flags, is_open in (
        ([], True),
        (["--admin-port", "9000"], False),
        (["--admin-port", "9000", "--open-metrics"], True),
    ):
        args = build_parser().parse_args(["serve", "m", "--metrics-port", "0", *flags])
        with nullcontext() if is_open else pytest.raises(PermissionDenied):
            reader_check(args, access(args, ""))(None)


def test_an_open_door_for_http_alone_is_said_loudly(caplog):
    from blora.engine.server.http.options import HttpOptions
    from blora.engine.server.server import Server

    async def body():
        Server(FakeLLM(), "127.0.0.1", 0, http=HttpOptions(host="0.0.0.0", port=0, model="m", model_names=["m"]))

    run(body())
    assert "listens on 0.0.0.0" in caplog.text


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_clients_of_python_bring_a_certificate_and_a_token(kind, tmp_path):
    (tmp_path / "authorities.pem").write_bytes(AUTHORITY.certificate)
    own = AUTHORITY.identity("client")
    tls = tls_in(tmp_path, authorities=tmp_path / "authorities.pem")
    certificates = {"private_key": own.key, "certificate_chain": own.certificate}

    async def code(target, **arguments):
        try:
            if kind is AsyncClient:
                async with AsyncClient(target, root_certificates=AUTHORITY.certificate, timeout=50, **arguments) as one:
                    await one.info()
            else:
                with Client(target, root_certificates=AUTHORITY.certificate, timeout=50, **arguments) as one:
                    await asyncio.to_thread(one.info)
        except grpc.RpcError as error:
            return error.code()
        return OK

    async def body():
        access = Access(tls=tls, identities=ApiKeys(["k" * 32]))
        async with running(FakeLLM(), access=access) as server:
            assert await code(server.address, **certificates, token="k" * 32) is OK
            assert await code(server.address, **certificates, token="o" * 32) is grpc.StatusCode.UNAUTHENTICATED
            assert await code(server.address, token="k" * 32) is UNAVAILABLE

    run(body())
