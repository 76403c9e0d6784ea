"""The GPU's LoRA kernels compile without a GPU, and the roofline counts a step's cost from its strips."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blora.adapters.triton.configurations import configurations
from blora.bench import roofline
from blora.bench.shapes import LLAMA_7B
from blora.engine.cli import main as cli


@pytest.mark.slow
def test_every_configuration_compiles_and_nothing_spills(tmp_path: Path) -> None:
    """It compiles one architecture and type; `make gpu-kernels` compiles all."""
    program = "import sys; from blora.engine.cli import main; sys.exit(main.main(sys.argv[1:]))"
    line = f"bench triton --architectures 90 --dtypes bfloat16 --json {tmp_path / 'triton.json'}"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", program, *line.split()]
    table = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert "registers" in table
    results = json.loads((tmp_path / "triton.json").read_text())["results"]
    assert [result["configuration"] for result in results] == [str(each) for each in configurations()]
    assert all(result["spilled_bytes"] == 0 < result["registers"] <= 255 for result in results)
    assert all(result["programs"] >= (1 if "BLOCK_ROWS=64" in result["configuration"] else 4) for result in results)


def test_the_committed_results_are_of_these_configurations() -> None:
    report = json.loads((Path(roofline.__file__).parent / "results/triton.json").read_text())
    names = [str(each) for each in configurations()]
    assert [result["configuration"] for result in report["results"]] == names * 8
    assert all(result["spilled_bytes"] == 0 for result in report["results"])


def test_there_is_nothing_to_compile_in_the_interpreter() -> None:
    with pytest.raises(SystemExit, match="TRITON_INTERPRET"):
        cli.main(["bench", "triton"])


def cost(adapters: int, rank: int = 16, rows: int = 64) -> roofline.Cost:
    gpu = roofline.GPUS["A100"]
    return roofline.step_cost(LLAMA_7B, gpu, 1, rows, 512, adapters, rank, roofline.ALL_MODULES)


def test_adapters_are_read_once_each() -> None:
    weights = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008)) * 2
    assert cost(9).dram_bytes - cost(8).dram_bytes == pytest.approx(weights)
    assert cost(1, rank=32).dram_bytes - cost(1).dram_bytes == pytest.approx(weights)
    assert cost(1, rank=13).dram_bytes == cost(1).dram_bytes > cost(1, rank=12).dram_bytes


def test_rows_of_padding_are_computed() -> None:
    """64 rows of one adapter are one strip of 64 rows; 64 rows of 64 adapters are 64 strips of one row. Neither has
    padding."""
    flops = 2 * 64 * 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert cost(1).flops == cost(64).flops == pytest.approx(flops)
    assert cost(12).flops > flops


def test_the_base_model_of_a_step() -> None:
    assert cost(1).base_seconds == cost(64).base_seconds == pytest.approx(0.0198, rel=0.05)
    assert 0 < cost(1).overhead < cost(8).overhead < cost(64).overhead < 0.5


def test_a_prefix_is_read_once() -> None:
    """Llama-7B, without grouped queries, has 512 KiB of KV for each token."""
    cost = roofline.prefix_cost(LLAMA_7B, roofline.GPUS["A100"], 1, 64, 8192)
    assert (cost.bytes_once, cost.bytes_apart) == (8192 << 19, 64 * 8192 << 19)
    assert cost.saved_seconds == pytest.approx(63 * (8192 << 19) / 2.04e12 / 0.8 - 64 * 2.5e-6)
    assert roofline.prefix_cost(LLAMA_7B, roofline.GPUS["A100"], 1, 1, 8192).saved_seconds < 0


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(f"bench roofline --adapters 1,8 --json {tmp_path / 'roofline.json'}".split()) == 0
    table = capsys.readouterr().out
    assert "llama-3-70b on 4 H100" in table and "Published" in table
    assert "64 rows read of a prefix of 8192 tokens" in table
    costs = json.loads((tmp_path / "roofline.json").read_text())["costs"]
    assert [(each["model"], each["gpu"], each["adapters"]) for each in costs][:3] == [
        ("llama-7b", "A100", 1),
        ("llama-7b", "A100", 8),
        ("llama-7b", "H100", 1),
    ]
