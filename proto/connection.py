"""Connection: how a client reaches its server: the channel's options, TLS, the token, retries, metadata.

The same for both clients, which open the channel and send the calls.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import grpc

from .calls import Ask
from .v1 import adapters_pb2_grpc, engine_pb2_grpc, generation_pb2, generation_pb2_grpc

MAX_ATTEMPTS = 5  # gRPC's own limit

CHANNEL_OPTIONS: Mapping[str, Any] = {
    # Logprobs of a long prompt exceed the 4 MiB that a client accepts by default: RESOURCE_EXHAUSTED after the work.
    "grpc.max_receive_message_length": 256 << 20,
    # Without keepalive, a stream would wait for ever for a server that vanished silently (lost host, silent NAT).
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
}
STUBS: Mapping[str, Any] = {  # the generated classes are untyped
    "Generation": generation_pb2_grpc.GenerationServiceStub,
    "Adapter": adapters_pb2_grpc.AdapterServiceStub,
    "Engine": engine_pb2_grpc.EngineServiceStub,
}
Metadata = Sequence[tuple[str, str | bytes]]


class CallOptions(TypedDict, total=False):
    """Arguments of any call."""

    timeout: float | None  # seconds of this call; None: those of the client
    metadata: Metadata  # of this call, besides the client's


class WrongProcess(RuntimeError):
    """A client is used in a child that was forked from its process. gRPC's threads did not come along, so that a call
    would wait for ever."""


class HomeProcess:
    """This process."""

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def is_here(self) -> bool:
        return os.getpid() == self._id

    def check(self) -> None:
        """Raises WrongProcess in a child that was forked."""
        if not self.is_here:
            raise WrongProcess(
                f"this client belongs to process {self._id}, from which this one was forked; make one in each child, "
                'or start children with multiprocessing.get_context("spawn")'
            )


@dataclass(frozen=True, kw_only=True)
class Connection:
    """See Client, whose arguments these are."""

    target: str
    credentials: grpc.ChannelCredentials | None = None
    root_certificates: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)
    certificate_chain: bytes | None = None
    token: str | None = field(default=None, repr=False)
    tenant: str = ""
    timeout: float | None = None
    metadata: Metadata = ()
    attempts: int = 1
    channel_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise ValueError(f"attempts: {self.attempts} is not from 1 to {MAX_ATTEMPTS}")
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("private_key: goes with certificate_chain; give both or neither")
        if self.credentials is not None and self._has_certificates:
            raise ValueError("credentials: has its own certificates; give root_certificates and the like, or this")

    def open(self, library: Any) -> Any:
        """Returns a channel. library: grpc, or grpc.aio."""
        credentials = self._channel_credentials()
        if credentials is None:
            return library.insecure_channel(self.target, options=self._options())
        return library.secure_channel(self.target, credentials, options=self._options())

    def call_metadata(self, further: Metadata) -> Metadata:
        """Returns the metadata of a call. further: that of this call alone."""
        own = [("x-tenant-id", self.tenant)] if self.tenant else []
        own += [("authorization", f"Bearer {self.token}")] if self.token else []
        return (*own, *self.metadata, *further)

    @property
    def _has_certificates(self) -> bool:
        return any(value is not None for value in (self.root_certificates, self.private_key, self.certificate_chain))

    def _channel_credentials(self) -> grpc.ChannelCredentials | None:
        if not self._has_certificates:
            return self.credentials
        return grpc.ssl_channel_credentials(self.root_certificates or None, self.private_key, self.certificate_chain)

    def _options(self) -> tuple[tuple[str, Any], ...]:
        retries = {"grpc.service_config": service_config(self.attempts)} if self.attempts > 1 else {}
        return tuple({**CHANNEL_OPTIONS, **retries, **(self.channel_options or {})}.items())


class Wire:
    """An open connection. library: grpc, or grpc.aio."""

    def __init__(self, connection: Connection, library: Any) -> None:
        self._connection, self._home = connection, HomeProcess()
        self.channel = connection.open(library)
        self._stubs: dict[str, Any] = {name: stub(self.channel) for name, stub in STUBS.items()}

    @property
    def is_here(self) -> bool:
        return self._home.is_here

    def send(self, ask: Ask[Any], options: CallOptions) -> Any:
        """Returns the call. Only a timeout of its own ends a watch. Raises WrongProcess."""
        self._home.check()
        timeout = options.get("timeout")
        if timeout is None and not ask.is_watch:
            timeout = self._connection.timeout
        metadata = self._connection.call_metadata(options.get("metadata", ()))
        return getattr(self._stubs[ask.service], ask.method)(ask.request, timeout=timeout, metadata=metadata)


def service_config(attempts: int) -> str:
    """Returns the service config with which gRPC itself tries generations again while no server is available, but for
    streams that have begun. A refusal of a full server is the caller's to answer: channels that try again by themselves
    would keep it full."""
    policy = {
        "maxAttempts": attempts,
        "initialBackoff": "0.5s",
        "maxBackoff": "10s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    service = {"service": generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name}
    return json.dumps({"methodConfig": [{"name": [service], "retryPolicy": policy}]})
