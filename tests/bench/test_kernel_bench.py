"""The programs that time kernels and steps run on tiny shapes; their figures are measured and add up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from blora.bench import attention_cost, kernels, limits, shapes
from blora.bench.limits import Limits
from blora.bench.lora_cost import LIMIT, REGION_SECONDS, Cost
from blora.bench.profile_step import PLAIN, TOTAL
from blora.engine.cli import main as cli

TINY = replace(
    shapes.with_layers(shapes.SMOLLM2_135M, 2),
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(limits, "STREAM_BYTES", 1 << 20)
    monkeypatch.setattr(limits, "GEMM_SHAPES", ((64, 8),))
    monkeypatch.setattr(limits, "METER_SECONDS", 0.0)
    monkeypatch.setattr(kernels, "WEIGHT_BYTES", 1 << 16)
    monkeypatch.setattr(kernels, "DECODE", ((1, 40), (3, 100)))
    monkeypatch.setattr(kernels, "PREFILL", (20,))
    monkeypatch.setattr(attention_cost, "WANTED_BYTES", 1 << 16)


@pytest.mark.usefixtures("_small")
def test_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"bench kernels --shapes tiny --rows 1,5 --ranks 3,16 --seconds 0 --threads 1 --json {tmp_path / 'k.json'}"
    assert cli.main(line.split()) == 0
    table = capsys.readouterr().out
    assert "GB/s" in table and "speed kept" in table
    report = json.loads((tmp_path / "k.json").read_text())
    model = report["models"]["tiny"]
    names = [call["kernel"] for call in model["calls"]]
    assert (names.count("linear"), names.count("attention"), names.count("rms_norm")) == (10, 3, 2)
    assert all(call["us"] > 0 and call["times_limit"] > 0 for call in model["calls"])
    cases = [(case["rows"], case["adapters"], case["rank"]) for case in model["lora"]]
    assert cases[:6] == [(1, 1, 3), (16, 1, 3), (16, 8, 3), (64, 1, 3), (64, 8, 3), (64, 64, 3)]
    assert cases[-1] == (64, 64, 8) and len(cases) == 13
    assert all(case["layers"] == 2 and case["base"] > 0 for case in model["lora"])


@pytest.mark.parametrize("flags", ["--shapes nothing", "--instruction-set nothing"])
def test_kernels_that_are_not_there(flags: str) -> None:
    with pytest.raises(SystemExit, match="nothing"):
        cli.main(["bench", "kernels", "--threads", "1", *flags.split()])


def test_the_limit_of_adapters_is_the_issues() -> None:
    cost = Cost(base=10e-3, added=4e-3, reading=2e-3, computing=1e-3, regions=100 * REGION_SECONDS)
    assert cost.ratio == pytest.approx((4 - 0.3) / 2)
    assert cost.ratio > LIMIT
    assert cost.share_of_base_speed == pytest.approx(10 / 14)
    assert Limits(bytes_per_s=10, flops_per_s=100).seconds(50, 100) == 5


def test_the_work_of_attention_is_what_causality_leaves() -> None:
    def flops(query_len: int, context: int) -> int:
        return attention_cost.attention_flops(TINY, 1, query_len, context)

    assert flops(1, 10) == 4 * 4 * 16 * 10
    assert flops(10, 10) == sum(flops(1, context) for context in range(1, 11))


@pytest.mark.slow
def test_a_step_is_taken_apart(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"bench profile_step {tiny_model} --rows 1,3 --adapters 2 --ranks 2 --prompt-len 4 --output-len 12"
    line += f" --backend cpu --threads 1 --adapter-folder {tmp_path / 'adapters'} --json {tmp_path / 's.json'}"
    assert cli.main(line.split()) == 0
    assert "AsyncLLM adds" in capsys.readouterr().out
    columns = json.loads((tmp_path / "s.json").read_text())["milliseconds"]
    assert list(columns) == ["1 base", "1 adapters", "3 base", "3 adapters"]
    for name, column in columns.items():
        parts = {label: value for label, value in column.items() if label not in (TOTAL, PLAIN, "AsyncLLM adds")}
        assert sum(parts.values()) == pytest.approx(column[TOTAL])
        assert {"linear", "attention", "norms", "sampling"} <= parts.keys()
        assert ("LoRA" in parts) == name.endswith("adapters")
        assert column[PLAIN] > 0
