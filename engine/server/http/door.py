"""HttpDoor: OpenAI's API on one port, around an engine. The server that owns it says when it starts and ends."""

from collections.abc import Callable

from ...identity.caller import Caller
from ...identity.identities import Identities
from ..callers_engine import CallersEngine
from ..message_sizes import largest_body
from ..open_calls import OpenCalls
from ..times import ServerTimes
from ..tls import Tls
from .app import make_app
from .listener import Listener
from .names import ModelNames
from .options import HttpOptions
from .site import Site


class HttpDoor:
    def __init__(
        self,
        options: HttpOptions,
        max_model_len: int,
        times: ServerTimes,
        identities: Identities,
        engine_of: Callable[[Caller], CallersEngine],
        is_ready: Callable[[], bool],
        tls: Tls | None = None,
    ) -> None:
        """engine_of: raises EngineUnavailable until the engine has started. is_ready: whether requests are accepted."""
        self._calls = OpenCalls()
        site = Site(
            identities=identities,
            engine_of=engine_of,
            is_ready=is_ready,
            names=ModelNames(options.model_names, options.model),
            formats=options.formats,
            most_body_bytes=largest_body(max_model_len),
            slow_reader_timeout=times.slow_reader_timeout,
            calls=self._calls,
            metrics_prefix=options.metrics_prefix,
            shows_metrics=options.shows_metrics,
        )
        self._listener = Listener(make_app(site, options.allowed_origins), options.host, options.port, tls)

    @property
    def address(self) -> str:
        return self._listener.address

    def start(self) -> None:
        """Begins to listen. Raises OSError if the port is not available."""
        self._listener.start()

    async def wait_for_none(self, seconds: float) -> None:
        """Returns when all requests for tokens are answered, at the latest after these seconds."""
        await self._calls.wait_for_none(seconds)

    async def stop(self) -> None:
        """Stops at once. Idempotent."""
        await self._listener.stop()
