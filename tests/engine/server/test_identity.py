"""Tokens over a real connection: who may call at all."""

from contextlib import asynccontextmanager

import grpc
import pytest
from fake_llm import FakeLLM, run, running

from blora.engine.cli.identity_flags import identities
from blora.engine.cli.main import build_parser
from blora.engine.errors import Unauthenticated
from blora.engine.identity.caller import Caller
from blora.engine.identity.identities import ApiKeys, bearer, read_api_keys
from blora.engine.identity.tenant import Tenant
from blora.engine.server.access import Access
from blora.proto.v1 import adapters_pb2, engine_pb2, generation_pb2

KEY, OTHER = "k" * 32, "o" * 32
METHODS = [
    f"/{service.full_name}/{method.name}"
    for module in (adapters_pb2, engine_pb2, generation_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
WITHOUT_RIGHT = [(), (("authorization", ""),), (("authorization", f"Bearer {KEY}x"),), (("authorization", KEY),)]
WITHOUT_RIGHT += [(("authorization", f"Basic {KEY}"),), (("authorization", f"Bearer {KEY}"),) * 2]


@asynccontextmanager
async def connected(llm, keys):
    async with (
        running(llm, access=Access(identities=ApiKeys(keys))) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield channel


async def codes(methods, *metadata):
    """The code of each method for bytes that are no message, so that a caller who may call gets INVALID_ARGUMENT."""
    found = set()
    async with connected(FakeLLM(), [KEY, OTHER]) as channel:
        for method in methods:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(b"\xff\xff\xff", metadata=metadata)
            assert KEY not in caught.value.details()
            found.add(caught.value.code())
    return found


@pytest.mark.parametrize("metadata", WITHOUT_RIGHT, ids=range(len(WITHOUT_RIGHT)))
def test_no_method_is_served_without_a_known_token(metadata):
    assert run(codes(METHODS, *metadata)) == {grpc.StatusCode.UNAUTHENTICATED}


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_each_key_opens_each_method(key):
    assert run(codes(METHODS, ("authorization", f"bearer {key}"))) == {grpc.StatusCode.INVALID_ARGUMENT}


@pytest.mark.parametrize("name", ["x-tenant-id", "x-llm-d-inference-fairness-id"])
def test_the_tenant_is_the_one_that_is_named(name):
    llm = FakeLLM()

    async def body():
        async with connected(llm, [KEY]) as channel:
            metadata = (("authorization", f"Bearer {KEY}"), (name, "acme"))
            request = generation_pb2.GenerateRequest(text="a").SerializeToString()
            await channel.unary_unary("/blora.v1.GenerationService/Generate")(request, metadata=metadata)

    run(body())
    assert llm.requests[0]["tenant"] == "acme"


def test_two_tenants_in_one_call_are_a_mistake():
    metadata = (("authorization", f"Bearer {KEY}"), ("x-tenant-id", "a"), ("x-llm-d-inference-fairness-id", "b"))
    assert run(codes(METHODS, *metadata)) == {grpc.StatusCode.INVALID_ARGUMENT}


def test_keys_are_read_from_a_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n\n  {OTHER}\n")
    assert read_api_keys(path) == [KEY, OTHER]


@pytest.mark.parametrize("keys", [[], ["short"], ["with a blank in it"], ["ключ" * 8], ["line\nbreak" * 4]])
def test_a_key_that_cannot_be_sent_or_can_be_guessed_is_refused(keys):
    with pytest.raises(ValueError, match="API key"):
        ApiKeys(keys)


def test_the_value_of_a_header():
    assert bearer([]) is None and bearer(["Bearer  abc "]) == "abc" and bearer(["BEARER abc"]) == "abc"
    assert bearer(["Basic abc"]) is None and bearer(["Bearer abc", "Bearer abc"]) is None


def known(tmp_path, *lines, environment=""):
    path = tmp_path / "keys"
    path.write_text("\n".join(lines))
    args = build_parser().parse_args(["serve", "m", "--api-key", str(path)] if lines else ["serve", "m"])
    return identities(args, environment)


def test_the_command_line_takes_keys_from_a_file_and_the_environment(tmp_path):
    both = known(tmp_path, KEY, environment=OTHER)
    assert both.of(KEY).is_operator and both.of(OTHER).is_operator
    with pytest.raises(Unauthenticated):
        both.of("x" * 32)
    with pytest.raises(Unauthenticated):
        known(tmp_path, environment=OTHER).of(None)
    assert known(tmp_path).of(None, "acme") == Caller(tenant=Tenant("acme"), is_operator=True)


def test_a_key_on_the_command_line_is_refused_and_not_repeated():
    args = build_parser().parse_args(["serve", "m", "--api-key", KEY])
    with pytest.raises(ValueError, match="takes a file") as caught:
        identities(args, "")
    assert KEY not in str(caught.value)


def test_a_file_without_a_key_does_not_open_the_server(tmp_path):
    with pytest.raises(ValueError, match="no key"):
        known(tmp_path, " ")
