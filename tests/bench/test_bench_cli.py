"""The flags of `blora bench`; other commands do not import it."""

import subprocess
import sys
from argparse import Namespace

import pytest

from blora.bench import cli as bench
from blora.engine.cli import main as cli


def parse(*argv: str) -> Namespace:
    return cli.build_parser(cli.further_commands()).parse_args(["bench", *argv])


def test_throughput() -> None:
    line = "throughput m --rows 64 --adapters 8 --ranks 8,16 --modules q_proj,v_proj --base-share 0.5"
    args = parse(*line.split())
    assert (args.command, args.program, args.model) == ("bench", "throughput", "m")
    assert (args.rows, args.adapters, args.ranks, args.modules) == (64, 8, (8, 16), ("q_proj", "v_proj"))
    assert (args.base_share, args.popularity, args.prompt_len, args.output_len) == (0.5, "uniform", 64, 64)
    assert parse("throughput", "m", "--modules", "all").modules is None


def test_lists_of_the_other_programs() -> None:
    assert parse("profile_step", "m", "--rows", "1,16").rows == (1, 16)
    assert parse("sweep", "m").adapters[-1] == 256
    assert parse("kernels", "--ranks", "4", "--shapes", "llama-7b").shapes == ("llama-7b",)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nothing",
        "throughput",
        "throughput m --rows 0",
        "throughput m --rows 1,2",
        "throughput m --ranks 4,,8",
        "throughput m --base-share 2",
        "throughput m --popularity zipf",
        "sweep m --adapters 0",
    ],
)
def test_bad_command_lines(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(*line.split())
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_mistake_is_told_without_a_traceback() -> None:
    line = "throughput no/such/model --rows 16 --adapters 8 --popularity distinct"
    with pytest.raises(SystemExit, match="bench throughput: distinct: 16 rows need as many adapters"):
        bench.run(parse(*line.split()))


def test_it_is_imported_only_when_asked_for_and_its_flags_need_no_torch() -> None:
    check = (
        "import sys; from blora.engine.cli import main as cli\n"
        "try: cli.main({argv})\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in {banned}))"
    )
    for argv, banned in (
        (["client", "--help"], ["blora.bench", "torch"]),
        (["serve", "--help"], ["blora.bench", "torch"]),
        (["bench", "throughput", "--help"], ["torch", "numpy"]),
        (["--help"], ["torch", "numpy"]),
    ):
        code = check.format(argv=argv, banned=banned)
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=200).returncode == 0, argv
