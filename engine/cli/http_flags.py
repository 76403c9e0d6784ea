"""The flags of OpenAI's API over HTTP."""

import argparse
import json
from itertools import chain
from typing import TYPE_CHECKING

from ..arguments.flag_types import port
from .answer_flags import answer_formats

if TYPE_CHECKING:
    from ..server.http.options import HttpOptions

HTTP_FLAGS = ("http_port", "http_host", "served_model_name", "allowed_origins")


def add_http_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("HTTP", "OpenAI's API, beside gRPC, in the same process.")
    group.add_argument(
        "--http-port", type=port, metavar="PORT", help="port of HTTP; 0 takes a free one (default: HTTP is not served)"
    )
    group.add_argument("--http-host", metavar="HOST", help="address of HTTP (default: that of --host)")
    group.add_argument(
        "--served-model-name",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="names of the base model in requests; answers have the first one (default: the last part of its path)",
    )
    group.add_argument(
        "--allowed-origins",
        type=_origin,
        nargs="+",
        action="extend",
        default=[],
        metavar="ORIGIN",
        help="origins of web pages whose scripts may ask, by CORS; '*' is any (default: none)",
    )
    group.add_argument(
        "--open-metrics",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="show /metrics to everybody, where callers need a token otherwise (default: to operators only)",
    )


def _origin(text: str) -> list[str]:
    """An origin, or as vLLM has it a list of them in JSON."""
    origins = json.loads(text) if text.startswith("[") else [text]
    if not all(isinstance(origin, str) for origin in origins):
        raise ValueError(text)
    return list(origins)


def http_options(args: argparse.Namespace) -> "HttpOptions | None":
    """Returns None where HTTP is not asked for."""
    if args.http_port is None:
        return None
    from ..server.http.options import HttpOptions, names_of_model

    return HttpOptions(
        host=args.http_host or args.host,
        port=args.http_port,
        formats=answer_formats(args),
        model=args.model,
        metrics_prefix=args.metrics_prefix,
        shows_metrics=args.open_metrics,
        model_names=names_of_model(args.model, args.served_model_name),
        allowed_origins=list(chain.from_iterable(args.allowed_origins)),
    )
