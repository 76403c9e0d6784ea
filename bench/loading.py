"""The effect of loading on traffic: rows decode in an engine process, with and without cold adapters being loaded.

Times are those between two outputs of a row, as a user sees them: they include engine, copies and front end. Each
loaded adapter gets a request for one token at once, so that it is copied into the arena, too. Without loading, as many
requests go to the resident adapter at the same pace. The two take turns, a few loads at a time, because the machine's
speed drifts.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blora.engine import AsyncLLM, RequestOutputKind, SamplingParams

from . import machine
from .random_adapters import ALL_MODULES, make_adapters
from .table import Cell, format_table, write_json
from .throughput import percentile

ROWS = 8
LOADS_OF_A_TURN = 25
FILE = "loading.json"
COLOURS = {"quiet": "#555555", "loading": "#0072b2"}
PROMPT = list(range(100, 164))
ENDLESS = SamplingParams(
    temperature=0, max_tokens=400, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
)
ONE_TOKEN = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)


def run(args: argparse.Namespace) -> int:
    folder = args.adapter_folder / f"cold-{args.rank}"
    folders = make_adapters(Path(args.model), folder, args.loads + 1, [args.rank], ALL_MODULES)
    options = {"memory": args.memory, "threads": args.threads}
    report = {"kind": "loading", **machine.describe(), "model_id": Path(args.model).name, "rank": args.rank, **options}
    report |= measure(args.model, folders, options)
    write_json(args.folder / FILE, report)
    print(format_report(report))
    print(draw(report, args.folder))
    return 0


@dataclass(slots=True)
class Traffic:
    """ROWS rows that decode all the time."""

    llm: AsyncLLM
    adapter: str
    gaps: list[float] = field(default_factory=list)  # seconds between two outputs of a row
    is_over: bool = False

    async def row(self, index: int) -> None:
        adapter = self.adapter if index % 2 else None
        while not self.is_over:
            last = 0.0
            async for _ in self.llm.generate([index, *PROMPT], ENDLESS, lora_request=adapter):
                now = time.monotonic()
                if last:
                    self.gaps.append(now - last)
                last = now
                if self.is_over:
                    break

    async def run(self, work: Any) -> float:
        """Keeps up the traffic while `work` runs. Returns the seconds that `work` took."""
        rows = [asyncio.create_task(self.row(index)) for index in range(ROWS)]
        await asyncio.sleep(2.0)
        self.gaps.clear()
        started = time.monotonic()
        await work
        seconds = time.monotonic() - started
        gaps = list(self.gaps)
        self.is_over = True
        await asyncio.gather(*rows)
        self.gaps = gaps
        return seconds


async def _load(llm: AsyncLLM, folders: Mapping[str, Path]) -> None:
    for name, folder in folders.items():
        await llm.load_adapter(name, folder)
        async for _ in llm.generate(PROMPT[:8], ONE_TOKEN, lora_request=name):
            pass


async def _ask_warm(llm: AsyncLLM, count: int, seconds: float) -> None:
    for _ in range(count):
        await asyncio.sleep(seconds / count)
        async for _ in llm.generate(PROMPT[:8], ONE_TOKEN, lora_request="warm"):
            pass


async def _measure(model: str, warm: Path, cold: Mapping[str, Path], options: dict[str, Any]) -> dict[str, Any]:
    loading, quiet, ratios = list[float](), list[float](), list[float]()
    spent = 0.0
    async with AsyncLLM(model, adapters={"warm": warm}, enable_prefix_caching=False, **options) as llm:
        for first in range(0, len(cold), LOADS_OF_A_TURN):
            names = list(cold)[first : first + LOADS_OF_A_TURN]
            traffic = Traffic(llm, "warm")
            seconds = await traffic.run(_load(llm, {name: cold[name] for name in names}))
            still = Traffic(llm, "warm")
            await still.run(_ask_warm(llm, len(names), seconds))
            loading += traffic.gaps
            quiet += still.gaps
            ratios.append(percentile(traffic.gaps, 0.99) / percentile(still.gaps, 0.99))
            spent += seconds
            print(f"{names[-1]} of {len(cold)}: p99 between tokens x {ratios[-1]:.2f}", file=sys.stderr, flush=True)
        ttft_cold, ttft_warm = await _first_tokens(llm, list(cold)[:20])
    return {
        "loaded": len(cold),
        "seconds": spent,
        "itl_p99_ratio": statistics.median(ratios),
        "itl_p99_ratios": ratios,  # one of each turn
        "quiet": figures_of(quiet),
        "loading": figures_of(loading),
        "ttft_ms_cold": 1e3 * ttft_cold,
        "ttft_ms_warm": 1e3 * ttft_warm,
    }


async def _first_tokens(llm: AsyncLLM, names: Sequence[str]) -> tuple[float, float]:
    """Returns the median time to the first token of adapters in host memory, and of the same adapters once they are
    resident. The arena holds fewer adapters than were loaded, so those loaded first are cold again."""
    cold: list[float] = []
    warm: list[float] = []
    for name in names:
        for times in (cold, warm):
            started = time.monotonic()
            async for _ in llm.generate(PROMPT, ONE_TOKEN, lora_request=name):
                pass
            times.append(time.monotonic() - started)
    return percentile(cold, 0.5), percentile(warm, 0.5)


def figures_of(gaps: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(gaps)
    shares = [index / 200 for index in range(1, 200)] + [0.999, 1.0]
    return {
        "tokens": len(gaps),
        "p50_ms": 1e3 * percentile(ordered, 0.5),
        "p99_ms": 1e3 * percentile(ordered, 0.99),
        "longest_ms": 1e3 * ordered[-1],
        "shares": shares,
        "gaps_ms": [round(1e3 * percentile(ordered, share), 3) for share in shares],
    }


def measure(model: str, folders: Sequence[Path], options: dict[str, Any]) -> dict[str, Any]:
    """folders: PEFT folders. The first adapter is resident from the start, the others are loaded one after another."""
    cold = {f"cold{index}": folder for index, folder in enumerate(folders[1:], 1)}
    return asyncio.run(_measure(model, folders[0], cold, options))


def format_report(report: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = [
        [name, report[name]["p50_ms"], report[name]["p99_ms"], report[name]["longest_ms"]] for name in COLOURS
    ]
    table = format_table([f"between tokens, ms; {report['loaded']} loads", "p50", "p99", "longest"], rows)
    first = f"first token: {report['ttft_ms_cold']:.1f} ms from host memory, {report['ttft_ms_warm']:.1f} ms resident"
    return f"{machine.summary(report)}\n\n{table}\np99 ratio {report['itl_p99_ratio']:.2f}; {first}"


def draw(report: Mapping[str, Any], folder: Path) -> Path:
    """Writes a PNG and returns it."""
    from matplotlib.figure import Figure

    gaps = Figure(figsize=(7.0, 4.2), layout="constrained")
    plot = gaps.subplots()
    for name, colour in COLOURS.items():
        figures = report[name]
        tail = [1 - share + 1e-4 for share in figures["shares"]]
        plot.plot(figures["gaps_ms"], tail, color=colour, label=name)
    plot.set_yscale("log")
    plot.set_xscale("log")
    plot.set_xlabel("ms between two tokens of a row")
    plot.set_ylabel("share of gaps that are longer")
    plot.set_title(f"{report['model_id']}, {report['loaded']} adapters loaded under traffic", fontsize=10)
    plot.grid(alpha=0.3)
    plot.legend()
    gaps.savefig(folder / "loading.png", dpi=130)
    return folder / "loading.png"
