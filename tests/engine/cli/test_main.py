"""The command line: its flags, the options made from them, and its output on a terminal."""

import json
import logging
import os
import subprocess
import sys
import sysconfig
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType

import pytest
from fake_llm import REPORT, FakeLLM, ask

from blora.engine import EngineInfo
from blora.engine.cli import main as cli
from blora.engine.cli import serve_command
from blora.engine.cli.server_flags import FLAGS, given_times
from blora.engine.errors import AdapterNotFound, AdapterRejected, EngineStartError
from blora.engine.server.times import ServerTimes


def parse(*argv):
    return cli.build_parser().parse_args(argv)


def test_what_is_not_given_is_not_passed_on():
    args = parse("serve", "some/model")
    assert (args.model, args.host, args.port, args.adapter) == ("some/model", "127.0.0.1", 50051, [])
    assert serve_command.engine_options(args) == {"adapter_roots": []}


def test_every_flag_becomes_an_option_of_the_engine():
    line = """
        serve m --dtype bfloat16 --memory 2GiB --block-size 32 --max-model-len 100 --max-num-seqs 4
        --max-num-batched-tokens 64 --scheduling-policy priority --no-enable-prefix-caching --seed -1
        --threads 2 --revision main --max-num-queued-reqs 9 --generation-config vllm
        --adapter-root /a --adapter-root /b --adapter-watch /w --adapter-upload-bytes 1KiB --port 0
        --host ::1 --adapter-hub
        --max-adapter-versions 3 --max-logprobs -1 --max-n 8 --max-stops 9
        --max-num-queued-tokens 16k --max-queue-seconds 2.5 --max-tenants 5
        --tenant-weights gold=4,free=0.5 --adapter-weights sql=2 --max-passed-over 1000
    """
    args = parse(*line.split())
    assert serve_command.engine_options(args) == {
        "dtype": "bfloat16",
        "memory": "2GiB",
        "block_size": 32,
        "max_model_len": 100,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "scheduling_policy": "priority",
        "enable_prefix_caching": False,
        "seed": -1,
        "threads": 2,
        "revision": "main",
        "max_num_queued_reqs": 9,
        "max_num_queued_tokens": 16000,
        "max_queue_seconds": 2.5,
        "max_tenants": 5,
        "generation_config": "vllm",
        "tenant_weights": {"gold": 4.0, "free": 0.5},
        "adapter_weights": {"sql": 2.0},
        "max_passed_over": 1000,
        "adapter_upload_bytes": 1024,
        "adapter_watch": Path("/w"),
        "adapter_hub": True,
        "max_adapter_versions": 3,
        "max_logprobs": -1,
        "max_n": 8,
        "max_stops": 9,
        "adapter_roots": [Path("/a"), Path("/b")],
    }


@pytest.mark.parametrize("argv", [("m", "--seed", "1"), ("--model", "m", "--seed", "1"), ("--seed", "1", "m")])
def test_a_model_is_an_argument_or_a_flag(argv):
    args = parse("serve", *argv)
    assert args.model == "m" and serve_command.engine_options(args) == {"seed": 1, "adapter_roots": []}


@pytest.mark.parametrize(("text", "memory"), [("0.5", "0.5"), ("1.5GiB", "1.5GiB"), ("512M", "512M"), ("4096", "4096")])
def test_memory(text, memory):
    assert parse("serve", "m", "--memory", text).memory == memory


def test_adapters_by_name():
    args = parse("serve", "m", "--adapter", "a=/x", "--adapter", "b=hub/id=1")
    assert serve_command.adapters_by_name(args.adapter) == {"a": "/x", "b": "hub/id=1"}


def test_times_of_the_server_are_no_options_of_the_engine():
    args = parse("serve", "m", "--shutdown-timeout", "0", "--slow-reader-timeout", "2.5")
    assert given_times(args) == {"shutdown_timeout": 0.0, "slow_reader_timeout": 2.5}
    assert given_times(parse("serve", "m")) == {}
    assert serve_command.engine_options(args) == {"adapter_roots": []}
    assert set(FLAGS) == {entry.name for entry in fields(ServerTimes)}


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon", "1e9"])
def test_what_is_no_time_is_refused(value, capsys):
    with pytest.raises(SystemExit):
        parse("serve", "m", f"--shutdown-timeout={value}")
    assert "is not a number of seconds" in capsys.readouterr().err


def test_flags_of_vllm_serve_are_taken(caplog):
    """A line of vLLM's: the flags that have a meaning become options, and the others get a notice."""
    line = """
        serve m --enable-lora --max-loras 4 --max-lora-rank 64 --max_cpu_loras 8 --lora-dtype auto
        --fully-sharded-loras --gpu-memory-utilization 0.5 --max-model-len 100 --enable-chunked-prefill
        --swap-space 4 --served-model-name a b --trust-remote-code --uvicorn-log-level warning
        --allowed-origins ["*"] --tool-call-parser hermes --enable-auto-tool-choice --disable-log-stats
        --limit-mm-per-prompt {"image":0} --compilation-config {"level":3} -tp 1 --distributed-executor-backend mp
        --no-enable-log-requests --chat-template-content-format string
        --lora-modules a=/x {"name":"b","path":"hub/id","base_model_name":"m"}
    """
    args = parse(*line.split())
    assert (args.served_model_name, args.allowed_origins) == (["a", "b"], [["*"]])
    assert args.lora_modules == [("a", "/x"), ("b", "hub/id")]
    with caplog.at_level(logging.WARNING):
        assert serve_command.engine_options(args) == {
            "max_model_len": 100,
            "tensor_parallel_size": 1,
            "adapter_roots": [],
        }
    (record,) = caplog.records
    for name in (
        "uvicorn_log_level",
        "enable_auto_tool_choice",
        "enable_lora",
        "max_loras",
        "max_cpu_loras",
    ):
        assert f"{name} is ignored" in record.getMessage()
    assert "swap_space" not in record.getMessage()  # 4 is vLLM's default


@pytest.mark.parametrize(
    "flags",
    [
        ["--ssl-ciphers", "NULL"],
        ["--chat-template", "mine.jinja"],
        ["--middleware", "my.Authentication"],
        ["--quantization", "awq"],
        ["--tokenizer", "another/model"],
        ["--lora-modules", "a"],
        ["--lora-modules", '{"name": "a"}'],
    ],
)
def test_what_would_open_a_door_or_change_answers_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", "m", *flags])
    assert caught.value.code == 2
    assert flags[0].strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


@pytest.mark.parametrize(
    "argv",
    [
        ["serve", "m", "--adapter", "no-equals-sign"],
        ["serve", "m", "--adapter", "=path"],
        ["serve", "m", "--adapter", "name="],
        ["serve", "m", "--adapter", "a=x", "--adapter", "a=y"],
        ["serve", "m", "--lora-modules", "a=x", "--adapter", "a=y"],
        ["serve", "m", "--port", "65536"],
        ["serve", "m", "--port", "-1"],
        ["serve", "m", "--memory", "lots"],
        ["serve", "m", "--block-size", "0"],
        ["serve", "m", "--adapter-upload-bytes", "0.5"],
        ["adapters", "inspect", "folder"],
        ["adapters"],
        ["adapters", "activate", "name"],
        ["adapters", "activate", "name", "0"],
        ["adapters", "unload"],
        ["serve", "m", "--dtype", "int4"],
        ["serve"],
        ["adapters", "load", "name"],
        ["adapters", "upload", "name"],
        ["client"],
        ["client", "--info"],
        ["client", "prompt", "--load-adapter", "name=path"],
        ["info", "prompt"],
        [],
    ],
)
def test_bad_command_lines(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2 and "error:" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("blora ")


def test_what_is_installed_beside_the_command_is_found(monkeypatch):
    """Programs beside the command are found in an environment that is not activated, after the folders that PATH
    had."""
    found = []

    class Looking(FakeLLM):
        def __init__(self, *_, **__):
            super().__init__()
            found.append(os.environ["PATH"])
            self.error = EngineStartError("enough")

    _replace_engine(monkeypatch, Looking)
    scripts = sysconfig.get_path("scripts")
    for before, after in (("/usr/bin", f"/usr/bin:{scripts}"), (f"{scripts}:/bin", f"{scripts}:/bin")):
        monkeypatch.setenv("PATH", before)
        assert cli.main(["serve", "m", "--port", "0"]) == 1
        assert found.pop() == after


@pytest.mark.parametrize(
    "error", [EngineStartError("no such model"), AdapterNotFound("x"), ValueError("memory: odd"), OSError("no port")]
)
def test_a_start_that_fails_is_one_line(monkeypatch, capsys, error):
    class Failing(FakeLLM):
        def __init__(self, *_, **__):
            super().__init__()
            self.error = error

    _replace_engine(monkeypatch, Failing)
    assert cli.main(["serve", "m", "--port", "0"]) == 1
    assert capsys.readouterr().err == f"blora: {error}\n"


def test_an_engine_that_is_not_installed_is_one_line(monkeypatch, capsys):
    def refuse(*_, **__):
        raise ModuleNotFoundError("No module named 'msgspec'", name="msgspec")

    _replace_engine(monkeypatch, refuse)
    assert cli.main(["serve", "m"]) == 1
    assert "the module msgspec is missing" in capsys.readouterr().err


def _replace_engine(monkeypatch, engine):
    module = ModuleType("blora.engine.async_llm")
    module.AsyncLLM = engine
    monkeypatch.setitem(sys.modules, module.__name__, module)


def client(*argv, llm=None):
    """Runs `blora client` against a server; returns its exit status."""
    return ask(lambda connected: cli.main(["client", "--target", connected.target, *argv]), llm)


def test_a_prompt_is_streamed_to_the_terminal(capsys):
    llm = FakeLLM()
    assert client("hello", "--adapter", "alice", "--temperature", "0", "--seed", "3", llm=llm) == 0
    assert capsys.readouterr().out == "hello\n"
    (request,) = llm.requests
    assert (request["adapter"], request["sampling"].max_tokens, request["sampling"].seed) == ("alice", 256, 3)


def test_a_conversation(capsys):
    assert client("Hi", "--chat", "--max-tokens", "8") == 0
    assert capsys.readouterr().out == "<user>Hi\n"


def info(llm=None):
    return ask(lambda connected: cli.main(["info", "--target", connected.target]), llm)


def test_info(capsys):
    assert info() == 0
    shown = capsys.readouterr().out.splitlines()
    assert "vocab_size: 131072" in shown and "num_preemptions: 0" in shown
    assert len(shown) == len(fields(EngineInfo))


def test_info_of_a_server_that_is_not_there_is_one_line(capsys):
    assert cli.main(["info", "--target", "127.0.0.1:1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("blora: UNAVAILABLE: ") and error.count("\n") == 1


def operate(*argv, llm=None):
    """Runs `blora adapters` against a real server around a fake engine."""
    return ask(lambda asking: cli.main(["adapters", argv[0], "--target", asking.target, *argv[1:]]), llm)


def test_what_operators_see_of_adapters(capsys):
    assert operate("list") == 0
    name, version, ranks, _, resident, running, requests, tokens = capsys.readouterr().out.splitlines()[1].split()
    assert (name, version, ranks, resident, running, requests, tokens) == ("alice", "2", "4,8", "no", "0", "1", "4")
    assert operate("show", "alice") == 0
    shown = capsys.readouterr().out
    assert "version 1  kept    cdcdcdcdcdcd  2001-09-09 01:46:40+00:00" in shown and "version 2  active" in shown
    assert "2 prompt tokens, 3 of them cached; queued for 0.500 s in all" in shown
    assert "last used 1970-01-01 00:00:06+00:00" in shown
    assert "warning: all weights are zero" in shown


def test_a_report_of_a_server_is_the_json_of_one_without(capsys):
    argv = ["adapters", "inspect", REPORT.path, "--json", "--target"]
    assert ask(lambda asking: cli.main([*argv, asking.target])) == 0
    told = json.loads(capsys.readouterr().out)
    expected = {name: value for name, value in asdict(REPORT).items() if name != "text"}
    assert told == json.loads(json.dumps(expected))
    assert told["num_disk_bytes"] == 1 << 33 and told["vocab_size"] is None


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("load", "bob", "/adapters/bob"), "warning: all weights are zero"),
        (("load", "bob", "/adapters/bob", "--pin"), " pinned "),
        (("activate", "alice", "1"), "alice        1"),
        (("warm", "alice"), " yes "),
        (("pin", "alice"), " pinned "),
        (("unpin", "alice"), " no "),
        (("unload", "alice", "--abort"), "alice        2"),
    ],
)
def test_what_operators_do_with_adapters(argv, told, capsys):
    assert operate(*argv) == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "place", "weights"),
    [
        ([], "", ["adapter_model.safetensors"]),
        (["--pin"], "checkpoint-20", ["adapter_model.safetensors"]),
        ([], "", ["adapter_model-00001-of-00002.safetensors", "adapter_model-00002-of-00002.safetensors"]),
    ],
)
def test_an_upload_sends_the_files_of_a_folder(flags, place, weights, tmp_path, capsys):
    contents = {"adapter_config.json": b"{}"} | {name: f"bytes of {name}".encode() for name in weights}
    (tmp_path / place).mkdir(exist_ok=True)
    for name, content in contents.items():
        (tmp_path / place / name).write_bytes(content)
    llm = FakeLLM()
    assert operate("upload", "bob", str(tmp_path), *flags, llm=llm) == 0
    assert llm.uploaded is not None and llm.uploaded[1] == b"".join(contents.values())
    assert llm.adapters["bob"].pinned == bool(flags)
    shown = capsys.readouterr().out
    assert "bob" in shown and "upload:bob" in shown and "warning: all weights are zero" in shown


def test_a_folder_without_an_adapter_is_not_uploaded(tmp_path, capsys):
    llm = FakeLLM()
    assert operate("upload", "bob", str(tmp_path), llm=llm) == 1
    captured = capsys.readouterr()
    assert not captured.out and captured.err.startswith("blora: ") and "adapter_config.json" in captured.err
    assert captured.err.count("\n") == 1 and llm.uploaded is None


def test_an_adapter_that_is_refused_has_a_line_for_each_problem(capsys):
    llm = FakeLLM()
    llm.error = AdapterRejected("/adapters/bad", ["q_proj: rank 0", "k_proj: is missing"])
    assert operate("load", "bad", "/adapters/bad", llm=llm) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("blora: FAILED_PRECONDITION: ") and "k_proj: is missing" in captured.err
    assert not captured.out and captured.err.count("\n") == 3


def test_what_happens_to_adapters_is_told_as_it_happens(capsys):
    llm = FakeLLM()
    llm.resume.set()  # the stream ends
    assert operate("watch", llm=llm) == 0
    assert capsys.readouterr().out.splitlines() == [
        "6  1 adapters",
        "  alice@2  abababababab",
        "7  removed  alice@2  abababababab",
        "8  resident  alice@2  abababababab",
        "9  evicted  alice@2  abababababab",
        "10  pinned  alice@2  abababababab",
        "11  unpinned  alice@2  abababababab",
    ]


def test_what_a_server_refuses_is_one_line(capsys):
    assert client("hello", "--adapter", "nobody") == 1
    assert capsys.readouterr().err.startswith("blora: NOT_FOUND: no adapter is loaded")


def test_a_sample_that_failed_is_told(capsys):
    llm = FakeLLM()
    llm.failed_samples = {0}
    assert client("hello", llm=llm) == 1
    assert "not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["hello", "--seed", str(1 << 64)], "blora: seed: "),
        (["hello", "--max-tokens", str(1 << 70)], "blora: max_tokens: "),
        (["hello", "--adapter", ""], "blora: adapter: "),
        (["\udcff"], "blora: "),
    ],
)
def test_what_no_message_can_hold_is_one_line(argv, told, capsys):
    assert client(*argv) == 1
    error = capsys.readouterr().err
    assert error.startswith(told) and error.count("\n") == 1


def test_a_name_that_no_message_can_hold_is_one_line(capsys):
    assert operate("load", "\udcff", "/x") == 1
    error = capsys.readouterr().err
    assert error.startswith("blora: ") and error.count("\n") == 1


def run_apart(llm, *argv, **options):
    """Runs `blora` in its own process."""
    command = [sys.executable, "-m", "blora.engine.cli.main", *argv]
    return ask(
        lambda connected: subprocess.run(
            [*command, "--target", connected.target], stderr=subprocess.PIPE, timeout=200, **options
        ),
        llm,
    )


@pytest.mark.parametrize("argv", [["client", "hello"], ["adapters", "list"], ["info"]])
def test_a_reader_that_has_gone_ends_the_client_in_silence(argv):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = run_apart(FakeLLM(), *argv, stdout=gone)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("wb") as full:
        done = run_apart(FakeLLM(), "client", "hello", stdout=full)
    assert (done.returncode, done.stderr) == (1, b"blora: [Errno 28] No space left on device\n")


def test_a_terminal_that_cannot_show_a_letter_shows_another():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run_apart(FakeLLM(), "client", "h\u00e9llo", stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stdout) == (0, b"h?llo\n")
