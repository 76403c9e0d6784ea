"""AdapterOwners: which tenant has loaded each name, and so may change it. A name without an owner is the operators'.

Owns owners and claims. Knows no content.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import LimitReached, PermissionDenied
from ..identity.tenant import Tenant


class AdapterOwners:
    def __init__(self, is_loaded: Callable[[str], bool]) -> None:
        self._is_loaded = is_loaded
        self._owners: dict[str, str] = {}  # of loaded names
        self._claims: dict[str, str] = {}  # name that is not loaded -> the tenant that loads it
        self._num_claims = Counter[str]()  # by name: a tenant may load a name several times at once

    def of(self, name: str) -> str:
        return self._owners.get(name, "")

    def check(self, name: str, owner: Tenant | None) -> None:
        """Raises PermissionDenied unless a tenant may change a name that is loaded; None is for everything."""
        if owner is not None and (not owner.name or self.of(name) != owner.name):
            raise PermissionDenied(f"adapter {name!r:.140} was not loaded by this tenant")

    @contextmanager
    def claiming(self, name: str, owner: Tenant | None) -> Iterator[None]:
        """Meanwhile a tenant loads a name, which is its own if it was not loaded. So of two tenants that load the same
        new name at once, one is refused. Raises PermissionDenied, LimitReached."""
        if owner is None:
            yield
            return
        self._check_claim(name, owner)
        self._claims[name] = owner.name
        self._num_claims[name] += 1
        try:
            yield
        finally:
            self._num_claims -= Counter((name,))
            if name not in self._num_claims:
                del self._claims[name]

    def _check_claim(self, name: str, owner: Tenant) -> None:
        if self._is_loaded(name):
            self.check(name, owner)
            return
        if self._claims.get(name, owner.name) != owner.name:
            raise PermissionDenied(f"adapter {name!r:.140} is being loaded by another tenant")
        own = {name for names in (self._owners, self._claims) for name, tenant in names.items() if tenant == owner.name}
        most = owner.quotas.adapters
        if most is not None and len(own | {name}) > most:
            raise LimitReached(f"this tenant has loaded {len(own)} names of adapters, and may have {most}; unload some")

    def check_publisher(self, name: str, owner: Tenant | None) -> None:
        """A tenant may have claimed a name that an operator has loaded since. Raises PermissionDenied."""
        if self._is_loaded(name):
            self.check(name, owner)

    def note_published(self, name: str, owner: Tenant | None) -> None:
        """A version of a name is about to be published. Whoever publishes the first one owns the name."""
        if owner is not None and not self._is_loaded(name):
            self._owners[name] = owner.name

    def forget(self, name: str) -> None:
        """A name is not loaded any more."""
        self._owners.pop(name, None)

    def names(self) -> list[str]:
        return list(self._owners)
