"""AdapterStages: the stage of each adapter's life. One machine, whose allowed moves stand in one table.

An adapter is a content, named by its digest, however many versions of names mean it.

               a load begins               a version means it
    ABSENT ----------------------> COMING --------------------> LOADED
       ^                            |  ^                         ^  |
       |       the load has failed: |  |                a version|  | its last
       |         the engine is told |  | a load    means it again|  | version
       |                            |  | begins                  |  | has gone
       |                            v  |                         |  v
       +--------------------------- UNLOADING <--------------- LEAVING
       ^   the engine has freed it,            nothing uses it:     |
       |   or has ended                        the engine is told   |
       +------------------------------------------------------------+
            nothing uses it (or its load has failed), and there is no engine

Nothing uses an adapter when no unfinished request, no operation such as a pin, and no load of the same content does.
"""

from collections.abc import Mapping
from enum import Enum


class Stage(Enum):
    ABSENT = "absent"  # nothing is known of it
    COMING = "coming"  # a load gives it to the engine
    LOADED = "loaded"  # a version of a name means it
    LEAVING = "leaving"  # no version means it, something still uses it
    UNLOADING = "unloading"  # the engine was told to free it, and has not confirmed


MOVES: Mapping[Stage, frozenset[Stage]] = {
    Stage.ABSENT: frozenset({Stage.COMING}),
    Stage.COMING: frozenset({Stage.LOADED, Stage.UNLOADING, Stage.ABSENT}),
    Stage.LOADED: frozenset({Stage.LEAVING}),
    Stage.LEAVING: frozenset({Stage.LOADED, Stage.UNLOADING, Stage.ABSENT}),
    Stage.UNLOADING: frozenset({Stage.COMING, Stage.ABSENT}),
}


class AdapterStages:
    def __init__(self) -> None:
        # Stage -> digests, in the order of their arrival. An adapter that stands nowhere is absent.
        self._digests: dict[Stage, dict[str, None]] = {stage: {} for stage in Stage if stage is not Stage.ABSENT}

    def of(self, digest: str) -> Stage:
        return next((stage for stage, digests in self._digests.items() if digest in digests), Stage.ABSENT)

    def move(self, digest: str, to: Stage) -> None:
        """Raises RuntimeError for a move that the machine does not have."""
        stage = self.of(digest)
        if to not in MOVES[stage]:
            raise RuntimeError(f"adapter {digest} is {stage.value} and cannot become {to.value}")
        if stage is not Stage.ABSENT:
            del self._digests[stage][digest]
        if to is not Stage.ABSENT:
            self._digests[to][digest] = None

    def at(self, *stages: Stage) -> list[str]:
        """The digests of the adapters at these stages."""
        return [digest for stage in stages for digest in self._digests[stage]]
