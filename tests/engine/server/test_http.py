"""OpenAI's API over HTTP, around an engine that echoes: what requests become, and what answers look like."""

import asyncio
import json
from dataclasses import replace

import httpx
import pytest
from fake_llm import HTTP, FakeLLM, run, running, running_http
from msgspec import Raw

from blora.engine import errors
from blora.engine.front_end.adapter_choice import read_adapters
from blora.engine.identity.identities import ApiKeys
from blora.engine.outputs import Logprob
from blora.engine.server.access import Access
from blora.engine.server.http import prompts as http_prompts
from blora.engine.server.http.logprobs import most_likely
from blora.engine.server.http.requests import listed
from blora.engine.server.message_sizes import largest_body
from blora.scheduler import RequestOutputKind

HELLO = [{"role": "user", "content": "hi"}]
HELLO_IDS = [ord(character) for character in "<user>hi<assistant>"]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def post(path, body, llm=None, headers=None, **options):
    """Returns the answer to one request."""

    async def conversation():
        async with running_http(llm or FakeLLM(), **options) as client:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await client.post(path, content=data, headers=headers)

    return run(conversation())


def get(path, llm=None):
    async def conversation():
        async with running_http(llm or FakeLLM()) as client:
            return await client.get(path)

    return run(conversation())


def events(response):
    """Returns the chunks of a stream, which has to end as such streams do."""
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and all(line.startswith("data: ") for line in lines[:-1])
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def refused(response):
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    return response.status_code, response.json()["error"]


def test_a_chat():
    llm = FakeLLM()
    answer = post(CHAT, {"model": "fake", "messages": HELLO, "max_tokens": 6}, llm).json()
    assert answer["object"] == "chat.completion" and answer["model"] == "fake" and answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "<user>", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": len(HELLO_IDS),
        "completion_tokens": 6,
        "total_tokens": len(HELLO_IDS) + 6,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert llm.requests[0]["sampling"].output_kind is RequestOutputKind.FINAL_ONLY


def test_a_streamed_chat():
    body = {"messages": HELLO, "max_tokens": 3, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(post(CHAT, body))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in (*chunks, last)}) == 1
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert [choice["delta"].get("role") for choice in own] == ["assistant", None, None]
        assert "".join(choice["delta"]["content"] for choice in own) == "<us"
        assert [choice["finish_reason"] for choice in own] == [None, None, "length"]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 6


def test_counts_in_every_chunk():
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(post(CHAT, {"messages": HELLO, "max_tokens": 2, "stream": True, "stream_options": options}))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 2]


def test_a_stream_tells_the_tokens_of_its_prompt_once():
    body = {"max_tokens": 3, "n": 2, "stream": True, "return_token_ids": True}
    first, *others = events(post(CHAT, body | {"messages": HELLO}))
    assert first["prompt_token_ids"] == HELLO_IDS and not any("prompt_token_ids" in chunk for chunk in others)
    choices = [chunk["choices"][0] for chunk in events(post(COMPLETIONS, body | {"prompt": "abc"}))]
    for index in range(2):
        first, *others = [choice for choice in choices if choice["index"] == index]
        assert first["prompt_token_ids"] == [97, 98, 99] and others
        assert not any("prompt_token_ids" in choice for choice in others)


def test_a_name_as_long_as_a_body_is_not_repeated():
    status, error = refused(post(CHAT, {"model": "x" * 5000, "messages": HELLO}))
    assert status == 404 and len(error["message"]) < 300


def test_options_of_a_stream_without_a_stream_are_refused():
    status, error = refused(post(CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}))
    assert (status, error["param"]) == (400, "stream_options")


def test_completions_of_several_prompts():
    body = {"prompt": ["ab", "cde"], "max_tokens": 2, "n": 2}
    answer = post(COMPLETIONS, body).json()
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "ab"), (1, "ab"), (2, "cd"), (3, "cd")
    ]  # fmt: skip
    assert answer["usage"]["prompt_tokens"] == 5 and answer["usage"]["completion_tokens"] == 8
    texts = {}
    for chunk in events(post(COMPLETIONS, body | {"stream": True})):
        (choice,) = chunk["choices"]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {0: "ab", 1: "ab", 2: "cd", 3: "cd"}


@pytest.mark.parametrize(
    ("prompt", "forms"),
    [
        ("ab", [{"prompt": "ab"}]),
        ([97, 98], [{"prompt_token_ids": [97, 98]}]),
        ([[97], [98, 99]], [{"prompt_token_ids": [97]}, {"prompt_token_ids": [98, 99]}]),
        (["a", [98]], [{"prompt": "a"}, {"prompt_token_ids": [98]}]),
    ],
)
def test_forms_of_prompts(prompt, forms):
    llm = FakeLLM()
    assert post(COMPLETIONS, {"prompt": prompt}, llm).status_code == 200
    assert [request["prompt"] for request in llm.requests] == forms


@pytest.mark.parametrize("prompt", [None, {}, 7, [None], ["a", 1], [1, "a"], [[1.5]], [True], [[[1]]]])
def test_what_is_no_prompt(prompt):
    status, error = refused(post(COMPLETIONS, {"prompt": prompt}))
    assert status == 400 and error["param"].startswith("prompt") and error["type"] == "BadRequestError"


def test_echo_shows_the_prompt_and_its_logprobs():
    body = {"prompt": [97, 98, 99], "max_tokens": 2, "echo": True, "logprobs": 1}
    (choice,) = post(COMPLETIONS, body).json()["choices"]
    assert choice["text"] == "abcab" and choice["logprobs"]["tokens"][0] == "a"
    assert sorted(choice["logprobs"]["token_logprobs"][1:]) == [-1.5, -1.5, -0.5, -0.25]
    assert choice["logprobs"]["token_logprobs"][0] is None
    streamed = events(post(COMPLETIONS, body | {"stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == "abcab"
    assert post(COMPLETIONS, body | {"max_tokens": 0}).json()["choices"][0]["text"] == "abc"


def test_an_echo_alone_counts_no_token_and_ends_by_its_length():
    llm = FakeLLM()
    llm.finish_reason, llm.stop_reason = "stop", 7
    body = {"prompt": "abc", "max_tokens": 0, "echo": True}
    answer = post(COMPLETIONS, body, llm).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(post(COMPLETIONS, body | options, llm))
    for choice, usage in ((answer["choices"][0], answer["usage"]), (chunks[-1]["choices"][0], last["usage"])):
        assert (usage["completion_tokens"], usage["total_tokens"]) == (0, 3)
        assert choice["finish_reason"] == "length" and "stop_reason" not in choice


def test_an_echo_of_a_prompt_that_is_cut_is_refused():
    """Its text would be that of the whole prompt, and its logprobs those of the tokens that are left."""
    body = {"prompt": "abc", "max_tokens": 3, "echo": True, "truncate_prompt_tokens": 2}
    status, error = refused(post(COMPLETIONS, body))
    assert (status, error["param"]) == (400, "echo") and "truncate_prompt_tokens" in error["message"]
    assert post(COMPLETIONS, body | {"echo": False}).status_code == 200


@pytest.mark.parametrize(("logprobs", "of_prompt"), [(0, 3), (3, 1)])
def test_an_echo_with_logprobs_leaves_those_of_the_prompt(logprobs, of_prompt):
    llm = FakeLLM()
    body = {"prompt": "abc", "max_tokens": 3, "echo": True, "logprobs": logprobs, "prompt_logprobs": of_prompt}
    (choice,) = post(COMPLETIONS, body, llm).json()["choices"]
    assert llm.requests[0]["sampling"].prompt_logprobs == 3 and len(choice["prompt_logprobs"]) == 3
    assert refused(post(COMPLETIONS, body | {"prompt_logprobs": -1}))[1]["param"] == "prompt_logprobs"


def test_more_candidates_than_were_asked_for_are_left_out():
    four = {token_id: Logprob(-1.0 * token_id, token_id) for token_id in (1, 2, 3, 9)}
    assert [list(kept or ()) for kept in most_likely([5, 9], [None, four], 1)] == [[], [1, 9]]


def test_logprobs_of_a_chat():
    body = {"messages": HELLO, "max_tokens": 1, "logprobs": True, "top_logprobs": 2}
    shown = [post(CHAT, body).json()["choices"][0]["logprobs"]]
    shown += [chunk["choices"][0]["logprobs"] for chunk in events(post(CHAT, body | {"stream": True}))]
    seven = {"token": "seven", "logprob": -0.5, "bytes": list(b"seven")}
    own = {"token": "", "logprob": -1.5, "bytes": []}
    assert shown == 2 * [{"content": [own | {"top_logprobs": [seven, {"token": "", "logprob": -1.0, "bytes": []}]}]}]


def test_logprobs_of_a_completion():
    (choice,) = post(COMPLETIONS, {"prompt": "ab", "max_tokens": 2, "logprobs": 1}).json()["choices"]
    assert choice["logprobs"] == {
        "text_offset": [0, 0],
        "token_logprobs": [-1.5, -1.5],
        "tokens": ["", ""],
        "top_logprobs": 2 * [{"seven": -0.5, "": -1.5}],
    }


def test_fields_of_vllm_reach_the_engine():
    llm = FakeLLM()
    fields = {
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5, "stop_token_ids": [3], "ignore_eos": True,
        "min_tokens": 2, "include_stop_str_in_output": True, "skip_special_tokens": False, "seed": 3,
        "bad_words": ["x"], "allowed_token_ids": [1, 2], "temperature": 0, "top_p": 0.5, "presence_penalty": 1,
    }  # fmt: skip
    body = {"prompt": "ab", "logit_bias": {"7": 1.5}, "stop": "x", "priority": 3, "cache_salt": "s", "nonsense": [1]}
    post(COMPLETIONS, body | fields, llm, {"x-tenant-id": "t"})
    (request,) = llm.requests
    assert {name: getattr(request["sampling"], name) for name in fields} == fields
    assert request["sampling"].logit_bias == {7: 1.5} and request["sampling"].stop == "x"
    assert (request["priority"], request["tenant"]) == (3, "t")
    assert request["prompt"] == {"prompt": "ab", "cache_salt": "s"}


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        (CHAT, {}, None),
        (CHAT, {"max_tokens": 5}, 5),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        (COMPLETIONS, {}, 16),
        (COMPLETIONS, {"max_tokens": 5}, 5),
    ],
)
def test_how_many_tokens(path, fields, expected):
    llm = FakeLLM()
    post(path, {"messages": HELLO, "prompt": "a"} | fields, llm)
    assert llm.requests[0]["sampling"].max_tokens == expected


@pytest.mark.parametrize("field", ["use_beam_search", "suffix", "prompt_embeds", "chat_template", "vllm_xargs"])
def test_fields_that_would_change_an_answer_are_refused(field):
    status, error = refused(post(COMPLETIONS, {"prompt": "a", field: {"x": 1}}))
    assert (status, error["param"]) == (400, field)
    assert post(COMPLETIONS, {"prompt": "a", field: None}).status_code == 200


@pytest.mark.parametrize(
    ("body", "uses"),
    [
        ({}, []),
        ({"model": "fake"}, []),
        ({"model": "alice"}, [("alice", 1.0)]),
        ({"model": "alice:0.5+bob:2"}, [("alice", 0.5), ("bob", 2.0)]),
        ({"model": "alice+bob"}, [("alice", 1.0), ("bob", 1.0)]),
        ({"lora": {"alice": 1, "bob": -0.5}}, [("alice", 1.0), ("bob", -0.5)]),
        ({"model": "fake", "lora": {"alice": 0.25}}, [("alice", 0.25)]),
    ],
)
def test_what_a_model_means(body, uses):
    llm = FakeLLM()
    llm.adapters["bob"] = llm.adapters["alice"]
    assert post(COMPLETIONS, {"prompt": "a"} | body, llm).status_code == 200
    requests = read_adapters(llm.requests[0]["adapter"])
    assert [(request.lora_name, request.lora_scale) for request in requests] == uses


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"model": "alice:x"}, 400, "model"),
        ({"model": "alice+"}, 400, "model"),
        ({"model": "alice:1." + "0" * 40}, 400, "model"),
        ({"model": "alice+alice"}, 400, "model"),
        ({"model": "+".join("abcdefghij")}, 400, "model"),
        ({"model": "alice", "lora": {"alice": 1}}, 400, "lora"),
        ({"lora": {}}, 400, "lora"),
        ({"lora": {"alice": "x"}}, 400, "lora[...]"),
        ({"lora": {"alice": 1e9}}, 400, "lora"),
    ],
)
def test_what_a_model_cannot_mean(body, status, param):
    seen, error = refused(post(COMPLETIONS, {"prompt": "a"} | body))
    assert (seen, error["param"], error["code"]) == (status, param, status)


def test_ids():
    llm = FakeLLM()
    answer = post(COMPLETIONS, {"prompt": "a"}, llm, {"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert answer.json()["id"] == llm.requests[0]["id"] and answer.json()["id"].startswith("cmpl-mine-")
    assert refused(post(COMPLETIONS, {"prompt": "a"}, headers={"x-request-id": "x" * 200}))[0] == 400


@pytest.mark.parametrize("label", ["x" * 200, "\u00e4" * 100, "two\nlines"], ids=["long", "many-bytes", "lines"])
def test_an_id_in_a_body_has_the_limits_of_the_header(label):
    status, error = refused(post(COMPLETIONS, {"prompt": "a", "request_id": label}))
    assert (status, error["param"]) == (400, "request_id")
    answer = post(COMPLETIONS, {"prompt": "a", "request_id": "mine"}).json()
    assert answer["id"].startswith("cmpl-mine-")


def test_a_text_without_its_special_tokens_is_refused():
    status, error = refused(post(COMPLETIONS, {"prompt": "a", "add_special_tokens": False}))
    assert (status, error["param"]) == (400, "add_special_tokens")
    assert post(COMPLETIONS, {"prompt": "a", "add_special_tokens": None}).status_code == 200


MANY = 5000


@pytest.mark.parametrize("prompts", [[[]] * MANY, ["a"] + [[]] * MANY, ["a"] * MANY], ids=["lists", "mixed", "texts"])
def test_too_many_prompts(monkeypatch, prompts):
    kinds = []

    def noted(name, raw, kind):
        kinds.append(kind)
        return listed(name, raw, kind)

    monkeypatch.setattr(http_prompts, "listed", noted)
    with pytest.raises(errors.InvalidRequest, match="at most|is no str"):
        http_prompts.read_prompts(Raw(json.dumps(prompts).encode()))
    assert prompts[-1] == "a" or list[str | list[int]] not in kinds  # no list was made


def test_texts_may_have_many_brackets():
    prompts = ["[" * MANY, "a"]
    assert http_prompts.read_prompts(Raw(json.dumps(prompts).encode())) == prompts


def test_the_place_of_a_wrong_value_is_named():
    for field, value, place in [
        ("response_format", {"type": None}, "response_format.type"),
        ("structured_outputs", {"choice": [1]}, "structured_outputs.choice[0]"),
        ("stop_token_ids", ["x"], "stop_token_ids[0]"),
    ]:
        assert refused(post(COMPLETIONS, {"prompt": "a", field: value}))[1]["param"] == place


RENAMED = [
    (CHAT, {"response_format": {"type": "json_object"}}, "structured_outputs.json", "response_format"),
    (CHAT, {"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "structured_outputs.regex"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "logprobs", "top_logprobs"),
    (CHAT, {"max_completion_tokens": 7, "max_tokens": 5}, "max_tokens", "max_completion_tokens"),
    (CHAT, {"max_tokens": 5}, "max_tokens", "max_tokens"),
    (CHAT, {}, "prompt", "messages"),
    (CHAT, {"lora": {"alice": 1}}, "lora_request", "lora"),
    (CHAT, {"model": "alice"}, "lora_request", "model"),
    (COMPLETIONS, {"echo": True, "logprobs": 21}, "prompt_logprobs", "logprobs"),
    (COMPLETIONS, {"echo": True, "logprobs": 1, "prompt_logprobs": 21}, "prompt_logprobs", "prompt_logprobs"),
    (COMPLETIONS, {"logprobs": 21}, "logprobs", "logprobs"),
    (COMPLETIONS, {}, "prompt", "prompt"),
]


@pytest.mark.parametrize(("path", "fields", "field", "shown"), RENAMED)
def test_errors_name_what_the_client_sent(path, fields, field, shown):
    llm = FakeLLM()
    llm.error = errors.InvalidRequest(field, "is wrong")
    status, told = refused(post(path, {"messages": HELLO, "prompt": "a"} | fields, llm))
    assert (status, told["param"], told["message"]) == (400, shown, f"{shown}: is wrong")


def test_deadlines():
    llm = FakeLLM()
    post(COMPLETIONS, {"prompt": "a"}, llm, {"x-request-timeout-ms": "100000"})
    assert llm.requests[0]["deadline"] is not None
    for bad in ("0", "-5", "soon", "1.5", "9" * 40):
        assert refused(post(COMPLETIONS, {"prompt": "a"}, headers={"x-request-timeout-ms": bad}))[0] == 400


ERRORS = [
    (errors.InvalidRequest("n", "is too large"), 400, "n"),
    (errors.AdapterNotFound("bob"), 404, "model"),
    (errors.AdapterRejected("bob", ["rank"]), 400, None),
    (errors.DeadlineExceeded("too late"), 408, None),
    (errors.QueueFull("queue is full", 1.5), 429, None),
    (errors.EngineUnavailable("restarting"), 503, None),
    (ValueError("/secret/path"), 500, None),
]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("error", "status", "param"), ERRORS, ids=[type(case[0]).__name__ for case in ERRORS])
def test_errors(error, status, param, is_streamed):
    llm = FakeLLM()
    llm.error = error
    response = post(COMPLETIONS, {"prompt": "a", "stream": is_streamed}, llm)
    seen, told = refused(response)
    assert (seen, told["param"], told["code"]) == (status, param, status) and "secret" not in told["message"]
    retry = (response.headers.get("retry-after"), response.headers.get("retry-after-ms"))
    assert retry == (("2", "1500") if status == 429 else (None, None))


def test_an_error_in_a_stream_is_its_last_event():
    llm = FakeLLM()
    llm.failed_samples = {0}
    *chunks, last = events(post(COMPLETIONS, {"prompt": "ab", "stream": True}, llm))
    assert chunks[-1]["choices"][0]["finish_reason"] == "error"
    assert last["error"]["code"] == 500 and "not finite" in last["error"]["message"]
    assert refused(post(COMPLETIONS, {"prompt": "ab"}, llm))[0] == 500


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"\xff", b'{"prompt": "a"', b'{"prompt": "a", "n": NaN}', b'{"a": ' + b"[" * 100000]
)
def test_what_is_no_body(body):
    assert refused(post(COMPLETIONS, body))[0] == 400


def test_a_body_that_is_too_large_is_not_read():
    most = largest_body(FakeLLM.max_model_len)
    assert refused(post(COMPLETIONS, b" " * (most + 1)))[0] == 413

    async def in_chunks():
        async with running_http(FakeLLM()) as client:

            async def chunks():
                for _ in range(most // 1000):
                    yield b" " * 1024

            return await client.post(COMPLETIONS, content=chunks())

    assert run(in_chunks()).status_code == 413


def test_a_client_that_leaves_ends_its_request():
    llm = FakeLLM()
    llm.num_tokens_before_pause = 1

    async def body():
        async with running_http(llm) as client:
            for is_streamed in (True, False):
                with pytest.raises(httpx.ReadTimeout):
                    async with asyncio.timeout(50):
                        await client.post(
                            COMPLETIONS, json={"prompt": "ab", "stream": is_streamed, "logprobs": 0}, timeout=0.2
                        )
            while len(llm.closed) < 2:
                await asyncio.sleep(0.01)

    run(body())


def test_models():
    llm = FakeLLM()
    base, alice = get("/v1/models", llm).json()["data"]
    assert (base["id"], base["root"], base["parent"]) == ("fake", "/models/fake", None)
    assert (alice["id"], alice["root"], alice["parent"]) == ("alice", "/adapters/some", "fake")
    assert alice["created"] == 2_000_000_000 and base["max_model_len"] == llm.max_model_len
    assert get("/v1/models/fake").json()["id"] == "fake" and get("/v1/models/alice").json() == alice
    assert refused(get("/v1/models/no/body"))[0] == 404


def test_all_names_of_the_model_are_listed_and_its_path_is_not():
    options = replace(HTTP, model_names=["a", "b", HTTP.model])

    async def body():
        async with running_http(FakeLLM(), options) as client:
            return (await client.get("/v1/models")).json()["data"]

    models = run(body())
    assert [(model["id"], model["parent"]) for model in models] == [("a", None), ("b", None), ("alice", "a")]


def test_adapters_are_loaded_and_unloaded():
    llm = FakeLLM()
    load = {"lora_name": "bob", "lora_path": "/adapters/bob"}
    loaded = post("/v1/load_lora_adapter", load, llm)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'bob' added successfully.")
    assert refused(post("/v1/load_lora_adapter", load, llm))[0] == 400
    assert post("/v1/load_lora_adapter", load | {"load_inplace": True}, llm).status_code == 200
    assert refused(post("/v1/load_lora_adapter", load | {"lora_name": "fake"}, llm))[0] == 400
    assert refused(post("/v1/load_lora_adapter", {"lora_name": "eve"}, llm))[0] == 400
    unloaded = post("/v1/unload_lora_adapter", {"lora_name": "bob"}, llm)
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'bob' removed successfully.")
    assert refused(post("/v1/unload_lora_adapter", {"lora_name": "bob"}, llm))[0] == 404
    assert llm.adapters.keys() == {"alice"}


def test_probes():
    llm = FakeLLM()

    async def body():
        async with running_http(llm) as client:
            paths = ("/health", "/ready", "/ping")
            assert [(await client.get(path)).status_code for path in paths] == [200, 200, 200]
            llm.set_serving(False)
            assert [(await client.get(path)).status_code for path in paths] == [503, 503, 503]
            assert (await client.get("/version")).json()["version"]
            assert (await client.get("/load")).json() == {"server_load": 0}

    run(body())


def test_other_routes_and_methods():
    assert refused(get("/v1/nothing"))[0] == 404
    assert refused(get(CHAT))[0] == 405
    status, error = refused(post("/v1/responses", {"input": "hi"}))
    assert status == 404 and CHAT in error["message"]


def test_a_drain_finishes_streams_and_refuses_new_requests():
    llm = FakeLLM()
    llm.num_tokens_before_pause = 1

    async def ends_well(server, client, stream):
        lines = stream.aiter_lines()
        first = await anext(lines)
        drain = asyncio.create_task(server.drain())
        await asyncio.sleep(0.05)
        refusal = await client.post(COMPLETIONS, json={"prompt": "abc"})
        assert refusal.status_code == 503 and (await client.get("/health")).status_code == 503
        assert not drain.done()
        llm.resume.set()
        rest = [line async for line in lines if line]
        await drain
        assert "error" not in first and rest[-1] == "data: [DONE]" and len(rest) == 3

    async def body():
        async with (
            running(llm, http=HTTP) as server,
            httpx.AsyncClient(base_url=server.addresses[1]) as client,
            client.stream("POST", COMPLETIONS, json={"prompt": "abc", "stream": True}) as stream,
        ):
            await ends_well(server, client, stream)

    run(body())
    assert not llm.closed


def test_pages_of_a_named_origin_may_ask():
    options = replace(HTTP, allowed_origins=["https://a.example"])
    ask = {"origin": "https://a.example", "access-control-request-method": "POST"}

    async def body():
        async with running_http(FakeLLM(), options=options) as client:
            asked = await client.options(CHAT, headers=ask)
            other = await client.options(CHAT, headers=ask | {"origin": "https://b.example"})
            return asked.headers.get("access-control-allow-origin"), other.headers.get("access-control-allow-origin")

    assert run(body()) == ("https://a.example", None)


def test_pages_see_the_id_and_when_to_try_again():
    async def body():
        async with running_http(FakeLLM(), options=replace(HTTP, allowed_origins=["*"])) as client:
            return await client.get("/version", headers={"origin": "https://a.example"})

    shown = run(body()).headers["access-control-expose-headers"].lower()
    assert shown.split(", ") == ["x-request-id", "retry-after", "retry-after-ms"]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("response_format", {"type": "text"}, None),
        ("response_format", {"type": "json_object"}, {"json_object": True}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, {"json": SCHEMA}),
        ("structured_outputs", {"json": SCHEMA}, {"json": SCHEMA}),
        ("structured_outputs", {"json": json.dumps(SCHEMA)}, {"json": SCHEMA}),
        ("structured_outputs", {"regex": "a+"}, {"regex": "a+"}),
        ("structured_outputs", {"choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ("structured_outputs", {"grammar": "start: A"}, {"grammar": "start: A"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_an_answer_has_to_match(path, field, value, expected):
    llm = FakeLLM()
    assert post(path, {"prompt": "a", "messages": HELLO, field: value}, llm).status_code == 200
    given = llm.requests[0]["sampling"].structured_outputs
    if expected is None:
        assert given is None
    else:
        ((name, wanted),) = expected.items()
        seen = getattr(given, name)
        assert (json.loads(seen) if name == "json" else seen) == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"response_format": "json"},
        {"structured_outputs": {"regex": 7}},
        {"structured_outputs": {"regex": "x" * (1 << 18)}},
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
    ],
    ids=["type", "no-schema", "empty-schema", "text", "number", "large", "both"],
)
def test_formats_that_are_none(fields):
    status, error = refused(post(COMPLETIONS, {"prompt": "a"} | fields))
    assert status == 400 and error["param"].startswith(next(iter(fields)))


def test_a_token_opens_all_but_the_probes():
    access = Access(identities=ApiKeys(["a-key-of-one-service"]))

    async def body():
        async with running_http(FakeLLM(), access=access) as client:
            for path in ("/health", "/ping", "/version"):
                assert (await client.get(path)).status_code == 200
            for path in ("/v1/models", "/metrics"):
                assert refused(await client.get(path))[0] == 401
                wrong = await client.get(path, headers={"authorization": "Bearer another-key"})
                assert refused(wrong)[1]["type"] == "AuthenticationError"
                own = await client.get(path, headers={"authorization": "Bearer a-key-of-one-service"})
                assert own.status_code == 200

    run(body())


@pytest.mark.parametrize("value", ["Basic YTpi", "abc", ""])
def test_without_identities_credentials_of_any_kind_do_not_matter(value):
    """As vLLM without --api-key; a proxy may leave its own."""
    assert post(COMPLETIONS, {"prompt": "a"}, headers={"authorization": value}).status_code == 200


def test_metrics():
    answer = get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain") and "blora:num_requests_running" in answer.text


def test_metrics_may_be_open():
    async def body():
        options = replace(HTTP, shows_metrics=True, metrics_prefix="vllm")
        access = Access(identities=ApiKeys(["a-key-of-one-service"]))
        async with running_http(FakeLLM(), options, access=access) as client:
            answer = await client.get("/metrics")
            return answer.status_code, "vllm:num_requests_running" in answer.text

    assert run(body()) == (200, True)


def test_texts_and_conversations_become_tokens_and_texts_again():
    llm = FakeLLM()
    told = post("/tokenize", {"prompt": "hi", "return_token_strs": True}, llm).json()
    assert (told["count"], told["tokens"], told["token_strs"]) == (3, [1, 104, 105], ["\1", "h", "i"])
    assert post("/tokenize", {"prompt": "hi", "add_special_tokens": False}, llm).json()["tokens"] == [104, 105]
    assert told["max_model_len"] == 64
    assert post("/tokenize", {"messages": HELLO}, llm).json()["tokens"] == [1, *HELLO_IDS]
    assert post("/detokenize", {"tokens": [104, 105]}, llm).json() == {"prompt": "hi"}
    for path, body in (("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": HELLO}), ("/detokenize", {})):
        assert refused(post(path, body, llm))[0] == 400
