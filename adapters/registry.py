"""Registry: which adapter a name means now. Names are aliases of digests; running requests keep the digest they got."""

import re
from collections.abc import Iterator

from .errors import AdapterNotFound

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Registry:
    def __init__(self) -> None:
        self._digests: dict[str, str] = {}

    def resolve(self, name: str) -> str:
        """The digest behind a name. Raises AdapterNotFound; nothing ever falls back to the base model."""
        try:
            return self._digests[name]
        except KeyError:
            raise AdapterNotFound(name) from None

    def publish(self, name: str, digest: str) -> str | None:
        """Points the name at a digest; returns a digest that no name means any more."""
        old = self._digests.get(name)
        self._digests[name] = digest
        return self._orphan(old)

    def withdraw(self, name: str) -> tuple[str, bool]:
        """Forgets a name; returns its digest and whether no name means it any more. Raises AdapterNotFound."""
        digest = self.resolve(name)
        del self._digests[name]
        return digest, self._orphan(digest) is not None

    def _orphan(self, digest: str | None) -> str | None:
        return digest if digest is not None and digest not in self._digests.values() else None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(list(self._digests.items()))

    def __contains__(self, name: str) -> bool:
        return name in self._digests


def is_valid_name(name: str) -> bool:
    """Letters, digits, dot, dash and underscore, at most 128, a letter or digit first: safe in paths and in logs."""
    return NAME_PATTERN.fullmatch(name) is not None
