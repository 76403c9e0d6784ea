"""Caller: who makes a call, as its credentials say, and what he may do."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    tenant: str = ""  # of whose share of service his requests take
    is_operator: bool = False  # may change adapters, end the requests of others, and see the whole engine


OPERATOR = Caller(is_operator=True)
