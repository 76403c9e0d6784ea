"""The flags of `blora bench serve`. Names and defaults are those of `vllm bench serve` where it has the same."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..flag_types import count, whole_number
from ..load.arrivals import RAMPS
from ..load.popularity import KINDS
from ..load.result import GOAL_METRICS, METRICS
from ..load.targets.spec import BACKENDS

HELP = "open-loop load on a running server, over gRPC or HTTP, or in process"
DATASETS = ("random", "prefix_repetition", "sharegpt", "custom", "timed_trace", "demo", "slora")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_server(parser)
    _add_requests(parser)
    _add_datasets(parser)
    _add_arrivals(parser)
    _add_adapters(parser)
    _add_clients(parser)
    _add_generator(parser)
    _add_result(parser)


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--backend", choices=BACKENDS, default="blora", help="how the server is asked (default: %(default)s, over gRPC)"
    )
    group.add_argument("--base-url", metavar="URL", help="of the server, in place of --host and --port")
    group.add_argument("--host", default="127.0.0.1", help="of the server (default: %(default)s)")
    group.add_argument("--port", type=int, help="of the server (default: 50051 for blora, 8000 for openai)")
    group.add_argument("--endpoint", metavar="PATH", help="of HTTP (default: /v1/completions, or /v1/chat/completions)")
    group.add_argument(
        "--model", help="the base model: its name at a server of HTTP, its folder in process (default: as it is served)"
    )
    group.add_argument(
        "--connections", type=count, default=1, metavar="N", help="connections over gRPC, by worker (default: 1)"
    )
    group.add_argument(
        "--ready-check-timeout-sec",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait so long until the server answers a short request (default: 0, do not ask)",
    )
    group.add_argument("--extra-body", type=_object, default={}, metavar="JSON", help="fields of each body of HTTP")


def _add_requests(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument(
        "--dataset-name", choices=DATASETS, default="random", help="where prompts come from (default: %(default)s)"
    )
    group.add_argument(
        "--dataset-path", type=Path, metavar="FILE", help="of sharegpt, custom and timed_trace, which are files"
    )
    group.add_argument("--num-prompts", type=count, default=1000, metavar="N", help="requests (default: %(default)s)")
    group.add_argument(
        "--vocab-size", type=count, metavar="N", help="random token ids are below N (default: as the server says)"
    )
    group.add_argument("--temperature", type=float, default=0.0, help="of all requests (default: 0, greedy)")
    group.add_argument(
        "--ignore-eos", action="store_true", help="answers go on to their planned length (random prompts: always)"
    )
    group.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    group.add_argument("--record", type=Path, metavar="FILE", help="write the plan here, a request a line")
    group.add_argument("--replay", type=Path, metavar="FILE", help="send the plan of this file in place of a new one")


def _add_datasets(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("datasets")
    group.add_argument(
        "--random-input-len", "--input-len", type=count, default=1024, metavar="TOKENS", help="(default: %(default)s)"
    )
    group.add_argument(
        "--random-output-len", "--output-len", type=count, default=128, metavar="TOKENS", help="(default: %(default)s)"
    )
    group.add_argument(
        "--random-range-ratio",
        type=float,
        default=0.0,
        metavar="R",
        help="lengths are even from (1 - R) to (1 + R) times theirs (default: 0)",
    )
    group.add_argument(
        "--random-prefix-len",
        type=whole_number,
        default=0,
        metavar="TOKENS",
        help="that all prompts share (default: 0)",
    )
    for name, tokens, what in (
        ("prefix", 256, "that the prompts of a group share"),
        ("suffix", 256, "of a prompt after them"),
        ("output", 128, "of an answer"),
    ):
        group.add_argument(
            f"--prefix-repetition-{name}-len",
            type=count,
            default=tokens,
            metavar="TOKENS",
            help=f"{what} (default: %(default)s)",
        )
    group.add_argument(
        "--prefix-repetition-num-prefixes", type=count, default=10, metavar="N", help="groups (default: %(default)s)"
    )
    group.add_argument(
        "--custom-output-len", type=count, default=256, metavar="TOKENS", help="where a line says none (default: 256)"
    )
    group.add_argument(
        "--sharegpt-output-len", type=count, metavar="TOKENS", help="(default: that of the answer in the file)"
    )
    for name, value, what in (
        ("alpha", 1.0, "power of its popularity; 1 is uniform, less favours the first adapters"),
        ("req-rate", 2.0, "requests/s"),
        ("cv", 1.0, "variation of the gaps; 1 is Poisson"),
        ("duration", 60.0, "seconds of arrivals"),
    ):
        group.add_argument(
            f"--slora-{name}", type=float, default=value, metavar="X", help=f"{what} (default: %(default)s)"
        )
    for name in ("input", "output"):
        group.add_argument(
            f"--slora-{name}-range",
            type=count,
            nargs=2,
            default=(8, 512),
            metavar=("LOW", "HIGH"),
            help=f"tokens of an {name} (default: 8 512)",
        )
    group.add_argument("--trace-speed", type=float, default=1.0, metavar="X", help="of timed_trace (default: 1)")


def _add_arrivals(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("arrivals")
    group.add_argument(
        "--request-rate", type=float, default=math.inf, metavar="N", help="requests/s (default: inf, all at once)"
    )
    group.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        help="shape of the gamma distribution of the gaps; 1 is Poisson, less comes in bursts (default: 1)",
    )
    group.add_argument("--ramp-up-strategy", choices=RAMPS, help="the rate changes from the first request to the last")
    group.add_argument("--ramp-up-start-rps", type=float, metavar="N", help="requests/s at the start of a ramp")
    group.add_argument("--ramp-up-end-rps", type=float, metavar="N", help="requests/s at its end")
    group.add_argument(
        "--max-concurrency", type=count, metavar="N", help="requests at once; others wait in the generator"
    )
    group.add_argument(
        "--num-warmups",
        type=whole_number,
        default=0,
        metavar="N",
        help="requests before, which do not count (default: 0)",
    )


def _add_adapters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("adapters and tenants")
    group.add_argument(
        "--lora-modules",
        nargs="+",
        default=(),
        metavar="NAME",
        help="adapters to ask for (default: the base model)",
    )
    group.add_argument(
        "--lora-assignment",
        choices=KINDS,
        default="uniform",
        help="how requests are spread over them (default: %(default)s)",
    )
    group.add_argument(
        "--lora-alpha", type=float, metavar="A", help="of power, zipf (default: 1) and skewed (default: 1.5)"
    )
    group.add_argument(
        "--base-share", type=float, default=0.0, metavar="SHARE", help="of requests without an adapter (default: 0)"
    )
    group.add_argument(
        "--tenants",
        type=_weights,
        default={"": 1.0},
        metavar="NAME=SHARE,...",
        help="tenants and their shares of the requests (default: no tenant)",
    )
    group.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="of each request, from its planned arrival (default: none)"
    )


def _add_clients(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clients")
    for name, what in (
        ("cancelling", "that leave after some tokens"),
        ("leaving", "that break off at some time"),
        ("slow-readers", "that rest after each message"),
    ):
        group.add_argument(
            f"--{name}", type=float, default=0.0, metavar="SHARE", help=f"of clients {what} (default: 0)"
        )
    group.add_argument(
        "--leave-within", type=float, default=2.0, metavar="SECONDS", help="of --leaving (default: %(default)s)"
    )
    group.add_argument(
        "--read-pause", type=float, default=0.2, metavar="SECONDS", help="of --slow-readers (default: %(default)s)"
    )


def _add_generator(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generator")
    group.add_argument(
        "--workers", type=count, default=1, metavar="N", help="processes that send the load (default: 1)"
    )
    group.add_argument("--disable-tqdm", action="store_true", help="show no progress")


def _add_result(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("result")
    group.add_argument(
        "--percentile-metrics",
        type=_metrics,
        default=tuple(METRICS),
        metavar="LIST",
        help=f"of {', '.join(METRICS)} (default: all)",
    )
    group.add_argument(
        "--metric-percentiles",
        type=_percents,
        default=(50.0, 90.0, 95.0, 99.0),
        metavar="LIST",
        help="(default: 50,90,95,99)",
    )
    group.add_argument(
        "--goodput",
        nargs="+",
        type=_limit,
        default=(),
        metavar="KEY:MS",
        help="what makes a request good: ttft, tpot or e2el, and the most milliseconds",
    )
    group.add_argument("--save-result", action="store_true", help="write the result as JSON")
    group.add_argument("--save-detailed", action="store_true", help="with the times and the answer of each request")
    group.add_argument("--append-result", action="store_true", help="add to the file, a result a line")
    group.add_argument(
        "--records", type=Path, metavar="FILE", help="write the times and the answer of each request here, a line each"
    )
    group.add_argument("--result-dir", type=Path, metavar="DIR", help="of the result (default: this folder)")
    group.add_argument("--result-filename", metavar="NAME", help="(default: BACKEND-RATEqps-MODEL-DATE.json)")
    group.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with charts of the run, which needs no network"
    )
    group.add_argument("--label", help="name of the run in its result")
    group.add_argument("--metadata", nargs="+", type=_pair, default=(), metavar="KEY=VALUE", help="of the result")


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return found


def _weights(text: str) -> dict[str, float]:
    try:
        shares = {name: float(share) for name, _, share in (part.partition("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SHARE,...") from None
    if not all(0 < share < math.inf for share in shares.values()):
        raise argparse.ArgumentTypeError(f"the shares of {text!r} have to be above 0")
    return shares


def _metrics(text: str) -> Sequence[str]:
    names = text.split(",")
    for name in names:
        if name not in METRICS:
            raise argparse.ArgumentTypeError(f"no metric is named {name!r}; there are {', '.join(METRICS)}")
    return names


def _percents(text: str) -> Sequence[float]:
    try:
        percents = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of percentiles") from None
    if not all(0 <= percent <= 100 for percent in percents):
        raise argparse.ArgumentTypeError(f"the percentiles of {text!r} have to be from 0 to 100")
    return percents


def _limit(text: str) -> tuple[str, float]:
    name, _, limit = text.partition(":")
    if name not in GOAL_METRICS:
        raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(GOAL_METRICS)}")
    try:
        return name, float(limit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY:MS") from None


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value
