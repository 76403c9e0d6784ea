"""Every typed error a caller can meet. The table from here to gRPC status codes is in `server/status.py`.

All of them, and every other exception of these packages, survive copy and pickle: see `adapters/errors.py`.
"""

from blora.adapters.errors import AdapterError, AdapterNotFound, AdapterRejected, AdapterTooLarge


class InvalidRequest(ValueError):
    """A request that cannot succeed as it is; `field` names the argument to change."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class Unauthenticated(RuntimeError):
    """A call to a server brings no token, or none that is known."""


class PermissionDenied(RuntimeError):
    """The caller is known, and may not do this. The message says which right he lacks."""


class MessageTooLarge(ValueError):
    """A message is larger than any that fits the model's length."""


class QueueFull(RuntimeError):
    """The engine has more to do than a request can wait for, or the queue is full. `retry_after`: seconds after which
    the same request is expected to be accepted; None if that is not predicted, or never. `cause`: what there is too
    much of, in a word, by which refusals are counted: requests, tokens, tenant, wait, deadline, or work of another
    kind."""

    cause = "work"

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason, retry_after)
        self.reason = reason
        self.retry_after = retry_after

    @classmethod
    def of(cls, cause: str, reason: str, retry_after: float | None) -> "QueueFull":
        full = cls(reason, retry_after)
        full.cause = cause
        return full

    def __str__(self) -> str:
        return self.reason if self.retry_after is None else f"{self.reason}; try again in {self.retry_after} s"


class DeadlineExceeded(TimeoutError):
    """The deadline of a request has passed before its answer was complete. Its work has stopped."""


class ReaderTooSlow(RuntimeError):
    """A client does not read its stream, of which too much waits for it. The request was ended."""


class LimitReached(RuntimeError):
    """The engine keeps as many things of a kind as it may: names of adapters, bytes of uploads, watchers. The message
    says which."""


class EngineUnavailable(RuntimeError):
    """The engine is starting or draining, or has ended and cannot be started again; the same request may succeed later
    or elsewhere."""


class AdapterSetAside(AdapterError):
    """The engine crashed over this adapter, or could not take it: no engine is given it any more."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"adapter {self.name!r} is set aside: {self.reason}. Load other weights under its name, or unload it"


class EngineFault(RuntimeError):
    """The engine met an error of its own over this call, which its log shows. It goes on with everything else."""


class WrongProcess(RuntimeError):
    """An engine or a client is used in a child that was forked from its process."""


class WrongEventLoop(RuntimeError):
    """An AsyncLLM is used in another event loop than the one in which it was started."""


class EngineBroken(RuntimeError):
    """The engine cannot compute any more: one of its shards ended, or failed where the others did not; or its GPU
    failed. An `LLM` raises it. In an `AsyncLLM` and in a server another engine takes its place."""


class EngineStartError(RuntimeError):
    """The engine could not start: the model does not load, or there is too little memory."""


__all__ = [
    "AdapterError",
    "AdapterNotFound",
    "AdapterRejected",
    "AdapterSetAside",
    "AdapterTooLarge",
    "DeadlineExceeded",
    "EngineBroken",
    "EngineFault",
    "EngineStartError",
    "EngineUnavailable",
    "InvalidRequest",
    "LimitReached",
    "MessageTooLarge",
    "PermissionDenied",
    "QueueFull",
    "ReaderTooSlow",
    "Unauthenticated",
    "WrongEventLoop",
    "WrongProcess",
]
