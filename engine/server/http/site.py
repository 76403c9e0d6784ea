"""Site: what all routes share: the engine, the names of the model, the limits, and whom a request comes from."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ...answers.answer_form import AnswerFormats
from ...errors import InvalidRequest, PermissionDenied
from ...identity.caller import OPERATOR, Caller
from ...identity.identities import Identities, bearer
from ...ipc.turns import Turns
from ..callers_engine import CallersEngine
from ..open_calls import OpenCalls
from .exchange import Exchange
from .names import ModelNames

# The second one is that of the Gateway API's inference extension.
TENANT_HEADERS = (b"x-tenant-id", b"x-llm-d-inference-fairness-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    identities: Identities
    engine_of: Callable[[Caller], CallersEngine]  # raises EngineUnavailable until the engine has started
    is_ready: Callable[[], bool]
    names: ModelNames
    formats: AnswerFormats
    most_body_bytes: int
    slow_reader_timeout: float
    metrics_prefix: str
    shows_metrics: bool  # to everybody, and not to operators only
    calls: OpenCalls
    turns: Turns = field(default_factory=Turns)
    created: int = field(default_factory=lambda: int(time.time()))

    def engine(self, exchange: Exchange) -> CallersEngine:
        """Returns the engine as the caller of a request may use it; asked for before anything of a stranger is read.
        Raises Unauthenticated, PermissionDenied, InvalidRequest, EngineUnavailable."""
        return self.engine_of(self.identities.of(_token_of(exchange), _tenant_of(exchange)))

    def check_operator(self, exchange: Exchange) -> None:
        """Raises Unauthenticated, PermissionDenied, InvalidRequest."""
        if not self.identities.of(_token_of(exchange), _tenant_of(exchange)).is_operator:
            raise PermissionDenied("only an operator may see the load of the server")

    def observed(self, exchange: Exchange) -> CallersEngine:
        """Returns the engine for a request that only looks at figures. Raises as `engine` does."""
        return self.engine_of(OPERATOR) if self.shows_metrics else self.engine(exchange)


def _token_of(exchange: Exchange) -> str | None:
    return bearer(exchange.headers(b"authorization"))


def _tenant_of(exchange: Exchange) -> str:
    """Returns the tenant that a request names, or "". Raises InvalidRequest if it names several."""
    named = {value for name in TENANT_HEADERS for value in exchange.headers(name) if value}
    if len(named) > 1:
        raise InvalidRequest("tenant", "several are named in the headers; name one")
    return next(iter(named), "")


def now() -> int:
    """Seconds since 1970, as `created` of an answer."""
    return int(time.time())
