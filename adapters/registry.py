"""Registry: which adapter a name means now. Names are aliases of digests; running requests keep the digest they got."""

import re
from collections import Counter

from .errors import AdapterNotFound

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Registry:
    def __init__(self) -> None:
        self._digests: dict[str, str] = {}
        self._num_names: Counter[str] = Counter()  # by digest
        self._pinned: set[str] = set()  # names: a pin ends with what the name means

    def resolve(self, name: str) -> str:
        """The digest behind a name. Raises AdapterNotFound; nothing ever falls back to the base model."""
        try:
            return self._digests[name]
        except (KeyError, TypeError):  # what has no hash is no name either
            raise AdapterNotFound(name) from None

    def publish(self, name: str, digest: str) -> str | None:
        """Points the name at a digest; returns the one it meant before, None for a new name."""
        self._pinned.discard(name)
        old = self._digests.get(name)
        if old is not None:
            self._drop(old)
        self._digests[name] = digest
        self._num_names[digest] += 1
        return old

    def withdraw(self, name: str) -> str:
        """Forgets a name; returns what it meant. Raises AdapterNotFound."""
        digest = self.resolve(name)
        self._pinned.discard(name)
        del self._digests[name]
        self._drop(digest)
        return digest

    def _drop(self, digest: str) -> None:
        self._num_names[digest] -= 1
        if not self._num_names[digest]:
            del self._num_names[digest]

    def is_published(self, digest: str) -> bool:
        """Whether any name means it."""
        return digest in self._num_names

    def set_pinned(self, name: str, is_pinned: bool) -> None:
        (self._pinned.add if is_pinned else self._pinned.discard)(name)

    def pinned_digests(self) -> set[str]:
        """What pinned names mean."""
        return {self._digests[name] for name in self._pinned}


def is_valid_name(name: str) -> bool:
    """Letters, digits, dot, dash and underscore, at most 128, a letter or digit first: safe in paths and in logs."""
    return NAME_PATTERN.fullmatch(name) is not None
