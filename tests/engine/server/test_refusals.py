"""Refusals are the same through all doors: in process, over gRPC and over HTTP."""

import asyncio

import grpc
import httpx
import pytest
from fake_llm import HTTP, running
from shared_engine import shared_engine

from blora.engine import SamplingParams
from blora.engine.errors import AdapterNotFound, InvalidRequest
from blora.proto.client import Client

CASES = {
    "temperature": {"temperature": -1.0},
    "top_p": {"top_p": 0.0},
    "top_k": {"top_k": -2},
    "min_p": {"min_p": 2.0},
    "presence_penalty": {"presence_penalty": 3.0},
    "frequency_penalty": {"frequency_penalty": -3.0},
    "repetition_penalty": {"repetition_penalty": 0.0},
    "n": {"n": 0},
    "n-many": {"n": 1 << 30},
    "max_tokens": {"max_tokens": 0},
    "min_tokens": {"min_tokens": 9, "max_tokens": 8},
    "logprobs": {"logprobs": 21},
    "prompt_logprobs": {"prompt_logprobs": 21},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 0},
    "stop": {"stop": [""]},
    "stop-many": {"stop": ["x"] * 300},
    "stop_token_ids": {"stop_token_ids": [260]},
    "stop_token_ids-many": {"stop_token_ids": [1] * 300},
    "logit_bias": {"logit_bias": {4_000_000_000: 1.0}},
    "bad_words": {"bad_words": ["x" * 300]},
    "allowed_token_ids": {"allowed_token_ids": [260]},
    "prompt-empty": {"prompt": ""},
    "prompt-no-token": {"prompt": []},
    "prompt-token": {"prompt": [260]},
    "prompt-long": {"prompt": [1] * 300},
    "prompt-long-text": {"prompt": "x" * 5000},
    "tenant": {"tenant": "x" * 200},
    "cache_salt": {"cache_salt": "x" * 200},
    "adapter": {"adapter": "nobody"},
    "adapter-twice": {"adapter": {"r4": 1.0, "r4@1": 1.0}},
    "adapter-scale": {"adapter": {"r4": 1e9}},
    "adapters-many": {"adapter": {f"a{number}": 1.0 for number in range(9)}},
}


async def in_process(llm, case):
    fields = {"max_tokens": 4, **case}
    prompt, adapter, tenant, salt = (fields.pop(name, None) for name in ("prompt", "adapter", "tenant", "cache_salt"))
    form = {"prompt_token_ids": prompt} if isinstance(prompt, list) else {"prompt": "a" if prompt is None else prompt}
    form |= {} if salt is None else {"cache_salt": salt}
    with pytest.raises((InvalidRequest, AdapterNotFound)) as raised:
        async for _ in llm.generate(form, SamplingParams(**fields), lora_request=adapter, tenant=tenant or ""):
            pass
    return type(raised.value), str(raised.value)


def over_grpc(address, case):
    fields = {"max_tokens": 4, **case}
    prompt, adapter, tenant = (fields.pop(name, None) for name in ("prompt", "adapter", "tenant"))
    with Client(address, timeout=100, tenant=tenant or "") as client, pytest.raises(grpc.RpcError) as raised:
        client.generate("a" if prompt is None else prompt, adapter, **fields)
    return raised.value.code(), raised.value.details()


async def over_http(address, case):
    body = {"prompt": "a", "max_tokens": 4, **case}
    adapter, tenant = body.pop("adapter", None), body.pop("tenant", "")
    if adapter is not None:
        body["lora" if isinstance(adapter, dict) else "model"] = adapter
    async with httpx.AsyncClient(base_url=address) as client:
        response = await client.post("/v1/completions", json=body, headers={"x-tenant-id": tenant})
    return response.status_code, response.json()["error"]["message"]


STATUSES = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, 400),
    AdapterNotFound: (grpc.StatusCode.NOT_FOUND, 404),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_refusals_are_the_same_through_all_doors(tiny_model, tiny_adapters, case):
    async def body(llm):
        kind, text = await in_process(llm, case)
        async with running(llm, http=HTTP) as server:
            code, details = await asyncio.to_thread(over_grpc, server.address, case)
            status, message = await over_http(server.addresses[1], case)
        assert (code, status) == STATUSES[kind]
        words = message.replace("lora: ", "lora_request: ")  # over HTTP the field has this name
        assert {details, words} == {text}

    shared_engine.run(tiny_model, body, {"r4": tiny_adapters["r4"]})


def test_a_number_that_is_no_priority_is_a_mistake_and_no_matter_of_rights(tiny_model, tiny_adapters):
    async def body(llm):
        async with running(llm, http=HTTP) as server:
            status, message = await over_http(server.addresses[1], {"priority": 1 << 31})
        assert status == 400 and message.startswith("priority: ")

    shared_engine.run(tiny_model, body, {"r4": tiny_adapters["r4"]})
