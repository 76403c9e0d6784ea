"""ServerTimes: how long a server waits, for whom."""

from dataclasses import dataclass

# Seconds in which a client that reads slowly still receives what is written, after its request has ended.
LAST_WORDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTimes:
    """Seconds."""

    # With LAST_WORDS and the end of the engine, a stop fits into the 30 s after which Kubernetes kills a pod.
    shutdown_timeout: float = 20.0  # from the signal, for requests to finish
    # 0: clients that try again after UNAVAILABLE need none.
    drain_grace: float = 0.0  # from the signal, for routers to look elsewhere; requests are still accepted in it
    # Megabytes are under way to a client before its stream stands still, so only one that does not read waits so long.
    slow_reader_timeout: float = 60.0  # for a client to make room for a stream's next message


DEFAULTS = ServerTimes()
