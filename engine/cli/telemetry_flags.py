"""The flags of `blora serve` about what a server tells of itself."""

import argparse
import re

from ..arguments.flag_types import port, seconds

TELEMETRY_FLAGS = ("disable_log_stats", "otlp_traces_endpoint")  # names that EngineArgs has, too


def add_telemetry_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("telemetry")
    group.add_argument(
        "--metrics-port",
        type=port,
        metavar="PORT",
        help="port of --host that serves /metrics for Prometheus, beside gRPC; 0 takes a free one (default: none)",
    )
    group.add_argument(
        "--metrics-prefix",
        type=prefix,
        default="blora",
        metavar="NAME",
        help="first part of the names of metrics; vllm makes vLLM's boards and routers work unchanged "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="collector that gets a span of each request by OTLP, such as http://127.0.0.1:4317; needs the extra otel "
        "(default: no spans)",
    )
    group.add_argument(
        "--otlp-traces-protocol",
        choices=("grpc", "http/protobuf"),
        default="grpc",
        help="protocol of the collector (default: %(default)s)",
    )
    group.add_argument(
        "--disable-log-stats",
        action="store_true",
        help="write no line of throughput and load to the log each ten seconds",
    )
    group.add_argument(
        "--log-stats-interval",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="time between two of these lines (default: %(default)s)",
    )
    group.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="format of the log on standard error (default: %(default)s)",
    )
    group.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least level of the records in the log (default: %(default)s)",
    )


def prefix(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of letters, digits and '_'")
    return text
