"""The program of `blora bench serve`: makes a plan or reads one, sends it, and tells what came of it."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ..host import describe_host
from ..load import Planned, Record, Sent, read_plan, send, write_plan
from ..load.arrivals import Ramp, arrival_seconds, check_rates
from ..load.clients import Clients
from ..load.groups import answers_of, by_group, fairness_of, refusals_of
from ..load.mix import Mix
from ..load.result import Goal, result_of
from .counters import change, read_counters
from .datasets import samples_of
from .progress import Progress
from .report import detailed, format_result
from .served import Served, look_at
from .store import store, write_records
from .verdict import faults_of, is_generator_late

GROUPS: dict[str, Callable[[Record], str]] = {
    "adapters": lambda record: record.planned.adapter,
    "tenants": lambda record: record.planned.tenant,
}
FAULTY, INTERRUPTED = 1, 130  # exit statuses


def run(args: argparse.Namespace) -> int:
    served = look_at(args)
    if args.ready_check_timeout_sec:
        asyncio.run(served.wait(args.ready_check_timeout_sec))
    plan = read_plan(args.replay) if args.replay is not None else make_plan(args, served)
    if args.record is not None:
        write_plan(args.record, plan)
    if args.num_warmups:
        send(_at_once(plan[: args.num_warmups]), served.spec)
    result, sent = measure(args, served, plan)
    print(format_result(result))
    if args.records is not None:
        write_records(args.records, sent.records)
    if args.html is not None:
        from ..report import run_page  # imports matplotlib

        run_page(result, sent.records).write(args.html)
    if args.save_detailed:
        result |= detailed(sent.records)
    if args.save_result or args.save_detailed or args.append_result:
        print(f"written to {store(result, args)}")
    for fault in result["faults"]:
        print(f"NOT VALID: {fault}", file=sys.stderr)
    return INTERRUPTED if not sent.is_whole else FAULTY if result["faults"] else 0


def measure(args: argparse.Namespace, served: Served, plan: Sequence[Planned]) -> tuple[dict[str, Any], Sent]:
    """Sends a plan; returns its result, and what it is of."""
    before = read_counters(served.spec)
    with Progress(len(plan), is_shown=not args.disable_tqdm) as progress:
        sent = send(
            plan,
            served.spec,
            num_workers=args.workers,
            max_concurrency=args.max_concurrency,
            progress=progress.show,
        )
    counted = {"server": change(before, read_counters(served.spec))}
    return _header(args, served, plan) | describe_host() | _figures(args, sent) | counted, sent


def make_plan(args: argparse.Namespace, served: Served) -> list[Planned]:
    """Raises ValueError for options that make no plan."""
    ramp = None
    if args.ramp_up_strategy is not None:
        if args.ramp_up_start_rps is None or args.ramp_up_end_rps is None:
            raise ValueError("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps")
        ramp = Ramp(args.ramp_up_strategy, args.ramp_up_start_rps, args.ramp_up_end_rps)
    check_rates(args.request_rate, args.burstiness, ramp)
    samples = samples_of(args, served)
    if not samples:
        raise ValueError("the plan has no request: its rate or its duration is too small")
    seconds = arrival_seconds(len(samples), args.request_rate, args.burstiness, args.seed, ramp)
    is_random = not isinstance(samples[0].prompt, str)
    if is_random and args.backend == "openai-chat":
        raise ValueError("prompts of token ids cannot be sent to a chat: ask --backend openai, or a dataset of texts")
    sampling = {"temperature": args.temperature} | ({"ignore_eos": True} if args.ignore_eos or is_random else {})
    mix = Mix(
        adapters=args.lora_modules,
        popularity=args.lora_assignment,
        alpha=args.lora_alpha,
        base_share=args.base_share,
        tenants=args.tenants,
        deadline=args.deadline,
        sampling=sampling,
    )
    clients = Clients(
        cancelling=args.cancelling,
        leaving=args.leaving,
        slow=args.slow_readers,
        leave_within=args.leave_within,
        read_pause=args.read_pause,
    )
    return clients.behave(mix.plan(samples, seconds, args.seed), args.seed)


def _at_once(plan: Sequence[Planned]) -> list[Planned]:
    return [replace(planned, seconds=0.0, deadline=None) for planned in plan]


def _header(args: argparse.Namespace, served: Served, plan: Sequence[Planned]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": args.backend,
        "backend": args.backend,
        "label": args.label,
        "model_id": served.model,
        "tokenizer_id": served.model,
        "num_prompts": len(plan),
        "request_rate": "inf" if args.request_rate == float("inf") else args.request_rate,
        "burstiness": args.burstiness,
        "max_concurrency": args.max_concurrency,
        "seed": args.seed,
        **dict(args.metadata),
    }


def _figures(args: argparse.Namespace, sent: Sent) -> dict[str, Any]:
    goal = Goal(dict(args.goodput))
    result = result_of(sent.records, goal, args.percentile_metrics, args.metric_percentiles)
    result |= answers_of(sent.records)
    result["refusals"] = refusals_of(sent.records)
    for name, key in GROUPS.items():
        result[name] = groups = by_group(sent.records, key, goal, result["duration"])
        result[f"{name}_fairness"] = fairness_of(groups)
    result["generator"] = {
        "workers": args.workers,
        "cpu_shares": sent.cpu_shares,
        "is_late": is_generator_late(sent),
        "is_whole": sent.is_whole,
    }
    result["faults"] = faults_of(sent)
    return result
