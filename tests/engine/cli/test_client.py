"""`blora client` and `blora top`: what their flags send, and what they print."""

import json
from contextlib import aclosing
from dataclasses import fields, replace

import pytest
from fake_llm import INFO, LOAD, FakeLLM, adapter_info, ask, run, running

from blora.engine.cli import main as cli
from blora.engine.cli.sampling_flags import HELP, given_sampling
from blora.engine.cli.top_command import Picture, Rates, pictures, screen, size_text
from blora.engine.errors import EngineUnavailable
from blora.proto.async_client import AsyncClient
from blora.proto.v1.generation_pb2 import SamplingParams as Message
from blora.scheduler import SamplingParams

FIELDS = [field.name for field in Message.DESCRIPTOR.fields]


def test_every_field_of_sampling_has_a_flag_with_a_text() -> None:
    assert set(FIELDS) <= HELP.keys()
    assert set(FIELDS) <= {field.name for field in fields(SamplingParams)}  # `blora chat` gives them in process


def test_flags_become_fields() -> None:
    line = """
        client hi --n 2 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --seed -1 --presence-penalty 1
        --frequency-penalty 1 --repetition-penalty 1.1 --max-tokens 7 --min-tokens 2 --stop x --stop y
        --stop-token-ids 5 --stop-token-ids 6 --include-stop-str-in-output --ignore-eos --logprobs 2
        --prompt-logprobs 1 --no-skip-special-tokens --no-detokenize --allowed-token-ids 9 --bad-words z
        --truncate-prompt-tokens 4
    """
    found = given_sampling(cli.build_parser().parse_args([*line.split(), "--logit-bias", '{"42": -1.5}']))
    assert found == {
        "n": 2, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": -1, "presence_penalty": 1.0,
        "frequency_penalty": 1.0, "repetition_penalty": 1.1, "max_tokens": 7, "min_tokens": 2, "stop": ["x", "y"],
        "stop_token_ids": [5, 6], "include_stop_str_in_output": True, "ignore_eos": True, "logprobs": 2,
        "prompt_logprobs": 1, "skip_special_tokens": False, "detokenize": False, "allowed_token_ids": [9],
        "bad_words": ["z"], "truncate_prompt_tokens": 4, "logit_bias": {42: -1.5},
    }  # fmt: skip
    Message(**found)  # the message can hold them


def main(llm: FakeLLM, *argv: str) -> int:
    return ask(lambda client: cli.main([*argv, "--target", client.target]), llm)


def test_an_answer_as_json_and_its_tenant(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM()
    assert main(llm, "client", "hey", "--json", "--tenant", "gold", "--priority", "3", "--request-id", "r1") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["samples"][0]["text"] == "hey" and answer["prompt"]["num_prompt_tokens"] == 3
    assert llm.requests[0]["tenant"] == "gold" and llm.requests[0]["priority"] == 3


def test_samples_and_conversations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FakeLLM(), "client", "hi", "--n", "2") == 0
    assert capsys.readouterr().out == "[0] hi\n[1] hi\n"
    assert main(FakeLLM(), "client", "hi", "--chat", "--system", "be brief") == 0
    assert capsys.readouterr().out == "<system>be brief<user>hi<assistant>\n"


def test_a_prompt_from_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin.read", lambda: "typed", raising=False)
    assert main(FakeLLM(), "client", "-") == 0
    assert capsys.readouterr().out == "typed\n"


def test_top_prints_one_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FakeLLM(), "top", "--once", "--interval", "0.1") == 0
    shown = capsys.readouterr().out
    for words in (
        *("0 running", "2 waiting", "3 tokens queued", "prefix hits 33%", "2 deaths, 1 crashes, 8 preemptions"),
        *("alice", "1 loaded, 0 resident", "free of 8 pages, 32.0 KiB"),
    ):
        assert words in shown
    assert "\x1b" not in shown


def test_top_draws_again_what_has_changed_and_what_has_not() -> None:
    """The fake's load changes once."""

    async def body() -> list[Picture]:
        async with (
            running(FakeLLM()) as server,
            AsyncClient(server.address) as client,
            aclosing(pictures(client, 0.01)) as news,
        ):
            return [await anext(news) for _ in range(4)]

    seen = run(body())
    assert [picture.load.num_running for picture in seen] == [100, 0, 0, 0]
    assert [picture.load for picture in seen[2:]] == [seen[1].load] * 2
    assert seen[0].time < seen[1].time < seen[2].time


def test_top_ends_with_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM()
    llm.error = EngineUnavailable("the server drains")
    assert main(llm, "top") == 1
    assert capsys.readouterr().err == "blora: UNAVAILABLE: the server drains\n"


def loaded(time: float, **counts: int) -> Picture:
    return Picture(time, INFO, replace(LOAD, **counts), [])


def test_rates_are_differences_and_never_negative() -> None:
    before = loaded(10.0, num_prompt_tokens=100, num_generated_tokens=10, num_requests=1, num_refused=0)
    after = loaded(12.0, num_prompt_tokens=50, num_generated_tokens=30, num_requests=2, num_refused=4)
    assert Rates.between(before, after) == Rates(prompt_tokens=0.0, answer_tokens=10.0, requests=0.5, refused=2.0)


def test_an_engine_that_is_started_again_is_shown() -> None:
    first, *_ = screen(loaded(1.0), Picture(2.0, INFO, replace(LOAD, is_serving=False), []), "host", 80)
    assert first.endswith("(not serving now)")


@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_bar_shows_adapters_and_requests(width: int) -> None:
    adapter = replace(adapter_info("bob"), resident=True)
    picture = Picture(1.0, INFO, replace(LOAD, num_pages=8, num_free_pages=2), [adapter])
    (bar,) = [line for line in screen(picture, picture, "host", width) if line.startswith("arena")]
    cells = bar[bar.index("[") + 1 : -1]
    assert len(cells) == max(min(width - 12, 80), 10)
    assert cells.count("A") == round(len(cells) * 3 / 8) and cells.count("#") == round(len(cells) * 3 / 8)


def test_sizes() -> None:
    assert [size_text(num) for num in (5, 2048, 3 << 20, 1 << 50)] == ["5 B", "2.0 KiB", "3.0 MiB", "1024.0 TiB"]


def test_collect_env_tells_versions_and_nothing_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BLORA_API_KEY", "hush")
    monkeypatch.setenv("HF_TOKEN", "hushed")
    assert cli.main(["collect-env"]) == 0
    shown = capsys.readouterr().out
    for words in ("torch: ", "grpcio: ", "python: ", "instructions: ", "kernels: ", "memory: "):
        assert words in shown
    assert "hush" not in shown
