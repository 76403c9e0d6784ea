"""Access: who may reach a server, and on which ways."""

from dataclasses import dataclass, replace

from ..identity.caller import Caller
from ..identity.identities import ANYBODY, Identities
from .tls import Tls


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    identities: Identities = ANYBODY
    tls: Tls | None = None  # of all doors but the operators'
    operators_address: str | None = None  # HOST:PORT or unix:PATH, where everybody is an operator; elsewhere nobody is

    def public(self) -> Identities:
        """The identities at the doors for everybody."""
        return self.identities if self.operators_address is None else WithoutOperators(self.identities)

    def refresh(self) -> bool:
        """Looks at the files behind it; returns whether identities have changed."""
        if self.tls is not None:
            self.tls.refresh()
        return self.identities.refresh()


OPEN = Access()


class WithoutOperators:
    """Callers without the operator's right, where operators have a door of their own."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    @property
    def shared_prompts(self) -> tuple[str, ...]:
        return tuple(self._identities.shared_prompts)

    def refresh(self) -> bool:
        return self._identities.refresh()

    def of(self, token: str | None, claimed_tenant: str = "") -> Caller:
        return replace(self._identities.of(token, claimed_tenant), is_operator=False)
