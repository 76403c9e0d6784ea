"""What a server tells of itself, made from its flags: the port of metrics, the lines of its log, and spans."""

import argparse
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from ..errors import PermissionDenied
from ..identity.identities import bearer
from ..server.access import Access
from ..server.engine import ServedEngine
from ..telemetry.exposition import MetricsApp
from ..telemetry.metrics_port import metrics_port
from ..telemetry.stats_line import stats_line


@dataclass(slots=True)
class Telling:
    lines: list[str] = field(default_factory=list)  # that say where the server tells of itself
    flush: Callable[[], None] = lambda: None  # to be called before the process ends


@asynccontextmanager
async def told_by(llm: ServedEngine, args: argparse.Namespace, who: Access) -> AsyncGenerator[Telling, None]:
    """Tells of an engine while the context is open. Raises OSError, ModuleNotFoundError."""
    telling = Telling()
    async with AsyncExitStack() as contexts:
        if args.otlp_traces_endpoint:
            telling.flush = _send_spans(llm, args)
            contexts.callback(telling.flush)
        if args.metrics_port is not None:
            app = MetricsApp(llm.get_statistics, args.metrics_prefix, reader_check(args, who))
            tls = None if who.tls is None else who.tls.ssl_context()
            address = await contexts.enter_async_context(metrics_port(app, args.host, args.metrics_port, tls))
            scheme = "http" if tls is None else "https"
            telling.lines.append(f"blora shows metrics on {scheme}://{address}/metrics")
        if not args.disable_log_stats and args.log_stats_interval:
            await contexts.enter_async_context(stats_line(llm.get_statistics, args.log_stats_interval))
        yield telling


def reader_check(args: argparse.Namespace, who: Access) -> Callable[[str | None], None]:
    """Returns what checks who reads the metrics, as over HTTP: operators, or everybody with --open-metrics."""

    def check(authorization: str | None) -> None:
        if not args.open_metrics and not who.public().of(bearer([authorization or ""])).is_operator:
            raise PermissionDenied("metrics are shown to operators; --open-metrics shows them to everybody")

    return check


def _send_spans(llm: ServedEngine, args: argparse.Namespace) -> Callable[[], None]:
    from ..telemetry.spans import Spans, otlp_exporter

    exporter = otlp_exporter(args.otlp_traces_endpoint, args.otlp_traces_protocol)
    spans = Spans(exporter, str(args.model))
    llm.on_request_end(spans.note)
    return spans.flush
