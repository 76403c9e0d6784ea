"""Caller: who makes a call, as its credentials say, and what he may do."""

import fnmatch
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from .tenant import Tenant

PRIORITIES = (-(1 << 31), (1 << 31) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    tenant: Tenant = Tenant()
    is_operator: bool = False  # may change all adapters, end the requests of others, and see the whole engine
    priorities: tuple[int, int] = PRIORITIES  # the most urgent one that he may ask for, and the least urgent
    adapters: tuple[str, ...] = ("*",)  # patterns of the names that he may use
    may_upload: tuple[str, ...] = ()  # patterns of the names under which he may load adapters; he may use these, too

    def may_use(self, name: str) -> bool:
        """name: without the number of a version."""
        return self.is_operator or _matches((*self.adapters, *self.may_upload), name)

    def may_upload_as(self, name: str) -> bool:
        return self.is_operator or _matches(self.may_upload, name)


def salt_of(tenant: str) -> bytes:
    """The salt of a tenant's prefix keys. It need not be secret: no client can choose a salt of this length."""
    return hashlib.sha256(b"tenant\0" + tenant.encode()).digest()


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(_compiled(pattern).match(name) is not None for pattern in patterns)


@cache  # patterns come from the files of operators only
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


OPERATOR = Caller(is_operator=True)
