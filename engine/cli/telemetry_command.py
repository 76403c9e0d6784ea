"""What a server tells of itself, made from its flags: the port of metrics, and the lines of its log."""

import argparse
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from ..server.engine import ServedEngine
from ..telemetry.exposition import MetricsApp
from ..telemetry.metrics_port import metrics_port
from ..telemetry.stats_line import stats_line


@asynccontextmanager
async def told_by(llm: ServedEngine, args: argparse.Namespace) -> AsyncGenerator[list[str], None]:
    """Tells of an engine while the context is open. Yields lines that say where. Raises OSError."""
    lines: list[str] = []
    async with AsyncExitStack() as telling:
        if args.metrics_port is not None:
            app = MetricsApp(llm.get_statistics, args.metrics_prefix)
            address = await telling.enter_async_context(metrics_port(app, args.host, args.metrics_port))
            lines.append(f"blora shows metrics on http://{address}/metrics")
        if not args.disable_log_stats and args.log_stats_interval:
            await telling.enter_async_context(stats_line(llm.get_statistics, args.log_stats_interval))
        yield lines
