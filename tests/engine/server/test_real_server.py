"""`blora serve` as a process with a real engine, as clients see it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from processes import is_there
from served import GREEDY, LONG, Served, refusal, serving, tokens

from blora.engine import LLM, SamplingParams
from blora.proto.client import Client

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tiny_adapters: dict[str, Path]) -> Path:
    return tiny_adapters["r4"].parent


@pytest.fixture(scope="module")
def shared(tiny_model: Path, tiny_adapters: dict[str, Path], root: Path) -> Iterator[Served]:
    adapters = [f"--adapter={name}={path}" for name, path in tiny_adapters.items()]
    with serving(tiny_model, *adapters, "--adapter-root", str(root)) as served:
        yield served


@pytest.fixture
def server(shared: Served) -> Iterator[Served]:
    yield shared
    shared.settle()


def test_mixed_rows_over_the_wire_equal_the_engine_in_process(
    server: Served, make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]
) -> None:
    composed = {"r8": 0.5, "r4": 2.0}
    batch = [(f"row {index}", name) for index in range(3) for name in [None, *tiny_adapters, composed]]
    direct = make_llm(adapters={name: str(path) for name, path in tiny_adapters.items()})
    sampling = SamplingParams(**GREEDY)
    expected = direct.generate([p for p, _ in batch], sampling, lora_request=[a for _, a in batch], use_tqdm=False)
    with ThreadPoolExecutor(len(batch)) as pool:
        actual = list(pool.map(lambda pair: tokens(server, *pair), batch))
    assert actual == [output.outputs[0].token_ids for output in expected]


@pytest.mark.parametrize(
    ("field", "request_fields"),
    [
        ("temperature", {"temperature": float("nan")}),
        ("temperature", {"temperature": -1}),
        ("top_p", {"top_p": 0}),
        ("top_k", {"top_k": -2}),
        ("min_p", {"min_p": float("inf")}),
        ("presence_penalty", {"presence_penalty": 3}),
        ("frequency_penalty", {"frequency_penalty": float("-inf")}),
        ("repetition_penalty", {"repetition_penalty": 0}),
        ("n", {"n": 0}),
        ("n", {"n": 2**31 - 1}),
        ("max_tokens", {"max_tokens": 0}),
        ("min_tokens", {"min_tokens": 9}),
        ("logprobs", {"logprobs": 21}),
        ("prompt_logprobs", {"prompt_logprobs": -1}),
        ("stop", {"stop": [""]}),
        ("stop_token_ids", {"stop_token_ids": [260]}),
        ("logit_bias", {"logit_bias": {2**32 - 1: 1.0}}),
        ("logit_bias", {"logit_bias": {1: float("nan")}}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [260]}),
        ("prompt", {"prompt": [2**32 - 1]}),
        ("prompt", {"prompt": [1] * 300}),
        ("prompt", {"prompt": "x" * 5000}),
        ("cache_salt", {"cache_salt": "x" * 129}),
        ("priority", {"priority": 0, "n": 1025}),
    ],
)
def test_bad_input_is_refused_with_the_name_of_the_field(
    server: Served, field: str, request_fields: dict[str, Any]
) -> None:
    arguments = {"prompt": "fine"} | GREEDY | request_fields
    code, details = refusal(lambda: server.client.generate(**arguments))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("n:" if field == "priority" else field), details


def test_lengths_are_those_of_the_engine_in_process(server: Served) -> None:
    """The model has 256 tokens."""
    cut = server.client.generate("0123456789" * 100, **GREEDY | {"truncate_prompt_tokens": -1})
    assert (cut.prompt.num_prompt_tokens, len(cut.samples[0].token_ids)) == (248, 8)
    long = server.client.generate([1] * 250, **GREEDY | {"max_tokens": 10_000})
    assert (len(long.samples[0].token_ids), long.samples[0].finish_reason) == (6, "length")
    more = server.client.generate("x", temperature=0, ignore_eos=True, min_tokens=30)  # than the default maximum
    assert len(more.samples[0].token_ids) == 30


def test_masked_tokens_are_those_of_the_engine_in_process(server: Served, make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    letters = llm.get_tokenizer().encode("abcdef")
    for fields in ({"allowed_token_ids": letters}, {"allowed_token_ids": letters, "bad_words": ["a", "bc", "ff"]}):
        (expected,) = llm.generate("x", SamplingParams(**GREEDY, **fields), use_tqdm=False)
        answer = server.client.generate("x", **GREEDY, **fields)
        assert [*answer.samples[0].token_ids] == expected.outputs[0].token_ids
    assert set(answer.samples[0].text) <= set("bcdef")


def test_a_request_larger_than_the_memory_is_refused(tiny_model: Path) -> None:
    with serving(tiny_model, "--memory", "20KB") as server:
        code, details = refusal(lambda: server.client.generate("x", **LONG))
        assert code is grpc.StatusCode.INVALID_ARGUMENT and "pages" in details
        assert len(tokens(server, "x")) == 8


def test_an_unknown_adapter_is_not_found(server: Served) -> None:
    assert refusal(lambda: tokens(server, "x", "nobody"))[0] is grpc.StatusCode.NOT_FOUND


def test_adapters_are_loaded_only_from_below_a_root(server: Served, root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path)
    for path in (tmp_path, root / "link", root / "missing", root / ".." / "elsewhere", Path("/dev")):
        code, details = refusal(lambda path=path: server.client.load_adapter("bad", str(path)))  # type: ignore[misc]
        assert code is grpc.StatusCode.FAILED_PRECONDITION, details
    assert refusal(lambda: server.client.load_adapter("../bad", str(root / "r4")))[0] is (
        grpc.StatusCode.INVALID_ARGUMENT
    )


def test_a_name_may_have_slashes(server: Served, root: Path) -> None:
    expected = tokens(server, "x", "r8")
    assert server.client.load_adapter("org/team/sql", str(root / "r8")).name == "org/team/sql"
    assert tokens(server, "x", "org/team/sql") == tokens(server, "x", "org/team/sql@1") == expected
    for name in ("org", "team/sql", "sql", "org/team/sql/", "/org/team/sql"):  # the parts mean nothing
        assert refusal(lambda name=name: tokens(server, "x", name))[0] is grpc.StatusCode.NOT_FOUND  # type: ignore[misc]
    assert server.client.unload_adapter("org/team/sql").version == 1


def test_replacing_and_unloading_under_traffic(server: Served, root: Path) -> None:
    expected = {name: tokens(server, "in use", name, **LONG) for name in ("r4", "r8")}
    server.client.load_adapter("mine", str(root / "r4"), pinned=True)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(tokens, server, "in use", "mine", **LONG) for _ in range(3)]
        time.sleep(0.05)
        server.client.load_adapter("mine", str(root / "r8"))
        assert tokens(server, "in use", "mine", **LONG) == expected["r8"]
        assert all(future.result() in (expected["r4"], expected["r8"]) for future in running)
        assert server.client.get_adapter("mine").pinned is False
    assert server.client.unload_adapter("mine").name == "mine"
    assert refusal(lambda: tokens(server, "x", "mine"))[0] is grpc.StatusCode.NOT_FOUND


CLIENT = """
import sys
from blora.proto.client import Client
for _ in Client(sys.argv[1]).generate_stream("dying", "r16", n=4, temperature=0, max_tokens=200, ignore_eos=True):
    print("streaming", flush=True)
"""


def test_a_client_that_is_killed_leaves_nothing_behind(server: Served) -> None:
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, server.address], stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout is not None and client.stdout.readline() == "streaming\n"
            client.kill()
        server.settle()


def test_a_cancelled_stream_leaves_nothing_behind(server: Served) -> None:
    for _ in range(20):
        with server.client.generate_stream("leaving", "r8", n=2, **LONG) as stream:
            assert next(iter(stream)).token_ids
    server.settle()


def test_a_request_whose_deadline_passes_leaves_nothing_behind(server: Served) -> None:
    os.kill(server.engine_pid(), signal.SIGSTOP)
    try:
        # Long enough that a busy machine refuses none of them at once, too short for the engine to be replaced.
        with Client(server.address, timeout=2) as client, ThreadPoolExecutor(4) as pool:
            late = [pool.submit(refusal, lambda: client.generate("late", "r4", n=2, **LONG)) for _ in range(4)]
            assert {code.result()[0] for code in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    finally:
        os.kill(server.engine_pid(), signal.SIGCONT)


def test_abort_ends_a_stream(server: Served) -> None:
    stream = server.client.generate_stream("abort", None, **LONG)
    reasons = []
    for sample in stream:
        assert stream.prompt is not None
        server.client.abort(stream.prompt.request_id, "unknown")
        reasons.append(sample.finish_reason)
    assert len(reasons) < 200 and reasons[-1] == "abort"


def test_an_engine_that_is_killed_comes_back_with_its_adapters_and_requests(server: Served) -> None:
    expected = tokens(server, "before and after", "r8")
    with ThreadPoolExecutor(2) as pool:
        os.kill(server.engine_pid(), signal.SIGSTOP)  # otherwise it might finish before it is killed
        kept = pool.submit(server.client.generate, "kept", "r4", n=4, **LONG)
        time.sleep(0.1)
        os.kill(server.engine_pid(), signal.SIGKILL)
        assert tokens(server, "before and after", "r8") == expected
        assert kept.result().samples == server.client.generate("kept", "r4", n=4, **LONG).samples


def test_sigterm_finishes_what_was_accepted(tiny_model: Path) -> None:
    with serving(tiny_model) as server, ThreadPoolExecutor(8) as pool:
        streams = [server.client.generate_stream(f"accepted {index}", **LONG) for index in range(8)]
        begun = [len(next(iter(stream)).token_ids) for stream in streams]  # several tokens, if this reader is slow
        running = [pool.submit(lambda stream=stream: sum(len(s.token_ids) for s in stream)) for stream in streams]  # type: ignore[misc]
        engine = server.engine_pid()
        os.kill(engine, signal.SIGSTOP)  # or all might be finished before it is asked
        server.process.send_signal(signal.SIGTERM)
        server.wait_serving(False)
        assert refusal(lambda: tokens(server, "late"))[0] is grpc.StatusCode.UNAVAILABLE
        os.kill(engine, signal.SIGCONT)
        totals = [first + future.result() for first, future in zip(begun, running, strict=True)]
        assert totals == [LONG["max_tokens"]] * 8
        assert server.process.wait(timeout=100) == 0


def test_a_standing_engine_holds_up_no_drain(tiny_model: Path) -> None:
    with serving(tiny_model, "--shutdown-timeout", "0.5") as server, ThreadPoolExecutor(1) as pool:
        engine = server.engine_pid()
        stream = iter(server.client.generate_stream("accepted", n=8, **LONG))
        next(stream)
        os.kill(engine, signal.SIGSTOP)
        ended = pool.submit(refusal, lambda: list(stream))
        server.process.send_signal(signal.SIGTERM)
        assert ended.result() == (
            grpc.StatusCode.UNAVAILABLE,
            "the engine shuts down, and this request was not finished within 0.5 s",
        )
        server.process.send_signal(signal.SIGTERM)  # or it would wait some seconds for the engine to end by itself
        assert server.process.wait(timeout=100) == 1
        assert not is_there(engine)


def test_every_line_of_the_log_is_json_those_of_children_too(
    tiny_model: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    adapter = f"--adapter=r4={tiny_adapters['r4']}"
    with (
        (tmp_path / "log").open("w") as log,
        serving(tiny_model, adapter, "--log-format=json", stderr=log) as server,
    ):
        assert tokens(server, "a row", "r4")
        server.process.terminate()
        server.process.wait()
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    loggers = {record["logger"] for record in records}
    assert any(name.startswith("blora.engine.startup") for name in loggers), loggers  # the engine's process
    assert "adapter_loaded" in {record.get("event") for record in records}
