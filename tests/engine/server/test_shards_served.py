"""`blora serve --tensor-parallel-size 2` as clients see it: the answers of one process, whichever process dies."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from processes import children_of, is_running, wait_until_ended
from served import GREEDY, LONG, Served, refusal, serving, tokens

from blora.engine import LLM, SamplingParams

pytestmark = pytest.mark.slow

SHARDS = ["--tensor-parallel-size", "2", "--backend", "reference", "--adapter-upload-bytes", "1MB"]
KEPT = LONG | {"max_tokens": 24}  # a stopped shard keeps it from finishing
NAMES = ("r4", "r8", "pattern", "r64")


@pytest.fixture(scope="module")
def server(tiny_model: Path, tiny_adapters: dict[str, Path]) -> Iterator[Served]:
    adapters = [f"--adapter={name}={tiny_adapters[name]}" for name in NAMES]
    with serving(tiny_model, *SHARDS, *adapters, "--adapter-root", str(tiny_adapters["r4"].parent)) as served:
        yield served
        served.settle()


@pytest.fixture(scope="module")
def one(tiny_model: Path, tiny_adapters: dict[str, Path]) -> LLM:
    """The same server with the model in one process."""
    adapters = {name: str(path) for name, path in tiny_adapters.items()}
    return LLM(str(tiny_model), backend="reference", memory="2MB", block_size=4, adapters=adapters)


def shard_of(server: Served) -> int:
    (pid,) = children_of(server.engine_pid())
    return pid


def expected_tokens(one: LLM, prompt: str, adapter: str | None) -> list[int]:
    (output,) = one.generate(prompt, SamplingParams(**GREEDY), lora_request=adapter, use_tqdm=False)
    return list(output.outputs[0].token_ids)


def test_mixed_rows_equal_one_process(server: Served, one: LLM) -> None:
    composed = {"r8": 0.5, "r4": 2.0}
    batch = [(f"row {index}", name) for index in range(2) for name in [None, *NAMES, composed]]
    outputs = one.generate(
        [p for p, _ in batch], SamplingParams(**GREEDY), lora_request=[a for _, a in batch], use_tqdm=False
    )
    with ThreadPoolExecutor(len(batch)) as pool:
        actual = list(pool.map(lambda pair: tokens(server, *pair), batch))
    assert actual == [list(output.outputs[0].token_ids) for output in outputs]


def test_adapters_come_and_go_beside_a_stream(server: Served, one: LLM, tiny_adapters: dict[str, Path]) -> None:
    streamed: list[int] = []
    with server.client.generate_stream("a stream", "r8", **LONG) as stream:
        for number, sample in enumerate(stream):
            streamed += sample.token_ids
            if number == 0:
                server.client.load_adapter("new", str(tiny_adapters["r16"]))
                assert tokens(server, "x", "new") == expected_tokens(one, "x", "r16")
                server.client.upload_adapter("new", tiny_adapters["r24"])
                assert tokens(server, "x", "new") == expected_tokens(one, "x", "r24")
                server.client.unload_adapter("new")
                assert refusal(lambda: tokens(server, "x", "new"))[0] is grpc.StatusCode.NOT_FOUND
    assert streamed == tokens(server, "a stream", "r8", **LONG)
    assert streamed[:8] == expected_tokens(one, "a stream", "r8")


@pytest.mark.parametrize("who", [shard_of, Served.engine_pid], ids=["shard", "engine"])
def test_whoever_is_killed_under_traffic_ends_the_engine_and_another_goes_on(
    server: Served, one: LLM, who: Callable[[Served], int]
) -> None:
    shard, killed = shard_of(server), who(server)
    with ThreadPoolExecutor(5) as pool:
        gone = pool.submit(server.wait_serving, False)
        os.kill(shard, signal.SIGSTOP)  # no request may finish before
        kept = [pool.submit(tokens, server, f"kept {index}", "r4", **KEPT) for index in range(4)]
        time.sleep(0.2)
        os.kill(killed, signal.SIGKILL)
        gone.result()
        for index, future in enumerate(kept):
            assert future.result() == tokens(server, f"kept {index}", "r4", **KEPT)
    wait_until_ended(shard)
    server.wait_serving(True)
    assert shard_of(server) != shard
    for name in (None, "r8", "r64"):
        assert tokens(server, "before and after", name) == expected_tokens(one, "before and after", name)


def test_sigterm_finishes_what_was_accepted(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    with serving(tiny_model, *SHARDS, f"--adapter=r4={tiny_adapters['r4']}") as server, ThreadPoolExecutor(2) as pool:
        shard = shard_of(server)
        streams = [server.client.generate_stream("accepted", name, **LONG) for name in (None, "r4")]
        begun = [len(next(iter(stream)).token_ids) for stream in streams]
        running = [pool.submit(lambda stream=stream: sum(len(s.token_ids) for s in stream)) for stream in streams]  # type: ignore[misc]
        server.process.send_signal(signal.SIGTERM)
        totals = [first + future.result() for first, future in zip(begun, running, strict=True)]
        assert totals == [LONG["max_tokens"]] * 2
        assert server.process.wait(timeout=100) == 0
        assert not is_running(shard)
