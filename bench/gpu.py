"""Checks and measures blora on a GPU: tokens against the CPU's, rows alone and mixed, speed, cost of adapters, copies.

Two engines need not agree in the last bits. A difference counts only if the two best tokens are further apart than
rounding explains. The report, as JSON and as markdown, is meant to be sent back.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from blora.engine import CompletionOutput, EngineStartError, SamplingParams
from blora.engine.cuda import backend as cuda
from blora.engine.cuda.copies import PageCopier
from blora.engine.step.device import Device

from .measured_engine import MeasuredEngine, Setup
from .random_adapters import ALL_MODULES
from .table import format_table, write_json
from .throughput import measure
from .workload import Workload

MARGINS = {"float16": 0.03, "bfloat16": 0.2}  # differences of log-probabilities that rounding explains
ADAPTERS = 8
PAGE_BYTES = 1 << 20
COPIED_PAGES = 64  # pages copied in one step


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of one run compared with the same rows of another."""

    rows: int
    whole: int  # rows that are equal to their end
    ties: int  # rows that differ first where the two best tokens are nearly equal
    wrong: int  # all other rows


def run(args: argparse.Namespace) -> int:
    """Returns 1 if rows are wrong, otherwise 0. Exits if there is no GPU or no FlashInfer."""
    try:
        device = cuda.open_device()
        report = measure_gpu(args, device)
    except EngineStartError as error:
        raise SystemExit(f"blora bench gpu: nothing was measured: {error}") from None
    text = format_report(report)
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "gpu.json", report)
    (args.output / "gpu.md").write_text(text + "\n")
    print(f"send back {args.output / 'gpu.json'} and {args.output / 'gpu.md'}", file=sys.stderr)
    return 1 if report["parity"]["wrong"] or report["isolation"]["wrong"] else 0


def measure_gpu(args: argparse.Namespace, device: Device) -> dict[str, Any]:
    margin, work = MARGINS[args.dtype], checked_rows(args)
    engine = MeasuredEngine(_setup(args, "cuda"))
    mixed = generate(engine, *work)
    rows = zip(*work[:2], strict=True)
    alone = [generate(engine, [prompt], [adapter], args.output_len)[0] for prompt, adapter in rows]
    speeds = [measure(engine, workload, args.rounds, 1) for workload in _workloads(args)]
    del engine
    expected = generate(MeasuredEngine(_setup(args, args.reference)), *work)
    return {
        "kind": "gpu",
        "gpu": device.describe(),
        "memory": asdict(device.memory()),
        "reference": args.reference,
        "margin": margin,
        "parity": asdict(compare(expected, mixed, margin)),
        "isolation": asdict(compare(alone, mixed, margin)),
        "throughput": speeds,
        "copies": measure_copies(device),
    }


def _setup(args: argparse.Namespace, backend: str) -> Setup:
    return Setup(
        model=args.model,
        max_rows=max(args.rows),
        max_len=args.prompt_len + args.output_len,
        adapters=ADAPTERS,
        ranks=args.ranks,
        modules=ALL_MODULES if args.modules is None else args.modules,
        dtype=args.dtype,
        backend=backend,
        adapter_folder=args.adapter_folder,
    )


def _workloads(args: argparse.Namespace) -> list[Workload]:
    return [
        Workload(rows=rows, prompt_len=args.prompt_len, output_len=args.output_len, adapters=min(ADAPTERS, rows))
        for rows in args.rows
    ]


def checked_rows(args: argparse.Namespace) -> tuple[list[list[int]], list[int | None], int]:
    """Returns prompts of lengths up to `prompt_len`, the adapter of each (the base model and all adapters in turn), and
    the number of tokens to generate."""
    generator = torch.Generator().manual_seed(args.seed)
    lengths = torch.linspace(1, args.prompt_len, 2 * (ADAPTERS + 1)).int().tolist()
    # Ids below 256 are in every vocabulary.
    prompts = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]
    adapters = [None, *range(ADAPTERS)] * 2
    return prompts, adapters, args.output_len


def generate(
    engine: MeasuredEngine, prompts: Sequence[list[int]], adapters: Sequence[int | None], num_tokens: int
) -> list[CompletionOutput]:
    """Generates for all rows at once, greedily, with the logprobs of the two best tokens at each position."""
    sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False, logprobs=2)
    given: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
    names = [engine.adapter_name(adapter) for adapter in adapters]
    outputs = engine.llm.generate(given, sampling, lora_request=names, use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def compare(expected: Sequence[CompletionOutput], actual: Sequence[CompletionOutput], margin: float) -> Comparison:
    kinds = [_compare_row(theirs, ours, margin) for theirs, ours in zip(expected, actual, strict=True)]
    return Comparison(len(kinds), kinds.count("whole"), kinds.count("tie"), kinds.count("wrong"))


def _compare_row(expected: CompletionOutput, actual: CompletionOutput, margin: float) -> str:
    assert expected.logprobs is not None and actual.logprobs is not None
    if expected.error is not None or actual.error is not None:
        return "wrong"
    for at, (wanted, token) in enumerate(zip(expected.token_ids, actual.token_ids, strict=True)):
        best, second = sorted((entry.logprob for entry in expected.logprobs[at].values()), reverse=True)[:2]
        if token != wanted:
            return "tie" if best - second < margin and token in expected.logprobs[at] else "wrong"
        if not abs(actual.logprobs[at][token].logprob - best) < margin:  # NaN is wrong, too
            return "wrong"
    return "whole"


def measure_copies(device: Device, rounds: int = 10) -> dict[str, float]:
    """Copies adapter pages through staging memory. Returns the bytes per second of the host's part, and of the whole
    until all pages have arrived."""
    pages = torch.zeros(COPIED_PAGES, PAGE_BYTES, dtype=torch.uint8, device=device.torch_device)
    images = torch.ones(COPIED_PAGES, PAGE_BYTES, dtype=torch.uint8)
    copier = PageCopier(device, PAGE_BYTES, COPIED_PAGES)
    times = []
    for _ in range(rounds + 1):
        device.synchronize()
        started = time.monotonic()
        copier.note_step()
        copier.copy(pages, range(COPIED_PAGES), images)
        launched = time.monotonic()
        device.synchronize()
        times.append((launched - started, time.monotonic() - started))
    host, whole = map(sum, zip(*times[1:], strict=True))  # the first round warms up
    if not bool((pages == 1).all()):
        raise RuntimeError("the copied pages did not arrive on the GPU")
    num_bytes = rounds * COPIED_PAGES * PAGE_BYTES
    return {"staged_bytes_per_second": num_bytes / host, "copied_bytes_per_second": num_bytes / whole}


def format_report(report: dict[str, Any]) -> str:
    """Returns the report as markdown, with tables in plain text."""
    fields = ("rows", "whole", "ties", "wrong")
    checks = [(name, *(report[name][field] for field in fields)) for name in ("parity", "isolation")]
    speeds = []
    for each in report["throughput"]:
        median = each["median"]
        base, adapters = median["base"]["decode_throughput"], median["adapters"]["decode_throughput"]
        prefill = median["base"]["prefill_throughput"]
        speeds.append((f"{each['workload']['rows']}", prefill, base, adapters, 100 * (1 - adapters / base)))
    copies = report["copies"]
    return "\n".join(
        [
            f"# blora on {report['gpu']}",
            "",
            f"Rows compared with {report['reference']} (parity) and with themselves alone (isolation). A row that",
            f"differs where the two best tokens are less than {report['margin']} apart is a tie.",
            "",
            "```",
            format_table(("", *fields), checks),
            "",
            format_table(("rows", "prefill tok/s", "base tok/s", "LoRA tok/s", "LoRA costs %"), speeds),
            "",
            f"adapters are copied at {copies['copied_bytes_per_second'] / 1e9:.1f} GB/s, "
            f"of which staging is {copies['staged_bytes_per_second'] / 1e9:.1f} GB/s",
            "```",
        ]
    )
