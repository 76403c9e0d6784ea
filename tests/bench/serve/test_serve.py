"""`blora bench serve` sends a plan from processes of its own, writes vLLM's result, and says when it is not valid."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from blora.bench.load import Planned, TargetSpec, send
from blora.proto.v1 import engine_pb2, generation_pb2

pytestmark = pytest.mark.slow  # each worker is a new process

VOCAB_SIZE = 60


class FakeServer:
    """Answers with the prompt's tokens, and with what the adapter's name says."""

    def __init__(self) -> None:
        self.pause = 0.0  # seconds before each answer
        self.running = threading.Semaphore(0)  # a permit for each request that waits for ever

    def stream(self, message: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        request = message.request
        if request.adapter == "broken":
            context.abort(grpc.StatusCode.INTERNAL, "no luck")
        if request.adapter == "full":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        if request.adapter == "endless":
            self.running.release()
            ended = threading.Event()
            context.add_callback(ended.set)
            ended.wait(60)
        time.sleep(self.pause)
        ids, reason = request.token_ids.ids, generation_pb2.FINISH_REASON_LENGTH
        sample = generation_pb2.Sample(token_ids=ids, finish_reason=reason)
        yield generation_pb2.GenerateStreamResponse(samples=[sample])

    def info(self, *_: Any) -> Any:
        return engine_pb2.GetInfoResponse(vocab_size=VOCAB_SIZE)


@pytest.fixture
def fake() -> Iterator[tuple[FakeServer, str]]:
    server, fake = grpc.server(futures.ThreadPoolExecutor(16)), FakeServer()
    stream = grpc.unary_stream_rpc_method_handler(
        fake.stream,
        generation_pb2.GenerateStreamRequest.FromString,
        generation_pb2.GenerateStreamResponse.SerializeToString,
    )
    info = grpc.unary_unary_rpc_method_handler(
        fake.info, engine_pb2.GetInfoRequest.FromString, engine_pb2.GetInfoResponse.SerializeToString
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("blora.v1.GenerationService", {"GenerateStream": stream}),
            grpc.method_handlers_generic_handler("blora.v1.EngineService", {"GetInfo": info}),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield fake, f"127.0.0.1:{port}"
    server.stop(None)


def command(address: str, *flags: str) -> list[str]:
    start = [sys.executable, "-P", "-m", "blora.engine.cli.main", "bench", "serve", "--base-url", address]
    return [*start, "--random-input-len", "4", "--random-output-len", "4", *flags]


def test_a_result_has_vllms_keys_and_a_replay_is_the_same_plan(fake: tuple[FakeServer, str], tmp_path: Path) -> None:
    _, address = fake
    first, again, result = (tmp_path / name for name in ("plan", "again", "result.json"))
    flags = ["--num-prompts", "40", "--request-rate", "400", "--lora-modules", "a", "b", "--goodput", "ttft:60000"]
    save = [
        "--record",
        str(first),
        "--save-detailed",
        "--result-dir",
        str(tmp_path),
        "--result-filename",
        "result.json",
    ]
    subprocess.run(command(address, *flags, *save, "--workers", "2", "--metadata", "run=7"), check=False)
    found = json.loads(result.read_text())
    assert (found["completed"], found["failed"], found["backend"], found["run"]) == (40, 0, "blora", "7")
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (160, 160)
    assert found["request_goodput"] == pytest.approx(found["request_throughput"])
    assert found["p99_ttft_ms"] >= found["median_ttft_ms"] > 0
    assert len(found["ttfts"]) == len(found["generated_texts"]) == 40
    plan = [json.loads(line) for line in first.read_text().splitlines()]
    assert max(token for planned in plan for token in planned["prompt"]) < VOCAB_SIZE
    subprocess.run(command(address, "--replay", str(first), "--record", str(again)), check=False)
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(("adapter", "is_fault"), [("broken", True), ("full", False)])
def test_a_run_with_failures_that_nobody_asked_for_is_not_valid(
    fake: tuple[FakeServer, str], adapter: str, is_fault: bool
) -> None:
    ended = subprocess.run(
        command(fake[1], "--num-prompts", "3", "--lora-modules", adapter), capture_output=True, text=True, check=False
    )
    assert ("3 of 3 requests failed with INTERNAL: no luck" in ended.stderr) == is_fault
    assert ended.returncode == 1 or not is_fault  # on a busy machine the generator may be late besides


def test_ctrl_c_leaves_a_valid_partial_result(fake: tuple[FakeServer, str], tmp_path: Path) -> None:
    server, address = fake
    flags = ["--num-prompts", "4", "--lora-modules", "endless", "a", "--lora-assignment", "round-robin"]
    save = ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    with subprocess.Popen(command(address, *flags, *save), start_new_session=True) as process:
        assert server.running.acquire(timeout=60) and server.running.acquire(timeout=60)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 130
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["statuses"]["CANCELLED"] == 2
    assert not found["generator"]["is_whole"]


def test_a_stall_of_the_server_shows_in_times_from_the_planned_arrival(fake: tuple[FakeServer, str]) -> None:
    """One request at a time: the second one is planned at once, and sent when the first one has ended."""
    server, address = fake
    server.pause = 0.2
    plan = [Planned(seconds=0.0, prompt=[1], max_tokens=1)] * 2
    spec = TargetSpec(backend="blora", address=address)
    first, second = sorted(send(plan, spec, max_concurrency=1).records, key=lambda record: record.sent or 0.0)
    assert (first.ttft or 0) >= 0.2
    assert (second.ttft or 0) >= 0.4 > 0.2 <= (second.sent_ttft or 0)
    assert (second.lag or 0) < (second.sent or 0)  # it waited, and the generator was not late


def test_a_server_that_is_not_there_is_told_before_anything_is_sent() -> None:
    ended = subprocess.run(command("127.0.0.1:9"), capture_output=True, text=True, check=False)
    assert ended.returncode != 0 and "does not answer" in ended.stderr and "Traceback" not in ended.stderr
