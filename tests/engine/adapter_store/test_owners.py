"""Who may change a name: the tenant that has loaded it, and operators."""

import pytest

from blora.engine.adapter_store.owners import AdapterOwners
from blora.engine.errors import LimitReached, PermissionDenied
from blora.engine.identity.tenant import Quotas, Tenant

RED, BLUE = Tenant("red", quotas=Quotas(adapters=2)), Tenant("blue")


class Names(set[str]):
    """Loaded names, and their owners."""

    def __init__(self) -> None:
        super().__init__()
        self.owners = AdapterOwners(lambda name: name in self)

    def load(self, name: str, owner: Tenant | None) -> None:
        with self.owners.claiming(name, owner):
            self.publish(name, owner)

    def publish(self, name: str, owner: Tenant | None) -> None:
        self.owners.check_publisher(name, owner)
        self.owners.note_published(name, owner)
        self.add(name)


def test_a_name_is_its_loaders() -> None:
    names = Names()
    names.load("a", RED)
    names.load("a", RED)
    names.owners.check("a", RED)
    names.owners.check("a", None)
    assert names.owners.of("a") == "red"
    for change in (lambda: names.owners.check("a", BLUE), lambda: names.load("a", BLUE)):
        with pytest.raises(PermissionDenied):
            change()
    names.load("a", None)  # an operator replaces it, and the owner stays
    assert names.owners.of("a") == "red"


def test_what_operators_have_loaded_is_no_tenants() -> None:
    names = Names()
    names.load("a", None)
    for owner in (RED, Tenant("")):
        with pytest.raises(PermissionDenied):
            names.load("a", owner)


def test_what_operators_load_while_a_tenant_loads_it_is_no_tenants() -> None:
    names = Names()
    with names.owners.claiming("a", RED):
        names.load("a", None)
        assert names.owners.of("a") == ""
        with pytest.raises(PermissionDenied):
            names.publish("a", RED)
    assert names.owners.of("a") == ""


def test_of_two_that_load_a_new_name_at_once_one_is_refused() -> None:
    names = Names()
    with names.owners.claiming("a", RED), names.owners.claiming("a", RED):
        with pytest.raises(PermissionDenied):
            names.load("a", BLUE)
        assert names.owners.of("a") == ""
    names.load("a", BLUE)  # the loads have failed
    assert names.owners.of("a") == "blue"
    names.remove("a")
    names.owners.forget("a")
    names.load("a", RED)


def test_a_quota_bounds_the_names_of_a_tenant() -> None:
    names = Names()
    names.load("a", RED)
    with names.owners.claiming("b", RED), pytest.raises(LimitReached):
        names.load("c", RED)
    names.load("b", RED)
    names.load("a", RED)
    with pytest.raises(LimitReached):
        names.load("c", RED)
    names.load("c", BLUE)
    names.remove("a")
    names.owners.forget("a")
    names.load("d", RED)
