"""/health, /ready, /ping, /version and /load: what load balancers, routers and load testers ask."""

from importlib.metadata import version

import msgspec

from ...errors import EngineUnavailable
from .exchange import Exchange
from .site import Site

VERSION = version("blora")


async def health(site: Site, exchange: Exchange) -> None:
    """Says 200 while requests are accepted: not before the engine has started, nor during a restart or a drain."""
    if not site.is_ready():
        raise EngineUnavailable("the server does not serve now")
    await exchange.answer(b"")


async def show_version(_: Site, exchange: Exchange) -> None:
    await exchange.answer(msgspec.json.encode({"version": VERSION}))


async def load(site: Site, exchange: Exchange) -> None:
    """The requests for tokens that are being answered, which is for operators to see."""
    site.check_operator(exchange)
    await exchange.answer(msgspec.json.encode({"server_load": site.calls.number}))
