"""/metrics: the figures that Prometheus reads, the same as on a port of their own."""

from ...telemetry.exposition import render
from .exchange import Exchange
from .site import Site


async def metrics(site: Site, exchange: Exchange) -> None:
    """They name tenants and adapters: only an operator sees them, unless the server shows them to everybody."""
    statistics = await site.observed(exchange).get_statistics()
    body, kind = await render(statistics, site.metrics_prefix, exchange.header(b"accept") or "")
    await exchange.answer(body, kind=kind.encode())
