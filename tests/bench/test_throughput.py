"""`blora bench` on a tiny model: its report is complete, adds up, and comes from steps that really ran."""

import json
import time
from pathlib import Path

import pytest

from blora.bench.measured_engine import MeasuredEngine, Setup
from blora.bench.throughput import FIGURES, format_report, measure, percentile
from blora.bench.workload import Workload
from blora.engine.cli import main as cli
from blora.engine.step.core import EngineCore
from blora.scheduler import RowUpdate

pytestmark = pytest.mark.slow

STEP = 0.02  # seconds that each step takes


@pytest.fixture(autouse=True)
def _slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slows the steps down. A tiny model's steps drown in the noise of a busy machine, and bench refuses to time
    them."""
    step = EngineCore.step

    def slow_step(core: EngineCore) -> list[RowUpdate]:
        time.sleep(STEP)
        return step(core)

    monkeypatch.setattr(EngineCore, "step", slow_step)


WORK = Workload(rows=4, prompt_len=6, output_len=12, adapters=3, base_share=0.25)


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> MeasuredEngine:
    folder = tmp_path_factory.mktemp("adapters")
    setup = Setup(model=str(tiny_model), max_rows=4, max_len=18, adapters=3, backend="cpu", adapter_folder=folder)
    return MeasuredEngine(setup)


def test_the_report(engine: MeasuredEngine) -> None:
    report = json.loads(json.dumps(measure(engine, WORK, rounds=3, warmups=1)))
    assert report["kind"] == "throughput"
    assert {"cpu", "cores", "threads", "instruction_set", "memory_bytes"} <= report["machine"].keys()
    assert {"blora", "torch", "python"} <= report["versions"].keys()
    assert report["workload"]["base_share"] == 0.25
    assert report["resident_adapters"] == 3 and report["adapter_bytes"] > 0
    assert len(report["rounds"]) == 3
    for entry in [*report["rounds"], report["median"]]:
        assert entry.keys() == {"base", "adapters", "ratio"}
        assert all(FIGURES.keys() <= figures.keys() for figures in entry.values())
    table = format_report(report)
    assert "adapters / base" in table and "4 rows" in table and "25% base rows" in table
    engine.llm.check_idle()


def test_the_figures_follow_from_the_times(engine: MeasuredEngine) -> None:
    report = measure(engine, WORK, rounds=1, warmups=0)
    (entry,) = report["rounds"]
    for figures in (entry["base"], entry["adapters"]):
        first, whole = figures["seconds_first_token"], figures["seconds"]
        assert figures["prefill_throughput"] == pytest.approx(4 * 6 / first)
        assert figures["decode_throughput"] == pytest.approx(4 * 11 / (whole - first))
        assert figures["median_ttft_ms"] < 1e3 * whole
    ratio = entry["adapters"]["decode_throughput"] / entry["base"]["decode_throughput"]
    assert entry["ratio"]["decode_throughput"] == report["median"]["ratio"]["decode_throughput"] == ratio


def test_a_slow_engine_is_seen(engine: MeasuredEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    step, pause = EngineCore.step, 0.02
    calls: list[float] = []

    def slow_step(core: EngineCore) -> list[RowUpdate]:
        calls.append(time.monotonic())
        time.sleep(pause)
        return step(core)

    monkeypatch.setattr(EngineCore, "step", slow_step)
    passed = engine.run(WORK.prompts(engine.vocab_size), WORK.assign(), 12)
    assert len(calls) == 12 and len(passed.decode_steps) == 11
    assert min(passed.decode_steps) >= pause and passed.seconds >= 12 * pause
    assert len(passed.first_tokens) == 4 and min(passed.first_tokens) >= pause


def test_base_rows_are_the_base_model(engine: MeasuredEngine) -> None:
    base = measure(engine, Workload(rows=2, prompt_len=4, output_len=14), rounds=1, warmups=0)
    assert base["median"].keys() == {"base"}
    assert "base model" in format_report(base)


def test_percentile() -> None:
    values = list(range(100, 0, -1))
    assert (percentile(values, 0.99), percentile(values, 0.5), percentile(values, 1)) == (99, 50, 100)
    assert percentile([3.0], 0.99) == 3.0


def test_the_command(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"bench throughput {tiny_model} --rows 2 --adapters 2 --ranks 2,4 --modules q_proj,v_proj --prompt-len 4"
    line += (
        f" --output-len 8 --rounds 1 --threads 1 --adapter-folder {tmp_path / 'adapters'} --json {tmp_path / 'a.json'}"
    )
    assert cli.main(line.split()) == 0
    assert "decode tok/s" in capsys.readouterr().out
    report = json.loads((tmp_path / "a.json").read_text())
    assert (report["ranks"], report["modules"]) == ([2, 4], ["q_proj", "v_proj"])
    assert str(tiny_model.parent) not in json.dumps(report), "no places of this machine"


def test_a_sweep_writes_its_file_and_plots(tiny_model: Path, tmp_path: Path) -> None:
    line = f"bench sweep {tiny_model} --rows 1,2 --adapters 1,8 --adapter-rows 2 --ranks 2 --prompt-len 4"
    line += f" --output-len 8 --rounds 1 --threads 1 --adapter-folder {tmp_path / 'adapters'} --folder {tmp_path / 'r'}"
    assert cli.main(line.split()) == 0
    report = json.loads((tmp_path / "r" / "throughput.json").read_text())
    points = [(point["workload"]["rows"], point["workload"]["adapters"]) for point in report["points"]]
    assert points == [(1, 8), (2, 8), (2, 1), (2, 1), (2, 8), (2, 1), (2, 8)], "no point is measured twice"
    names = {"throughput.json", "throughput-rows.png", "throughput-adapters.png", "adapters-against-base.png"}
    assert {path.name for path in (tmp_path / "r").iterdir()} == names
    assert cli.main(["bench", "plots", str(tmp_path / "r" / "throughput.json")]) == 0


def test_a_busy_core(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"bench busy_core {tiny_model} --rows 2 --threads 3 --prompt-len 4 --output-len 5 --rounds 2"
    assert cli.main([*line.split(), "--json", str(tmp_path / "b.json")]) == 0
    assert "tok/s, 3 threads" in capsys.readouterr().out
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["threads"] == [1, 3]
    assert [[len(entry[name]) for name in ("alone", "beside")] for entry in report["rounds"]] == [[2, 2]] * 2


def test_idle_adapters(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        f"bench idle_adapters {tiny_model} --rows 1,3 --adapters 2 --ranks 2 --prompt-len 4 --output-len 5 --rounds 2"
    )
    line += f" --threads 1 --adapter-folder {tmp_path / 'adapters'} --json {tmp_path / 'i.json'}"
    assert cli.main(line.split()) == 0
    assert "2 idle ones" in capsys.readouterr().out
    report = json.loads((tmp_path / "i.json").read_text())
    assert [point["rows"] for point in report["points"]] == [1, 3]
    assert all(step >= 1e3 * STEP for point in report["points"] for pair in point["step_ms"] for step in pair)
