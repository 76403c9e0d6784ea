"""Report: the result of a run as a table, and the details of its requests."""

from collections.abc import Sequence
from typing import Any

from ..load import Record
from ..load.record import OK
from ..table import Cell, format_table

OF_GROUPS = ("p50_ttft_ms", "p99_ttft_ms", "p50_itl_ms", "p99_itl_ms")
MOST_GROUPS = 10  # shown; the result has all
FIGURES = ("ttft", "sent_ttft", "tpot", "itl", "e2el", "refusal", "lag")


def format_result(result: dict[str, Any]) -> str:
    statuses = ", ".join(f"{count} {status}" for status, count in result["statuses"].items())
    columns = list(dict.fromkeys(key.split("_", 1)[0] for key in result if key.endswith("_ms")))
    rows: list[list[Cell]] = [
        [name, *(result.get(f"{column}_{name}_ms") for column in columns)]
        for name in FIGURES
        if f"mean_{name}_ms" in result
    ]
    shares = ", ".join(f"{share:.0%}" for share in result["generator"]["cpu_shares"])
    goodput = result["request_goodput"]
    lines = [
        f"{sum(result['statuses'].values())} requests in {result['duration']:.1f} s: {statuses}",
        f"{result['request_throughput']:.2f} requests/s"
        + (f", {goodput:.2f} good" if goodput is not None else "")
        + f"; {result['output_throughput']:.0f} tokens/s, {result['total_token_throughput']:.0f} with prompts",
        f"the generator used {shares or '0%'} of a core",
        "",
        format_table(["ms", *columns], rows),
        *_groups(result, "adapters", "(base model)"),
        *_groups(result, "tenants", "(no tenant)"),
    ]
    if result["checked_answers"]:
        lines.insert(2, f"{result['wrong_answers']} of {result['checked_answers']} answers are wrong")
    return "\n".join(lines)


def _groups(result: dict[str, Any], kind: str, unnamed: str) -> list[str]:
    """Returns a table of the groups that were asked most, where there are several."""
    groups = sorted(result[kind].items(), key=lambda item: -item[1]["share"])
    if len(groups) < 2:
        return []
    rows: list[list[Cell]] = [
        [name or unnamed, group["completed"], group["failed"], *(group.get(figure) for figure in OF_GROUPS)]
        for name, group in groups[:MOST_GROUPS]
    ]
    fairness = result[f"{kind}_fairness"]
    return [
        "",
        format_table([kind, "ok", "failed", *(name.removesuffix("_ms").replace("_", " ") for name in OF_GROUPS)], rows),
        f"{len(groups)} {kind}; fairness by Jain {fairness['jain']:.3f}, max/min {_ratio(fairness['max_min'])}",
    ]


def _ratio(value: float | None) -> str:
    return "without end" if value is None else f"{value:.2f}"


def detailed(records: Sequence[Record]) -> dict[str, Any]:
    """Returns the lists of `vllm bench serve --save-detailed`, one entry a request, by planned arrival."""
    return {
        "input_lens": [record.num_prompt_tokens for record in records],
        "output_lens": [record.num_tokens for record in records],
        "ttfts": [record.ttft for record in records],
        "itls": [record.gaps for record in records],
        "latencies": [record.seconds for record in records],
        "start_times": [record.planned.seconds for record in records],
        "queue_times": [max(record.released - record.planned.seconds, 0.0) for record in records],
        "lora_modules": [record.planned.adapter for record in records],
        "tenants": [record.planned.tenant for record in records],
        "statuses": [record.status for record in records],
        "generated_texts": [record.answers[0].text if record.answers else "" for record in records],
        "errors": ["" if record.status == OK else f"{record.status}: {record.details}" for record in records],
    }
