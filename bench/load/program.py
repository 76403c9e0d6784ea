"""`blora bench load`: one run against a server, and its summary."""

import argparse
import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ..table import Cell, format_table, write_json
from ..trace import TraceShape
from .driver import Load
from .grpc_target import GrpcTarget
from .plan import Planned, Traffic, make_plan, read_plan, write_plan
from .summary import Objective, by, summarize

LATE_SECONDS = 0.05  # 99th percentile of the client's own lag from which a run says that the client was the limit
FIGURES = ("ttft", "itl", "e2el", "refusal", "lag")
NO_TENANT = "(none)"


def run(args: argparse.Namespace) -> int:
    plan = read_plan(args.replay) if args.replay is not None else make_plan(*_traffics(args))
    if not plan:
        raise ValueError("the plan has no request: --rate or --seconds is too small")
    if args.record is not None:
        write_plan(args.record, plan)
    load = asyncio.run(_drive(plan, args.target, args.connections))
    seconds = max(args.seconds, plan[-1].seconds)
    objective = Objective(args.ttft, args.itl)
    report = {
        "kind": "load",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {name: str(value) for name, value in vars(args).items()},
        "client_cpu_share": load.cpu_share,
        "total": summarize(load.records, seconds, objective),
        "tenants": by(load.records, lambda record: record.planned.tenant, seconds, objective),
        "adapters": by(load.records, lambda record: record.planned.adapter, seconds, objective),
    }
    print(format_report(report))
    if args.json is not None:
        write_json(args.json, report)
    if args.records is not None:
        args.records.write_text("".join(json.dumps(record.as_json()) + "\n" for record in load.records))
    return int(is_client_late(report))


async def _drive(plan: Sequence[Planned], address: str, num_connections: int) -> Load:
    async with GrpcTarget(address, num_connections) as target:
        load = Load(plan, target)
        await load.run()
        return load


def _traffics(args: argparse.Namespace) -> list[Traffic]:
    """Returns the traffic of each tenant; the rate is divided by their shares."""
    whole = sum(args.tenants.values())
    names = args.adapters or ("",)
    return [
        Traffic(
            shape=TraceShape(
                adapters=len(names),
                rate=args.rate * share / whole,
                seconds=args.seconds,
                alpha=args.alpha,
                cv=args.cv,
                input_len=args.prompt_len,
                output_len=args.output_len,
                prefix_len=args.prefix_len,
                seed=args.seed + number,
            ),
            vocab_size=args.vocab_size,
            adapters=names,
            tenant=tenant,
            deadline=args.deadline,
        )
        for number, (tenant, share) in enumerate(args.tenants.items())
    ]


def is_client_late(report: dict[str, Any]) -> bool:
    return bool(report["total"]["p99_lag_ms"] > LATE_SECONDS * 1e3)


def format_report(report: dict[str, Any]) -> str:
    total = report["total"]
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(total["statuses"].items()))
    columns = ("mean", "p50", "p90", "p99", "max")
    times: list[list[Cell]] = [
        [name, *(total.get(f"{column}_{name}_ms") for column in columns)]
        for name in FIGURES
        if f"p50_{name}_ms" in total
    ]
    tenants: list[list[Cell]] = [
        [tenant or NO_TENANT, part["request_rate"], part["request_goodput"], *_worst(part)]
        for tenant, part in report["tenants"].items()
    ]
    lines = [
        f"{total['requests']} requests in {total['duration']:.1f} s: {statuses}",
        f"goodput {total['request_goodput']:.2f}/s of {total['request_rate']:.2f}/s,"
        f" {total['output_throughput']:.0f} tokens/s; the client used {report['client_cpu_share']:.0%} of a core",
        "",
        format_table(["ms", *columns], times),
        "",
        format_table(["tenant", "rate/s", "goodput/s", "p99 ttft ms", "p99 itl ms"], tenants),
    ]
    if is_client_late(report):
        lines.append("the client sent late: these figures are the client's, not the server's")
    return "\n".join(lines)


def _worst(part: dict[str, Any]) -> list[Cell]:
    return [part.get("p99_ttft_ms"), part.get("p99_itl_ms")]
