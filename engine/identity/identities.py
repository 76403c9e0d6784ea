"""Identities: from the token of a call to its Caller. Every door asks the same object.

A token is looked up by its hash, so that the time of an answer tells nothing about the tokens that are known.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ..errors import Unauthenticated
from .caller import OPERATOR, Caller
from .tenant import Tenant

LEAST_KEY_LENGTH = 16  # characters; a shorter one can be guessed
MOST_TOKEN_BYTES = 4096  # that are hashed


class Identities(Protocol):
    @property
    def shared_prompts(self) -> Sequence[str]:
        """Texts with which prompts begin, whose cached prefixes all tenants share."""

    def refresh(self) -> bool:
        """Looks at the files behind it; returns whether anything is new. Errors go to the log, and what was known
        stays."""

    def of(self, token: str | None, claimed_tenant: str = "") -> Caller:
        """The caller with this token, None for a call without one. claimed_tenant: the tenant that the call says it is
        for. Raises Unauthenticated, PermissionDenied."""


class Unchanging:
    """What is the same for identities that do not come from a file that may change."""

    shared_prompts: Sequence[str] = ()

    def refresh(self) -> bool:
        return False


class Anybody(Unchanging):
    """No credentials are asked for: everybody is an operator, and of the tenant that he names."""

    def of(self, token: str | None, claimed_tenant: str = "") -> Caller:
        del token
        return replace(OPERATOR, tenant=Tenant(claimed_tenant))


ANYBODY = Anybody()


class ApiKeys(Unchanging):
    """Who has one of the keys is an operator, and of the tenant that he names."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises ValueError."""
        self._hashes = [token_hash(_checked(key)) for key in keys]
        if not self._hashes:
            raise ValueError("there is no API key")

    def of(self, token: str | None, claimed_tenant: str = "") -> Caller:
        given = hash_of_given(token)
        if not any(hmac.compare_digest(given, known) for known in self._hashes):
            raise Unauthenticated("the token is not known")
        return replace(OPERATOR, tenant=Tenant(claimed_tenant))


def read_api_keys(path: Path) -> list[str]:
    """Returns the keys of a file, one on each line. Raises OSError, ValueError."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def hash_of_given(token: str | None) -> bytes:
    """The hash of the token that came with a call. Raises Unauthenticated if none came."""
    if not token:
        raise Unauthenticated("the call has no token; send one header or metadata authorization: Bearer TOKEN")
    if len(token) > MOST_TOKEN_BYTES:
        raise Unauthenticated("the token is not known")
    return token_hash(token)


def bearer(authorizations: Sequence[str]) -> str | None:
    """The token in the values of a call's authorization headers. None if there is not exactly one, of another scheme or
    not, which is a mistake only where tokens are asked for."""
    scheme, _, token = authorizations[0].partition(" ") if len(authorizations) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else None


def _checked(key: str) -> str:
    if len(key) < LEAST_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"an API key has at least {LEAST_KEY_LENGTH} printable ASCII characters and no blank")
    return key
