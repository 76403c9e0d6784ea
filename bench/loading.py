"""What loading does to traffic: rows that decode in an engine process, with and without cold adapters being loaded.

Times are taken where users are, between two outputs of a row: engine, copies and front end are in them.
A loaded adapter is asked for one token at once, so that it is copied into the arena too; without loading, as many
requests go to the resident adapter at the same pace.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blora.engine import AsyncLLM, RequestOutputKind, SamplingParams

from .throughput import percentile

ROWS = 8
PROMPT = list(range(100, 164))
ENDLESS = SamplingParams(
    temperature=0, max_tokens=400, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
)
ONE_TOKEN = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)


@dataclass(slots=True)
class Traffic:
    """Rows that are always there."""

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
        """Traffic while `work` lasts. Returns the seconds it took."""
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


async def _load(llm: AsyncLLM, folders: Sequence[Path]) -> None:
    for index, folder in enumerate(folders):
        await llm.load_adapter(f"cold{index}", folder)
        async for _ in llm.generate(PROMPT[:8], ONE_TOKEN, lora_request=f"cold{index}"):
            pass
        if index % 20 == 19:
            print(f"loaded {index + 1} of {len(folders)}", file=sys.stderr, flush=True)


async def _ask_warm(llm: AsyncLLM, count: int, seconds: float) -> None:
    for _ in range(count):
        await asyncio.sleep(seconds / count)
        async for _ in llm.generate(PROMPT[:8], ONE_TOKEN, lora_request="warm"):
            pass


async def _measure(model: str, folders: Sequence[Path], options: dict[str, Any]) -> dict[str, Any]:
    async with AsyncLLM(model, adapters={"warm": folders[0]}, enable_prefix_caching=False, **options) as llm:
        loading = Traffic(llm, "warm")
        seconds = await loading.run(_load(llm, folders[1:]))
        quiet = Traffic(llm, "warm")
        await quiet.run(_ask_warm(llm, len(folders) - 1, seconds))
        cold, warm = await _first_tokens(llm, len(folders) - 1)
    ratio = percentile(loading.gaps, 0.99) / percentile(quiet.gaps, 0.99)
    return {
        "loaded": len(folders) - 1,
        "seconds": seconds,
        "itl_p99_ratio": ratio,
        "quiet": figures_of(quiet.gaps),
        "loading": figures_of(loading.gaps),
        "ttft_ms_cold": 1e3 * cold,
        "ttft_ms_warm": 1e3 * warm,
    }


async def _first_tokens(llm: AsyncLLM, num_adapters: int) -> tuple[float, float]:
    """Medians of the time to the first token of adapters in host memory, and of the same ones once they are resident.
    The arena holds fewer than were loaded, so the first ones are cold again."""
    cold: list[float] = []
    warm: list[float] = []
    for index in range(min(num_adapters, 20)):
        for times in (cold, warm):
            started = time.monotonic()
            async for _ in llm.generate(PROMPT, ONE_TOKEN, lora_request=f"cold{index}"):
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
    """folders: PEFT folders; the first is resident from the beginning, the others are loaded one after another."""
    return asyncio.run(_measure(model, folders, options))
