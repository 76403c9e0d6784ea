"""Tenant: from whose share of service a request is served, and on which terms."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """The most that a tenant may have at a time; None sets no bound of its own."""

    requests: int | None = None  # unfinished samples
    queued_tokens: int | None = None  # of prompts that wait for their first token
    adapters: int | None = None  # names that it has loaded
    upload_bytes: int | None = None  # of one adapter


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str = ""
    weight: float | None = None  # among tenants; None: what the option tenant_weights says
    quotas: Quotas = Quotas()
    salt: bytes = b""  # its requests share cached prefixes with those of the same salt only
    is_proven: bool = False  # by credentials; clients can invent other names without end
