"""Registry: the adapter that each name means now, and the ones that it meant before.

Every load under a name makes a version: 1, 2, ... One version is active: the name alone means it, and "name@2" means
version 2, active or not. A version is an alias of a digest; running requests keep the digest that they got. Of each
name, the registry keeps the active version and those that were active last, at most `max_versions` in all.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .errors import AdapterNotFound

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
MAX_NAME_LENGTH = 128
REFERENCE_PATTERN = re.compile(r"([^@]+)@([1-9][0-9]{0,8})")
MAX_GONE_NAMES = 10_000  # unloaded names whose version numbers are remembered


@dataclass(frozen=True, slots=True)
class Version:
    number: int  # 1, 2, ... in the order of loading; never used twice under a name
    digest: str
    path: str  # folder, or other source, that it was loaded from
    loaded_at: float  # time.time()


Versions = dict[int, Version]  # number -> version of one name, in the order of activation: the last one is active


class Registry:
    def __init__(self, max_versions: int = 1) -> None:
        """max_versions: most versions that are kept of each name, the active one included."""
        self._max_versions = max_versions
        self._names: dict[str, Versions] = {}
        # The last number given under each name: a number must never come to mean other weights. Of unloaded names, the
        # latest are remembered. Under the others, no number was above the floor, and new names begin above it.
        self._last_numbers: dict[str, int] = {}
        self._gone: OrderedDict[str, int] = OrderedDict()
        self._floor = 0
        self._aliases: dict[str, set[tuple[str, int]]] = {}  # digest -> name and number of the versions that mean it
        self._pinned: set[tuple[str, int]] = set()  # name, number; a pin ends when its version ceases to be active

    def resolve(self, reference: str) -> str:
        """Returns the digest behind "name" or "name@2". Raises AdapterNotFound and never returns the base model."""
        return self.find(reference)[1].digest

    def find(self, reference: str) -> tuple[str, Version]:
        """Returns the name and the version behind a reference. Raises AdapterNotFound."""
        try:
            name, number = _parse(reference)
            versions = self._names[name]
            return name, _active(versions) if number is None else versions[number]
        except (KeyError, TypeError):  # a value without a hash is no name either
            raise AdapterNotFound(reference) from None

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def num_names(self) -> int:
        return len(self._names)

    def names(self) -> list[str]:
        return sorted(self._names)

    def versions(self, name: str) -> list[Version]:
        """Returns the versions of a name, by number. Raises AdapterNotFound."""
        if name not in self._names:
            raise AdapterNotFound(name)
        return sorted(self._names[name].values(), key=lambda version: version.number)

    def publish(self, name: str, digest: str, path: str = "", loaded_at: float = 0.0) -> set[str]:
        """Makes a version and activates it. Returns the digest that the name no longer means, and those of versions
        dropped to keep at most `max_versions`. The digest of a version that is kept makes no second one."""
        versions = self._names.setdefault(name, {})
        active = _active(versions) if versions else None
        same = next((version for version in versions.values() if version.digest == digest), None)
        if same is not None:
            versions[same.number] = replace(same, path=path, loaded_at=loaded_at)
            return self.activate(name, same.number)
        number = self._next_number(name)
        versions[number] = Version(number, digest, path, loaded_at)
        self._aliases.setdefault(digest, set()).add((name, number))
        lost = set() if active is None else self._retire(name, active)
        return lost | self._drop(name, list(versions)[: -self._max_versions])

    def _next_number(self, name: str) -> int:
        last = self._last_numbers.get(name)
        if last is None:
            last = self._gone.pop(name, self._floor)
        self._last_numbers[name] = last + 1
        return last + 1

    def activate(self, name: str, number: int) -> set[str]:
        """Makes the name mean one of its versions. Returns the digest that it meant. Raises AdapterNotFound."""
        self.find(f"{name}@{number}")
        versions = self._names[name]
        active = _active(versions)
        if active.number == number:
            return set()
        versions[number] = versions.pop(number)  # moves to the end
        return self._retire(name, active)

    def _retire(self, name: str, active: Version) -> set[str]:
        self._pinned.discard((name, active.number))
        return {active.digest}

    def withdraw(self, reference: str) -> set[str]:
        """Forgets a name, or one of its versions. Returns the digests that these meant. Raises AdapterNotFound, and
        ValueError for the active one of several versions, because only the caller can choose the next active one."""
        name, version = self.find(reference)
        versions = self._names[name]
        if reference != name and len(versions) > 1 and version is _active(versions):
            raise ValueError(
                f"version {version.number} of {name!r} is active: activate another one, or unload the name"
            )
        lost = self._drop(name, list(versions) if reference == name else [version.number])
        if not versions:
            del self._names[name]
            self._gone[name] = self._last_numbers.pop(name)
            if len(self._gone) > MAX_GONE_NAMES:
                _, number = self._gone.popitem(last=False)
                self._floor = max(self._floor, number)
        return lost

    def _drop(self, name: str, numbers: Iterable[int]) -> set[str]:
        dropped = [self._names[name].pop(number) for number in numbers]
        for version in dropped:
            self._pinned.discard((name, version.number))
            self._aliases[version.digest].remove((name, version.number))
            if not self._aliases[version.digest]:
                del self._aliases[version.digest]
        return {version.digest for version in dropped}

    def is_published(self, digest: str) -> bool:
        """Returns whether any version of any name means the digest."""
        return digest in self._aliases

    def digests(self) -> set[str]:
        """Returns the digests that versions of names mean."""
        return set(self._aliases)

    def aliases(self, digest: str) -> list[tuple[str, int]]:
        """Returns the name and the number of every version that means the digest."""
        return sorted(self._aliases.get(digest, ()))

    def set_pinned(self, reference: str, is_pinned: bool) -> None:
        """Pins a version, or ends its pin. Raises AdapterNotFound."""
        name, version = self.find(reference)
        (self._pinned.add if is_pinned else self._pinned.discard)((name, version.number))

    def is_pinned(self, name: str, number: int) -> bool:
        return (name, number) in self._pinned

    def pinned_digests(self) -> set[str]:
        """Returns the digests of the pinned versions."""
        return {self._names[name][number].digest for name, number in self._pinned}


def _active(versions: Versions) -> Version:
    return versions[next(reversed(versions))]


def _parse(reference: str) -> tuple[str, int | None]:
    match = REFERENCE_PATTERN.fullmatch(reference)
    return (reference, None) if match is None else (match[1], int(match[2]))


def base_name(reference: str) -> str:
    """Returns the name in "name" or "name@2"."""
    return _parse(reference)[0]


def is_valid_name(name: str) -> bool:
    """Returns whether a name is safe in paths and logs: letters, digits, dots, dashes, underscores and slashes, at most
    128, and a letter or digit first and after each slash. So a name such as "org/name" leads out of no folder."""
    return len(name) <= MAX_NAME_LENGTH and NAME_PATTERN.fullmatch(name) is not None
