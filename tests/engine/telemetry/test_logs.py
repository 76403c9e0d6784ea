"""The log of a server: events with names and facts, bounded in number, and never a prompt."""

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from blora.engine import AsyncLLM, SamplingParams, logs
from blora.engine.events import tell
from blora.engine.logs import MOST, JsonFormatter, Limit, TextFormatter
from blora.engine.telemetry.stats_line import Reading, StatsLine, stats_line

SECRET = "swordfish"
logger = logging.getLogger("blora.test")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def written(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What a handler with the formatter of the parameter has written of all loggers."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(request.param())
    handler.addFilter(Limit())
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("written", [JsonFormatter], indirect=True)
def test_an_event_is_one_object_on_a_line(written: io.StringIO) -> None:
    tell(logger, "refused", 'a "quoted"\ntext', logging.WARNING, request_id="r1", retry_after=0.5)
    logger.error("plain %d", 3)
    first, second = map(json.loads, written.getvalue().splitlines())
    assert first["event"] == "refused" and first["request_id"] == "r1" and first["retry_after"] == 0.5
    assert first["message"] == 'a "quoted"\ntext' and first["level"] == "WARNING" and first["time"].endswith("Z")
    assert second["message"] == "plain 3" and "event" not in second


def test_records_of_a_kind_are_bounded_and_the_others_are_counted() -> None:
    clock = Clock()
    limit = Limit(now=clock)

    def passes(event: str) -> logging.LogRecord | None:
        record = logging.LogRecord("x", logging.INFO, "x.py", 1, "%s", ("text",), None)
        record.event = event
        return record if limit.filter(record) else None

    assert sum(passes("refused") is not None for _ in range(1000)) == MOST
    assert passes("draining") is not None  # another kind
    clock.now += 10
    record = passes("refused")
    assert record is not None and record.num_left_out == 1000 - MOST
    assert TextFormatter().format(record).endswith("(980 like it before were left out)")


def test_kinds_without_end_are_bounded_too() -> None:
    limit = Limit(now=Clock())
    records = (logging.LogRecord(f"logger{i}", 20, "x.py", 1, "%s", ("text",), None) for i in range(5000))
    assert sum(map(limit.filter, records)) == logs.MOST_KINDS


@pytest.mark.slow
@pytest.mark.parametrize("written", [JsonFormatter], indirect=True)
def test_what_happens_is_told_and_prompts_never(
    written: io.StringIO, tiny_model: object, tiny_adapters: dict[str, object]
) -> None:
    async def work() -> None:
        async with AsyncLLM(str(tiny_model), memory="2MB", block_size=4, threads=1) as llm:
            name, path = next(iter(tiny_adapters.items()))
            await llm.load_adapter(name, str(path))
            tokens = llm.get_tokenizer().encode(SECRET)
            bad: list[object] = [
                {"prompt": SECRET, SECRET: 1},
                {"messages": SECRET},
                {"prompt_token_ids": tokens * 5000},
                {"prompt": SECRET * 5000},
            ]
            for prompt in bad:
                with pytest.raises(ValueError):
                    await anext(llm.generate(prompt, SamplingParams(stop=SECRET), "r7", tenant="gold"))  # type: ignore[arg-type]
            async with stats_line(llm.get_statistics, 0.01):
                async for _ in llm.generate({"prompt_token_ids": tokens[:9]}, SamplingParams(max_tokens=30), "r8"):
                    await asyncio.sleep(0.002)
            await llm.unload_adapter(name)
            await llm.drain(1)

    asyncio.run(work())
    text = written.getvalue()
    assert SECRET not in text and str(SECRET.encode()) not in text
    for expected in ("is loaded", "is removed", "drains", "Avg generation throughput", "is refused: invalid_request"):
        assert expected in text, expected
    found = [json.loads(line) for line in text.splitlines()]
    refused = [entry for entry in found if entry.get("event") == "refused"]
    assert len(refused) == 4 and {entry["request_id"] for entry in refused} == {"r7"}
    assert {entry["tenant"] for entry in refused} == {"gold"}


def test_a_line_tells_rates_in_vllms_words() -> None:
    line = StatsLine.__new__(StatsLine)
    line._last = Reading(0.0, 100, 50, 100, 20, 0)

    class Seen:
        num_prompt_tokens, num_answer_tokens = 300, 150
        refusals = type("Refusals", (), {"total": staticmethod(lambda: 3)})

    class Info:
        num_prompt_tokens, num_cached_tokens, num_running, num_waiting = 300, 70, 2, 1
        num_free_pages, num_pages = 75, 100

    class Picture:
        observations, info = Seen, Info
        adapters = type("Places", (), {"num_resident": 2, "num_known": 9})
        queue = type("Queue", (), {"num_unfinished": 3})

    text, is_moving = line.next(Picture, 10.0)  # type: ignore[arg-type]
    assert is_moving and text == (
        "Avg prompt throughput: 20.0 tokens/s, Avg generation throughput: 10.0 tokens/s, Running: 2 reqs, "
        "Waiting: 1 reqs, KV cache usage: 25.0%, Prefix cache hit rate: 25.0%, Adapters: 2 resident of 9, "
        "Refused: 3 reqs"
    )


@pytest.mark.parametrize("format", ["json", "text"])
def test_children_write_as_their_parent_does(format: str) -> None:
    """A record, a warning and the end of a process in JSON are objects, each on a line."""
    child = """
import logging, sys, warnings
from blora.engine.logs import set_up_as_told
set_up_as_told(sys.argv[1])
logging.getLogger("blora.x").warning("a record")
logging.getLogger("library").info("chatter")
warnings.warn("a warning")
raise ValueError("the end")
"""
    parent = """
import subprocess, sys
from blora.engine.logs import as_here, set_up
set_up(sys.argv[1], "debug")
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[2], as_here()]).returncode)
"""
    done = subprocess.run([sys.executable, "-c", parent, format, child], capture_output=True, text=True)
    assert done.returncode == 1
    if format == "text":
        assert " WARNING blora.x: a record\n" in done.stderr and "\nValueError: the end" in done.stderr
    else:
        record, warning, end = map(json.loads, done.stderr.splitlines())
        assert (record["message"], record["logger"]) == ("a record", "blora.x")
        assert "a warning" in warning["message"] and "ValueError: the end" in end["exception"]
    assert "chatter" not in done.stderr


def test_a_program_with_a_log_of_its_own_says_nothing_to_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(io.StringIO())])
    assert logs.as_here() == "text:INFO"
